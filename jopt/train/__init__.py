"""Training on the library's own data sets: `data` loads them, `run` trains, `report` and `plots` show."""
