"""NorMuon: steps along orthogonalised momentum, with evened neurons."""

from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.axes import matrix_axes
from jopt.polar import MUON_COEFFICIENTS, newton_schulz, triples
from jopt.rules.muon import muon_shared, newton_schulz_statics
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def normuon_slots(p, *, mu_dtype):
    # The zeros of a sum lie on a mesh as the sums of each step will.
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype), "nu": jnp.zeros_like(jnp.sum(p, axis=0))}


def normuon_step(
    g, s, p, *, beta, b2, eps, eps_root, w_mu, w_g, ns_coeffs, ns_steps, preconditioning, accelerator=False
):
    m = beta * s["mu"] + (1 - beta) * g
    o = newton_schulz(w_mu * m + w_g * g, triples(ns_coeffs, ns_steps), eps, preconditioning, accelerator)
    v = b2 * s["nu"] + (1 - b2) * jnp.sum(o * o, axis=0) / max(len(o), 1)
    evened = o / (jnp.sqrt(v) + eps_root)[None, :]
    size = linalg.norm(evened)
    return evened * (linalg.norm(o) / jnp.where(size > 0, size, 1)), {"mu": m, "nu": v}


def scale_by_normuon(
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 1e-8,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    preconditioning: str = "frobenius",
    axes: Any = None,
) -> Transform:
    """Orthogonalise each matrix as Muon does, then even out its neurons by their second moments.

        m, n, o = NS(n)                     as `scale_by_muon`
        vⱼ ← β₂vⱼ + (1 − β₂) meanᵢ o²ᵢⱼ      for each output j
        q = o / (√v + ε₂),   u = q ‖o‖ / ‖q‖

    Args:
        ns_coeffs, ns_steps, beta, eps, nesterov, preconditioning, axes: see `scale_by_muon`.
        b2: β₂ in [0, 1).
        eps_root: ε₂ > 0, added to the root.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    A kernel is (inputs, outputs), so that a neuron is a column; it keeps one number for each.

    Differs: the paper then gives u the norm 0.2√(rows·columns); here it keeps that of o, and
        `scale_by_shape` follows. The momentum is that of `scale_by_muon`.
    Reference: [li2025normuon].
    """
    return rule(
        "scale_by_normuon",
        normuon_step,
        slots=normuon_slots,
        shared=muon_shared,
        hyper={"beta": beta, "b2": b2, "eps": eps, "eps_root": eps_root},
        static={
            **newton_schulz_statics("scale_by_normuon", ns_coeffs, ns_steps, preconditioning),
            "mu_dtype": dtype_name(mu_dtype, "scale_by_normuon", "mu_dtype"),
            "nesterov": bool(nesterov),
            "axes": matrix_axes("scale_by_normuon", axes),
        },
        domain={"beta": DECAY, "b2": DECAY, "eps": NONNEGATIVE, "eps_root": POSITIVE},
        reads="matrix",
        axes="axes",
    )
