"""Compiled inner functions: the pending rules of one leaf, or one batch of equal matrices.

A leaf's rules run in one inner `jit`, so that a further leaf of the same shape and dtype costs one
equation to trace and nothing to lower. Scalars travel as one vector, because each operand of each
call costs time when there are a thousand small leaves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopt import dtypes
from jopt.axes import MATRIX, View
from jopt.chunks import in_chunks, rows_at_a_time
from jopt.control import run_some
from jopt.formats import Chance, Stored, narrow, widen
from jopt.paths import Leaf
from jopt.rule import Part, keywords, required_keywords

Names = tuple[tuple[int, str], ...]
Views = tuple[tuple[int, View], ...]
FIRST = np.uint32(0)  # the place of the first element of an array


class Kernels:
    """The inner functions of one plan, built on first use and kept as long as the plan."""

    def __init__(self, flat: tuple[Part, ...]):
        self._flat = flat
        self._built: dict[Any, Callable[..., Any]] = {}
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

    def leaf(
        self,
        program: tuple[int, ...],
        packed: Names,
        entering: bool,
        mode: str,
        dtype: Any,
        wide: bool,
        views: Views = (),
    ):
        """``(g, slots, p, vector, others, salt, count) -> (value, slots)`` for one leaf.

        `salt` is None where nothing is random, and `count` where nothing draws from a `Chance`.

        Args:
            program: which parts of the plan run, in order.
            packed: which number of which part each entry of the vector is.
            entering: whether g is still as the user gave it.
            mode: "compute", "update" or "apply"; see `Plan.run`.
            dtype: of the parameter.
            wide: whether an update leaves in the compute dtype, not in that of the parameter.
            views: for which parts the leaf is matrices, and how.
        """
        asked = (program, packed, entering, mode, dtype, wide, views)
        if asked not in self._built:
            view_at = dict(views)

            def kernel(g, slots, p, vector, others, salt, count):
                def run(g, slots, p, start=FIRST):
                    x = dtypes.enter(g) if entering else g
                    q = None if p is None else dtypes.compute(p)
                    new = {}
                    for index in program:
                        chance = None if count is None else Chance(salt, start).fold(count, index)
                        numbers = self._numbers(index, packed, vector, others, x, salt, dtype, chance)
                        call = call_step if view_at.get(index, MATRIX) == MATRIX else _call_by_matrix(view_at[index])
                        x, new[index] = call(self._flat[index], x, slots.get(index, {}), q, numbers, chance)
                    if mode == "compute":
                        return x, new
                    x = x if wide else dtypes.leave(x, dtype)
                    return (_add(p, x) if mode == "apply" else x), new

                rows = rows_at_a_time(g, slots) if all(map(self._is_elementwise, program)) else None
                if rows is None:
                    return run(g, slots, p)

                def chunked(g, slots, p):
                    kind = jax.eval_shape(run, g, slots, p)[0]
                    return in_chunks(run, rows, g, slots, p, None if mode == "apply" else jnp.zeros_like(g, kind.dtype))

                return jax.lax.platform_dependent(g, slots, p, cpu=chunked, default=run)

            self._built[asked] = jax.jit(kernel)
        return self._built[asked]

    def matrices(self, index: int, packed: Names, views: tuple[View, ...], dtype: Any, first: int = 0, total: int = 0):
        """``(gs, slots, ps, vector, others, salts, count) -> (values, slots)`` for equal matrices.

        One batch on accelerators, on CPU a loop.

        Args:
            index: the part of the plan.
            packed: which number of which part each entry of the vector is.
            views: how each leaf is matrices of one and the same shape.
            dtype: of the parameters.
            first: how many matrices of this part come before the batch.
            total: how many matrices this part has; both decide whose turn a refresh is.
        """
        asked = (index, packed, views, dtype, first, total)
        if asked not in self._built:
            part = self._flat[index]

            def run(matrices, vector, others, count, accelerator):
                def one(g, s, p, salt):
                    chance = Chance(salt).fold(count, index) if "chance" in part.rule.names else None
                    numbers = self._numbers(index, packed, vector, others, g, salt, dtype, chance)
                    numbers |= {"accelerator": accelerator} if "accelerator" in part.rule.names else {}
                    return call_step(part, g, s, None if p is None else dtypes.compute(p), numbers)

                return (jax.vmap if accelerator else one_by_one)(one)(*matrices)

            def in_turn(leaves, vector, others, count):
                starts = _hidden(_starts(leaves), count)
                return _apart(run(_together(leaves), vector, others, count, False), leaves, starts)

            def at_once(leaves, vector, others, count):
                return _apart(run(_together(leaves), vector, others, count, True), leaves, _starts(leaves))

            def kernel(gs, slots, ps, vector, others, salts, count):
                opened = [{name: _opened(x, dtype) for name, x in kept.items()} for kept in slots]
                leaves = _split(views, gs, opened, ps, salts)
                results = jax.lax.platform_dependent(leaves, vector, others, count, cpu=in_turn, default=at_once)
                if part.rule.refresh is not None:
                    s, rest = _together([s for _, s in results]), _together([leaf[2:] for leaf in leaves])
                    s = self._refreshed(index, packed, first, total, s, (*rest, vector, others), count)
                    apart = _apart((None, s), leaves, _starts(leaves))
                    results = [(u, kept) for (u, _), (_, kept) in zip(results, apart, strict=True)]
                chances = [Chance(salt).fold(count, index) for salt in salts]
                return [
                    (u, {name: _closed(x, kept[name], chance, i) for i, (name, x) in enumerate(sorted(new.items()))})
                    for (u, new), kept, chance in zip(_joined(views, results, gs, opened), slots, chances, strict=True)
                ]

            self._built[asked] = jax.jit(kernel)
        return self._built[asked]

    def _is_elementwise(self, index: int) -> bool:
        part = self._flat[index]
        return part.rule.reads in ("element", "tree") and part.key is None

    def _refreshed(self, index, packed, first, total, slots, operands, count):
        """The slots of a batch, with those refreshed whose turn it is: matrix j of all at j·every // total."""
        part = self._flat[index]
        every, size = dict(part.static)[part.rule.every], len(next(iter(slots.values())))

        def work(i, slots, operands):
            ps, salts, vector, others = operands
            s = {name: _one_of(x, i) for name, x in slots.items()}
            p = None if ps is None else dtypes.compute(_one_of(ps, i))
            like = _computed_like(s, p)
            numbers = self._numbers(index, packed, vector, others, like, _one_of(salts, i), like.dtype, None)
            new = call_refresh(part, s, p, numbers)
            return {name: jax.lax.dynamic_update_index_in_dim(x, new[name], i, 0) for name, x in slots.items()}

        turn = jnp.remainder(count, np.int32(every))
        begin, end = (-(-(turn + np.int32(k)) * np.int32(total) // np.int32(every)) - np.int32(first) for k in (0, 1))
        at_first = count == 0
        begin = jnp.where(at_first, 0, jnp.clip(begin, 0, size)).astype(np.int32)
        end = jnp.where(at_first, size, jnp.clip(end, 0, size)).astype(np.int32)
        return run_some(work, size, begin, end, slots, operands)

    def _numbers(self, index, packed, vector, others, x, salt, leaf_dtype, chance) -> dict[str, Any]:
        dtype = jnp.finfo(x.dtype).dtype  # the real dtype of the leaf's arithmetic
        numbers = {name: _at(vector, i).astype(dtype) for i, (part, name) in enumerate(packed) if part == index}
        numbers |= others.get(index, {})
        if "t" in numbers:
            numbers["t"] = numbers["t"].astype(dtype)
        if "key" in numbers:
            key, count = numbers["key"]
            numbers["key"] = jax.random.fold_in(jax.random.fold_in(key, count), salt)
        static = dict(self._flat[index].static) | {"leaf_dtype": leaf_dtype, "chance": chance}
        return numbers | {name: static[name] for name in self._flat[index].rule.names & static.keys()}

    def slot_shapes(
        self, part: Part, leaf: Leaf, hyper: Mapping[str, Any], declared: Mapping[str, View] | None
    ) -> dict[str, tuple[int, ...]]:
        """The shapes of the slots a rule keeps for a leaf."""
        view = view_of(part, leaf.path, leaf, declared)
        asked = (part.name, leaf.shape, leaf.dtype, view)
        if asked not in self._shapes:
            struct = jax.ShapeDtypeStruct(leaf.shape, dtypes.compute_dtype(leaf.dtype))
            numbers = {name: hyper[f"{part.name}/{name}"] for name, _ in part.hyper}
            slots = jax.eval_shape(lambda p: make_slots(part, leaf, p, numbers, view), struct)
            self._shapes[asked] = {name: tuple(x.shape) for name, x in slots.items()}
        return self._shapes[asked]


def _split(views: tuple[View, ...], gs: Any, slots: Any, ps: Any, salts: Any) -> list[Any]:
    """Of each leaf its matrices: gradient, slots, parameter and salt, with a leading axis that counts them."""
    found = []
    for view, g, s, p, salt in zip(views, gs, slots, ps, salts, strict=True):
        x = view.matrices(g)
        # A stream of random numbers for each matrix; that of a leaf which is one is the leaf's own.
        many = jnp.asarray(salt, jnp.uint32) + jnp.arange(len(x), dtype=jnp.uint32) * np.uint32(2654435769)
        kept = {name: view.split(slot, g.shape) for name, slot in s.items()}
        found.append((x, kept, None if p is None else view.matrices(p), many))
    return found


def _together(leaves: list[Any]) -> Any:
    """The matrices of several leaves, one after another."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *leaves)


def _apart(results: Any, leaves: list[Any], starts: Any) -> list[Any]:
    """What `_together` joined, or what came of it, by leaf; they begin at `starts`."""

    def one(leaf, start):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, len(leaf[0])), results)

    return [one(leaf, start) for leaf, start in zip(leaves, starts, strict=True)]


def _starts(leaves: list[Any]) -> tuple[np.int32, ...]:
    """Where the matrices of each leaf begin among all."""
    return tuple(np.cumsum([0, *(len(leaf[0]) for leaf in leaves[:-1])], dtype=np.int32))


def _hidden(numbers: tuple[np.int32, ...], count: jax.Array) -> tuple[Any, ...]:
    """The same numbers, in a way that the compiler of the CPU does not see which.

    Else taking each matrix out of the results is a kernel of its own, and compiling these takes longer
    than all the rest (100 matrices: 5 s); like this they are one kernel.
    """
    if len(numbers) == 1:
        return numbers
    return jax.lax.cond(count >= 0, lambda: numbers, lambda: numbers[::-1])


def _joined(views: tuple[View, ...], results: list[Any], gs: Any, before: Any) -> list[Any]:
    """(update, slots) of each leaf from those of its matrices; the leaves were `gs` and `before`."""
    from jax.experimental.shard_alike import shard_alike  # where it is needed: `import jopt` loads no more of JAX

    found = []
    transposes = len(set(views)) > 1
    for view, (u, slots), g, old in zip(views, results, gs, before, strict=True):
        x = view.array(u, g.shape)
        mine = {name: _settled(view.join(slot, g.shape), g.shape) for name, slot in slots.items()}
        if transposes:
            # On an Auto mesh the compiler might lay a matrix out as the others of its batch, which are transposes.
            x = shard_alike(x, g)[0]
            mine = {name: shard_alike(slot, old[name])[0] for name, slot in mine.items()}
        found.append((x, mine))
    return found


def _call_by_matrix(view: View):
    """`call_step` for an array that is matrices: on one at a time."""

    def call(part, g, slots, p, numbers, chance):
        def one(g, s, p):
            return call_step(part, g, s, p, numbers)

        opened = {name: view.split(_opened(x, g.dtype), g.shape) for name, x in slots.items()}
        u, new = jax.vmap(one)(view.matrices(g), opened, None if p is None else view.matrices(p))
        joined = sorted((name, view.join(x, g.shape)) for name, x in new.items())
        return view.array(u, g.shape), {name: _closed(x, slots[name], chance, i) for i, (name, x) in enumerate(joined)}

    return call


def _opened(x: Any, dtype: Any) -> jax.Array:
    """A slot as an array, for what cuts arrays apart and stacks them; decoded if it is in a format."""
    return widen(x, dtypes.compute_dtype(dtype)) if isinstance(x, Stored) else x


def _closed(x: jax.Array, like: Any, chance: Chance | None, i: int) -> Any:
    """The same slot as the state holds it."""
    return narrow(x, like, chance and chance.fold(i)) if isinstance(like, Stored) else x


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `jax.vmap`, in a loop: on CPU a matrix that stays in the cache is up to twice as fast as a batch."""

    def run(*stacked):
        if len(jax.tree.leaves(stacked)[0]) == 1:
            one = function(*jax.tree.map(lambda x: jax.lax.squeeze(x, (0,)), stacked))
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), one)
        return jax.lax.map(lambda xs: function(*xs), stacked)

    return run


