"""The engine: what a sequence of parts keeps, which leaves each part claims, and plans as keys.

A `Plan` is a transform without its numbers: names, functions, schedules and static values, so that
it can key compiled code; the numbers travel as operands. `jopt.update` runs it.
"""

import collections
import dataclasses
import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jopt import dtypes, scalars
from jopt.axes import View
from jopt.calls import make_slots, named, refusal, view_of
from jopt.formats import FORMATS, store_as
from jopt.kernel import Kernels
from jopt.paths import Flat, Layout, Leaf, TreeMismatchError, listing, matched
from jopt.rule import LIVE, Group, Own, Part, Rule, Whole, extras_of, keywords
from jopt.state import State

Parts = tuple["Part | Group", ...]


@dataclasses.dataclass(frozen=True)
class Tree:
    """What is known of the tree at hand: its layout, its leaves (None where one is None), the trained ones."""

    layout: Layout
    leaves: Mapping[str, Leaf | None]
    trained: tuple[str, ...]

    @classmethod
    def of(cls, flat: Flat, layout: Layout, trained: tuple[str, ...] | None = None) -> "Tree":
        """The tree of these leaves; trained are those given, or all real and complex arrays."""
        leaves = {
            path: None if x is None else Leaf(path, tuple(np.shape(x)), dtypes.dtype_of(x)) for path, x in flat.items()
        }
        trained = tuple(path for path, x in flat.items() if dtypes.is_trained(x)) if trained is None else trained
        return cls(layout, leaves, trained)

    def leaf(self, path: str) -> Leaf:
        """A leaf that is there."""
        leaf = self.leaves[path]
        assert leaf is not None
        return leaf

    def only(self, paths: tuple[str, ...]) -> "Tree":
        """The same tree with fewer trained leaves."""
        return dataclasses.replace(self, trained=paths)


_PLANS: "weakref.WeakValueDictionary[Parts, Plan]" = weakref.WeakValueDictionary()
_RECENT: "collections.OrderedDict[Parts, Plan]" = collections.OrderedDict()
_MOST_PLANS = 128


