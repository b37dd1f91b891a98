"""Checkpoints that are whole, exact and safe to open, or say what is wrong with them.

`checkpoint` saves and loads a tree; `checkpointer` keeps the checkpoints of a run. Below them, `trees`
and `leaves` turn a tree into named arrays, `match` and `reconcile` fit them into another tree,
`archive` is the file, and `storage` all that touches the file system.
"""

from jopt.train.checkpoint.checkpoint import load, read_meta, save
from jopt.train.checkpoint.checkpointer import Checkpointer
from jopt.train.checkpoint.errors import CheckpointError

__all__ = ["CheckpointError", "Checkpointer", "load", "read_meta", "save"]
