"""Names of leaves: paths, the flat form of a tree, and the predicates that choose parameters.

A path joins the keys to a leaf with ``/``: ``layers/0/kernel``. A ``/`` inside a key is written
``~1`` and a ``~`` is written ``~0`` (as in JSON pointers). A trailing attribute ``.value`` is
dropped, because nnx shows it at `init` and not at `update`. A bare array has the empty path.
"""

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey, keystr

Flat = dict[str, Any]


class TreeMismatchError(ValueError):
    """Two trees that must agree in structure, shape or dtype do not."""


class Leaf(NamedTuple):
    """What a predicate sees of a parameter."""

    path: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def __str__(self) -> str:
        return f"{self.path or '(the bare array)'}  {self.dtype}{list(self.shape)}"


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a flat dictionary goes back into the tree it came from."""

    treedef: Any
    paths: tuple[str, ...]

    def unflatten(self, flat: Mapping[str, Any]) -> Any:
        """The tree with each leaf taken by its path, never by order."""
        return jax.tree.unflatten(self.treedef, [flat[path] for path in self.paths])

    def tree(self, flat: Flat) -> Any:
        """The tree with None, which JAX takes for no leaf, where `flat` lacks one."""
        return jax.tree.unflatten(self.treedef, [flat.get(path) for path in self.paths])


def flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> tuple[Flat, Layout]:
    """Flatten a tree once into ``{path: leaf}``; None counts as a leaf and is kept.

    Args:
        tree: any pytree.
        is_leaf: says of a node that it is a leaf; None goes down to arrays.

    Raises:
        TreeMismatchError: two leaves have one path.
    """
    entries, treedef = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: x is None or (is_leaf is not None and is_leaf(x))
    )
    flat: Flat = {}
    origin = {}
    for keys, leaf in entries:
        path = path_of(keys)
        if path in flat:
            raise TreeMismatchError(
                f"jopt: the leaves {keystr(origin[path])} and {keystr(keys)} both have the path {path!r}, "
                f"every leaf needs a path of its own. Rename one of the two keys."
            )
        flat[path], origin[path] = leaf, keys
    return flat, Layout(treedef, tuple(flat))


def path_of(keys: Iterable[Any]) -> str:
    """The path of a JAX key path."""
    keys = tuple(keys)
    if keys and isinstance(keys[-1], GetAttrKey) and keys[-1].name == "value":
        keys = keys[:-1]
    return "/".join(_escape(_key_name(key)) for key in keys)


def _key_name(key: Any) -> str:
    match key:
        case DictKey():
            return str(key.key)
        case GetAttrKey():
            return key.name
        case SequenceKey():
            return str(key.idx)
        case FlattenedIndexKey():
            return str(key.key)
    return str(key)


def _escape(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


# Predicates --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Where:
    """A predicate over leaves; combine with ``&``, ``|`` and ``~``."""

    def __call__(self, leaf: Leaf) -> bool:
        raise TypeError(
            f"{type(self).__name__} is abstract: use jopt.path(...), jopt.ndim(...) or jopt.everything_else."
        )

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        """The paths it chooses among `leaves`; None is no leaf to choose."""
        return {name for name, leaf in leaves.items() if leaf is not None and self(leaf)}

    def __and__(self, other: Any) -> "Where":
        return _Both(self, where(other))

    def __or__(self, other: Any) -> "Where":
        return _Either(self, where(other))

    def __invert__(self) -> "Where":
        return _Not(self)


@dataclasses.dataclass(frozen=True, repr=False)
class path(Where):  # noqa: N801 - reads as a verb in `where=path(...)`
    """Leaves whose path matches one of the globs joined by ``|``.

    ``*`` matches within a key, ``**`` any number of whole keys, ``?`` and ``[...]`` as in a shell:
    ``"**/bias|embed/*"``. Without a slash the glob may match any one key of the path, so
    ``path("embed*|head*")`` takes everything under a module of such a name. A compiled regex is
    searched in the whole path.
    """

    glob: str | re.Pattern[str]

    def __post_init__(self):
        if not isinstance(self.glob, str | re.Pattern):
            raise TypeError(
                f"path({self.glob!r}): a glob or a compiled regex was expected. Pass for example '**/bias'."
            )

    def __call__(self, leaf: Leaf) -> bool:
        if isinstance(self.glob, re.Pattern):
            return self.glob.search(leaf.path) is not None
        return any(_glob_matches(pattern, leaf.path) for pattern in self.glob.split("|"))

    def __repr__(self) -> str:
        return f"path({self.glob!r})"


def _glob_matches(pattern: str, name: str) -> bool:
    keys = name.split("/")
    if "/" not in pattern and pattern != "**":
        return any(fnmatch.fnmatchcase(key, pattern) for key in keys)

    def match(patterns: list[str], rest: list[str]) -> bool:
        if not patterns:
            return not rest
        head, *tail = patterns
        if head == "**":
            return any(match(tail, rest[i:]) for i in range(len(rest) + 1))
        return bool(rest) and fnmatch.fnmatchcase(rest[0], head) and match(tail, rest[1:])

    return match(pattern.split("/"), keys)


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class ndim(Where):  # noqa: N801
    """Leaves with one of these numbers of axes: ``ndim(2)``, ``ndim(2, 4)``."""

    axes: tuple[int, ...]

    def __init__(self, *axes: int):
        if not axes or not all(isinstance(n, int) for n in axes):
            given = ", ".join(map(repr, axes))
            raise TypeError(f"ndim({given}): one or more numbers of axes were expected. Pass for example ndim(2).")
        object.__setattr__(self, "axes", tuple(axes))

    def __call__(self, leaf: Leaf) -> bool:
        return leaf.ndim in self.axes

    def __repr__(self) -> str:
        return f"ndim({', '.join(map(str, self.axes))})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Everything(Where):
    """Every leaf that no earlier case of a `partition` has claimed."""

    def __call__(self, leaf: Leaf) -> bool:
        return True

    def __repr__(self) -> str:
        return "everything_else"


everything_else = _Everything()
"""Every leaf that no earlier case of a `partition` has claimed."""


@dataclasses.dataclass(frozen=True, repr=False)
class _Both(Where):
    left: Where
    right: Where

    def __call__(self, leaf: Leaf) -> bool:
        return self.left(leaf) and self.right(leaf)

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        return self.left.choose(leaves, layout) & self.right.choose(leaves, layout)

    def __repr__(self) -> str:
        return f"({self.left!r} & {self.right!r})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Either(Where):
    left: Where
    right: Where

    def __call__(self, leaf: Leaf) -> bool:
        return self.left(leaf) or self.right(leaf)

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        return self.left.choose(leaves, layout) | self.right.choose(leaves, layout)

    def __repr__(self) -> str:
        return f"({self.left!r} | {self.right!r})"


@dataclasses.dataclass(frozen=True, repr=False)
class _Not(Where):
    inner: Where

    def __call__(self, leaf: Leaf) -> bool:
        return not self.inner(leaf)

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        return {name for name, leaf in leaves.items() if leaf is not None} - self.inner.choose(leaves, layout)

    def __repr__(self) -> str:
        return f"~{self.inner!r}"


@dataclasses.dataclass(frozen=True, repr=False)
class _Test(Where):
    """A user's own function of a `Leaf`; compares by identity of the function."""

    test: Callable[[Leaf], bool]

    def __call__(self, leaf: Leaf) -> bool:
        return bool(self.test(leaf))

    def __repr__(self) -> str:
        return f"{self.test!r}"


