"""The algorithms once more, in plain NumPy and float64, written from the papers and not from jopt's code.

An oracle is one step for one array:

    u = oracle(g, p, s, t, ...)        g gradient, p parameter, t = 1, 2, ...; then the numbers by name

`s` is the array's memory, a dict that is empty before the first step and keeps the paper's symbols.
u is added to p; a bare rule (scale_by_...) returns the direction that its optimizer subtracts.
An oracle over the tree (`Replay(..., tree=True)`) takes and returns dicts of arrays, with one memory.
Sign rules leave what they took the sign of in s["argument"], and the size of the terms it was summed
from in s["terms"].

A family of `zoo` has its transcriptions in the module of the same name here.
"""

from oracles import averages, blocks, classic, matrix, moments, preconditioners, search, storage, tuned
from oracles.record import error, record

FAMILIES = (classic, moments, blocks, matrix, preconditioners, tuned, averages, storage, search)


def find(name):
    """The oracle of this name."""
    (family,) = [family for family in FAMILIES if getattr(family, name, None).__class__.__name__ == "function"]
    return getattr(family, name)


__all__ = ["FAMILIES", "error", "find", "record"]