def _one_of(x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)


def _settled(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A slot that lies whole on every device, unless it lies as its leaf: else an Auto mesh would place it anew."""
    mesh = jax.typeof(x).sharding.mesh
    if x.shape == shape or AxisType.Auto not in mesh.axis_types:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*(None,) * x.ndim)))


def _computed_like(slots: Mapping[str, jax.Array], p: jax.Array | None) -> jax.Array:
    """An array of the dtype that a matrix is computed in: the parameter's, or the widest of its slots."""
    found = [dtypes.compute(x) for x in ([p] if p is not None else slots.values()) if dtypes.is_trained(x)]
    return max(found, key=lambda x: x.dtype.itemsize)


def _at(vector: jax.Array, i: int) -> jax.Array:
    return jax.lax.squeeze(jax.lax.slice(vector, (i,), (i + 1,)), (0,))  # indexing by `[]` traces ten times as long


def view_of(part: Part, path: str, p: Any, declared: Mapping[str, View] | None) -> View | None:
    """How a leaf is matrices, for a rule that reads some.

    Args:
        part: a rule.
        path: of the leaf.
        p: has its shape and dtype.
        declared: the views of the leaves with declared axes; None is those of two axes.

    Raises:
        TypeError: the leaf is no matrix.
    """
    if part.rule.reads != "matrix" and part.rule.axes is None:
        return None
    view = declared.get(path) if declared is not None else MATRIX if len(p.shape) == 2 else None
    if view is None:
        more = " or say which axes are rows and columns: axes=[(where, rows, columns)]" if part.rule.axes else ""
        advice = "route other shapes elsewhere: partition([(ndim(2), ...), ...])"
        raise refusal(part, path, p, "a matrix", advice + more)
    return view


def make_slots(part: Part, leaf: Leaf, p: Any, numbers: Mapping[str, Any], view: View | None) -> dict[str, jax.Array]:
    """What a rule keeps for one parameter, p in the compute dtype.

    Raises:
        TypeError: the rule does not understand complex arrays.
    """
    rule = part.rule
    if jnp.iscomplexobj(p) and rule.complex is None:
        raise refusal(part, leaf.path, p, "a real array", "keep real and imaginary parts as two parameters")
    if rule.slots is None:
        return {}
    known = named(rule.slots, dict(part.static) | {"leaf_dtype": leaf.dtype} | dict(numbers), part)
    if view is None or view == MATRIX:
        slots = rule.slots(dtypes.to_pair(p) if rule.complex == "pair" else p, **known)
    else:
        slots = jax.vmap(lambda q: rule.slots(q, **known))(view.matrices(p))
        joined = {name: view.join(x, p.shape) for name, x in slots.items()}
        # Reshaped, it has lost its place; a sum with the parameter's zeros has it again.
        slots = {n: jnp.zeros_like(p, dtype=x.dtype) + x if x.shape == p.shape else x for n, x in joined.items()}
    if not isinstance(slots, dict):
        raise TypeError(
            f"{part.name}: its slots returned {type(slots).__name__}, a dict of named arrays was expected. "
            f"Return for example {{'mu': jnp.zeros_like(p)}}."
        )
    return {name: jnp.asarray(x, x.dtype) for name, x in slots.items()}


def refusal(part: Part, path: str, p: Any, expected: str, advice: str) -> TypeError:
    """The error for a leaf that a part cannot handle."""
    return TypeError(
        f"init: {part.name} was given the parameter {path!r} of dtype {p.dtype} and shape {tuple(p.shape)}, "
        f"{expected} was expected. To train it all the same, {advice}."
    )


def _add(p: jax.Array, u: jax.Array) -> jax.Array:
    """The stepped parameter; an update that left in a wider dtype lands on a rounding of its choice."""
    return p + u if u.dtype == p.dtype else (p.astype(u.dtype) + u).astype(p.dtype)


def call_step(part: Part, g: jax.Array, slots: dict[str, Any], p: Any, numbers: dict[str, Any], chance: Any = None):
    """Run one rule on one leaf: as a pair if it is complex, slots in the compute dtype, results checked.

    `chance` is for slots whose format draws from it.
    """
    rule = part.rule
    pair = rule.complex == "pair" and jnp.iscomplexobj(g)
    x, q = (dtypes.to_pair(g), None if p is None else dtypes.to_pair(p)) if pair else (g, p)
    wide = {name: widen(s, jnp.finfo(x.dtype).dtype) for name, s in slots.items()}
    numbers = numbers if rule.refresh is None else {n: numbers[n] for n in keywords(rule.step) & numbers.keys()}
    result = rule.step(x, wide, MissingParams(part.name) if p is None else q, **numbers)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        raise TypeError(
            f"{part.name}: its step returned {_kinds(result)}, (update, dict of slots) was expected. "
            f"End it with return u, {{...}}; a rule that keeps nothing returns the s it was given."
        )
    u, new = result
    if u.shape != x.shape or u.dtype != x.dtype:
        raise TypeError(
            f"{part.name}: its step returned an update of {u.dtype}{list(u.shape)} for a gradient of "
            f"{x.dtype}{list(x.shape)}; the same was expected. Check the step for a missing reduction or a cast."
        )
    return (dtypes.from_pair(u) if pair else u), _kept(part, "step", new, slots, chance)


def call_refresh(part: Part, slots: dict[str, Any], p: Any, numbers: dict[str, Any]) -> dict[str, Any]:
    """Run the refresh of a rule on one matrix: slots in the compute dtype, results checked."""
    refresh: Any = part.rule.refresh
    dtype = jnp.finfo(_computed_like(slots, p).dtype).dtype
    wide = {name: widen(s, dtype) for name, s in slots.items()}
    numbers = {n: numbers[n] for n in keywords(refresh) & numbers.keys()}
    return _kept(part, "refresh", refresh(wide, MissingParams(part.name) if p is None else p, **numbers), slots)


def _kept(
    part: Part, function: str, new: dict[str, Any], slots: Mapping[str, Any], chance: Chance | None = None
) -> dict[str, Any]:
    """New slots in the dtypes they are kept in, if they are those there were."""
    wrong = [n for n in {*slots, *new} if n not in slots or n not in new or new[n].shape != slots[n].shape]
    if wrong:
        raise TypeError(
            f"{part.name}: its {function} returned the slots { {n: tuple(s.shape) for n, s in new.items()} }, "
            f"{ {n: tuple(s.shape) for n, s in slots.items()} } were expected. Return each slot in the shape "
            f"that slots(p) gave it."
        )
    chances = {name: chance and chance.fold(i) for i, name in enumerate(sorted(slots))}
    return {name: narrow(new[name], slots[name], chances[name]) for name in slots}


def _kinds(result: Any) -> str:
    is_tuple = isinstance(result, tuple)
    return f"({', '.join(type(x).__name__ for x in result)})" if is_tuple else type(result).__name__


def named(function: Callable[..., Any], available: Mapping[str, Any], part: Part) -> dict[str, Any]:
    """The keywords a function names, from what is available.

    Raises:
        TypeError: one that it cannot do without is missing, as an extra the caller forgot.
    """
    missing = sorted(required_keywords(function) - available.keys())
    if missing:
        call = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"update: {part.name} was called without {missing}, which it needs; given were {sorted(available)}. "
            f"Call update(grads, state, params, {call}) (a linen TrainState passes no extras: call tx.update yourself)."
        )
    return {name: available[name] for name in keywords(function) if name in available}


def split_numbers(numbers_of: Mapping[int, Mapping[str, Any]], program: Iterable[int]):
    """Numbers of a program as one float vector with its names, and the rest by part."""
    floats, others = {}, {}
    for index in program:
        for name, value in sorted(numbers_of[index].items()):
            if not isinstance(value, tuple) and jnp.issubdtype(jnp.result_type(value), jnp.floating):
                floats[index, name] = value
            else:
                others.setdefault(index, {})[name] = value
    vector = jnp.stack(list(floats.values())) if floats else None
    return tuple(floats), vector, others


class MissingParams:
    """Stands for a parameter when `update` was called without params; touching it is the named error."""

    def __init__(self, part: str):
        object.__setattr__(self, "_part", part)

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(
            f"update: {self._part} reads the parameters, and params=None was received; the parameters were expected. "
            f"Call tx.update(grads, state, params)."
        )

    def __getattr__(self, name: str) -> Any:
        return self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __abs__ = __getitem__ = __jax_array__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __len__ = _refuse
