"""The one list of optimizers, rules and wrappers that the laws run over; an unlisted public one fails."""

import dataclasses
from collections.abc import Callable

import jopt


@dataclasses.dataclass(frozen=True)
class Entry:
    """A factory with what it declares.

    Args:
        make: makes the transform, with typical numbers.
        zero_gradient: whether a zero gradient leaves fresh parameters alone.
        complex: whether complex parameters are accepted.
        elementwise: whether permuting elements, or splitting leaves, commutes with it.
        matrices_only: whether it accepts matrices alone.
        value: whether update needs ``value=``.
        scale: whether it is a bare rule (uphill) or a whole optimizer.
    """

    make: Callable[[], jopt.Transform]
    zero_gradient: bool = True
    complex: bool = True
    elementwise: bool = True
    matrices_only: bool = False
    value: bool = False


RATE = 0.05

OPTIMIZERS = {
    "adadelta": Entry(lambda: jopt.adadelta(RATE)),
    "adagrad": Entry(lambda: jopt.adagrad(RATE)),
    "adam": Entry(lambda: jopt.adam(RATE)),
    "adamax": Entry(lambda: jopt.adamax(RATE)),
    "adamaxw": Entry(lambda: jopt.adamaxw(RATE), zero_gradient=False),
    "adamw": Entry(lambda: jopt.adamw(RATE), zero_gradient=False),
    "amsgrad": Entry(lambda: jopt.amsgrad(RATE)),
    "lamb": Entry(lambda: jopt.lamb(RATE, weight_decay=0.01), zero_gradient=False, elementwise=False),
    "lars": Entry(lambda: jopt.lars(RATE), elementwise=False),
    "lion": Entry(lambda: jopt.lion(RATE), zero_gradient=False),
    "momentum": Entry(lambda: jopt.momentum(RATE)),
    "muon": Entry(lambda: jopt.muon(RATE), complex=False, elementwise=False),
    "nadam": Entry(lambda: jopt.nadam(RATE)),
    "nadamw": Entry(lambda: jopt.nadamw(RATE), zero_gradient=False),
    "nesterov": Entry(lambda: jopt.nesterov(RATE)),
    "rmsprop": Entry(lambda: jopt.rmsprop(RATE)),
    "rmsprop_centered": Entry(lambda: jopt.rmsprop(RATE, centered=True, momentum=0.9)),
    "sgd": Entry(lambda: jopt.sgd(RATE)),
    "sign_sgd": Entry(lambda: jopt.sign_sgd(RATE)),
    "signum": Entry(lambda: jopt.signum(RATE)),
}
