"""optax's `inject_hyperparams`, which has nothing left to do."""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from jopt.transform import Transform


def inject_hyperparams(
    inner_factory: Callable[..., Any], static_args: str | Iterable[str] = (), hyperparam_dtype: Any = None
) -> Callable[..., Transform]:
    """Return the factory itself: every number of a jopt transform can be scheduled, read and set as it is.

    Read numbers with ``hyperparams(state)``, set them with ``set_hyperparams(state, learning_rate=...)``.

    Args:
        inner_factory: a factory of jopt.
        static_args: names of arguments that are no numbers; the factory knows itself.
        hyperparam_dtype: None; numbers are float32, or float64 under x64.

    Raises:
        TypeError: the factory makes a transform that is not jopt's, or a dtype is given.
        ValueError: a name in `static_args` is no argument of the factory.
    """
    if hyperparam_dtype is not None:
        raise TypeError(
            f"inject_hyperparams: hyperparam_dtype={hyperparam_dtype!r} was given, None was expected. Leave it out: "
            f"numbers are float32, and float64 under x64."
        )
    names = {static_args} if isinstance(static_args, str) else set(static_args)
    unknown = sorted(names - inspect.signature(inner_factory).parameters.keys())
    if unknown:
        raise ValueError(
            f"inject_hyperparams: static_args names {unknown}, arguments of {inner_factory.__name__} were expected. "
            f"Leave them out."
        )

    @functools.wraps(inner_factory)
    def made(*args, **kwargs):
        tx = inner_factory(*args, **kwargs)
        if not isinstance(tx, Transform):
            raise TypeError(
                f"inject_hyperparams: {inner_factory.__name__} made a {type(tx).__name__}, a jopt transform was "
                f"expected. Use jopt's factory of that name, or optax.inject_hyperparams inside jopt.chain."
            )
        return tx

    return made
