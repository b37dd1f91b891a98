"""Mechanic: the scale of any transform's updates, learned while it runs."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.rule import Own, Whole
from jopt.rules.each import each, opened, reals, unpaired
from jopt.scalars import NONNEGATIVE, POSITIVE, ScalarOrSchedule, scalar_dtype, size
from jopt.transform import Transform, as_transform, whole


def mechanic_init(params, *, inner, s_init, num_betas):
    """The start x₀, and a tuner for each β."""
    nothing = jnp.zeros((num_betas,), scalar_dtype())
    numbers = {"r": nothing, "m": nothing, "root_v": nothing, "s": nothing + s_init}
    return Own({"x0": reals(params)}, numbers, inner(params))


def mechanic_step(g, s, x, *, back, scale):
    return back * (s["x0"] - x) + scale * g, s


def mechanic_update(grads, own, params, *, inner, norms, weight_decay, eps, s_init, num_betas):
    """The updates of the base, scaled by the sum of what the tuners learned."""
    g, x = opened("mechanize", grads, own, params)
    x0, tuner = own.slots["x0"], own.scalars
    updates, state = inner.update(grads, own.inner, params)
    before = jnp.sum(tuner["s"])
    decay = weight_decay * before * linalg.Gradients(grads, norms).norm()
    decay = decay / (linalg.global_norm(list(x.values())) + eps)
    # Δ, the sum of the updates so far, is (x₀ − x) / Σs.
    h = (linalg.total(linalg.along, g, x0, x) + decay * linalg.total(linalg.along, x, x0, x)) / (before + eps)

    betas = 1 - jnp.asarray([0.1 ** (i + 1) for i in range(num_betas)], scalar_dtype())
    m = jnp.maximum(betas * tuner["m"], jnp.abs(h) + eps)
    root_v = jnp.hypot(betas * tuner["root_v"], h)  # v itself overflows
    r = betas * tuner["r"] + jnp.clip(h, -tuner["m"], tuner["m"]) * tuner["s"]
    s = (s_init / num_betas * m + jnp.maximum(r, 0)) / (root_v + eps)

    scale = jnp.sum(s)
    u, _ = each(mechanic_step, reals(updates), {"x0": x0}, x, back=1 - scale / (before + eps), scale=scale)
    numbers = {"r": r, "m": m, "root_v": root_v, "s": s}
    return unpaired(u, grads), Own(own.slots, numbers, state)


MECHANIC = Whole("mechanize", mechanic_update, mechanic_init)


def mechanize(
    base_optimizer: Any,
    weight_decay: ScalarOrSchedule = 1e-2,
    eps: ScalarOrSchedule = 1e-8,
    s_init: ScalarOrSchedule = 1e-6,
    num_betas: int = 6,
) -> Transform:
    """Learn the scale of a transform's updates, so that its learning rate is a factor of 1 (Mechanic).

        Δ = Σ of the updates so far,   h = −⟨g + λ Σs ‖g‖/‖x‖ x, Δ⟩
        r ← βr + clip(h, ±m) s,   with m and s of the step before
        m ← max(βm, |h| + ε),   v ← β²v + h²
        s ← (s₀m/n + max(r, 0)) / (√v + ε)
        x ← x₀ + Σs · Δ

    One s for each of n values of β, which are 0.9, 0.99, and so on; products and norms are over the
    whole tree. The scale Σs is the sum of ``state.scalars["mechanize"]["s"]``.

    Args:
        base_optimizer: an optimizer at learning rate 1, or at a schedule of peak 1; not one that
            normalises its update by the parameters (lars, lamb).
        weight_decay: λ ≥ 0, of the tuner's gradient alone.
        eps: ε > 0.
        s_init: s₀ > 0, the first scale.
        num_betas: n ≥ 1.

    Differs: x₀ are the parameters at `init` (in optax those at the first update).
    Reference: [cutkosky2023mechanic], Algorithm 1.
    """
    n = size(num_betas, "mechanize", "num_betas")
    return whole(
        MECHANIC,
        hyper={"weight_decay": weight_decay, "eps": eps, "s_init": s_init},
        static={"num_betas": n},
        domain={"weight_decay": NONNEGATIVE, "eps": POSITIVE, "s_init": POSITIVE},
        inner=as_transform(base_optimizer, "mechanize"),
    )
