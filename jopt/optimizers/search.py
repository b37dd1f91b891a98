"""Optimizers that search along their direction, for deterministic losses."""

from typing import Any

from jopt.partition import chain
from jopt.rules import scale, scale_by_lbfgs, scale_by_learning_rate, scale_by_zoom_linesearch
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["lbfgs"]


def lbfgs(
    learning_rate: ScalarOrSchedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: Any = scale_by_zoom_linesearch(20, initial_guess_strategy="one"),  # noqa: B008 - transforms are values
) -> Transform:
    """L-BFGS with a line search; see `scale_by_lbfgs`, and `jopt.minimize` for whole minimizations.

    Args:
        learning_rate: a factor of the direction, in front of the search; None is 1.
        memory_size, scale_init_precond: of `scale_by_lbfgs`.
        linesearch: a transform that scales the step; None takes it as it is.

    `update` needs ``value=`` and ``value_fn=``, and takes ``grad=``.
    """
    sign = scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)
    return chain(scale_by_lbfgs(memory_size, scale_init_precond), sign, *(() if linesearch is None else (linesearch,)))
