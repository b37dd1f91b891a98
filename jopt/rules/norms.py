"""Steps in proportion to the size of a block of parameters, or along a sphere through it."""

import jax.numpy as jnp

from jopt import linalg
from jopt.dtypes import SATURATION
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def _bounded(size, min_scale):
    """A size, at least `min_scale`; from above it saturates as gradients do, so that the product stays finite."""
    return jnp.minimum(jnp.maximum(size, min_scale), SATURATION)


def param_norm_step(g, s, p, *, min_scale):
    return g * _bounded(linalg.norm(p), min_scale).astype(g.dtype), s


def scale_by_param_block_norm(min_scale: ScalarOrSchedule = 1e-3) -> Transform:
    """Multiply each array's update by the norm of the array.

        u = g · max(‖p‖, s)

    Args:
        min_scale: s ≥ 0, so that what is zero can leave it.
    """
    return rule(
        "scale_by_param_block_norm",
        param_norm_step,
        hyper={"min_scale": min_scale},
        domain={"min_scale": NONNEGATIVE},
        reads="array",
        complex="native",
    )


def param_rms_step(g, s, p, *, min_scale):
    return g * _bounded(linalg.rms(p), min_scale).astype(g.dtype), s


def scale_by_param_block_rms(min_scale: ScalarOrSchedule = 1e-3) -> Transform:
    """Multiply each array's update by the root mean square of the array.

        u = g · max(RMS(p), s)

    Args:
        min_scale: s ≥ 0, so that what is zero can leave it.

    Reference: [shazeer2018adafactor], section 8.
    """
    return rule(
        "scale_by_param_block_rms",
        param_rms_step,
        hyper={"min_scale": min_scale},
        domain={"min_scale": NONNEGATIVE},
        reads="array",
        complex="native",
    )


def shrinking_shared(*, learning_rate):
    root = jnp.sqrt(1 + learning_rate * learning_rate)
    # 1 − 1/√(1 + γ²), without cancellation.
    return {"rate": learning_rate / root, "shrinkage": learning_rate * learning_rate / (root * (1 + root))}


def shrinking_step(g, s, p, *, rate, shrinkage):
    return -rate * g - shrinkage * p, s


def scale_by_shrinking_rate(learning_rate: ScalarOrSchedule) -> Transform:
    """Step downhill, and shrink the result by what a step across the parameters would have added to their norm.

        u = (p − γ g) / √(1 + γ²) − p

    Last in a chain, in place of `scale_by_learning_rate`; `fromage` puts it there.

    Args:
        learning_rate: γ ≥ 0.

    Reference: [bernstein2020distance], Algorithm 1.
    """
    return rule(
        "scale_by_shrinking_rate",
        shrinking_step,
        shared=shrinking_shared,
        hyper={"learning_rate": learning_rate},
        domain={"learning_rate": NONNEGATIVE},
    )


def sphere_slots(p):
    return {"radius": linalg.norm(p)}


def sphere_step(g, s, p, *, learning_rate):
    r, size = s["radius"], linalg.norm(g)
    has_sphere, moves = r > 0, (size > 0) & (learning_rate > 0)
    x = p - learning_rate * jnp.where(has_sphere, g / jnp.where(size > 0, size, 1) * r, g)
    now = linalg.norm(x)
    x = x * jnp.where(has_sphere & (now > 0), r / jnp.where(now > 0, now, 1), 1)
    return jnp.where(moves, x - p, 0), s


def scale_by_hyperball_rate(learning_rate: ScalarOrSchedule) -> Transform:
    """Step downhill by a fraction of the array's first norm, and return to that norm.

        x = p − γ g r / ‖g‖,   r = ‖p₀‖
        u = x r / ‖x‖ − p

    Last in a chain, in place of `scale_by_learning_rate`; `hyperball` puts it there. An array that
    starts at zero has no sphere to stay on: there u = −γg.

    Args:
        learning_rate: γ ≥ 0, about the angle of a step.

    Differs: where ‖g‖ = 0 nothing moves, not even back to the sphere.
    Reference: [wen2026fantastic].
    """
    return rule(
        "scale_by_hyperball_rate",
        sphere_step,
        slots=sphere_slots,
        hyper={"learning_rate": learning_rate},
        domain={"learning_rate": NONNEGATIVE},
        reads="array",
        complex="pair",
    )
