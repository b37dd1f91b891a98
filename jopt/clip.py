"""Clipping and cleaning of gradients."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt import linalg
from jopt.scalars import NONNEGATIVE, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def clip_step(g, s, p, *, max_delta):
    return jnp.clip(g, -max_delta, max_delta), s


def clip(max_delta: ScalarOrSchedule) -> Transform:
    """Clip each element.

        u = min(max(g, −δ), δ)

    Args:
        max_delta: δ ≥ 0.
    """
    return rule("clip", clip_step, hyper={"max_delta": max_delta}, domain={"max_delta": NONNEGATIVE})


def global_norm_shared(grads, *, max_norm, axis_name):
    norm = grads.norm(axis_name)
    # A norm that is not finite leaves the gradients alone: scaling by 0 or NaN would hide the element at fault.
    clips = (norm > max_norm) & jnp.isfinite(norm)
    return {"clip_factor": jnp.where(clips, max_norm / jnp.where(clips, norm, 1), 1)}


def global_norm_step(g, s, p, *, clip_factor):
    return g * clip_factor, s


def clip_by_global_norm(max_norm: ScalarOrSchedule, *, axis_name: str | None = None) -> Transform:
    """Scale all gradients down together so that their joint norm is at most `max_norm`.

        u = g · min(1, c / ‖g‖),   ‖g‖ over all arrays

    Args:
        max_norm: c ≥ 0.
        axis_name: mesh axes of an enclosing `shard_map` to take the norm over; None is local.

    Differs: right for norms that overflow or vanish in float32, and for c = ‖g‖ = 0. A gradient
        with infinities or NaN passes as it is, for a guard to see (optax zeroes the rest).
    Reference: [pascanu2013difficulty].
    """
    return rule(
        "clip_by_global_norm",
        global_norm_step,
        shared=global_norm_shared,
        hyper={"max_norm": max_norm},
        static={"axis_name": axis_name},
        domain={"max_norm": "[0, inf]"},
        reads="tree",
        complex="pair",
    )


def block_rms_step(g, s, p, *, threshold):
    return g / jnp.maximum(linalg.rms(g) / threshold, 1).astype(g.dtype), s


def clip_by_block_rms(threshold: ScalarOrSchedule) -> Transform:
    """Scale each array down so that its root mean square is at most `threshold`.

        u = g / max(1, RMS(g) / d)

    Args:
        threshold: d > 0.

    Reference: [shazeer2018adafactor], section 6.
    """
    return rule(
        "clip_by_block_rms",
        block_rms_step,
        hyper={"threshold": threshold},
        domain={"threshold": POSITIVE},
        reads="array",
        complex="native",
    )


def _unit_axes(shape: tuple[int, ...], axis: Any) -> tuple[int, ...]:
    """The axes over which one unit (an output neuron) reaches: all but the last, or all of a vector."""
    if axis is not None:
        return axis if isinstance(axis, tuple) else (axis,)
    wide = sum(n != 1 for n in shape)
    if wide <= 1:
        return tuple(range(len(shape)))
    return (0,) if len(shape) in (2, 3) else tuple(range(len(shape) - 1))


def unit_norm(x, axis):
    """Euclidean norms over the axes of each unit, kept as axes of size 1; finite wherever x is."""
    axes = _unit_axes(x.shape, axis)
    size = jnp.abs(x)
    top = jnp.max(size, axis=axes, keepdims=True, initial=0.0)
    scaled = size / jnp.where((top > 0) & jnp.isfinite(top), top, 1)
    squares = jnp.sum(scaled * scaled, axis=axes, keepdims=True)
    norm = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), squares)
    return jnp.where(top > 0, top * norm, norm) if size.size else norm


def unitwise_norm(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
    """The Euclidean norm of each unit of an array, in the shape of the array.

    Args:
        x: an array of any number of axes.
        axis: the axes one unit reaches over; None takes all but the last of a kernel.
    """
    return jnp.broadcast_to(unit_norm(x, axis), x.shape)


def unitwise_clip(
    g_norm: jax.Array, max_norm: jax.Array, grad: jax.Array, div_eps: jax.typing.ArrayLike = 1e-6
) -> jax.Array:
    """Scale a gradient down where its units are too long.

        u = g · c / max(‖g‖, ε)  where ‖g‖ ≥ c, else g

    Args:
        g_norm: ‖g‖ of each unit, in the shape of `grad`, as `unitwise_norm` gives it.
        max_norm: c likewise.
        grad: g.
        div_eps: ε > 0.

    Raises:
        ValueError: three different shapes.
    """
    shapes = [jnp.shape(x) for x in (g_norm, max_norm, grad)]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"unitwise_clip: norms, bounds and gradient of the shapes {shapes} were given, equal shapes were expected. "
            f"Take the norms by unitwise_norm, which gives each element the norm of its unit."
        )
    factor = max_norm / jnp.maximum(g_norm, jnp.asarray(div_eps, g_norm.dtype))
    return jnp.where(g_norm < max_norm, grad, grad * factor.astype(grad.dtype))


def adaptive_step(g, s, p, *, clipping, eps, axis):
    most = clipping * jnp.maximum(unit_norm(p, axis), eps)
    norm = unit_norm(g, axis)
    clips = norm > most
    return g * jnp.where(clips, most / jnp.where(clips, norm, 1), 1).astype(g.dtype), s


def adaptive_grad_clip(
    clipping: ScalarOrSchedule, eps: ScalarOrSchedule = 1e-3, axis: int | tuple[int, ...] | None = None
) -> Transform:
    """Clip the gradient of each unit to a fraction of the unit's weights.

        uᵢ = gᵢ · min(1, λ max(‖pᵢ‖, ε) / ‖gᵢ‖)   for each output unit i

    Args:
        clipping: λ ≥ 0.
        eps: ε ≥ 0, so that units at zero can leave it.
        axis: the axes one unit reaches over; None takes all but the last of a kernel.

    Reference: [brock2021highperformance].
    """
    return rule(
        "adaptive_grad_clip",
        adaptive_step,
        hyper={"clipping": clipping, "eps": eps},
        static={"axis": axis if axis is None or isinstance(axis, int) else tuple(axis)},
        domain={"clipping": NONNEGATIVE, "eps": NONNEGATIVE},
        reads="array",
        complex="native",
    )


def zero_nans_step(g, s, p):
    return jnp.where(jnp.isnan(g), 0, g), s


def zero_nans() -> Transform:
    """Replace NaN by zero; infinities stay.

        u = 0 where g is NaN, else g

    Differs: optax also keeps a flag for each array; `skip_nonfinite` counts and names instead.
    """
    return rule("zero_nans", zero_nans_step)


def centralize_step(g, s, p):
    if g.ndim < 2 or not g.size:
        return g, s
    return g - jnp.mean(g, axis=tuple(range(1, g.ndim)), keepdims=True), s


def centralize() -> Transform:
    """Subtract the mean over all axes but the first, for arrays of two axes or more.

        u = g − mean(g)

    Reference: [yong2020gradient].
    """
    return rule("centralize", centralize_step, reads="array", complex="native")
