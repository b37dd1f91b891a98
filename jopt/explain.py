"""The audit of a transform: which parameter gets what."""

import dataclasses
from typing import Any

import jax

from jopt.engine import Tree, walk
from jopt.paths import flatten
from jopt.state import State, states
from jopt.transform import Transform, as_transform


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
        header = ("parameter", "shape", "dtype", "group", "rules", "state")
        cells = [
            (
                row.path or "(array)",
                "×".join(map(str, row.shape)) or "scalar",
                row.dtype,
                row.group,
                row.rules,
                f"{row.state_bytes:,} B",
            )
            for row in self.rows
        ]
        widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]

        def line(values):
            padded = [v.ljust(w) for v, w in zip(values[:-1], widths[:-1], strict=True)]
            return "  ".join([*padded, values[-1].rjust(widths[-1])])

        total = f"{len(self.rows)} parameters, {self.state_bytes:,} bytes of state"
        return "\n".join([line(header), line(["─" * w for w in widths]), *map(line, cells), total])

    __repr__ = __str__


def explain(tx: Any, params: Any, state: Any = None) -> Audit:
    """Say for each parameter which group claims it, by which rules and numbers, and what state it costs.

    Args:
        tx: a transform.
        params: parameters, or their `jax.ShapeDtypeStruct`s.
        state: the numbers are read from it; None takes those of a fresh one.

    Returns:
        An `Audit`; print it.
    """
    tx = as_transform(tx, "explain")
    flat, layout = flatten(params)
    tree = Tree.of(flat, layout)
    fresh = jax.eval_shape(tx.init, params)
    rules: dict[str, list[str]] = {path: [] for path in flat}
    groups: dict[str, set[str]] = {path: set() for path in flat}
    _visit(tx, tree, tx.init({}) if state is None else state, rules, groups)
    rows = []
    for path, leaf in tree.leaves.items():
        if leaf is None:
            continue
        kept = sum(_bytes_at(s, path) for _, s in states(fresh))
        rows.append(
            Row(
                path,
                leaf.shape,
                str(leaf.dtype),
                ", ".join(sorted(groups[path])) or "-",
                " → ".join(rules[path]) or "passes through",
                kept,
            )
        )
    return Audit(tuple(rows))


def _visit(tx: Transform, tree: Tree, state: State, rules: dict[str, list[str]], groups: dict[str, set[str]]) -> None:
    for part, paths in zip(walk(tx.parts), tx.update.plan.claims(tree), strict=True):
        shown = []
        for name, _ in part.hyper:
            full = f"{part.name}/{name}"
            scheduled = "" if full in state.base else "*"
            shown.append(f"{name}={float(state.hyper[full]):.4g}{scheduled}")
        for path in paths:
            rules[path].append(f"{part.of.name}({', '.join(shown)})")
            if "/" in part.name:
                groups[path].add(part.name.rpartition("/")[0])
        if isinstance(part.inner, Transform):
            ((_, below),) = list(states(state.inner[part.name]))[:1]
            _visit(part.inner, tree.only(paths), below, rules, groups)


def _bytes_at(state: State, path: str) -> int:
    kept = [flat[path] for slots in state.slots.values() for flat in slots.values() if path in flat]
    return sum(x.size * x.dtype.itemsize for x in kept)
