"""SOAP: Adam in the eigenbasis of Shampoo's second moments."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt.axes import matrix_axes
from jopt.rules import factors
from jopt.scalars import DECAY, NONNEGATIVE, POSITIVE, ScalarOrSchedule, size
from jopt.transform import Transform, rule

SIDES = ("left", "right")


def soap_slots(p, *, max_precond_dim):
    slots = {"mu": jnp.zeros_like(p), "nu": jnp.zeros_like(p)}
    for side, n in zip(SIDES, p.shape, strict=True):
        if n <= max_precond_dim:
            slots |= {side: factors.zeros(p, n, n), f"{side}_basis": factors.identity(p, n)}
    return slots


def soap_shared(*, t, b1, b2):
    # The first update only builds the basis: moments and their corrections start one later.
    k = jnp.maximum(t - 1, 1)
    return {"c1": 1 - b1**k, "c2": 1 - b2**k}


def rotated(g, s):
    """QₗᵀGQᵣ."""
    g = s["left_basis"].T @ g if "left_basis" in s else g
    return g @ s["right_basis"] if "right_basis" in s else g


def rotated_back(g, s):
    """QₗGQᵣᵀ."""
    g = s["left_basis"] @ g if "left_basis" in s else g
    return g @ s["right_basis"].T if "right_basis" in s else g


def soap_moments(g, s):
    """What one gradient adds to L and R."""
    sides = {"left": lambda: g @ g.T, "right": lambda: g.T @ g}
    return {side: square() for side, square in sides.items() if side in s}


def soap_step(g, s, p, *, count, b1, b2, shampoo_beta, eps, c1, c2):
    h = factors.entire(factors.bounded(g))
    u, adam = _adam_in_basis(h, s, count, b1, b2, eps, c1, c2)
    second = {side: factors.moment(s[side], new, shampoo_beta) for side, new in soap_moments(h, s).items()}
    return factors.placed_like(u, g), s | second | {name: factors.placed_like(x, g) for name, x in adam.items()}


def _adam_in_basis(g, s, count, b1, b2, eps, c1, c2):
    g, mu, nu = rotated(g, s), factors.entire(s["mu"]), factors.entire(s["nu"])
    m = jnp.where(count > 0, b1 * mu + (1 - b1) * g, mu)
    v = jnp.where(count > 0, b2 * nu + (1 - b2) * g * g, nu)
    return rotated_back((m / c1) / (jnp.sqrt(v / c2) + eps), s), {"mu": m, "nu": v}


def kl_soap_step(g, s, p, *, count, b1, b2, shampoo_beta, eps, kl_eps, c1, c2):
    h = factors.entire(factors.bounded(g))
    u, adam = _adam_in_basis(h, s, count, b1, b2, eps, c1, c2)
    m, n = h.shape
    # Each side in the metric of the other: GR⁻¹Gᵀ / n. The first gradient finds no metric yet.
    across = h if "right" not in s else _scaled(h.T, s["right"], s["right_basis"], count, kl_eps).T
    along = h if "left" not in s else _scaled(h, s["left"], s["left_basis"], count, kl_eps)
    new = {"left": across @ across.T / max(n, 1), "right": along.T @ along / max(m, 1)}
    second = {side: factors.moment(s[side], new[side], shampoo_beta) for side in SIDES if side in s}
    return factors.placed_like(u, g), s | second | {name: factors.placed_like(x, g) for name, x in adam.items()}


def _scaled(g, second, basis, count, kl_eps):
    """Λ^(−1/2)QᵀG with the eigenvalues estimated along the basis; G itself at first."""
    values = factors.rayleigh(second, basis)
    values = jnp.maximum(values, kl_eps * jnp.max(values, initial=0.0))
    root = jnp.where(values > 0, jnp.sqrt(jnp.where(values > 0, values, 1.0)), 1.0)
    return jnp.where(count > 0, (basis.T @ g) / root[:, None], g)


def soap_refresh(s, p, *, count):
    """New bases: of eigenvectors at first, later one power step; the moments turn with them."""
    m, v, new = rotated_back(factors.entire(s["mu"]), s), factors.entire(s["nu"]), dict(s)
    for axis, side in enumerate(SIDES):
        if side in s:
            basis, order = jax.lax.cond(count == 0, _first_basis, _next_basis, s[side], s[f"{side}_basis"])
            v = jnp.take(v, order, axis=axis)
            new[f"{side}_basis"] = basis
    return new | {"mu": factors.placed_like(rotated(m, new), s["mu"]), "nu": factors.placed_like(v, s["nu"])}


def _first_basis(second, basis):
    return factors.eigenbasis(second), jnp.arange(second.shape[0], dtype=jnp.int32)


def _next_basis(second, basis):
    order = jnp.argsort(-factors.rayleigh(second, basis)).astype(jnp.int32)
    return factors.power_step(second, jnp.take(basis, order, axis=1)), order


def scale_by_soap(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    *,
    axes: Any = None,
) -> Transform:
    """Scale each matrix by Adam in the eigenbasis of its two second moments.

        H = QₗᵀGQᵣ,   m ← β₁m + (1 − β₁)H,   v ← β₂v + (1 − β₂)H²
        U = Qₗ[(m / c₁) / (√(v / c₂) + ε)]Qᵣᵀ,   cᵢ = 1 − βᵢᵗ⁻¹
        L ← βL + (1 − β)GGᵀ,   R ← βR + (1 − β)GᵀG
        Qₗ ← QR(LQₗ),   Qᵣ ← QR(RQᵣ),   and m turns with them      each once in `precondition_frequency` steps

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        shampoo_beta: β in [0, 1), of L and R; None takes `b2`.
        eps: ε ≥ 0; 0 divides 0 by 0 where a gradient was never seen.
        precondition_frequency: in how many updates each matrix gets a new basis, one matrix after another.
        max_precond_dim: a longer side is left as it is; both longer give Adam.
        axes: which axes of an array are rows and columns, as for `scale_by_muon`; "any" takes every
            parameter, a vector as a column.

    The first update is zero: its gradient builds the bases, by eigenvectors. Before each power step
    the columns of a basis are sorted by falling eigenvalue, and v with them.
    Others than matrices are refused: `soap` routes them to AdamW.

    Differs: the authors refresh all matrices in the same step; here they take turns. They add ε to √v
    before c₂ corrects it, and decay the weights that have stepped.
    Reference: [vyas2024soap], Algorithm 3.
    """
    return rule(
        "scale_by_soap",
        soap_step,
        slots=soap_slots,
        shared=soap_shared,
        refresh=soap_refresh,
        every="precondition_frequency",
        hyper={"b1": b1, "b2": b2, "shampoo_beta": b2 if shampoo_beta is None else shampoo_beta, "eps": eps},
        static={
            "precondition_frequency": size(precondition_frequency, "scale_by_soap", "precondition_frequency"),
            "max_precond_dim": size(max_precond_dim, "scale_by_soap", "max_precond_dim", 0),
            "axes": matrix_axes("scale_by_soap", axes),
        },
        domain={"b1": DECAY, "b2": DECAY, "shampoo_beta": DECAY, "eps": NONNEGATIVE},
        reads="matrix",
        axes="axes",
    )


def scale_by_kl_soap(
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    kl_eps: ScalarOrSchedule = 1e-4,
    *,
    axes: Any = None,
) -> Transform:
    """SOAP whose second moments of each side are taken in the metric of the other side.

        L ← βL + (1 − β)/n · GQᵣΛᵣ⁻¹QᵣᵀGᵀ
        R ← βR + (1 − β)/m · GᵀQₗΛₗ⁻¹QₗᵀG,   Λ = diag(QᵀLQ) and diag(QᵀRQ), for G of shape (m, n)
        the rest as for `scale_by_soap`

    Args:
        b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, axes: as for `scale_by_soap`.
        kl_eps: > 0; an element of Λ counts as at least this share of the largest.

    So L ⊗ R is the Kronecker product nearest to the gradient's covariance in the Kullback-Leibler
    divergence. The first update takes GGᵀ / n and GᵀG / m.

    Differs: the bound on Λ is relative; others have an absolute one.
    Reference: [lin2025understanding].
    """
    return rule(
        "scale_by_kl_soap",
        kl_soap_step,
        slots=soap_slots,
        shared=soap_shared,
        refresh=soap_refresh,
        every="precondition_frequency",
        hyper={
            "b1": b1,
            "b2": b2,
            "shampoo_beta": b2 if shampoo_beta is None else shampoo_beta,
            "eps": eps,
            "kl_eps": kl_eps,
        },
        static={
            "precondition_frequency": size(precondition_frequency, "scale_by_kl_soap", "precondition_frequency"),
            "max_precond_dim": size(max_precond_dim, "scale_by_kl_soap", "max_precond_dim", 0),
            "axes": matrix_axes("scale_by_kl_soap", axes),
        },
        domain={"b1": DECAY, "b2": DECAY, "shampoo_beta": DECAY, "eps": NONNEGATIVE, "kl_eps": POSITIVE},
        reads="matrix",
        axes="axes",
    )
