"""Arithmetic of steps: whole numbers stay int32 until only a ratio or a power of them is left.

A float32 holds whole numbers exactly up to 2²⁴ only, so offsets, comparisons, quotients and
remainders are taken before the cast. Nothing here overflows for steps within 0 .. 2³¹ − 1.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.scalars import Traced, raw, scalar_dtype

LAST_STEP = 2**31 - 1


def step_count(count: Any, call: str) -> jax.Array:
    """The step as int32 within 0 .. 2³¹ − 1, of any shape; what lies outside is clipped."""
    if isinstance(count, int) and not isinstance(count, bool):
        return jnp.asarray(min(max(count, 0), LAST_STEP), jnp.int32)
    if not isinstance(count, jax.Array):
        count = np.asarray(count)
    if not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(
            f"{call}(count): count of dtype {count.dtype} was given, whole numbers were expected. "
            f"Pass an int, or an integer array such as count.astype(int)."
        )
    # Clipping in the given dtype saturates a wide count, where a cast would wrap it to a negative one.
    xp = jnp if isinstance(count, jax.Array) else np
    count = xp.maximum(count, 0)
    if jnp.iinfo(count.dtype).max > LAST_STEP:
        count = xp.minimum(count, LAST_STEP)
    return jnp.asarray(count, jnp.int32)


def real(value: Any) -> Any:
    """A number ready for float arithmetic: a Python float, or an array of the scalar dtype."""
    value = raw(value)
    return float(value) if isinstance(value, float | int) else jax.lax.convert_element_type(value, scalar_dtype())


def whole(value: Any) -> Any:
    """A number of steps ready for integer arithmetic: a Python int, or an int32 tracer."""
    value = raw(value)
    return value if isinstance(value, int) else jax.lax.convert_element_type(value, jnp.int32)


def at_least_one(steps: Any) -> Any:
    """A divisor: concrete lengths are checked at construction, traced ones can be zero."""
    return max(steps, 1) if isinstance(steps, int) else jnp.maximum(steps, 1)


def progress(count: jax.Array, steps: Any) -> tuple[jax.Array, jax.Array]:
    """Shares (left, done) of a phase of `steps` steps; (1, 0) before it and (0, 1) after it.

    Both come from whole numbers: 1 − done would lose the last digits near the end.
    A phase of no steps is over at once.
    """
    total = at_least_one(steps)
    left = steps - jnp.clip(count, 0, steps)
    if not isinstance(steps, int) or steps == 0:
        left = jnp.where((total > steps) & (count < 0), 1, left)
    return real(left) / real(total), real(total - left) / real(total)


def cosine(left: jax.Array, done: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bend progress to half a cosine: ½(1 + cos π·done), as the square that has no cancellation."""
    return jnp.sin(math.pi / 2 * left) ** 2, jnp.sin(math.pi / 2 * done) ** 2


def powered(left: jax.Array, done: jax.Array, exponent: Any) -> tuple[jax.Array, jax.Array]:
    """Raise what is left of the progress to a positive power."""
    if isinstance(exponent, float) and exponent == 1.0:
        return left, done
    # At both ends the power is known, and computing it is not safe: 0^exponent has no finite derivative
    # in the exponent, and a compiled division is a product with the rounded reciprocal, which can make
    # a whole a little more or less than 1.
    inside = (left > 0) & (done > 0)
    power = jnp.minimum(jnp.where(inside, left, 1.0), 1.0) ** real(exponent)
    power = jnp.where(inside, power, jnp.where(left > 0, 1.0, 0.0))
    return power, 1.0 - power


def between(start: Any, end: Any, left: jax.Array, done: jax.Array) -> jax.Array:
    """left·start + done·end, for left + done = 1: exact at both ends and never outside of them."""
    start, end = real(start), real(end)
    # The sum itself, or the form of one branch alone, misses an end or leaves the interval by a rounding.
    return jnp.where(left >= 0.5, start - (start - end) * done, end + (start - end) * left)


def geometric(rate: Any, exponent: jax.Array) -> jax.Array:
    """rate^exponent for a positive rate and an exponent of at least 0; growth stops short of overflow."""
    dtype = scalar_dtype()
    limits = jnp.finfo(dtype)
    longest = 0.9 * math.log(float(limits.max))  # of exponent · log rate
    if isinstance(rate, Traced):
        base = real(rate)
        log = jax.lax.stop_gradient(jnp.log(base))
        # Cut the exponent, not the power: the derivative of an infinite power is lost for good.
        return jnp.power(base, jnp.minimum(exponent, longest / jnp.maximum(log, 1e-30)))
    if rate > 1.0:
        exponent = jnp.minimum(exponent, min(longest / math.log(rate), float(limits.max)))
    # 0.9999 is not a float32: without the residue its power is off by 3e-4 after 10⁴ steps.
    base = min(max(float(np.asarray(rate, dtype)), float(limits.tiny)), float(limits.max))
    residue = math.log(rate) - math.log(base) if base in (limits.tiny, limits.max) else math.log1p((rate - base) / base)
    power = jnp.power(base, exponent)
    return power * jnp.exp(residue * exponent) if residue else power


def through(
    count: jax.Array,
    points: Sequence[tuple[Any, Any]],
    bend: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None,
) -> Any:
    """Go from point to point (step, value), along lines or along `bend`; steps must not decrease."""
    value = real(points[0][1])
    for (begin, start), (finish, end) in itertools.pairwise(points):
        shares = progress(count - begin, finish - begin)
        shares = bend(*shares) if bend else shares
        value = jnp.where(count >= begin, between(start, end, *shares), value)
    return value


def joined(count: jax.Array, schedules: Sequence[Callable[..., Any]], boundaries: Sequence[Any]) -> jax.Array:
    """Value of the schedule whose turn it is; each counts from its own start."""
    value = _called(schedules[0], count)
    for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
        if isinstance(boundary, int) and boundary > LAST_STEP:
            break
        value = jnp.where(count < boundary, value, _called(schedule, jnp.maximum(count - boundary, 0)))
    return value


def _called(schedule: Callable[..., Any], count: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(schedule(count), scalar_dtype()), count.shape)
