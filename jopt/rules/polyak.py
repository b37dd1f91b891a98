"""Step sizes from the loss: Polyak's, and momentum models (MoMo)."""

import jax.numpy as jnp

from jopt import linalg
from jopt.rule import Own, Whole
from jopt.rules.each import each, opened, reals, unpaired, zeros
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule, scalar_dtype
from jopt.transform import Transform, rule, whole

# A squared norm up to this counts as zero, and no step is taken.
_NOTHING = float(jnp.finfo(jnp.float64).eps)
_MOST = 1e36  # of a squared norm


def polyak_shared(grads, *, value, f_min, max_learning_rate, eps, variant):
    square = jnp.minimum(jnp.square(grads.norm()), _MOST) + eps
    gap = jnp.asarray(value, scalar_dtype()) - f_min
    gap = jnp.maximum(gap, 0) if variant == "sps+" else gap
    return {"step_size": _unless_nothing(square, jnp.minimum(_ratio(gap, square), max_learning_rate))}


def _ratio(x, square):
    """x / square; where that counts as zero, anything finite."""
    return x / jnp.where(square <= _NOTHING, 1, square)


def _unless_nothing(square, x):
    return jnp.where(square <= _NOTHING, 0, x)


def polyak_step(g, s, p, *, step_size):
    return step_size * g, s


def scale_by_polyak(
    f_min: ScalarOrSchedule = 0.0,
    max_learning_rate: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 0.0,
    variant: str = "sps",
) -> Transform:
    """Scale by Polyak's step size: the gap to the least loss over the squared norm of the gradient.

        u = min((f − f*) / (‖g‖² + ε), γ) · g,   ‖g‖ over all arrays

    Needs the loss at each update: ``update(grads, state, params, value=loss)``. No step is taken where
    ‖g‖² + ε ≤ 2.2e-16.

    Args:
        f_min: f*, the least loss there can be.
        max_learning_rate: γ ≥ 0.
        eps: ε ≥ 0.
        variant: "sps", or "sps+" for a gap of at least 0; with "sps" a loss below f* goes uphill.

    Reference: [loizou2021stochastic], and [garrigos2023function] for "sps+".
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(
            f"scale_by_polyak: variant={variant!r} was given, 'sps' or 'sps+' was expected. Choose one of them."
        )
    return rule(
        "scale_by_polyak",
        polyak_step,
        shared=polyak_shared,
        hyper={"f_min": f_min, "max_learning_rate": max_learning_rate, "eps": eps},
        static={"variant": variant},
        domain={"max_learning_rate": NONNEGATIVE, "eps": NONNEGATIVE},
        reads="tree",
        complex="pair",
    )


# Momentum models ---------------------------------------------------------------------------------

_DOMAIN = {
    "learning_rate": NONNEGATIVE,
    "beta": DECAY,
    "b1": DECAY,
    "b2": DECAY,
    "eps": NONNEGATIVE,
    "weight_decay": NONNEGATIVE,
}


def _model_init(x, slots, lower_bound):
    nothing = jnp.zeros((), scalar_dtype())
    numbers = {"loss": nothing, "inner": nothing, "lower_bound": jnp.asarray(lower_bound, scalar_dtype())}
    return Own({name: zeros(x) for name in slots}, numbers)


def _model_rate(own, model, square, *, alpha, share, decay, lower_bound, adapt):
    """The step size and the lower bound to keep.

    Args:
        own: for the bound kept so far.
        model: f̄, γ̄ and ⟨m, x⟩ − γ̄, of which the model's value at x is made.
        square: ‖m‖² in the norm of the step.
        alpha: the largest step size.
        share: how much of the averages is filled, 1 − βᵗ; 1 where they are not corrected.
        decay: 1 + γλ.
        lower_bound: the bound that was given.
        adapt: whether to estimate the bound.
    """
    f, inner, ahead = model
    height = decay * f + ahead - (decay - 1) * inner
    if adapt:
        held = own.scalars["lower_bound"]
        low = jnp.where(height < decay * share * held, jnp.maximum(height / (2 * share * decay), lower_bound), held)
    else:
        low = lower_bound
    above = jnp.maximum(height - decay * share * low, 0)
    rate = jnp.minimum(alpha / share, _unless_nothing(square, _ratio(above, square)))
    if adapt:
        low = jnp.maximum((f + ahead - rate * square / 2) / share, lower_bound)
    return rate, low


def _ahead(own, x, beta):
    """⟨m, x⟩ − γ̄ of the averages to be: this step's ⟨g, x⟩ is in both and never added, nor rounded."""
    return beta * (linalg.vdot(own.slots["mu"], x) - own.scalars["inner"])


def momo_init(params, *, lower_bound):
    """Averages that are still zero."""
    return _model_init(reals(params), ["mu"], lower_bound)


def average(g, s, p, *, beta):
    """Average the gradient into the momentum, and pass the gradient on."""
    return g, {"mu": beta * s["mu"] + (1 - beta) * g}


def momo_direction(g, s, p, *, rate, shrink):
    """The step along the momentum, and the share of the parameter that decays."""
    return rate * s["mu"] + shrink * p, s


