"""Optimizers that take a matrix as a matrix: Muon and its kin, and Adam for everything else."""

from typing import Any

from jopt.axes import AxesFunction, AxesTree, matrices, matrix_axes
from jopt.optimizers.classic import adamw
from jopt.partition import chain, partition
from jopt.paths import Where, everything_else, path
from jopt.paths import where as choose
from jopt.polar import MUON_COEFFICIENTS
from jopt.regularize import add_decayed_weights
from jopt.rules import (
    rms_lmo,
    scale_by_ema,
    scale_by_galore,
    scale_by_learning_rate,
    scale_by_muon,
    scale_by_normuon,
    scale_by_shape,
    sign_lmo,
    spectral_lmo,
)
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["galore", "muon", "normuon", "scion"]

EMBEDDINGS = path("embed*|Embed*|*_embed*|wte|wpe")
"""Where rows are words and not features, by the usual names."""

HEADS = path("head|*_head|head_*|logits|classifier|readout|unembed*|output/kernel|params/output/kernel")
"""Where columns are classes and not features, by the usual names; `output` at the top only."""


NO_WEIGHTS = path("**/bias|**/*_bias|**/scale|**/pos|**/pos_*|**/position*|**/*_pos")
"""Biases and scales, which are vectors though they may have a shape of two axes, and tables of positions."""


def hidden_matrices(axes: Any, where: Any) -> Where:
    """The parameters that a matrix optimizer takes by default.

    Args:
        axes: declared axes, normalised. A tree of them or a function says by itself what is a matrix.
        where: the user's choice; None takes matrices but for embeddings, heads and `NO_WEIGHTS`.
    """
    if where is not None:
        return matrices(axes) & choose(where)
    if isinstance(axes, AxesTree | AxesFunction):
        return matrices(axes)
    return matrices(axes) & ~EMBEDDINGS & ~HEADS & ~NO_WEIGHTS


def routed(cases: list[tuple[str, Where, Transform]], axes: Any, where: Any) -> Transform:
    """A `partition` whose first case has to claim a parameter if the user said what goes there.

    Args:
        cases: the matrices first.
        axes, where: the user's choice; None is the default, which a tree without matrices is fine with.
    """
    others = tuple(name for name, _, _ in cases[1:])
    return partition(cases, idle="allow" if axes is None and where is None else others)


