"""Optimizers against each other on small problems, with equal tuning budgets: `python -m benchmarks.optimizers`.

`workloads` are the problems, `contestants` the optimizers, `protocol` tunes and races them,
`report` makes the table and the pictures.
"""
