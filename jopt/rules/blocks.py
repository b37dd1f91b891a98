"""Adam with one second moment for each block of parameters: Adam-mini."""

import math

import jax
import jax.numpy as jnp

from jopt import linalg
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def _block_mean(x: jax.Array, axis: tuple[int, ...] | None, parts: int | None) -> jax.Array:
    """The mean over each block; the axes that blocks span stay with size 1, the last has `parts` if there are."""
    apart = {i % x.ndim for i in axis or () if -x.ndim <= i < x.ndim}
    spanned = tuple(i for i in range(x.ndim) if i not in apart)
    n = math.prod(x.shape[i] for i in spanned)
    mean = jnp.sum(x / max(n, 1), axis=spanned, keepdims=True)
    if parts is None:
        return mean
    width = _width(x.shape, parts)
    return jnp.sum(jnp.reshape(mean, (*mean.shape[:-1], parts, width)) / max(width, 1), axis=-1)


def _width(shape: tuple[int, ...], parts: int) -> int:
    """How many indices of the last axis are one part."""
    if not shape or shape[-1] % parts:
        raise ValueError(
            f"scale_by_adam_mini: parts={parts} was given for an array of shape {shape}, a divisor of its last axis "
            f"was expected. Pass the number of heads, and send arrays without heads elsewhere by a partition."
        )
    return shape[-1] // parts


def mini_slots(p, *, axis, parts):
    return {"mu": jnp.zeros_like(p), "nu": jnp.zeros_like(_block_mean(jnp.real(p), axis, parts))}


def mini_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t}


def mini_step(g, s, p, *, b1, b2, eps, c1, c2, axis, parts):
    m = s["mu"] * b1.astype(g.dtype) + g * (1 - b1).astype(g.dtype)
    v = b2 * s["nu"] + (1 - b2) * _block_mean(linalg.abs_square(g), axis, parts)
    size = c1 * (jnp.sqrt(v / c2) + eps)
    size = size if parts is None else jnp.repeat(size, _width(g.shape, parts), axis=-1)
    return m / size.astype(g.dtype), {"mu": m, "nu": v}


def scale_by_adam_mini(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    axis: int | tuple[int, ...] | None = None,
    parts: int | None = None,
) -> Transform:
    """Adam with one second moment for each block of an array.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂) mean of g² over the block
        u = (m / c₁) / (√(v / c₂) + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        axis: the axes whose indices tell blocks apart: -1 is a block for each output neuron of a
            Flax kernel (in, out), 0 one for each row, 1 one for each head of a kernel
            (in, heads, d), None one for the whole array. An axis that an array lacks is left out.
        parts: with `axis=-1`, how many blocks of equal width that axis falls into, such as the heads
            of a kernel (in, heads · d); None is one for each index.

    `adam_mini` chooses axes for a whole model.

    Raises:
        ValueError: `parts` without `axis=-1`; at `init`, parts that do not divide the last axis.

    Reference: [zhang2025adammini], Algorithm 1.
    """
    axis = axis if axis is None else tuple(axis) if isinstance(axis, tuple | list) else (int(axis),)
    if parts is not None and (axis != (-1,) or parts < 1):
        raise ValueError(
            f"scale_by_adam_mini: parts={parts!r} and axis={axis!r} were given, parts ≥ 1 and axis=-1 were expected. "
            f"Only the last axis is split."
        )
    return rule(
        "scale_by_adam_mini",
        mini_step,
        slots=mini_slots,
        shared=mini_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        static={"axis": axis, "parts": parts},
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE},
        reads="array",
        complex="native",
    )
