"""Optimizers: chains of rules under the names, defaults and arguments of optax.

Every number may be a schedule, and every one can be read and set in a running state.
`learning_rate` is γ ≥ 0, the size of the step; `where=` is a glob, regex or predicate that chooses
which parameters decay, `mask=` the same in optax's form; `mu_dtype` and `accumulator_dtype` store the
momentum in another dtype. A module is a family.
"""

from jopt.optimizers.classic import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamaxw,
    adamw,
    amsgrad,
    lamb,
    lars,
    lion,
    momentum,
    nadam,
    nadamw,
    nesterov,
    rmsprop,
    sgd,
    sign_sgd,
    signum,
)
from jopt.optimizers.matrix import muon
from jopt.optimizers.preconditioners import kl_soap, kron, shampoo, soap

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "amsgrad",
    "kl_soap",
    "kron",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "muon",
    "nadam",
    "nadamw",
    "nesterov",
    "rmsprop",
    "sgd",
    "shampoo",
    "sign_sgd",
    "signum",
    "soap",
]
