"""Step sizes from the distance travelled: DoG, its layer-wise form, DoWG."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg, scalars
from jopt.linalg import Gradients
from jopt.rule import Own, Whole
from jopt.rules.each import each, opened, over, reals, unpaired
from jopt.rules.slots import dtype_name
from jopt.scalars import FINITE, NONNEGATIVE, POSITIVE, ScalarOrSchedule, scalar_dtype
from jopt.transform import Transform, rule, whole

# A sum of squares stops here, above the square of any saturated gradient, and so stays finite.
_MOST = 1e37


def scaled_step(g, s, p, *, rate):
    return rate * g, s


def _start(first, value, params):
    if first == "heuristic":
        return value * (1 + linalg.global_norm(list(params.values())))
    return jnp.asarray(value if first == "distance" else 0.0, scalar_dtype())


def dog_init(params, *, init_step):
    """The first parameters, and sums that are still zero."""
    first, value = init_step
    start = _start(first, value, params)
    return Own({"x0": reals(params)}, {"max_dist": start, "sum_sq": jnp.zeros((), scalar_dtype())})


def dog_update(grads, own, params, *, count, norms, eps, init_step):
    """A step as long as the way from the start over the root of the summed squares."""
    g, x = opened("scale_by_dog", grads, own, params)
    r = jnp.maximum(own.scalars["max_dist"], linalg.distance(x, own.slots["x0"]))
    square = jnp.square(Gradients(grads, norms).norm())
    total = jnp.minimum(own.scalars["sum_sq"] + square, _MOST)
    rate = over(r, jnp.sqrt(total + eps))
    first, value = init_step
    if first == "learning_rate":
        rate = jnp.where(count == 0, value, rate)
    u, _ = each(scaled_step, g, {}, x, rate=rate)
    return unpaired(u, grads), own._replace(scalars={"max_dist": r, "sum_sq": total})


DOG = Whole("scale_by_dog", dog_update, dog_init)


def scale_by_dog(init_step: tuple[str, float], eps: ScalarOrSchedule = 1e-8) -> Transform:
    """Scale by the distance travelled over the root of all squared gradients (DoG).

        r ← max(r, ‖x − x₀‖)
        G ← G + ‖g‖²
        u = r / √(G + ε) · g

    Norms are over the whole tree. r is ``state.scalars["scale_by_dog"]["max_dist"]``.

    Args:
        init_step: how to begin: ("distance", r), ("heuristic", α) for r = α(1 + ‖x₀‖), or
            ("learning_rate", η) for a first step of u = ηg and r = 0.
        eps: ε ≥ 0.

    Differs: G stops at 1e37 and does not overflow.
    Reference: [ivgi2023dog].
    """
    kinds = ("distance", "heuristic", "learning_rate")
    if not (isinstance(init_step, tuple | list) and len(init_step) == 2 and init_step[0] in kinds):
        raise ValueError(
            f"scale_by_dog: init_step={init_step!r} was given, a pair of one of {kinds} and a number was expected. "
            f"Pass for example init_step=('heuristic', 1e-6)."
        )
    first = (init_step[0], _plain(init_step[1]))
    return whole(DOG, hyper={"eps": eps}, static={"init_step": first}, domain={"eps": NONNEGATIVE})


def _plain(value: Any) -> float:
    number = scalars.number(value, "scale_by_dog", "init_step", NONNEGATIVE)
    if isinstance(number, scalars.Traced):
        raise TypeError(
            f"scale_by_dog: the number of init_step is {number!r}, a Python number was expected: it shapes the state. "
            f"To try several, make a transform of each."
        )
    return number


def dowg_init(params, *, init_estim_sq_dist):
    """The first parameters, and a weighted sum that is still zero."""
    start = jnp.asarray(init_estim_sq_dist, scalar_dtype())
    return Own({"x0": reals(params)}, {"sq_dist": start, "weighted_sq": jnp.zeros((), scalar_dtype())})


def dowg_update(grads, own, params, *, norms, eps):
    """As `dog_update`, with squares weighted by the distance at their time."""
    g, x = opened("scale_by_dowg", grads, own, params)
    r2 = jnp.maximum(own.scalars["sq_dist"], jnp.square(linalg.distance(x, own.slots["x0"])))
    norm = Gradients(grads, norms).norm()
    v = jnp.minimum(own.scalars["weighted_sq"] + r2 * jnp.square(norm), _MOST)
    u, _ = each(scaled_step, g, {}, x, rate=over(r2, jnp.sqrt(v) + eps))
    return unpaired(u, grads), own._replace(scalars={"sq_dist": r2, "weighted_sq": v})


DOWG = Whole("scale_by_dowg", dowg_update, dowg_init)


def scale_by_dowg(init_estim_sq_dist: ScalarOrSchedule | None = None, eps: ScalarOrSchedule = 1e-4) -> Transform:
    """Scale by the squared distance travelled over the root of squared gradients weighted by it (DoWG).

        r² ← max(r², ‖x − x₀‖²)
        v ← v + r²‖g‖²
        u = r² / (√v + ε) · g

    Norms are over the whole tree. r² is ``state.scalars["scale_by_dowg"]["sq_dist"]``.

    Args:
        init_estim_sq_dist: the first r² > 0; None takes ε.
        eps: ε ≥ 0.

    Differs: the paper has no ε; v stops at 1e37 and does not overflow.
    Reference: [khaled2023dowg], Algorithm 1.
    """
    start = eps if init_estim_sq_dist is None else init_estim_sq_dist
    return whole(
        DOWG,
        hyper={"init_estim_sq_dist": start, "eps": eps},
        domain={"init_estim_sq_dist": NONNEGATIVE, "eps": NONNEGATIVE},
    )


def distance_slots(p, *, reps_rel, param_dtype):
    start = reps_rel.astype(p.dtype) * (1 + linalg.norm(p))
    return {"x0": p.astype(param_dtype), "max_dist": start, "sum_sq": jnp.zeros_like(start)}


def distance_step(g, s, p, *, eps, global_scale):
    r = jnp.maximum(s["max_dist"], linalg.norm(p - s["x0"]))
    total = jnp.minimum(s["sum_sq"] + jnp.square(linalg.norm(g)), _MOST)
    u = global_scale * r / jnp.sqrt(total + eps) * g
    return u, {"x0": s["x0"], "max_dist": r, "sum_sq": total}


def scale_by_distance_over_gradients(
    reps_rel: ScalarOrSchedule = 1e-6,
    eps: ScalarOrSchedule = 1e-8,
    param_dtype: Any = jnp.float32,
    global_scale: ScalarOrSchedule = 1.0,
) -> Transform:
    """DoG for each array by itself (layer-wise DoG).

        r ← max(r, ‖p − p₀‖),   r₀ = α(1 + ‖p₀‖)
        G ← G + ‖g‖²
        u = s r / √(G + ε) · g

    Args:
        reps_rel: α > 0.
        eps: ε > 0.
        param_dtype: dtype in which p₀ is kept.
        global_scale: s, of any sign.

    Differs: G stops at 1e37 and does not overflow; a scalar parameter keeps its shape (in optax its
        update has one axis).
    Reference: [ivgi2023dog].
    """
    name = "scale_by_distance_over_gradients"
    return rule(
        name,
        distance_step,
        slots=distance_slots,
        hyper={"reps_rel": reps_rel, "eps": eps, "global_scale": global_scale},
        static={"param_dtype": dtype_name(param_dtype, name, "param_dtype")},
        domain={"reps_rel": NONNEGATIVE, "eps": POSITIVE, "global_scale": FINITE},
        reads="array",
        complex="pair",
    )