class Plan:
    """A sequence of parts without numbers; equal plans are one object while one of them lives.

    Plans of library functions and plain values stay in a bounded cache. A plan that holds a user's
    closure is kept alive by its transforms alone, so that the cache holds no user object.
    """

    def __new__(cls, parts: Parts) -> "Plan":
        self = _PLANS.get(parts)
        if self is None:
            self = super().__new__(cls)
            self._build(parts)
            if not self.traced:
                _PLANS[parts] = self
        if not self.traced and is_plain(parts):
            _RECENT[parts] = self
            _RECENT.move_to_end(parts)
            while len(_RECENT) > _MOST_PLANS:
                _RECENT.popitem(last=False)
        return self

    def _build(self, parts: Parts) -> None:
        """What is known of the parts before there is a tree."""
        self.parts = parts
        self.flat = tuple(walk(parts))
        wrapped = [inner for part in self.flat for _, inner in part.wrapped if isinstance(inner, Plan)]
        self.extras = frozenset().union(*map(extras_of, self.flat), *(plan.extras for plan in wrapped))
        names_extra = any("extra" in keywords(f) for part in self.flat for f in part.of.functions)
        self.takes_any_extra = names_extra or any(plan.takes_any_extra for plan in wrapped)
        self.traced = _holds(parts, lambda x: isinstance(x, scalars.Traced | jax.core.Tracer))
        first = parts[0] if parts else None
        self.takes_examples = isinstance(first, Part) and isinstance(first.of, Whole) and first.of.examples
        self.lands = any(isinstance(part.of, Rule) and part.of.lands for part in self.flat) or any(
            plan.lands for plan in wrapped
        )
        self.kernels = Kernels(self.flat)
        self.compiled: dict[str, Any] = {}

    def hyper_entries(self) -> Iterator[tuple[str, Any]]:
        """Full name and schedule (or LIVE) of every number of the chain."""
        for part in self.flat:
            for name, value in part.hyper:
                yield f"{part.name}/{name}", value

    def init(self, numbers: Mapping[str, Any], params: Flat, tree: Tree) -> State:
        """The state before the first update."""
        hyper, base = {}, {}
        for name, value in self.hyper_entries():
            if value is LIVE:
                hyper[name], base[name] = scalar(numbers[name], name), scalar(numbers[name], name)
            else:
                hyper[name] = scalar(value(np.int32(0)), name)
        state = State(jnp.zeros((), jnp.int32), hyper, base, {}, {}, {})
        for part, paths in zip(self.flat, self.claims(tree), strict=True):
            mine = {name: hyper[f"{part.name}/{name}"] for name, _ in part.hyper}
            if isinstance(part.of, Whole):
                own = self._init_whole(part, {path: params[path] for path in paths}, mine, numbers, tree.only(paths))
                own = own._replace(scalars=own.scalars | _init_key(part, numbers))
            else:
                own = _init_rule(part, {path: params[path] for path in paths}, mine, numbers, tree)
            if own.slots:
                chosen = formats_of(part, tree)
                state.slots[part.name] = {
                    slot: {
                        path: store_as(x, FORMATS[chosen[slot, path]]) if (slot, path) in chosen else x
                        for path, x in flat.items()
                    }
                    for slot, flat in own.slots.items()
                }
            if own.scalars:
                state.scalars[part.name] = own.scalars
            if own.inner is not None:
                state.inner[part.name] = own.inner
        return _on_mesh(_without_aliases(state, params), params)

    def _init_whole(
        self, part: Part, params: Flat, mine: dict[str, Any], numbers: Mapping[str, Any], tree: Tree
    ) -> Own:
        """What a part over the whole tree keeps at the beginning."""
        for path, p in params.items():
            if not part.whole.complex and jnp.iscomplexobj(p):
                raise refusal(part, path, p, "a real array", "keep real and imaginary parts as two parameters")
        init = part.whole.init
        if init is None:
            return Own()

        def starting(below, inner):
            return functools.partial(inner.init, numbers[below], tree=tree) if isinstance(inner, Plan) else inner

        inner = part.over_inner(starting)
        available = dict(part.static) | mine | {"layout": tree.layout, "inner": inner}
        wide = {path: dtypes.compute(p) for path, p in params.items()}
        return init(wide, **named(init, available, part))

    def claims(self, tree: Tree) -> list[tuple[str, ...]]:
        """For each part of the flat sequence, the trained leaves it claims.

        Raises:
            TreeMismatchError: a partition leaves a parameter unclaimed, a case of it claims none, or a
                pattern of a mask matches none.
        """
        trained = set(tree.trained)
        found: list[tuple[str, ...]] = []

        def visit(parts: Parts, available: tuple[str, ...]) -> None:
            for part in parts:
                if isinstance(part, Part):
                    found.append(tuple(path for path in available if path in trained))
                    continue
                rest = available
                for name, chooser, inner in part.cases:
                    chosen = (
                        chooser.choose(tree.leaves, tree.layout)
                        if part.total
                        else matched(chooser, tree.leaves, tree.layout, "where")
                    )
                    claimed = tuple(path for path in rest if path in chosen)
                    if part.total and available and not claimed and not part.may_idle(name):
                        left = listing(tree.leaves[p] for p in rest) or "  nothing"
                        raise TreeMismatchError(
                            f"partition: the case {name!r} (where={chooser!r}) claims no parameter, one or more were "
                            f"expected. The cases before it left:\n{left}\n"
                            f"Correct its pattern, or remove the case."
                        )
                    rest = tuple(path for path in rest if path not in chosen)
                    visit(inner, claimed)
                unclaimed = [tree.leaves[path] for path in rest if path in trained]
                if part.total and unclaimed:
                    raise TreeMismatchError(
                        f"partition: no case claims these parameters, exactly one was expected to:\n"
                        f"{listing(unclaimed)}\nAdd a case, or end with (everything_else, freeze())."
                    )

        visit(self.parts, tuple(path for path, leaf in tree.leaves.items() if leaf is not None))
        return found


def views(part: Part, tree: Tree) -> Mapping[str, View] | None:
    """The declared axes of the leaves, for a rule that declares some."""
    axes = dict(part.static).get(part.rule.axes) if part.rule.axes is not None else None
    return None if axes is None else axes.views(tree.leaves, tree.layout)


def _init_rule(part: Part, params: Flat, mine: dict[str, Any], numbers: Mapping[str, Any], tree: Tree) -> Own:
    slots: dict[str, Flat] = {}
    declared = views(part, tree)
    for path, p in params.items():
        view = view_of(part, path, p, declared)
        for name, x in make_slots(part, tree.leaf(path), dtypes.compute(p), mine, view).items():
            slots.setdefault(name, {})[path] = x
    return Own(slots, _init_key(part, numbers))


def _init_key(part: Part, numbers: Mapping[str, Any]) -> dict[str, jax.Array]:
    return {} if part.key is None else {"key": random_key(numbers[f"{part.name}/key"])}


