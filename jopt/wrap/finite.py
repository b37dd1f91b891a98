"""Whether gradients are finite, and which is not."""

import jax
import jax.numpy as jnp

from jopt.linalg import sum_squares
from jopt.paths import Flat

NONE = -1


def first_bad(grads: Flat) -> jax.Array:
    """The place of the first array, by sorted path, with an infinity or NaN; -1 if all are finite.

    One pass at the speed of memory; the search runs only where the sum of squares is not finite.
    """
    leaves = [grads[path] for path in sorted(grads)]
    none = jnp.full((), NONE, jnp.int32)

    def search():
        bad = jnp.stack([~jnp.all(jnp.isfinite(g)) for g in leaves])
        return jnp.where(jnp.any(bad), jnp.argmax(bad).astype(jnp.int32), none)

    if not leaves:
        return none
    return jax.lax.cond(jnp.isfinite(sum_squares(leaves)), lambda: none, search)
