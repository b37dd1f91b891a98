"""Steps scaled by norms: of a layer against its update, or of the whole update."""

import jax.numpy as jnp

from jopt import linalg
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def trust_ratio_step(g, s, p, *, min_norm, trust_coefficient, eps):
    p_norm = jnp.maximum(linalg.norm(p), min_norm)
    g_norm = jnp.maximum(linalg.norm(g), min_norm)
    vanishes = (p_norm == 0) | (g_norm == 0)
    ratio = trust_coefficient * p_norm / jnp.where(vanishes, 1, g_norm + eps)
    return g * jnp.where(vanishes, 1, ratio), s


def scale_by_trust_ratio(
    min_norm: ScalarOrSchedule = 0.0, trust_coefficient: ScalarOrSchedule = 1.0, eps: ScalarOrSchedule = 0.0
) -> Transform:
    """Scale each array's update to the size of the array.

        u = g · η‖p‖ / (‖g‖ + ε), and g where a norm is 0

    Args:
        min_norm: lower bound of both norms, ≥ 0.
        trust_coefficient: η ≥ 0.
        eps: ε ≥ 0.

    Reference: [you2017large].
    """
    return rule(
        "scale_by_trust_ratio",
        trust_ratio_step,
        hyper={"min_norm": min_norm, "trust_coefficient": trust_coefficient, "eps": eps},
        domain={"min_norm": NONNEGATIVE, "trust_coefficient": NONNEGATIVE, "eps": NONNEGATIVE},
        reads="array",
        complex="pair",
    )


def update_norm_shared(grads, *, scale_factor, eps, axis_name):
    return {"factor": scale_factor / (grads.norm(axis_name) + eps)}


def update_norm_step(g, s, p, *, factor):
    return factor * g, s


def normalize_by_update_norm(
    scale_factor: ScalarOrSchedule = 1.0, eps: ScalarOrSchedule = 1e-6, *, axis_name: str | None = None
) -> Transform:
    """Give the whole update a fixed Euclidean norm.

        u = g · c / (‖g‖ + ε),   ‖g‖ over all arrays

    Args:
        scale_factor: c, the norm of the result.
        eps: ε > 0.
        axis_name: mesh axes of an enclosing `shard_map` to take the norm over; None is local.
    """
    return rule(
        "normalize_by_update_norm",
        update_norm_step,
        shared=update_norm_shared,
        hyper={"scale_factor": scale_factor, "eps": eps},
        static={"axis_name": axis_name},
        domain={"eps": "(0, inf)"},
        reads="tree",
        complex="pair",
    )


def normalize_shared(grads, *, axis_name):
    norm = grads.norm(axis_name)
    return {"norm": jnp.where(norm > 0, norm, 1)}


def normalize_step(g, s, p, *, norm):
    return g / norm, s


def normalize(*, axis_name: str | None = None) -> Transform:
    """Divide the whole update by its Euclidean norm.

        u = g / ‖g‖,   ‖g‖ over all arrays;   0 where ‖g‖ = 0

    Args:
        axis_name: mesh axes of an enclosing `shard_map` to take the norm over; None is local.

    Differs: optax divides zero by zero.
    """
    return rule(
        "normalize",
        normalize_step,
        shared=normalize_shared,
        static={"axis_name": axis_name},
        reads="tree",
        complex="pair",
    )
