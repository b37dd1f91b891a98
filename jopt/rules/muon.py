"""Muon: steps along orthogonalised momentum."""

from typing import Any

import jax.numpy as jnp

from jopt.axes import matrix_axes
from jopt.polar import COEFFICIENTS, MUON_COEFFICIENTS, PRECONDITIONINGS, newton_schulz, triples
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule, size
from jopt.transform import Transform, rule


def muon_slots(p, *, mu_dtype):
    return {"mu": jnp.zeros_like(p, dtype=mu_dtype)}


def muon_shared(*, t, beta, nesterov):
    c, c_next = 1 - beta**t, 1 - beta ** (t + 1)
    # Weights of momentum and gradient: both of a look-ahead, or of the corrected momentum alone.
    return {"w_mu": beta / c_next, "w_g": (1 - beta) / c} if nesterov else {"w_mu": 1 / c, "w_g": jnp.zeros_like(c)}


def muon_step(g, s, p, *, beta, eps, w_mu, w_g, ns_coeffs, ns_steps, adaptive, preconditioning, accelerator=False):
    m = beta * s["mu"] + (1 - beta) * g
    n = w_mu * m + w_g * g
    o = newton_schulz(n, triples(ns_coeffs, ns_steps), eps, preconditioning, accelerator)
    return (jnp.sum(n * o) * o if adaptive else o), {"mu": m}


def scale_by_muon(
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    weight_dimension_numbers: Any = None,
    axes: Any = None,
) -> Transform:
    """Replace each matrix by an approximately orthogonal one: its momentum with singular values near 1.

        m ← βm + (1 − β)g
        n = βm / (1 − βᵗ⁺¹) + (1 − β)g / (1 − βᵗ)
        u = NS(n),   NS: X ← X / (‖X‖ + ε), then X ← aX + (bA + cA²)X with A = XXᵀ

    Args:
        ns_coeffs: one triple (a, b, c) for all steps, one triple for each step, or a name: "standard"
            (the default; also "jordan"), "dion" or "polar_express" (5 triples each, which come
            closer to orthogonal).
        ns_steps: number of Newton-Schulz steps.
        beta: β in [0, 1).
        eps: ε ≥ 0, added to the norm.
        mu_dtype: dtype of m in the state; None is float32 or wider.
        nesterov: False takes n = m / (1 − βᵗ).
        adaptive: multiply u by ⟨n, u⟩, about the sum of the singular values of n.
        preconditioning: a second scaling of X before the steps: "frobenius" (none), "spectral" (by
            the largest singular value; needs an SVD), "schatten" (by the fourth root of Σσ⁴) or
            "aol" (of each row).
        weight_dimension_numbers: optax's form of `axes`.
        axes: which axes of an array are rows and columns; the others count matrices. None takes
            2-D parameters; cases ``[(where, rows, columns), ...]`` add others, with axes as integers,
            tuples of them, or `...` for all that are left: ``("**/conv*/kernel", ..., -1)``. "conv"
            is Flax's kernels of 4 and 5 axes, "heads" its attention kernels, a matrix for each head.

    Matrices of one shape run as one batch, also where one is the transpose of another. Those with a
    side 1.5 times the other are iterated on their Gram matrix, which takes about half the work. On
    accelerators the steps are in bfloat16.

    Differs: the momentum is bias-corrected, as in optax; the original's is not, which the
        normalisation all but undoes. A triple per step needs exactly `ns_steps` of them (optax
        silently runs fewer). With `adaptive` each matrix of an array has its own factor.
    Reference: [jordan2024muon]; `adaptive` [bernstein2024old], "aol" [boissin2025turbo],
        "polar_express" [amsel2025polar].
    """
    return rule(
        "scale_by_muon",
        muon_step,
        slots=muon_slots,
        shared=muon_shared,
        hyper={"beta": beta, "eps": eps},
        static={
            **newton_schulz_statics("scale_by_muon", ns_coeffs, ns_steps, preconditioning),
            "mu_dtype": dtype_name(mu_dtype, "scale_by_muon", "mu_dtype"),
            "nesterov": bool(nesterov),
            "adaptive": bool(adaptive),
            "axes": matrix_axes("scale_by_muon", axes, weight_dimension_numbers),
        },
        domain={"beta": DECAY, "eps": NONNEGATIVE},
        reads="matrix",
        axes="axes",
        transposes=True,
    )


def newton_schulz_statics(call: str, ns_coeffs: Any, ns_steps: int, preconditioning: str) -> dict[str, Any]:
    """The static values of a rule with Newton-Schulz steps, checked.

    Args:
        call: the function the user called, for messages.
        ns_coeffs, ns_steps, preconditioning: see `scale_by_muon`.

    Raises:
        ValueError: an unknown name, or another number of triples than of steps.
    """
    steps = size(ns_steps, call, "ns_steps", 0)
    for what, value, known in (
        ("ns_coeffs", ns_coeffs if isinstance(ns_coeffs, str) else None, (None, *COEFFICIENTS)),
        ("preconditioning", preconditioning, PRECONDITIONINGS),
    ):
        if value not in known:
            names = ", ".join(repr(name) for name in known if name)
            raise ValueError(f"{call}: {what}={value!r} was given, one of {names} was expected. Choose one.")
    listed = ns_coeffs.tolist() if hasattr(ns_coeffs, "tolist") else ns_coeffs
    rows: Any = COEFFICIENTS[listed] if isinstance(listed, str) else listed
    nested = len(rows) > 0 and isinstance(rows[0], tuple | list)
    plain = tuple(tuple(map(float, row)) for row in (rows if nested else (rows,)))
    if (nested and len(plain) != steps) or any(len(row) != 3 for row in plain):
        raise ValueError(
            f"{call}: ns_coeffs={ns_coeffs!r} was given with ns_steps={ns_steps}; one triple (a, b, c), or "
            f"exactly {ns_steps} of them were expected. Set ns_steps to their number."
        )
    given = ns_coeffs if isinstance(ns_coeffs, str) else plain if nested else plain[0]
    return {"ns_coeffs": given, "ns_steps": steps, "preconditioning": preconditioning}


def width_step(g, s, p):
    rows, columns = g.shape
    return g * max(1.0, columns / max(rows, 1)) ** 0.5, s


def rms_shape_step(g, s, p, *, consistent_rms):
    return g * (consistent_rms * max(g.shape) ** 0.5).astype(g.dtype), s


def scale_by_shape(
    weight_dimension_numbers: Any = None, consistent_rms: ScalarOrSchedule | None = None, *, axes: Any = None
) -> Transform:
    """Scale an orthogonal update by the shape of its matrix.

        u = g √max(1, columns / rows)       without `consistent_rms`
        u = g c √max(columns, rows)         with c = `consistent_rms`

    Args:
        weight_dimension_numbers: optax's form of `axes`.
        consistent_rms: c; 0.2 gives updates the size of AdamW's, so that its learning rate carries over.
        axes: see `scale_by_muon`.

    Kernels are (inputs, outputs), so columns are outputs.
    Reference: [jordan2024muon]; with `consistent_rms` [liu2025muon].
    """
    static = {"axes": matrix_axes("scale_by_shape", axes, weight_dimension_numbers)}
    plain = {"static": static, "reads": "array", "axes": "axes", "complex": "native"}
    if consistent_rms is None:
        return rule("scale_by_shape", width_step, **plain)
    return rule(
        "scale_by_shape",
        rms_shape_step,
        hyper={"consistent_rms": consistent_rms},
        domain={"consistent_rms": NONNEGATIVE},
        **plain,
    )