def formats_of(part: Part, tree: Tree) -> dict[tuple[str, str], str]:
    """The format of each slot and path that a part stores in one."""
    found = {}
    for storage in part.storage:
        paths = tree.leaves
        if storage.where is not None:
            paths = matched(storage.where, tree.leaves, tree.layout, "store: where")
        found |= {(slot, path): name for slot, name in storage.formats for path in paths}
    return found


KEY_IMPLEMENTATIONS: dict[tuple[int, ...], str] = {(2,): "threefry2x32", (4,): "rbg"}
"""Which random generator the words of a key are for, by their shape."""


def check_leaves(call: str, flat: Flat) -> None:
    """Raise a `TypeError` for a leaf that is neither an array nor a number (a function, a string)."""
    for path, x in flat.items():
        try:
            dtypes.dtype_of(x)
        except TypeError:
            raise TypeError(
                f"{call}: the leaf {path!r} is {x!r}, an array or a number was expected. "
                f"Keep what is not trained out of the tree, or put None in its place."
            ) from None


def random_key(seed: Any) -> jax.Array:
    """A typed key from a seed, a typed key, or the words of a raw one."""
    seed = jnp.asarray(seed)
    if jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if not seed.ndim:
        return jax.random.key(seed)
    return jax.random.wrap_key_data(seed.astype(jnp.uint32), impl=KEY_IMPLEMENTATIONS[tuple(seed.shape)])


def scalar(value: Any, name: str) -> jax.Array:
    """One number as the engine keeps it: a strongly typed float32 (float64 under x64) scalar."""
    try:
        result = jnp.asarray(value, scalars.scalar_dtype())
    except (TypeError, ValueError):
        raise TypeError(
            f"update: the schedule of {name} returned {value!r}, a number was expected. Return one number per step."
        ) from None
    if result.ndim:
        raise TypeError(
            f"update: the schedule of {name} returned an array of shape {result.shape}, a scalar was expected. "
            f"Return one number per step."
        )
    return result


def walk(parts: Parts) -> Iterator[Part]:
    """The parts of a sequence in order, those of groups included."""
    for part in parts:
        if isinstance(part, Part):
            yield part
        else:
            for _, _, inner in part.cases:
                yield from walk(inner)


def _holds(value: Any, test: Any) -> bool:
    """Whether a configuration holds, at any depth, something that passes the test."""
    if test(value):
        return True
    if isinstance(value, tuple | list | frozenset):
        return any(_holds(x, test) for x in value)
    if isinstance(value, dict):
        return any(_holds(x, test) for x in value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return any(_holds(getattr(value, f.name), test) for f in dataclasses.fields(value))
    return False


def is_plain(value: Any) -> bool:
    """Whether a configuration consists of plain values and functions of modules, so that a cache may keep it."""
    if isinstance(value, types.FunctionType):
        return "<locals>" not in value.__qualname__ and value.__name__ != "<lambda>" and value.__module__ != "__main__"
    if isinstance(value, tuple | frozenset):
        return all(map(is_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__module__.startswith("jopt.") and all(
            is_plain(getattr(value, f.name)) for f in dataclasses.fields(value)
        )
    if isinstance(value, Plan):
        return is_plain(value.parts)
    return value is None or value is LIVE or isinstance(value, bool | int | float | str | bytes)


def _without_aliases(state: State, params: Flat) -> State:
    """Copy what shares a buffer with a parameter or with another entry, or donation would fail."""
    seen = {_buffer(p) for p in params.values()}

    def own(x):
        if _buffer(x) in seen:
            x = jnp.copy(x)
        seen.add(_buffer(x))
        return x

    return jax.tree.map(own, state)


def _on_mesh(state: State, params: Flat) -> State:
    """Put scalars on the mesh of sharded parameters, where `update` will leave them.

    Else the second step would find a state of another sharding than the first, and compile again.
    """
    placed = [p.sharding for p in params.values() if isinstance(p, jax.Array) and not isinstance(p, jax.core.Tracer)]
    meshes = {sharding.mesh for sharding in placed if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1}
    if len(meshes) != 1:
        return state
    everywhere = NamedSharding(meshes.pop(), PartitionSpec())

    def place(x):
        lies_alone = not isinstance(x, jax.core.Tracer) and len(x.sharding.device_set) == 1
        return jax.device_put(x, everywhere) if lies_alone else x

    return jax.tree.map(place, state)


def _buffer(x: Any) -> Any:
    if isinstance(x, np.ndarray) and x.size:
        return x.ctypes.data  # JAX may take NumPy's memory as it is, and the user may write to it later
    if (
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    ):
        shards = x.addressable_shards
        if shards and x.size:
            return shards[0].data.unsafe_buffer_pointer()
    return id(x)
