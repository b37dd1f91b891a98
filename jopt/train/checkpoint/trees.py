"""Trees as a list of leaves with typed paths, and back."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey, keystr, tree_flatten_with_path

from jopt.paths import path_of
from jopt.state import State
from jopt.train.checkpoint.errors import CheckpointError

MAX_DEPTH = 200
"""Deeper trees are refused, so that no file can exhaust the stack."""


class Key(NamedTuple):
    """One step of a path.

    Attributes:
        kind: "key" of a dict; index in a "list" or "tuple"; "attribute" of a NamedTuple, dataclass
            or other object; "child" of a node that names none.
        name: text, or a whole number.
    """

    kind: str
    name: str | int


class Keys(tuple[Key, ...]):
    """A typed path: it tells ``{1: x}``, ``{"1": x}`` and a list's item 1 apart."""

    __slots__ = ()

    @property
    def path(self) -> str:
        """The path as users write it: ``layers/0/kernel``."""
        return path_of(JAX_KEYS[key.kind](key.name) for key in self)

    @property
    def kinds(self) -> tuple[str, ...]:
        """What sort of key each step is; a list loads as a tuple and the other way round."""
        kinds = tuple(_SAME.get(key.kind, key.kind) + type(key.name).__name__ for key in self)
        value = bool(self) and self[-1] == Key("attribute", "value")  # nnx has it or not; see jopt.paths
        return kinds[:-1] if value else kinds


JAX_KEYS: dict[str, Any] = {
    "key": DictKey,
    "list": SequenceKey,
    "tuple": SequenceKey,
    "attribute": GetAttrKey,
    "child": FlattenedIndexKey,
}
_SAME = {"list": "index", "tuple": "index"}
_EMPTY = {"key": dict, "list": list, "tuple": tuple, "attribute": dict}


class Walk(NamedTuple):
    """What is in a tree.

    Attributes:
        leaves: in JAX's order, None included.
        empties: the containers without children, and the kind of the keys they lack.
        states: where jopt states are.
    """

    leaves: list[tuple[Keys, Any]]
    empties: list[tuple[Keys, str]]
    states: list[Keys]


def walk(call: str, tree: Any) -> Walk:
    """Everything in a tree, in order.

    Raises:
        CheckpointError: a dict's keys are neither strings nor whole numbers, or two leaves have one path.
    """
    found = Walk([], [], [])
    pending: list[tuple[Keys, Any]] = [(Keys(), tree)]
    while pending:
        keys, node = pending.pop()
        if len(keys) > MAX_DEPTH:
            raise CheckpointError(f"{call}: the tree is deeper than {MAX_DEPTH} at {keys.path[:80]!r}. Flatten it.")
        children = None if node is None else _children(call, keys, node)
        if children is None:
            found.leaves.append((keys, node))
            continue
        if not children:
            found.empties.append((keys, _kind_of(node)))
        if isinstance(node, State) or _is_state({key[-1].name for key, _ in children}):
            found.states.append(keys)
        pending += reversed(children)
    paths: dict[str, Keys] = {}
    for keys, _ in found.leaves:
        if paths.setdefault(keys.path, keys) is not keys:
            raise CheckpointError(
                f"{call}: two leaves have the path {keys.path!r}; every leaf needs a path of its own. Rename a key."
            )
    return found


def _children(call: str, keys: Keys, node: Any) -> list[tuple[Keys, Any]] | None:
    """The children of a node, or None for a leaf."""
    try:
        entries = tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{call}: the node at {keys.path!r} cannot be flattened: {error} Give all keys of a dict one type."
        ) from error
    if len(entries) == 1 and entries[0][0] == ():
        return None
    return [(Keys((*keys, _typed(call, keys, node, below))), child) for below, child in entries]


def _typed(call: str, above: Keys, node: Any, below: Sequence[Any]) -> Key:
    match below:
        case [DictKey(key=str(name))]:
            return Key("key", str(name))
        case [DictKey(key=int(name))] if not isinstance(name, bool):
            return Key("key", int(name))
        case [SequenceKey(idx=index)]:
            return Key("list" if isinstance(node, list) else "tuple", index)
        case [GetAttrKey(name=name)]:
            return Key("attribute", name)
        case [FlattenedIndexKey(key=index)]:
            return Key("child", index)
        case [DictKey()]:
            raise CheckpointError(
                f"{call}: the dict at {above.path!r} has the key {below[0].key!r}; "
                f"strings or whole numbers were expected. Use str(key)."
            )
    return Key("attribute", keystr(tuple(below)))