def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: str = "frobenius",
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.999,
    adam_eps_root: ScalarOrSchedule = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: Any = None,
    consistent_rms: ScalarOrSchedule | None = None,
    where: Any = None,
    axes: Any = None,
) -> Transform:
    """Muon on hidden matrices, AdamW on embeddings, heads and everything else.

    Matrices: see `scale_by_muon` and `scale_by_shape`. Their numbers are named ``muon/...``, those
    of the other parameters ``adam/...``; `explain` shows which parameter went where.

    Args:
        where: which matrices go to Muon, in place of the default: all but those whose names say
            embedding or head ("embed...", "head", "lm_head", "logits", a top "output", ...), bias or
            scale (at the end), or position ("pos", "pos_...", "position...", "..._pos", at the end).
        axes: which axes of an array are rows and columns, for kernels of convolutions and heads of
            attention; see `scale_by_muon`. None takes 2-D parameters. For transformers of Flax pass
            "heads": the kernels of their attention have three axes, and go to Adam without.
        muon_weight_dimension_numbers: optax's form of `axes`; it alone says what goes to Muon, and
            names decide nothing.
        adam_learning_rate: None takes `learning_rate`.
        consistent_rms: 0.2 gives updates of AdamW's size, so that its learning rate carries over.

    By default a tree without matrices, or without anything else, runs all the same; a choice by `where`,
    `axes` or dimension numbers that takes no parameter is an error at `init`.
    """
    axes = matrix_axes("muon", axes, muon_weight_dimension_numbers)
    muon_parts = chain(
        scale_by_muon(
            ns_coeffs,
            ns_steps,
            beta,
            eps,
            mu_dtype,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            axes=axes,
        ),
        scale_by_shape(consistent_rms=consistent_rms, axes=axes),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
    adam_parts = adamw(
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        adam_b1,
        adam_b2,
        eps,
        adam_eps_root,
        mu_dtype,
        adam_weight_decay,
        nesterov=nesterov,
    )
    cases = [("muon", hidden_matrices(axes, where), muon_parts), ("adam", everything_else, adam_parts)]
    return routed(cases, axes, where)


def normuon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.999,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    consistent_rms: ScalarOrSchedule | None = None,
    where: Any = None,
    axes: Any = None,
) -> Transform:
    """NorMuon on hidden matrices, AdamW on embeddings, heads and everything else.

    Matrices: see `scale_by_normuon` and `scale_by_shape`; the groups are those of `muon`.

    Args:
        where, axes, adam_learning_rate, consistent_rms: see `muon`.
    """
    axes = matrix_axes("normuon", axes)
    matrix_parts = chain(
        scale_by_normuon(ns_coeffs, ns_steps, beta, b2, eps, mu_dtype=mu_dtype, nesterov=nesterov, axes=axes),
        scale_by_shape(consistent_rms=consistent_rms, axes=axes),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam_parts = adamw(rate, adam_b1, adam_b2, eps, 0.0, mu_dtype, adam_weight_decay, nesterov=nesterov)
    cases = [("normuon", hidden_matrices(axes, where), matrix_parts), ("adam", everything_else, adam_parts)]
    return routed(cases, axes, where)


def scion(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    radius: ScalarOrSchedule = 50.0,
    head_radius: ScalarOrSchedule = 3000.0,
    other_radius: ScalarOrSchedule = 1.0,
    ns_coeffs: Any = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    eps: ScalarOrSchedule = 1e-8,
    *,
    constrained: bool = False,
    where: Any = None,
    axes: Any = None,
) -> Transform:
    """Scion: in each group the steepest step of its own norm, from averaged gradients.

        m ← δm + (1 − δ)g
        p ← p − γ LMO(m),   constrained: p ← (1 − γ)p − γ LMO(m)

    Args:
        decay: δ in [0, 1); the paper's α is 1 − δ.
        radius, head_radius, other_radius: ρ of hidden matrices (`spectral_lmo`), of heads (`sign_lmo`) and of
            the rest (`rms_lmo`: vectors, and embeddings, where `spectral_lmo` would be too dear).
        ns_coeffs, ns_steps, eps: see `scale_by_muon`.
        constrained: keep every group in its ball, which decays weights.
        where, axes: which parameters are hidden matrices; see `muon`.

    Differs: the paper also has other norms for the first layer; give one with `partition`.
    Reference: [pethick2025training].
    """
    axes = matrix_axes("scion", axes)

    def group(lmo: Transform) -> Transform:
        decayed = [add_decayed_weights(1.0)] if constrained else []
        return chain(scale_by_ema(decay, debias=False), lmo, *decayed, scale_by_learning_rate(learning_rate))

    cases = [
        ("hidden", hidden_matrices(axes, where), group(spectral_lmo(radius, ns_coeffs, ns_steps, eps, axes=axes))),
        ("head", HEADS & matrices(None), group(sign_lmo(head_radius))),
        ("rest", everything_else, group(rms_lmo(other_radius))),
    ]
    return routed(cases, axes, where)


def galore(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: ScalarOrSchedule = 1.0,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    where: Any = None,
    axes: Any = None,
) -> Transform:
    """GaLore on hidden matrices, AdamW of the same numbers on embeddings, heads and everything else.

    Matrices: see `scale_by_galore`. Their numbers are named ``galore/...``, the others' ``adam/...``.

    Args:
        weight_decay: decoupled, of whole parameters.
        mask: which parameters decay.
        where, axes: which parameters are hidden matrices; see `muon`.
        weight_dimension_numbers: optax's form of `axes`; it alone says what goes to GaLore.

    ``where="*"`` takes every matrix, embeddings too, whose moments are the largest.
    """
    axes = matrix_axes("galore", axes, weight_dimension_numbers)
    matrix_parts = chain(
        scale_by_galore(rank, update_proj_gap, scale, b1=b1, b2=b2, eps=eps, axes=axes),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    adam_parts = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    cases = [("galore", hidden_matrices(axes, where), matrix_parts), ("adam", everything_else, adam_parts)]
    return routed(cases, axes, where)
