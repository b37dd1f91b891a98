"""Rules that normalise a gradient first and average afterwards: ADOPT, LaProp, NovoGrad."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.dtypes import SATURATION
from jopt.rules.adam import adam_slots
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def adopt_shared(*, t, b1, nesterov, use_clipping, clip_value_fn=None):
    bound = jnp.sqrt(jnp.sqrt(t - 1)) if clip_value_fn is None else clip_value_fn
    bound = bound if use_clipping else jnp.full_like(bound, jnp.inf)
    ahead = (b1, 1 - b1) if nesterov else (jnp.ones_like(b1), jnp.zeros_like(b1))
    return {"bound": bound, "of_m": ahead[0], "of_x": ahead[1]}


def adopt_step(g, s, p, *, t, b1, b2, eps, bound, of_m, of_x):
    first = t == 1
    x = jnp.clip(g / jnp.maximum(jnp.sqrt(s["nu"]), eps), -bound, bound)
    x = jnp.where(first, jnp.zeros_like(x), x)  # nothing to divide by yet
    v = jnp.where(first, g * g, b2 * s["nu"] + (1 - b2) * g * g)
    m = b1 * s["mu"] + (1 - b1) * x
    return of_m * m + of_x * x, {"mu": m, "nu": v}


def scale_by_adopt(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: ScalarOrSchedule | None = None,
) -> Transform:
    """Adam that divides by the squares before this gradient, and then averages: convergent for every β₂.

        x = clip(g / max(√v, ε), −κ, κ),   κ = (t − 1)^¼
        m ← β₁m + (1 − β₁)x
        v ← β₂v + (1 − β₂)g²,   at the first step v = g² and x = 0
        u = m

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0.
        mu_dtype: dtype of m in the state; None is float32 or wider.
        nesterov: True looks a step ahead, u = β₁m + (1 − β₁)x.
        use_clipping: False takes κ infinite: the first gradient of an element is then a step of |g| / ε.
        clip_value_fn: κ, a schedule or a number; None takes that of the formula.

    Differs: `clip_value_fn` may be a number, and is a live hyper-parameter like the others.
    Reference: [taniguchi2024adopt], Algorithm 2.
    """
    bound = {} if clip_value_fn is None else {"clip_value_fn": clip_value_fn}
    return rule(
        "scale_by_adopt",
        adopt_step,
        slots=adam_slots,
        shared=adopt_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps} | bound,
        static={
            "mu_dtype": dtype_name(mu_dtype, "scale_by_adopt", "mu_dtype"),
            "nesterov": bool(nesterov),
            "use_clipping": bool(use_clipping),
        },
        domain={"b1": DECAY, "b2": DECAY, "eps": "(0, inf)", "clip_value_fn": NONNEGATIVE},
    )


def laprop_shared(*, t, b1, b2):
    return {"c1": 1 - b1**t, "c2": 1 - b2**t}


def laprop_step(g, s, p, *, b1, b2, eps, c1, c2):
    v = b2 * s["nu"] + (1 - b2) * g * g
    m = b1 * s["mu"] + (1 - b1) * g / (jnp.sqrt(v / c2) + eps)
    return m / c1, {"mu": m, "nu": v}


def scale_by_laprop(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-15,
    mu_dtype: Any = None,
) -> Transform:
    """Adam with its two halves exchanged: divide by the root of the squares, then average.

        v ← β₂v + (1 − β₂)g²
        m ← β₁m + (1 − β₁) g / (√(v / c₂) + ε)
        u = m / c₁,   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1); any pair with b1 is stable, unlike Adam's.
        eps: ε ≥ 0; 0 divides 0 by 0 where a gradient was never seen.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    Differs: the learning rate multiplies the average; in the paper it is inside, so that a new rate takes
        effect as slowly as m moves.
    Reference: [ziyin2020laprop], Algorithm 1.
    """
    return rule(
        "scale_by_laprop",
        laprop_step,
        slots=adam_slots,
        shared=laprop_shared,
        hyper={"b1": b1, "b2": b2, "eps": eps},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_laprop", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE},
    )


def novograd_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype), "nu": jnp.zeros((), p.dtype)}


def novograd_step(g, s, p, *, t, b1, b2, eps, eps_root, weight_decay):
    size = jnp.minimum(linalg.norm(g), SATURATION)  # its square is finite, as that of an element
    v = jnp.where(t == 1, size * size, b2 * s["nu"] + (1 - b2) * size * size)
    m = b1 * s["mu"] + g / (jnp.sqrt(v + eps_root) + eps) + weight_decay * p
    return m, {"mu": m, "nu": v}


def scale_by_novograd(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    """Divide each array by a moving average of its norm, then sum with momentum.

        v ← β₂v + (1 − β₂)‖g‖²,   ‖g‖² at the first step
        m ← β₁m + g / (√(v + ε_root) + ε) + λp
        u = m

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0, outside the root; 0 divides 0 by 0 where an array has no gradient.
        eps_root: ε_root ≥ 0, inside the root.
        weight_decay: λ, which decays inside the momentum.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    Reference: [ginsburg2019stochastic], Algorithm 1.
    """
    return rule(
        "scale_by_novograd",
        novograd_step,
        slots=novograd_slots,
        hyper={"b1": b1, "b2": b2, "eps": eps, "eps_root": eps_root, "weight_decay": weight_decay},
        static={"mu_dtype": dtype_name(mu_dtype, "scale_by_novograd", "mu_dtype")},
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "eps_root": NONNEGATIVE},
        reads="array",
        complex="pair",
    )
