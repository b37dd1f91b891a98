"""Parameters of 16 bits that small updates still move: rounding at random, and keeping what rounding loses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.formats import round_at_random, uniform
from jopt.transform import Transform, rule

CORRECTIONS = ("int8", "bfloat16")


def round_step(u, s, p, *, leaf_dtype, chance):
    return (round_at_random(p + u, leaf_dtype, chance) - p if _is_narrow(leaf_dtype) else u), s


def round_stochastically() -> Transform:
    """Round the stepped parameter at random, so that updates too small for one step of it add up.

        p ← one of the two neighbours of p + u, and p + u in the mean
        u = p' − p

    Last in a chain: ``chain(adamw(1e-3), round_stochastically())``. Parameters of 32 bits and more
    are left to the arithmetic. The noise depends on path and step alone, and costs a few integer
    operations. The update leaves in float32, so that ``(p + u).astype(p.dtype)``, as Flax, optax and
    `apply_updates` have it, is exactly p'.

    Reference: [gupta2015deep].
    """
    return rule("round_stochastically", round_step, lands=True)


def compensate_slots(p, *, correction, leaf_dtype):
    return {"correction": jnp.zeros_like(p, dtype=correction)} if _is_narrow(leaf_dtype) else {}


def compensate_step(u, s, p, *, correction, leaf_dtype, chance):
    if not _is_narrow(leaf_dtype):
        return u, s
    error = s["correction"]
    if correction == "int8":
        error = error.astype(p.dtype) * _unit(p, leaf_dtype)
    target = p + error + u
    q = _nearest(target, leaf_dtype)
    error = target - q
    if correction == "int8":
        unit = _unit(q, leaf_dtype)
        steps = jnp.floor(jnp.where(unit > 0, error / jnp.where(unit > 0, unit, 1), 0) + uniform(u.shape, chance))
        error = jnp.clip(steps, -127, 127).astype(jnp.int8)
    return q - p, {"correction": error}


def compensate(correction: str = "int8") -> Transform:
    """Keep what rounding a 16-bit parameter loses, and add it to the next step.

        θ = p + c + u
        p ← round(θ)
        c ← θ − p
        u = p' − p

    Last in a chain: ``chain(adamw(1e-3), compensate())``. A bfloat16 parameter then moves like one of
    16 bits of mantissa, for one byte more. Parameters of 32 bits and more are left to the arithmetic,
    and have no correction. The update leaves in float32, so that p + u is exactly p' in Flax too.

    Args:
        correction: "int8" keeps c in 127ths of the largest error of rounding (1 byte, rounded at random
            by path and step); "bfloat16" keeps c as it is (2 bytes; Kahan's sum).

    Reference: [zamirai2020revisiting].
    """
    if correction not in CORRECTIONS:
        raise ValueError(
            f"compensate: correction={correction!r} was given, one of {CORRECTIONS} was expected. Take 'int8'."
        )
    return rule("compensate", compensate_step, slots=compensate_slots, static={"correction": correction}, lands=True)


def _is_narrow(dtype: Any) -> bool:
    return jnp.finfo(dtype).bits < 32


def _nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """The nearest number that the dtype holds, in float32; what is finite stays so."""
    info = jnp.finfo(dtype)
    bounded = jnp.where(jnp.isfinite(x), jnp.clip(x, float(info.min), float(info.max)), x)
    # XLA may take two conversions there and back for none; this it keeps, but it knows no subnormal numbers.
    normal = jax.lax.reduce_precision(bounded, info.nexp, info.nmant)
    if info.nexp == 8:  # they are float32's own
        return normal
    step = np.float32(info.smallest_subnormal)
    return jnp.where(jnp.abs(bounded) < float(info.tiny), jnp.round(bounded / step) * step, normal)


def _unit(p: jax.Array, dtype: Any) -> jax.Array:
    """A 127th of the largest error of rounding to p: of half the distance to the next number."""
    info = jnp.finfo(dtype)
    power = jax.lax.bitcast_convert_type(p, jnp.uint32) & np.uint32(0x7F800000)
    # Below the smallest normal number they are as far apart as above it.
    power = jnp.maximum(jax.lax.bitcast_convert_type(power, jnp.float32), np.float32(info.tiny))
    return power * np.float32(2.0 ** -(info.nmant + 1) / 127)
