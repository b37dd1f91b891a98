"""The audit of a transform: which parameter gets what."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jopt.calls import named
from jopt.engine import Tree, formats_of, walk
from jopt.formats import Stored
from jopt.paths import flatten, path_of
from jopt.rule import Part, Whole
from jopt.scalars import raw
from jopt.state import State, states
from jopt.transform import Transform, as_transform, is_transform


@dataclasses.dataclass(frozen=True)
class Row:
    """What one parameter gets."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    group: str
    rules: str
    state_bytes: int


@dataclasses.dataclass(frozen=True)
class Audit:
    """A table of rows; `str` and the notebook show it."""

    rows: tuple[Row, ...]

    @property
    def state_bytes(self) -> int:
        """Bytes of all arrays kept for parameters."""
        return sum(row.state_bytes for row in self.rows)

    def __str__(self) -> str:
        recipes = list(dict.fromkeys(row.rules for row in self.rows))
        letter = {rules: _letters(i) for i, rules in enumerate(recipes)}
        header = ("parameter", "shape", "dtype", "group", "rules", "state")
        cells = [
            (
                row.path or "(array)",
                "×".join(map(str, row.shape)) or "scalar",
                row.dtype,
                row.group,
                letter[row.rules],
                f"{row.state_bytes:,} B",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]

        def line(values):
            padded = [v.ljust(w) for v, w in zip(values[:-1], widths[:-1], strict=True)]
            return "  ".join([*padded, values[-1].rjust(widths[-1])])

        legend = ["", *(f"{letter[rules]}: {rules}" for rules in recipes)]
        scheduled = ["* follows a schedule"] if any("*" in rules for rules in recipes) else []
        total = f"{len(self.rows)} parameters, {self.state_bytes:,} bytes of state"
        table = [line(header), line(["─" * w for w in widths]), *map(line, cells), total]
        return "\n".join([*table, *legend, *scheduled])

    __repr__ = __str__


def _letters(i: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_letters(i // 26 - 1) if i >= 26 else "") + chr(ord("A") + i % 26)


def explain(tx: Any, params: Any, state: Any = None) -> Audit:
    """Say for each parameter which group claims it, by which rules, numbers and flags, and what state it costs.

    Args:
        tx: a transform.
        params: parameters, or their `jax.ShapeDtypeStruct`s.
        state: the numbers are read from it; None takes those of a fresh one.

    Returns:
        An `Audit`; print it.

    Raises:
        TypeError: tx is no transform, or two arguments are swapped.
    """
    held = next(states(params), None) is not None
    if held or (is_transform(params) and not is_transform(tx)):
        swapped = "state and params" if held else "params and tx"
        raise TypeError(
            f"explain: {swapped} are swapped: tx={type(tx).__name__} and params={type(params).__name__} were given, a "
            f"transform and its parameters were expected. Call explain(tx, params, state)."
        )
    tx = as_transform(tx, "explain")
    flat, layout = flatten(params)
    tree = Tree.of(flat, layout)
    fresh = jax.eval_shape(tx.init, params)
    rules: dict[str, list[str]] = {path: [] for path in flat}
    groups: dict[str, set[str]] = {path: set() for path in flat}
    _visit(tx, tree, state, rules, groups)
    kept = _bytes_by_path(fresh, tree)
    rows = []
    for path, leaf in tree.leaves.items():
        if leaf is None:
            continue
        rows.append(
            Row(
                path,
                leaf.shape,
                str(leaf.dtype),
                ", ".join(sorted(groups[path])) or "-",
                " → ".join(rules[path]) or "passes through",
                kept[path],
            )
        )
    return Audit(tuple(rows))


def _visit(tx: Transform, tree: Tree, state: Any, rules: dict[str, list[str]], groups: dict[str, set[str]]) -> None:
    for part, paths in zip(walk(tx.parts), tx.plan.claims(tree), strict=True):
        shown = [f"{name}={_number(part, name, value, state)}" for name, value in part.hyper]
        shown += [text for name, value in sorted(dict(part.static).items()) if (text := _static(name, value))]
        formats = formats_of(part, tree)
        for path in paths:
            stored = [f"{slot} in {name}" for (slot, of), name in formats.items() if of == path]
            rules[path].append(f"{part.of.name}({', '.join([*shown, *stored, *_note(part, tree, path)])})")
            if "/" in part.name:
                groups[path].add(part.name.rpartition("/")[0])
        for name, inner in part.wrapped:
            if isinstance(inner, Transform):
                held = None if state is None else dict(_scoped(state, part.name))[name]
                _visit(inner, tree.only(paths), held, rules, groups)


def _scoped(state: State, name: str) -> Iterator[tuple[str, State]]:
    """The states that a wrapper keeps, each with the full name that its numbers are under."""
    return states(state.inner[name], f"{name}/")


def _note(part: Part, tree: Tree, path: str) -> list[str]:
    """What a part says itself of a leaf."""
    note, leaf = part.of.note if isinstance(part.of, Whole) else None, tree.leaves[path]
    return [] if note is None or leaf is None else [note(leaf, **named(note, dict(part.static), part))]


def _number(part: Part, name: str, value: Any, state: Any) -> str:
    """A number of a part as its state has it, else as it starts; a star marks a schedule."""
    if state is not None:
        now = state.hyper[f"{part.name}/{name}"]
    else:
        now = value(np.int32(0)) if callable(value) else raw(value)
    return f"{float(now):.4g}{'*' if callable(value) else ''}"


def _static(name: str, value: Any) -> str:
    """A value fixed at construction: a count, a name, or a flag that is set; others say little in a table."""
    if value is True:
        return name
    return f"{name}={value}" if isinstance(value, int | float | str) and value is not False else ""


def _bytes_by_path(fresh: State, tree: Tree) -> dict[str, int]:
    """Bytes of the arrays under each parameter's path, those of wrappers and foreign states included."""
    kept = dict.fromkeys(tree.leaves, 0)
    for keys, x in jax.tree_util.tree_flatten_with_path(fresh, is_leaf=lambda x: isinstance(x, Stored))[0]:
        path = _owner(keys, x, tree)
        if path is not None:
            kept[path] += sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(x))
    return kept


def _owner(keys: tuple[Any, ...], x: Any, tree: Tree) -> str | None:
    """The parameter an array of the state is kept for, by its key: ours are paths, foreign ones end in one."""
    if any(getattr(key, "name", None) in ("hyper", "base", "scalars") for key in keys):
        return None
    if getattr(keys[-1], "key", None) in tree.leaves:
        return keys[-1].key
    ends = (path_of(keys[i:]) for i in range(len(keys) + 1))
    # A bare array has the empty path, which ends every other: then the shape must tell it from a counter.
    shapes = {path: leaf.shape for path, leaf in tree.leaves.items() if leaf is not None}
    return next((end for end in ends if end in shapes and (end or x.shape == shapes[end])), None)
