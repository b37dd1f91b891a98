"""Muon: steps along orthogonalised momentum."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def muon_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype)}


def muon_shared(*, t, beta, nesterov):
    c, c_next = 1 - beta**t, 1 - beta ** (t + 1)
    # Weights of momentum and gradient: both of a look-ahead, or of the corrected momentum alone.
    return {"w_mu": beta / c_next, "w_g": (1 - beta) / c} if nesterov else {"w_mu": 1 / c, "w_g": jnp.zeros_like(c)}


def muon_step(g, s, p, *, beta, eps, w_mu, w_g, ns_coeffs, ns_steps):
    m = beta * s["mu"] + (1 - beta) * g
    return linalg.newton_schulz(w_mu * m + w_g * g, ns_steps, ns_coeffs, eps), {"mu": m}


def scale_by_muon(
    ns_coeffs: tuple[Any, ...] = linalg.MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
) -> Transform:
    """Replace each matrix by an approximately orthogonal one: its momentum with singular values near 1.

        m ← βm + (1 − β)g
        n = βm / (1 − βᵗ⁺¹) + (1 − β)g / (1 − βᵗ)
        u = NS(n),   NS: X ← X / (‖X‖ + ε), then X ← aX + (bA + cA²)X with A = XXᵀ

    Args:
        ns_coeffs: one triple (a, b, c) for all steps, or one triple for each step.
        ns_steps: number of Newton-Schulz steps.
        beta: β in [0, 1).
        eps: ε ≥ 0, added to the norm.
        mu_dtype: dtype of m in the state; None is float32 or wider.
        nesterov: False takes n = m / (1 − βᵗ).

    Matrices of one shape run as one batch. Only 2-D parameters are accepted: `muon` routes the rest
    to AdamW.

    Differs: the momentum is bias-corrected, as in optax; the original's is not, which the
        normalisation all but undoes. A triple per step needs exactly `ns_steps` of them (optax
        silently runs fewer).
    Reference: [jordan2024muon].
    """
    nested = isinstance(ns_coeffs[0], tuple | list)
    rows = tuple(tuple(map(float, row)) for row in (ns_coeffs if nested else (ns_coeffs,)))
    if (nested and len(rows) != ns_steps) or any(len(row) != 3 for row in rows):
        raise ValueError(
            f"scale_by_muon: ns_coeffs={ns_coeffs!r} was given with ns_steps={ns_steps}; one triple (a, b, c), or "
            f"exactly {ns_steps} of them were expected. Set ns_steps to their number."
        )
    return rule(
        "scale_by_muon",
        muon_step,
        slots=muon_slots,
        shared=muon_shared,
        hyper={"beta": beta, "eps": eps},
        static={
            "ns_coeffs": rows if nested else rows[0],
            "ns_steps": int(ns_steps),
            "mu_dtype": dtype_name(mu_dtype, "scale_by_muon", "mu_dtype"),
            "nesterov": bool(nesterov),
        },
        domain={"beta": DECAY, "eps": NONNEGATIVE},
        reads="matrix",
    )


def _sides(g):
    if g.ndim != 2:
        raise TypeError(
            f"update: scale_by_shape was given a gradient of shape {list(g.shape)}, a matrix was expected. "
            f"Route other shapes elsewhere: partition([(ndim(2), ...), ...])."
        )
    return g.shape


def width_step(g, s, p):
    rows, columns = _sides(g)
    return g * max(1.0, columns / max(rows, 1)) ** 0.5, s


def rms_shape_step(g, s, p, *, consistent_rms):
    return g * (consistent_rms * max(_sides(g)) ** 0.5).astype(g.dtype), s


def scale_by_shape(consistent_rms: ScalarOrSchedule | None = None) -> Transform:
    """Scale an orthogonal update by the shape of its matrix.

        u = g √max(1, columns / rows)       without `consistent_rms`
        u = g c √max(columns, rows)         with c = `consistent_rms`

    Args:
        consistent_rms: c; 0.2 gives updates the size of AdamW's, so that its learning rate carries over.

    Kernels are (inputs, outputs), so columns are outputs.
    Reference: [jordan2024muon]; with `consistent_rms` [liu2025muon].
    """
    if consistent_rms is None:
        return rule("scale_by_shape", width_step, reads="array", complex="native")
    return rule(
        "scale_by_shape",
        rms_shape_step,
        hyper={"consistent_rms": consistent_rms},
        domain={"consistent_rms": NONNEGATIVE},
        reads="array",
        complex="native",
    )
