"""Calls of what a rule's author wrote: slots, step and refresh, with what each names, and what they return checked."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import dtypes
from jopt.axes import MATRIX, View
from jopt.formats import Chance, narrow, widen
from jopt.paths import Leaf
from jopt.rule import Part, keywords, no_params, required_keywords
from jopt.scalars import scalar_dtype


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
    if view is None or (view == MATRIX and p.ndim == 2):
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


def slots_of_one(part: Part, sides: tuple[int, int], dtype: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of what a rule keeps for one matrix of these sides, of a parameter of this dtype."""
    rule = part.rule
    if rule.slots is None:
        return {}
    numbers = {name: np.ones((), scalar_dtype()) for name, _ in part.hyper}  # no shape depends on them
    known = named(rule.slots, dict(part.static) | {"leaf_dtype": dtype} | numbers, part)
    one = jax.ShapeDtypeStruct(sides, dtypes.compute_dtype(dtype))
    return {name: tuple(x.shape) for name, x in jax.eval_shape(lambda p: rule.slots(p, **known), one).items()}


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
    dtype = jnp.finfo(computed_like(slots, p).dtype).dtype
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


def computed_like(slots: Mapping[str, jax.Array], p: jax.Array | None) -> jax.Array:
    """An array of the dtype that a matrix is computed in: the parameter's, or the widest of its slots."""
    found = [dtypes.compute(x) for x in ([p] if p is not None else slots.values()) if dtypes.is_trained(x)]
    return max(found, key=lambda x: x.dtype.itemsize)


def named(
    function: Callable[..., Any], available: Mapping[str, Any], part: Part, extra: Iterable[str] = ()
) -> dict[str, Any]:
    """The keywords a function names, from what is available.

    Args:
        function: of a rule.
        available: all it may name.
        part: whose function it is.
        extra: the names in it that the caller of update gave, for the message.

    Raises:
        TypeError: one that it cannot do without is missing, as an extra the caller forgot.
    """
    missing = sorted(required_keywords(function) - available.keys())
    if missing:
        call = ", ".join(f"{name}=..." for name in missing)
        raise TypeError(
            f"update: {part.name} was called without {missing}, which it needs; of the extras that this transform "
            f"knows, {sorted(extra) or 'none'} came. "
            f"Call update(grads, state, params, {call}) (a linen TrainState passes no extras: call tx.update yourself)."
        )
    return {name: available[name] for name in keywords(function) if name in available}


def refusal(part: Part, path: str, p: Any, expected: str, advice: str) -> TypeError:
    """The error for a leaf that a part cannot handle."""
    return TypeError(
        f"init: {part.name} was given the parameter {path!r} of dtype {p.dtype} and shape {tuple(p.shape)}, "
        f"{expected} was expected. To train it all the same, {advice}."
    )


class MissingParams:
    """Stands for a parameter when `update` was called without params; touching it is the named error."""

    def __init__(self, part: str):
        object.__setattr__(self, "_part", part)

    def _refuse(self, *_: Any) -> Any:
        raise no_params(self._part)

    def __getattr__(self, name: str) -> Any:
        return self._refuse()

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __matmul__ = __rmatmul__ = __pow__ = __neg__ = __abs__ = __getitem__ = __jax_array__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = __len__ = _refuse


def _kinds(result: Any) -> str:
    is_tuple = isinstance(result, tuple)
    return f"({', '.join(type(x).__name__ for x in result)})" if is_tuple else type(result).__name__
