"""Names that code written for optax looks for in jopt, and where they are."""

from typing import NoReturn

import optax

from jopt import schedules


def __getattr__(name: str) -> NoReturn:
    """What `jopt` answers for a name that it lacks: an `AttributeError` that says where to look."""
    if name in schedules.__all__:
        advice = f"it is jopt.schedules.{name}"
    elif name == "contrib":
        advice = "what jopt has of it is jopt.NAME, without contrib"
    elif not name.startswith("_") and name in vars(optax):
        advice = f"it stays in optax: import optax and use optax.{name}"
    else:
        raise AttributeError(f"module 'jopt' has no attribute {name!r}")
    raise AttributeError(f"module 'jopt' has no attribute {name!r}; {advice}")
