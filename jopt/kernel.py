"""Compiled inner functions: the pending rules of one leaf, or one batch of equal matrices.

A leaf's rules run in one inner `jit`, so that a further leaf of the same shape and dtype costs one
equation to trace and nothing to lower. Scalars travel as one vector, because each operand of each
call costs time when there are a thousand small leaves.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.paths import Leaf
from jopt.rule import Part, keywords, required_keywords

Names = tuple[tuple[int, str], ...]


class Kernels:
    """The inner functions of one plan, built on first use and kept as long as the plan."""

    def __init__(self, flat: tuple[Part, ...]):
        self._flat = flat
        self._built: dict[Any, Callable[..., Any]] = {}
        self._shapes: dict[Any, dict[str, tuple[int, ...]]] = {}

    def leaf(self, program: tuple[int, ...], packed: Names, entering: bool, mode: str, dtype: Any):
        """``(g, slots, p, vector, others, salt) -> (value, slots)`` for one leaf.

        Args:
            program: which parts of the plan run, in order.
            packed: which number of which part each entry of the vector is.
            entering: whether g is still as the user gave it.
            mode: "compute", "update" or "apply"; see `Plan.run`.
            dtype: of an update that leaves.
        """
        asked = (program, packed, entering, mode, dtype)
        if asked not in self._built:

            def kernel(g, slots, p, vector, others, salt):
                x = dtypes.enter(g) if entering else g
                wide = None if p is None else dtypes.compute(p)
                new = {}
                for index in program:
                    numbers = self._numbers(index, packed, vector, others, x, salt)
                    x, new[index] = call_step(self._flat[index], x, slots.get(index, {}), wide, numbers)
                if mode == "compute":
                    return x, new
                x = dtypes.leave(x, dtype)
                return (p + x if mode == "apply" else x), new

            self._built[asked] = jax.jit(kernel)
        return self._built[asked]

    def matrices(self, index: int, packed: Names):
        """``(gs, slots, ps, vector, others, salts) -> (values, slots)`` for a batch of equal matrices."""
        asked = (index, packed)
        if asked not in self._built:

            def kernel(gs, slots, ps, vector, others, salts):
                def one(g, s, p, salt):
                    numbers = self._numbers(index, packed, vector, others, g, salt)
                    return call_step(self._flat[index], g, s, None if p is None else dtypes.compute(p), numbers)

                stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *zip(gs, slots, ps, salts, strict=True))
                u, s = jax.lax.platform_dependent(*stacked, cpu=one_by_one(one), default=jax.vmap(one))
                return [(u[i], {name: x[i] for name, x in s.items()}) for i in range(len(gs))]

            self._built[asked] = jax.jit(kernel)
        return self._built[asked]

    def _numbers(self, index, packed, vector, others, x, salt) -> dict[str, Any]:
        dtype = jnp.finfo(x.dtype).dtype  # the real dtype of the leaf's arithmetic
        numbers = {name: _at(vector, i).astype(dtype) for i, (part, name) in enumerate(packed) if part == index}
        numbers |= others.get(index, {})
        if "t" in numbers:
            numbers["t"] = numbers["t"].astype(dtype)
        if "key" in numbers:
            key, count = numbers["key"]
            numbers["key"] = jax.random.fold_in(jax.random.fold_in(key, count), salt)
        static = dict(self._flat[index].static)
        return numbers | {name: static[name] for name in keywords(self._flat[index].of.step) & static.keys()}

    def slot_shapes(self, part: Part, leaf: Leaf, hyper: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shapes of the slots a rule keeps for a leaf."""
        asked = (part.name, leaf.shape, leaf.dtype)
        if asked not in self._shapes:
            struct = jax.ShapeDtypeStruct(leaf.shape, dtypes.compute_dtype(leaf.dtype))
            numbers = {name: hyper[f"{part.name}/{name}"] for name, _ in part.hyper}
            slots = jax.eval_shape(lambda p: make_slots(part, leaf.path, p, numbers), struct)
            self._shapes[asked] = {name: tuple(x.shape) for name, x in slots.items()}
        return self._shapes[asked]


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `jax.vmap`, in a loop: on CPU a matrix that stays in the cache is up to twice as fast as a batch."""
    return lambda *stacked: jax.lax.map(lambda xs: function(*xs), stacked)


def _at(vector: jax.Array, i: int) -> jax.Array:
    return jax.lax.squeeze(jax.lax.slice(vector, (i,), (i + 1,)), (0,))  # indexing by `[]` traces ten times as long


def make_slots(part: Part, path: str, p: Any, numbers: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What a rule keeps for one parameter.

    Raises:
        TypeError: the rule does not understand complex arrays, or a matrix rule got no matrix.
    """
    rule = part.rule
    if jnp.iscomplexobj(p) and rule.complex is None:
        raise refusal(part, path, p, "a real array", "keep real and imaginary parts as two parameters")
    if rule.reads == "matrix" and p.ndim != 2:
        raise refusal(part, path, p, "a matrix", "route other shapes elsewhere: partition([(ndim(2), ...), ...])")
    if rule.slots is None:
        return {}
    p = dtypes.to_pair(p) if rule.complex == "pair" else p
    slots = rule.slots(p, **named(rule.slots, dict(part.static) | dict(numbers), part))
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


def call_step(part: Part, g: jax.Array, slots: dict[str, Any], p: Any, numbers: dict[str, Any]):
    """Run one rule on one leaf: as a pair if it is complex, slots in the compute dtype, results checked."""
    rule = part.rule
    pair = rule.complex == "pair" and jnp.iscomplexobj(g)
    x, q = (dtypes.to_pair(g), None if p is None else dtypes.to_pair(p)) if pair else (g, p)
    wide = {name: _widen(s, jnp.finfo(x.dtype).dtype) for name, s in slots.items()}
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
    wrong = [n for n in {*slots, *new} if n not in slots or n not in new or new[n].shape != slots[n].shape]
    if wrong:
        raise TypeError(
            f"{part.name}: its step returned the slots { {n: tuple(s.shape) for n, s in new.items()} }, "
            f"{ {n: tuple(s.shape) for n, s in slots.items()} } were expected. Return each slot in the shape "
            f"that slots(p) gave it."
        )
    new = {name: _narrow(new[name], slots[name].dtype) for name in slots}
    return (dtypes.from_pair(u) if pair else u), new


def _kinds(result: Any) -> str:
    is_tuple = isinstance(result, tuple)
    return f"({', '.join(type(x).__name__ for x in result)})" if is_tuple else type(result).__name__


def _widen(x: jax.Array, dtype: Any) -> jax.Array:
    """A real slot in the dtype of the arithmetic, also where that is float64 and the slot is stored in bfloat16."""
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < jnp.finfo(dtype).bits
    return x.astype(dtype) if narrow else x


def _narrow(x: jax.Array, dtype: Any) -> jax.Array:
    return dtypes.leave(x, dtype) if jnp.issubdtype(dtype, jnp.floating) else x.astype(dtype)


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
