"""What the slots of several families share."""

from typing import Any

import jax.numpy as jnp


def dtype_name(dtype: Any, call: str, name: str) -> str | None:
    """A storage dtype as configuration: its name, or None.

    Raises:
        TypeError: not a real floating dtype.
    """
    if dtype is None:
        return None
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not jnp.issubdtype(found, jnp.floating):
        raise TypeError(
            f"{call}: {name}={dtype!r} was given, a floating dtype or None was expected. Pass for example 'bfloat16'."
        )
    return found.name
