"""Who races: the twelve that people choose between on every workload, all others on the two cheapest."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jopt
import jopt.optimizers

BASELINE = "adamw"

TWELVE = (
    "momentum",
    "adamw",
    "nadamw",
    "lion",
    "adafactor",
    "ademamix",
    "adopt",
    "muon",
    "soap",
    "shampoo",
    "schedule_free_adamw",
    "prodigy",
)

CHEAP = ("quadratic_deep", "digits_mlp")


def made(name: str) -> Callable[[Any], Any]:
    """``rate -> transform`` with everything else at its default."""
    return functools.partial(getattr(jopt, name))


def of(workload: str) -> list[str]:
    """Who races on a workload."""
    return [*TWELVE, *(others() if workload in CHEAP else ())]


def others() -> tuple[str, ...]:
    """All other optimizers that need a learning rate alone."""
    return tuple(
        name for name in jopt.optimizers.__all__ if name not in TWELVE and _takes_a_rate_alone(getattr(jopt, name))
    )


def _takes_a_rate_alone(factory: Any) -> bool:
    first, *rest = inspect.signature(factory).parameters.values()
    return first.name == "learning_rate" and all(p.default is not p.empty for p in rest)
