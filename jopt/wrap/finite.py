"""Whether gradients are finite, and which is not."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt.paths import Flat

NONE = -1


@jax.jit
def _first_bad(found: jax.Array, index: Any, g: jax.Array) -> jax.Array:
    # g·0 sums to 0, or to NaN; unlike a reduction of booleans it runs at the speed of memory.
    parts = (g.real, g.imag) if jnp.iscomplexobj(g) else (g,)
    fine = jnp.isfinite(sum(jnp.sum(part * 0) for part in parts))
    return jnp.where((found == NONE) & ~fine, jnp.asarray(index, jnp.int32), found)


def first_bad(grads: Flat) -> jax.Array:
    """The place of the first array, by sorted path, with an infinity or NaN; -1 if all are finite."""
    found = jnp.full((), NONE, jnp.int32)
    for index, path in enumerate(sorted(grads)):
        found = _first_bad(found, index, grads[path])
    return found