@dataclasses.dataclass(frozen=True, repr=False)
class MaskTree(Where):
    """optax's form of a mask: a tree of booleans (or a prefix of one), kept as paths."""

    entries: tuple[tuple[str, bool], ...]

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        marks = _marks(self.entries, leaves, "mask: the tree of booleans", "where=, for example where='**/kernel'")
        return {name for name, mark in marks.items() if mark}

    def __repr__(self) -> str:
        return repr(_nested(self.entries))


def _marks(entries: Iterable[tuple[str, Any]], leaves: Mapping[str, Any], what: str, advice: str) -> dict[str, Any]:
    """What a tree, which may be a prefix of that of the leaves, has for each leaf."""
    given, marks, unnamed = dict(entries), {}, []
    for name, leaf in leaves.items():
        parts = name.split("/") if name else []
        prefixes = ["/".join(parts[:i]) for i in range(len(parts), -1, -1)]
        found = [given[prefix] for prefix in prefixes if prefix in given]
        if found:
            marks[name] = found[0]
        elif leaf is not None:
            unnamed.append(name)
    if unnamed:
        raise TreeMismatchError(
            f"{what} says nothing of {_listing(unnamed)}; it names {_listing(given)}. "
            f"Give it the structure of the parameters, or pass {advice}."
        )
    return marks


