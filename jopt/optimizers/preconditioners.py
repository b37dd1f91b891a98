"""Preconditioned optimizers: SOAP, Shampoo, PSGD."""

from typing import Any

from jopt.axes import Axes, EveryLeaf, matrices, matrix_axes
from jopt.optimizers.classic import adamw
from jopt.optimizers.matrix import NO_WEIGHTS, routed
from jopt.partition import chain
from jopt.paths import everything_else
from jopt.paths import where as choose
from jopt.regularize import add_decayed_weights
from jopt.rules import scale_by_kl_soap, scale_by_kron, scale_by_learning_rate, scale_by_shampoo, scale_by_soap, trace
from jopt.rules.kron import UPDATE_PROBABILITY
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["kl_soap", "kron", "shampoo", "soap"]


def _with_adamw(name: str, where: Any, axes: Any, parts: list[Any], rest: Transform) -> Transform:
    """`parts` on the chosen matrices, `rest` on everything else."""
    axes = matrix_axes(name, axes)
    found = everything_else if isinstance(axes, EveryLeaf) else matrices(axes)
    if where is not None:
        found = found & choose(where)
    elif axes is None or isinstance(axes, Axes):
        found = found & ~NO_WEIGHTS
    return routed([(name, found, chain(*parts)), ("adam", everything_else, rest)], axes, where)


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
    axes: Any = None,
    where: Any = None,
) -> Transform:
    """SOAP on matrices, AdamW of the same numbers on everything else.

    Matrices: see `scale_by_soap`. Their numbers are named ``soap/...``, the others' ``adam/...``.

    Args:
        where: which matrices go to SOAP; None takes every 2-D parameter but biases, scales and tables of
            positions, by the names that `muon` lists; embeddings and heads are taken.
        axes: which axes of an array are rows and columns; "any" sends every parameter to SOAP.
        mask: which parameters decay.

    The paper's rate is 3e-3.
    """
    parts = [
        scale_by_soap(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, axes=axes),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ]
    rest = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    return _with_adamw("soap", where, axes, parts, rest)


def kl_soap(
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
    kl_eps: ScalarOrSchedule = 1e-4,
    axes: Any = None,
    where: Any = None,
) -> Transform:
    """SOAP with the second moments of each side in the metric of the other: see `scale_by_kl_soap`.

    Its numbers are named ``kl_soap/...``, those of the other parameters ``adam/...``.
    """
    parts = [
        scale_by_kl_soap(b1, b2, shampoo_beta, eps, precondition_frequency, max_precond_dim, kl_eps, axes=axes),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ]
    rest = adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay, mask=mask)
    return _with_adamw("kl_soap", where, axes, parts, rest)


def shampoo(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    grafting: str = "adam",
    graft_b2: ScalarOrSchedule = 0.999,
    graft_eps: ScalarOrSchedule = 1e-8,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    precondition_frequency: int = 10,
    max_preconditioner_size: int = 1024,
    exponent: float | None = None,
    one_sided: bool = False,
    axes: Any = None,
    where: Any = None,
) -> Transform:
    """Shampoo on matrices, AdamW of the same numbers on everything else.

    Matrices: see `scale_by_shampoo`. Their numbers are named ``shampoo/...``, the others' ``adam/...``.

    Args:
        weight_decay: decoupled, that is added after the preconditioner.
        mask: which parameters decay.
        momentum: of the steps of matrices, as for `sgd`; None has none.
        where: which matrices go to Shampoo; None takes every 2-D parameter but biases, scales and tables of
            positions, by the names that `muon` lists; embeddings and heads are taken.
        axes: which axes of an array are rows and columns; "any" sends every parameter to Shampoo.

    With a grafted step the learning rate is that of the optimizer it is grafted from.
    """
    parts = [
        scale_by_shampoo(
            b1,
            b2,
            eps,
            grafting,
            graft_b2,
            graft_eps,
            precondition_frequency,
            max_preconditioner_size,
            exponent=exponent,
            one_sided=one_sided,
            axes=axes,
        ),
        *([] if momentum is None else [trace(momentum, nesterov)]),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    ]
    rest = adamw(learning_rate, b1, graft_b2, graft_eps, weight_decay=weight_decay, mask=mask)
    return _with_adamw("shampoo", where, axes, parts, rest)


def kron(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    preconditioner_update_probability: ScalarOrSchedule = UPDATE_PROBABILITY,
    precond_lr: ScalarOrSchedule = 0.1,
    max_rms: ScalarOrSchedule = 1.1,
    preconditioner_init_scale: ScalarOrSchedule = 1.0,
    max_size_triangular: int = 8192,
    precondition_frequency: int = 1,
    key: Any = 0,
    axes: Any = "any",
) -> Transform:
    """PSGD Kron on every parameter, vectors included; see `scale_by_kron`.

    Args:
        mask: which parameters decay.

    A step has a root mean square of about 1, as Adam's, but not above `max_rms`.
    """
    return chain(
        scale_by_kron(
            b1,
            preconditioner_update_probability,
            precond_lr,
            max_rms,
            preconditioner_init_scale,
            max_size_triangular,
            precondition_frequency,
            key,
            axes=axes,
        ),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
