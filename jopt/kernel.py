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

from jopt import dtypes
from jopt.axes import MATRIX, View
from jopt.calls import call_refresh, call_step, computed_like, make_slots, slots_of_one, view_of
from jopt.chunks import in_chunks, rows_at_a_time
from jopt.control import run_some
from jopt.formats import Chance, Stored, narrow, widen
from jopt.paths import Leaf
from jopt.rule import Part
from jopt.stacks import hidden, one_by_one, one_of, stacked, starts_of, unstacked

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
                        view = view_at.get(index)
                        is_whole = view is None or (view == MATRIX and x.ndim == 2)
                        call = call_step if is_whole else _call_by_matrix(view, dtype)
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

    def matrices(
        self,
        index: int,
        packed: Names,
        views: tuple[View, ...],
        entering: bool,
        dtype: Any,
        first: int = 0,
        total: int = 0,
    ):
        """``(gs, slots, ps, vector, others, salts, count) -> (values, slots)`` for equal matrices.

        One batch on accelerators, on CPU a loop. The salts are None where nothing is random.

        Args:
            index: the part of the plan.
            packed: which number of which part each entry of the vector is.
            views: how each leaf is matrices of one and the same shape.
            entering: whether the gradients are still as the user gave them.
            dtype: of the parameters.
            first: how many matrices of this part come before the batch.
            total: how many matrices this part has; both decide whose turn a refresh is.
        """
        asked = (index, packed, views, entering, dtype, first, total)
        if asked not in self._built:
            part = self._flat[index]

            def run(matrices, vector, others, count, accelerator):
                def one(g, s, p, salt):
                    g = dtypes.enter(g) if entering else g  # here, and not leaf by leaf: that is a pass for each
                    chance = Chance(salt).fold(count, index) if "chance" in part.rule.names else None
                    numbers = self._numbers(index, packed, vector, others, g, salt, dtype, chance)
                    numbers |= {"accelerator": accelerator} if "accelerator" in part.rule.names else {}
                    return call_step(part, g, s, None if p is None else dtypes.compute(p), numbers)

                return (jax.vmap if accelerator else one_by_one)(one)(*matrices)

            def in_turn(matrices, starts, vector, others, count):
                return run(matrices, vector, others, count, False), hidden(starts, count)

            def at_once(matrices, starts, vector, others, count):
                return run(matrices, vector, others, count, True), starts

            def kernel(gs, slots, ps, vector, others, salts, count):
                opened = [{name: _opened(x, dtype) for name, x in kept.items()} for kept in slots]
                shapes = slots_of_one(part, views[0].sides(gs[0].shape), dtype)
                matrices = stacked(views, gs, opened, shapes, ps, salts)
                (u, s), starts = jax.lax.platform_dependent(
                    matrices, starts_of(views, gs), vector, others, count, cpu=in_turn, default=at_once
                )
                if part.rule.refresh is not None:
                    s = self._refreshed(index, packed, first, total, s, (*matrices[2:], vector, others), count)
                results = unstacked(views, (u, s), gs, opened, starts)
                chances = [None if salt is None else Chance(salt).fold(count, index) for salt in salts]
                return [
                    (u, {name: _closed(x, kept[name], chance, i) for i, (name, x) in enumerate(sorted(new.items()))})
                    for (u, new), kept, chance in zip(results, slots, chances, strict=True)
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
            s = {name: one_of(x, i) for name, x in slots.items()}
            p = None if ps is None else dtypes.compute(one_of(ps, i))
            like = computed_like(s, p)
            salt = None if salts is None else one_of(salts, i)
            numbers = self._numbers(index, packed, vector, others, like, salt, like.dtype, None)
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


def _call_by_matrix(view: View, dtype: Any):
    """`call_step` for an array that is matrices: on one at a time; the parameter is of this dtype."""

    def call(part, g, slots, p, numbers, chance):
        shapes = slots_of_one(part, view.sides(g.shape), dtype)

        def one(g, s, p):
            return call_step(part, g, s, p, numbers)

        opened = {name: view.split(_opened(x, g.dtype), g.shape, shapes[name]) for name, x in slots.items()}
        u, new = jax.vmap(one)(view.matrices(g), opened, None if p is None else view.matrices(p))
        kept = sorted((name, view.join(x, g.shape)) for name, x in new.items())
        return view.array(u, g.shape), {name: _closed(x, slots[name], chance, i) for i, (name, x) in enumerate(kept)}

    return call


def _opened(x: Any, dtype: Any) -> jax.Array:
    """A slot as an array, for what cuts arrays apart and stacks them; decoded if it is in a format."""
    return widen(x, dtypes.compute_dtype(dtype)) if isinstance(x, Stored) else x


def _closed(x: jax.Array, like: Any, chance: Chance | None, i: int) -> Any:
    """The same slot as the state holds it."""
    return narrow(x, like, chance and chance.fold(i)) if isinstance(like, Stored) else x


def _at(vector: jax.Array, i: int) -> jax.Array:
    return jax.lax.squeeze(jax.lax.slice(vector, (i,), (i + 1,)), (0,))  # indexing by `[]` traces ten times as long


def _add(p: jax.Array, u: jax.Array) -> jax.Array:
    """The stepped parameter; an update that left in a wider dtype lands on a rounding of its choice."""
    return p + u if u.dtype == p.dtype else (p.astype(u.dtype) + u).astype(p.dtype)


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
