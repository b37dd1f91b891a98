"""Optimizers that take a matrix as a matrix: Muon and its kin, and Adam for everything else."""

from typing import Any

from jopt.linalg import MUON_COEFFICIENTS
from jopt.optimizers.classic import adamw
from jopt.partition import chain, partition
from jopt.paths import everything_else, ndim
from jopt.paths import where as choose
from jopt.regularize import add_decayed_weights
from jopt.rules import scale_by_learning_rate, scale_by_muon, scale_by_shape
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["muon"]


def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: tuple[Any, ...] = MUON_COEFFICIENTS,
    ns_steps: int = 5,
    beta: ScalarOrSchedule = 0.95,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    mu_dtype: Any = None,
    *,
    nesterov: bool = True,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.999,
    adam_eps_root: ScalarOrSchedule = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    consistent_rms: ScalarOrSchedule | None = None,
    where: Any = None,
) -> Transform:
    """Muon on matrices, AdamW on everything else.

    Matrices: see `scale_by_muon` and `scale_by_shape`. Their numbers are named ``muon/...``, those
    of the other parameters ``adam/...``.

    Args:
        where: which matrices go to Muon; None takes every 2-D parameter. Send embeddings and heads
            to Adam: ``where=~path("embed*|head*")``.
        adam_learning_rate: None takes `learning_rate`.
        consistent_rms: 0.2 gives updates of AdamW's size, so that its learning rate carries over.

    A tree without matrices, or without anything else, runs all the same.
    """
    matrices = ndim(2) if where is None else ndim(2) & choose(where)
    muon_parts = chain(
        scale_by_muon(ns_coeffs, ns_steps, beta, eps, mu_dtype, nesterov=nesterov),
        scale_by_shape(consistent_rms),
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
    return partition([("muon", matrices, muon_parts), ("adam", everything_else, adam_parts)], idle="allow")
