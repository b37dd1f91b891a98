"""Steepest steps in a norm: the point of a ball where a gradient is largest (Scion)."""

import math
from typing import Any

import jax.numpy as jnp

from jopt import linalg
from jopt.axes import matrix_axes
from jopt.polar import MUON_COEFFICIENTS, newton_schulz, triples
from jopt.rules.muon import newton_schulz_statics
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def spectral_step(g, s, p, *, radius, eps, ns_coeffs, ns_steps, preconditioning, accelerator=False):
    rows, columns = g.shape
    o = newton_schulz(g, triples(ns_coeffs, ns_steps), eps, preconditioning, accelerator)
    return o * (radius * math.sqrt(columns / max(rows, 1))), s


def spectral_lmo(
    radius: ScalarOrSchedule = 1.0,
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    eps: ScalarOrSchedule = 1e-8,
    *,
    preconditioning: str = "frobenius",
    axes: Any = None,
) -> Transform:
    """The steepest step for matrices between features of unit mean square.

        u = ρ √(columns / rows) NS(g)

    Args:
        radius: ρ ≥ 0.
        ns_coeffs, ns_steps, eps, preconditioning, axes: see `scale_by_muon`.

    Kernels are (inputs, outputs), so columns are outputs.
    Reference: [pethick2025training].
    """
    return rule(
        "spectral_lmo",
        spectral_step,
        hyper={"radius": radius, "eps": eps},
        static={
            **newton_schulz_statics("spectral_lmo", ns_coeffs, ns_steps, preconditioning),
            "axes": matrix_axes("spectral_lmo", axes),
        },
        domain={"radius": NONNEGATIVE, "eps": NONNEGATIVE},
        reads="matrix",
        axes="axes",
    )


def sign_lmo_step(g, s, p, *, radius):
    inputs = g.shape[0] if g.ndim > 1 else 1
    return jnp.sign(g) * (radius / max(inputs, 1)), s


def sign_lmo(radius: ScalarOrSchedule = 1.0) -> Transform:
    """The steepest step for a head, whose outputs count by their largest.

        u = ρ sign(g) / inputs

    Args:
        radius: ρ ≥ 0.

    Kernels are (inputs, outputs): the first axis counts inputs; a vector has one.
    Reference: [pethick2025training].
    """
    return rule(
        "sign_lmo", sign_lmo_step, hyper={"radius": radius}, domain={"radius": NONNEGATIVE}, reads="array",
        complex="pair",
    )  # fmt: skip


def rms_step(g, s, p, *, radius):
    size = linalg.rms(g)
    return g * (radius / jnp.where(size > 0, size, 1)).astype(g.dtype), s


def rms_lmo(radius: ScalarOrSchedule = 1.0) -> Transform:
    """The steepest step for biases and gains: the gradient with root mean square ρ.

        u = ρ g / rms(g),   0 where g is

    Args:
        radius: ρ ≥ 0.

    Reference: [pethick2025training].
    """
    return rule(
        "rms_lmo", rms_step, hyper={"radius": radius}, domain={"radius": NONNEGATIVE}, reads="array", complex="native"
    )