def _nested(entries: tuple[tuple[str, Any], ...]) -> Any:
    """The entries as nested dictionaries, to print."""
    if len(entries) == 1 and entries[0][0] == "":
        return entries[0][1]
    tree: dict[str, Any] = {}
    for name, mark in entries:
        *parents, last = [key.replace("~1", "/").replace("~0", "~") for key in name.split("/")]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = mark
    return tree


@dataclasses.dataclass(frozen=True, repr=False)
class MaskFunction(Where):
    """optax's other form: a function from the tree (of shapes and dtypes) to a tree of booleans."""

    function: Callable[[Any], Any]

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        return mask_tree(self.function(_structs(leaves, layout)), "mask").choose(leaves, layout)

    def __repr__(self) -> str:
        return repr(self.function)


@dataclasses.dataclass(frozen=True, repr=False)
class Labelled(Where):
    """Leaves to which optax's labels (entries of a tree, or a function that makes one) give one label."""

    labels: tuple[tuple[str, Any], ...] | Callable[[Any], Any]
    label: Any

    def choose(self, leaves: Mapping[str, Leaf | None], layout: Layout) -> set[str]:
        entries = self.labels
        if callable(entries):
            entries = label_entries(entries(_structs(leaves, layout)))
        marks = _marks(entries, leaves, "partition: the tree of labels", "a list of (where, transform)")
        return {name for name, mark in marks.items() if mark == self.label and leaves[name] is not None}

    def __repr__(self) -> str:
        return repr(self.labels if callable(self.labels) else _nested(self.labels))


def label_entries(tree: Any) -> tuple[tuple[str, Any], ...]:
    """A tree of labels as entries by path."""
    return tuple(flatten(tree)[0].items())


def _structs(leaves: Mapping[str, Leaf | None], layout: Layout) -> Any:
    """The tree of shapes and dtypes, which a function of the user is given."""
    return layout.tree({name: leaf and jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in leaves.items()})


def mask_tree(tree: Any, call: str) -> MaskTree:
    """A tree of booleans as a predicate.

    Raises:
        TypeError: a leaf is not a boolean.
    """
    flat, _ = flatten(tree)
    wrong = [name for name, mark in flat.items() if not isinstance(mark, bool | np.bool_)]
    if wrong:
        raise TypeError(
            f"{call}: the leaf {wrong[0]!r} of the mask is {flat[wrong[0]]!r}, True or False was expected. "
            f"Build the mask from booleans, or pass where= with a glob."
        )
    return MaskTree(tuple((name, bool(mark)) for name, mark in flat.items()))


def where(chooser: Any) -> Where:
    """Normalise what `where=` accepts: a glob, a compiled regex, a predicate, or a function of a `Leaf`."""
    if isinstance(chooser, Where):
        return chooser
    if isinstance(chooser, str | re.Pattern):
        return path(chooser)
    if callable(chooser):
        return _Test(chooser)
    raise TypeError(
        f"where={chooser!r}: a glob, a compiled regex or a predicate was expected. "
        f"Pass for example '**/bias', jopt.ndim(2), or ~jopt.path('embed*')."
    )


def mask(chooser: Any) -> Where:
    """Normalise what optax's `mask=` accepts: a tree of booleans or a function that makes one."""
    if isinstance(chooser, Where):
        return chooser
    return MaskFunction(chooser) if callable(chooser) else mask_tree(chooser, "mask")


def _listing(names: Iterable[str], most: int = 8) -> str:
    names = [repr(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def matched(where: Where, leaves: Mapping[str, Leaf | None], layout: Layout, what: str) -> set[str]:
    """The paths that `where` chooses; of a pattern, at least one of a tree with leaves.

    Args:
        where, leaves, layout: see `Where.choose`.
        what: the argument of the user, for the message.

    Raises:
        TreeMismatchError: a pattern matches none.
    """
    chosen = where.choose(leaves, layout)
    if isinstance(where, path) and leaves and not chosen:
        raise TreeMismatchError(
            f"{what}={where.glob!r} matches no parameter, one or more were expected of:\n{listing(leaves.values())}\n"
            f"Correct the pattern; ~jopt.everything_else chooses none."
        )
    return chosen


def listing(leaves: Iterable[Leaf | None], most: int = 8) -> str:
    """One leaf a line, for error messages."""
    lines = [f"  {leaf}" for leaf in leaves]
    return "\n".join(lines[:most] + ([f"  ... and {len(lines) - most} more"] if len(lines) > most else []))
