"""Arrays of any rank as matrices: which axes are rows, which are columns; the others count matrices."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt.paths import Layout, Leaf, Where, flatten, matched, ndim, path
from jopt.paths import where as choose

Leaves = Mapping[str, Leaf | None]


class View(NamedTuple):
    """An array as matrices of one shape; axes that are neither rows nor columns count them.

    Args:
        rows, columns: axes from 0; several are joined in the order given.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]

    def batch(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the axes that count matrices."""
        return tuple(n for axis, n in enumerate(shape) if axis not in self.rows + self.columns)

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The shape of one matrix."""
        return math.prod(shape[axis] for axis in self.rows), math.prod(shape[axis] for axis in self.columns)

    def is_plain(self, rank: int) -> bool:
        """Whether an array of this rank is one matrix as it lies, or its transpose."""
        return rank == 2 and len(self.rows) == len(self.columns) == 1

    @property
    def transposed(self) -> "View":
        """The same array as matrices that are the transposes of these."""
        return View(self.columns, self.rows)

    def matrices(self, x: jax.Array) -> jax.Array:
        """The matrices of an array, (number, rows, columns)."""
        if self.is_plain(x.ndim):  # a new axis of a sharded array needs no reshape
            return jnp.expand_dims(x if self == MATRIX else x.T, 0)
        moved = jnp.transpose(x, self._order(x.ndim))
        return moved.reshape(math.prod(self.batch(x.shape)), *self.sides(x.shape))

    def array(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """The array of this shape that has these matrices."""
        if self.is_plain(len(shape)):
            x = jax.lax.squeeze(matrices, (0,))
            return x if self == MATRIX else x.T
        order = self._order(len(shape))
        moved = matrices.reshape([shape[axis] for axis in order])
        return jnp.transpose(moved, sorted(range(len(order)), key=order.__getitem__))

    def split(self, slot: jax.Array, shape: tuple[int, ...], kept: tuple[int, ...]) -> jax.Array:
        """What `join` made for an array of this shape, by matrix: (number, *kept)."""
        if kept == self.sides(shape):
            return self.matrices(slot)
        return slot.reshape(math.prod(self.batch(shape)), *kept)

    def join(self, slots: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What is kept for each matrix as one array: in the array's shape if it has the matrix's."""
        if slots.shape[1:] == self.sides(shape):
            return self.array(slots, shape)
        return slots.reshape(*self.batch(shape), *slots.shape[1:])

    def _order(self, rank: int) -> tuple[int, ...]:
        return (*(axis for axis in range(rank) if axis not in self.rows + self.columns), *self.rows, *self.columns)


MATRIX = View((0,), (1,))


def view(leaf: Leaf, rows: Any, columns: Any) -> View:
    """The view of a leaf from axes as a user gives them.

    Args:
        leaf: the parameter.
        rows, columns: an axis or several, negative ones from the end; `...` is all others.

    Raises:
        ValueError: an axis that the leaf lacks, or one that is both.
    """
    given = [None if side is ... else (side,) if isinstance(side, int) else tuple(side) for side in (rows, columns)]
    wrong = any(not -leaf.ndim <= axis < leaf.ndim for side in given if side is not None for axis in side)
    found = [None if wrong or side is None else tuple(axis % leaf.ndim for axis in side) for side in given]
    rest = tuple(axis for axis in range(leaf.ndim) if axis not in (*(found[0] or ()), *(found[1] or ())))
    made = View(*(rest if side is None else side for side in found))
    if wrong or rows is columns or not all(made) or len({*made.rows, *made.columns}) < len(made.rows + made.columns):
        raise ValueError(
            f"axes: rows={rows!r} and columns={columns!r} were given for the parameter {leaf.path!r} of shape "
            f"{list(leaf.shape)}, different axes of it for each were expected. Correct them, or narrow the pattern "
            f"that chooses this parameter."
        )
    return made


@dataclasses.dataclass(frozen=True, repr=False)
class Axes:
    """Cases ``(where, rows, columns)``: the first that matches a leaf says its axes; 2-D leaves need none."""

    cases: tuple[tuple[Where, Any, Any], ...]

    def views(self, leaves: Leaves, layout: Layout) -> dict[str, View]:
        """The views of those leaves that are matrices."""
        found: dict[str, View] = {}
        for where, rows, columns in self.cases:
            for name in sorted(matched(where, leaves, layout, "axes: where") - found.keys()):
                leaf = leaves[name]
                assert leaf is not None
                found[name] = view(leaf, rows, columns)
        plain: dict[str, View] = {name: MATRIX for name, leaf in leaves.items() if leaf is not None and leaf.ndim == 2}
        return plain | found

    def __repr__(self) -> str:
        return repr(self.cases)


@dataclasses.dataclass(frozen=True, repr=False)
class AxesTree:
    """optax's form: a tree, or a prefix of one, of rows and columns; None is no matrix."""

    entries: tuple[tuple[str, tuple[Any, Any] | None], ...]

    def views(self, leaves: Leaves, layout: Layout) -> dict[str, View]:
        """The views of those leaves that are matrices."""
        marks, found = dict(self.entries), {}
        for name, leaf in leaves.items():
            parts = name.split("/") if name else []
            prefixes = ("/".join(parts[:i]) for i in range(len(parts), -1, -1))
            mark = next((marks[prefix] for prefix in prefixes if prefix in marks), None)
            if mark is not None and leaf is not None:
                found[name] = view(leaf, *mark)
        return found

    def __repr__(self) -> str:
        if len(self.entries) == 1 and self.entries[0][0] == "":
            return repr(self.entries[0][1])
        tree: dict[str, Any] = {}
        for name, mark in self.entries:
            *parents, last = [key.replace("~1", "/").replace("~0", "~") for key in name.split("/")]
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = mark
        return repr(tree)


@dataclasses.dataclass(frozen=True, repr=False)
class AxesFunction:
    """optax's other form: a function from the tree (of shapes and dtypes) to a tree of rows and columns."""

    function: Callable[[Any], Any]

    def views(self, leaves: Leaves, layout: Layout) -> dict[str, View]:
        """The views of those leaves that are matrices."""
        tree = layout.tree(
            {name: leaf and jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()}
        )
        return _tree(self.function(tree), "axes").views(leaves, layout)

    def __repr__(self) -> str:
        return repr(self.function)


@dataclasses.dataclass(frozen=True, repr=False)
class EveryLeaf:
    """Every leaf: a vector is one column, and an array of more axes has its last one as columns."""

    def views(self, leaves: Leaves, layout: Layout) -> dict[str, View]:
        """The views of all leaves."""
        ranks = {name: leaf.ndim for name, leaf in leaves.items() if leaf is not None}
        return {n: View(tuple(range(max(k - 1, min(k, 1)))), (k - 1,) if k > 1 else ()) for n, k in ranks.items()}

    def __repr__(self) -> str:
        return "'any'"


AnyAxes = Axes | AxesTree | AxesFunction | EveryLeaf

_KINDS: dict[str, AnyAxes] = {
    # Flax: (height, width, inputs, outputs), with fewer or more axes of space; 3 axes may as well be heads.
    "any": EveryLeaf(),
    "conv": Axes(((ndim(4, 5), ..., -1),)),
    # Flax attention: query, key and value (inputs, heads, size), out (heads, size, outputs); a matrix for each head.
    "heads": Axes(
        (
            (path("**/query/kernel|**/key/kernel|**/value/kernel") & ndim(3), 0, 2),
            (path("**/out/kernel") & ndim(3), 1, 2),
        )
    ),
}


def matrix_axes(call: str, axes: Any, numbers: Any = None) -> AnyAxes | None:
    """Normalise what `axes=` accepts, or optax's dimension numbers in its place.

    Args:
        call: the function the user called, for the message.
        axes: None (2-D arrays), "any", "conv", "heads", cases ``[(where, rows, columns), ...]``, or any of
            optax's forms.
        numbers: optax's form: an object with `reduction_axis` and `output_axis`, a tree of them, or
            a function that makes one.

    Raises:
        TypeError: something else, or both.
    """
    if axes is not None and numbers is not None:
        raise TypeError(
            f"{call}: axes={axes!r} and dimension numbers were given, one of them was expected. Leave one out."
        )
    given = numbers if axes is None else axes
    if given is None or isinstance(given, AnyAxes):
        return given
    if isinstance(given, str) and given in _KINDS:
        return _KINDS[given]
    if isinstance(given, list | tuple) and given and all(isinstance(c, tuple) and len(c) == 3 for c in given):
        return Axes(tuple((choose(where), _hashable(rows), _hashable(columns)) for where, rows, columns in given))
    return AxesFunction(given) if callable(given) else _tree(given, call)


def _hashable(side: Any) -> Any:
    return side if side is ... or isinstance(side, int) else tuple(side)


def _is_spec(x: Any) -> bool:
    if hasattr(x, "reduction_axis") and hasattr(x, "output_axis"):
        return True
    return isinstance(x, tuple) and len(x) == 2 and all(isinstance(side, int | tuple | type(...)) for side in x)


def _tree(tree: Any, call: str) -> AxesTree:
    """optax's dimension numbers, checked, as entries by path."""
    flat, _ = flatten(tree, is_leaf=_is_spec)
    wrong = [name for name, spec in flat.items() if spec is not None and not _is_spec(spec)]
    if wrong:
        raise TypeError(
            f"{call}: axes has {flat[wrong[0]]!r} at {wrong[0]!r}, cases (where, rows, columns) or a tree of "
            f"MuonDimensionNumbers was expected. Pass for example axes=[('**/conv*/kernel', ..., -1)]."
        )
    sides = {
        name: (getattr(spec, "reduction_axis", spec[0]), getattr(spec, "output_axis", spec[1]))
        for name, spec in flat.items()
        if spec is not None
    }
    return AxesTree(
        tuple(
            (name, (_hashable(sides[name][0]), _hashable(sides[name][1])) if name in sides else None) for name in flat
        )
    )


@dataclasses.dataclass(frozen=True, repr=False)
class IsMatrix(Where):
    """The leaves that have axes of rows and columns."""

    axes: AnyAxes

    def choose(self, leaves: Leaves, layout: Layout) -> set[str]:
        return set(self.axes.views(leaves, layout))

    def __repr__(self) -> str:
        return f"matrices({self.axes!r})"


def matrices(axes: Any) -> Where:
    """The leaves that are matrices: those with declared axes, or of two axes where none are declared."""
    declared = matrix_axes("matrices", axes)
    return ndim(2) if declared is None else IsMatrix(declared)