def _kind_of(node: Any) -> str:
    if isinstance(node, list):
        return "list"
    return "tuple" if type(node) is tuple else "key" if isinstance(node, dict) else "attribute"


def _is_state(names: set[Any]) -> bool:
    """Whether a node is a State in other clothes: `nnx.state` makes dicts of NamedTuples, without the empty ones."""
    return {"count", "hyper", "base"} <= names <= set(State._fields)


# Paths in the manifest ---------------------------------------------------------------------------


def to_json(keys: Keys) -> list[Any]:
    """A typed path as JSON: keys of dicts plain, all else with its kind."""
    return [key.name if key.kind == "key" else list(key) for key in keys]


def from_json(value: Any) -> Keys:
    """The typed path that `to_json` was given.

    Raises:
        ValueError: it makes no such value.
    """
    if not isinstance(value, list) or len(value) > MAX_DEPTH:
        raise ValueError("a path is no short list")
    return Keys(_key_from_json(item) for item in value)


def _key_from_json(item: Any) -> Key:
    match item:
        case bool():
            pass
        case str() | int():
            return Key("key", item)
        case ["attribute", str(name)]:
            return Key("attribute", name)
        case ["list" | "tuple" | "child" as kind, int(index)] if not isinstance(index, bool) and 0 <= index < 1 << 31:
            return Key(kind, index)
    raise ValueError("a path has a wrong key")


def memory(keys: Keys, last: Keys) -> int:
    """An upper bound of the bytes that a leaf or container adds to what holds a tree, after the one before it."""
    # Nodes are new only below where the two paths part.
    common = next((i for i, pair in enumerate(zip(keys, last, strict=False)) if pair[0] != pair[1]), len(last))
    return 600 + 80 * len(keys) + 500 * max(len(keys) - common, 1)


def total_memory(paths: Iterable[Keys]) -> int:
    """An upper bound of the bytes that hold a tree with these leaves and containers."""
    return sum(memory(keys, last) for last, keys in itertools.pairwise([Keys(), *paths]))


def within(room: int, entries: Iterable[tuple[Keys, Any]]) -> Iterator[tuple[Keys, Any]]:
    """The entries of a tree, as long as it fits into `room` bytes.

    Raises:
        ValueError: it does not.
    """
    last = Keys()
    for keys, value in entries:
        room -= memory(keys, last)
        if room < 0:
            raise ValueError("a larger tree than jopt.save writes")
        yield keys, value
        last = keys


# Back to a tree ----------------------------------------------------------------------------------


def unflatten(like: Any, leaves: Iterable[Any]) -> Any:
    """A tree like `like` from the leaves in the order of `walk`."""
    return jax.tree.unflatten(jax.tree.structure(like, is_leaf=lambda x: x is None), leaves)


def nested(leaves: Iterable[tuple[Keys, Any]], empties: Iterable[tuple[Keys, str]]) -> Any:
    """Dicts, lists and tuples from typed paths; objects become dicts.

    Raises:
        ValueError: the paths are not those of a tree.
    """
    root = _Node()
    for keys, value in leaves:
        root.place(keys, value)
    for keys, kind in empties:
        if kind not in _EMPTY:
            raise ValueError(f"an empty container of kind {kind!r}")
        root.place(keys, _EMPTY[kind]())
    return root.build()


_NOTHING = object()


class _Node:
    """A tree in the making: a value, or children by key."""

    __slots__ = ("children", "value")

    def __init__(self):
        self.value: Any = _NOTHING
        self.children: dict[Key, _Node] = {}

    def place(self, keys: Keys, value: Any) -> None:
        node = self
        for key in keys:
            node = node.children.setdefault(key, _Node())
        if node.value is not _NOTHING:
            raise ValueError(f"two leaves have the path {keys.path!r}")
        node.value = value

    def build(self) -> Any:
        if not self.children:
            return {} if self.value is _NOTHING else self.value
        kinds = {key.kind for key in self.children}
        if self.value is not _NOTHING or len(kinds) > 1:
            raise ValueError("a node is two things at once")
        built = {key.name: child.build() for key, child in self.children.items()}
        if kinds <= {"list", "tuple"}:
            # Leaves and empty containers come one after the other, so that the order is the index's.
            if sorted(built) != list(range(len(built))):
                raise ValueError("a list has gaps")
            items = [built[i] for i in range(len(built))]
            return items if kinds == {"list"} else tuple(items)
        return built