def momo_update(grads, own, params, *, count, value, learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound):
    """Momentum with a step no longer than the model of the loss allows."""
    g, x = opened("scale_by_momo", grads, own, params)
    beta = jnp.where(count == 0, 0, beta)
    f = beta * own.scalars["loss"] + (1 - beta) * jnp.asarray(value, scalar_dtype())
    inner = beta * own.scalars["inner"] + (1 - beta) * linalg.vdot(g, x)
    _, slots = each(average, g, own.slots, x, beta=beta)
    m, decay = slots["mu"], 1 + learning_rate * weight_decay
    rate, low = _model_rate(
        own,
        (f, inner, _ahead(own, x, beta)),
        linalg.vdot(m, m),
        alpha=learning_rate,
        share=1,
        decay=decay,
        lower_bound=lower_bound,
        adapt=adapt_lower_bound,
    )
    u, slots = each(momo_direction, g, slots, x, rate=rate, shrink=learning_rate * weight_decay / decay)
    return unpaired(u, grads), Own(slots, {"loss": f, "inner": inner, "lower_bound": low})


MOMO = Whole("scale_by_momo", momo_update, momo_init)


def scale_by_momo(
    learning_rate: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 0.9,
    lower_bound: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> Transform:
    """Momentum with the step size at which a model of the loss, made of past gradients, reaches its bound (MoMo).

        m ← βm + (1 − β)g,   f̄ ← βf̄ + (1 − β)f,   γ̄ ← βγ̄ + (1 − β)⟨g, x⟩;   β = 0 at the first step
        τ = min(α, ((1 + αλ)(f̄ − f* − γ̄) + ⟨m, x⟩)₊ / ‖m‖²)
        u = τm + αλ / (1 + αλ) · x

    Products and norms are over the whole tree. Needs the loss at each update:
    ``update(grads, state, params, value=loss)``. No step is taken where ‖m‖² ≤ 2.2e-16.

    Args:
        learning_rate: α ≥ 0, the largest step size; rather large.
        beta: β in [0, 1).
        lower_bound: f*, below which the loss does not fall.
        weight_decay: λ ≥ 0.
        adapt_lower_bound: estimate f*, never below `lower_bound`; the estimate is
            ``state.scalars["scale_by_momo"]["lower_bound"]``.

    Reference: [schaipp2024momo].
    """
    return whole(
        MOMO,
        hyper={
            "learning_rate": learning_rate,
            "beta": beta,
            "lower_bound": lower_bound,
            "weight_decay": weight_decay,
        },
        static={"adapt_lower_bound": bool(adapt_lower_bound)},
        domain=_DOMAIN,
    )


def momo_adam_init(params, *, lower_bound):
    """Averages and second moments that are still zero."""
    return _model_init(reals(params), ["mu", "nu"], lower_bound)


def momo_adam_moments(g, s, p, *, b1, b2, eps, c2):
    """Adam's moments, and the momentum over the root of the second."""
    m = b1 * s["mu"] + (1 - b1) * g
    v = b2 * s["nu"] + (1 - b2) * g * g
    return m / (eps + jnp.sqrt(v / c2)), {"mu": m, "nu": v}


def momo_adam_direction(g, s, p, *, rate, shrink):
    """The same step along what `momo_adam_moments` gave."""
    return rate * g + shrink * p, s


def momo_adam_update(
    grads, own, params, *, t, value, learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound
):
    """The same in the metric of Adam."""
    g, x = opened("scale_by_momo_adam", grads, own, params)
    f = b1 * own.scalars["loss"] + (1 - b1) * jnp.asarray(value, scalar_dtype())
    inner = b1 * own.scalars["inner"] + (1 - b1) * linalg.vdot(g, x)
    scaled, slots = each(momo_adam_moments, g, own.slots, x, b1=b1, b2=b2, eps=eps, c2=1 - b2**t)
    m, decay = slots["mu"], 1 + learning_rate * weight_decay
    rate, low = _model_rate(
        own,
        (f, inner, _ahead(own, x, b1)),
        linalg.vdot(m, scaled),
        alpha=learning_rate,
        share=1 - b1**t,
        decay=decay,
        lower_bound=lower_bound,
        adapt=adapt_lower_bound,
    )
    u, _ = each(momo_adam_direction, scaled, {}, x, rate=rate, shrink=learning_rate * weight_decay / decay)
    return unpaired(u, grads), Own(slots, {"loss": f, "inner": inner, "lower_bound": low})


MOMO_ADAM = Whole("scale_by_momo_adam", momo_adam_update, momo_adam_init)


def scale_by_momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    lower_bound: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> Transform:
    """Adam's direction with the step size at which a model of the loss reaches its bound (MoMo-Adam).

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²,   f̄, γ̄ as in `scale_by_momo`, from 0
        z = m / (ε + √(v / c₂)),   cᵢ = 1 − βᵢᵗ
        τ = min(α / c₁, ((1 + αλ)(f̄ − c₁f* − γ̄) + ⟨m, x⟩)₊ / ⟨m, z⟩)
        u = τz + αλ / (1 + αλ) · x

    Products are over the whole tree. Needs the loss at each update:
    ``update(grads, state, params, value=loss)``. No step is taken where ⟨m, z⟩ ≤ 2.2e-16.

    Args:
        learning_rate: α ≥ 0, the largest step size.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        lower_bound: f*, below which the loss does not fall.
        weight_decay: λ ≥ 0.
        adapt_lower_bound: estimate f*, never below `lower_bound`; the estimate is
            ``state.scalars["scale_by_momo_adam"]["lower_bound"]``.

    Reference: [schaipp2024momo].
    """
    return whole(
        MOMO_ADAM,
        hyper={
            "learning_rate": learning_rate,
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "lower_bound": lower_bound,
            "weight_decay": weight_decay,
        },
        static={"adapt_lower_bound": bool(adapt_lower_bound)},
        domain=_DOMAIN,
    )
