"""State in fewer bits."""
