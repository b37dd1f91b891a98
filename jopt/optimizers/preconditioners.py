"""Preconditioned optimizers: SOAP, Shampoo, PSGD."""

from typing import Any

from jopt.optimizers.classic import adamw
from jopt.partition import chain, partition
from jopt.paths import everything_else, ndim
from jopt.paths import where as choose
from jopt.regularize import add_decayed_weights
from jopt.rules import scale_by_learning_rate, scale_by_soap
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["soap"]


def soap(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    shampoo_beta: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Any = None,
    *,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10000,
    where: Any = None,
) -> Transform:
    """SOAP on matrices, AdamW of the same numbers on everything else.

    Matrices: see `scale_by_soap`. Their numbers are named ``soap/...``, the others' ``adam/...``.

    Args:
        where: which matrices go to SOAP; None takes every 2-D parameter.
        mask: which parameters decay.

    The paper's rate is 3e-3.
    """
    matrices = ndim(2) if where is None else ndim(2) & choose(where)
    soap_parts = chain(
        scale_by_soap(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    adam_parts = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    return partition([("soap", matrices, soap_parts), ("adam", everything_else, adam_parts)], idle="allow")
