"""What the commands print beside the progress: chains, tables, sizes."""

from collections.abc import Sequence
from typing import Any

import jax


def parameters(params: Any) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def nbytes(state: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def indented(tx: Any) -> str:
    """The call that makes a chain, one part a line; a single part stays on its line."""
    calls = [part.call() for part in tx.parts]
    if len(calls) < 2:
        return repr(tx)
    return "chain(\n" + "".join(f"           {call},\n" for call in calls) + "       )"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Rows of text in columns.

    Args:
        titles: of the columns.
        rows: as many cells each.
        right: which columns end, not begin, in line.
    """
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        ).rstrip()
        for cells in [titles, *rows]
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
