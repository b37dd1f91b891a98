"""What wrappers that keep arrays beside the parameters have in common."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes


def beside(number: jax.Array, x: jax.Array) -> jax.Array:
    """A number in the dtype of an array, which may be complex."""
    return number.astype(jnp.finfo(x.dtype).dtype).astype(x.dtype)


def stored(x: jax.Array, dtype: Any) -> jax.Array:
    """An array in a storage dtype; complex ones, and all without a dtype, stay as they are."""
    return x if dtype is None or jnp.iscomplexobj(x) else dtypes.leave(x, dtype)
