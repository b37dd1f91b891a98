"""What wrappers that keep arrays beside the parameters have in common."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.paths import Flat
from jopt.state import StateMismatchError


def beside(number: jax.Array, x: jax.Array) -> jax.Array:
    """A number in the dtype of an array, which may be complex."""
    return number.astype(jnp.finfo(x.dtype).dtype).astype(x.dtype)


def stored(x: jax.Array, dtype: Any) -> jax.Array:
    """An array in a storage dtype; complex ones, and all without a dtype, stay as they are."""
    return x if dtype is None or jnp.iscomplexobj(x) else dtypes.leave(x, dtype)


def wide(params: Flat | None, call: str) -> Flat:
    """The parameters in the compute dtype.

    Raises:
        TypeError: there are none.
    """
    if params is None:
        raise TypeError(
            f"update: {call} was given params=None, the parameters were expected. Call tx.update(grads, state, params)."
        )
    return {path: dtypes.compute(p) for path, p in params.items()}


def check_kept(call: str, kept: Mapping[str, Any], grads: Flat, leading: int = 0) -> None:
    """Raise a `StateMismatchError` unless `kept` has an array for every gradient, of its shape.

    Args:
        call: the wrapper, for the message.
        kept: ``{path: array}`` from the state.
        grads: ``{path: array}``.
        leading: how many axes an array of the state has before those of the gradient.
    """
    held = {path: tuple(x.shape[leading:]) for path, x in kept.items()}
    given = {path: tuple(g.shape) for path, g in grads.items()}
    if held != given:
        path = min(path for path in held | given if held.get(path) != given.get(path))
        raise StateMismatchError(
            f"update: for the parameter {path!r} the state of {call} holds an array of shape {held.get(path)}, "
            f"{given.get(path)} was expected. The state was made for other parameters: make one with init(params)."
        )
