"""Updates gathered over several steps."""

import jax.numpy as jnp

from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, rule


def every_slots(p):
    return {"grad_acc": jnp.zeros_like(p)}


def every_shared(*, count, k):
    k = jnp.maximum(k, 1).astype(count.dtype)
    place = count % k
    return {"first": place == 0, "last": place == k - 1}


def every_step(g, s, p, *, first, last):
    total = jnp.where(first, g, s["grad_acc"] + g)
    return jnp.where(last, total, 0), {"grad_acc": total}


def apply_every(k: ScalarOrSchedule = 1) -> Transform:
    """Add up updates and let every k-th step have the sum; the others are zero.

        a ← g + a, from 0 after every k-th step
        u = a at every k-th step, else 0

    What stands before it in a chain runs at every step. To run an optimizer on the mean gradient of
    k micro-batches, and only then, wrap it in `accumulate`.

    Args:
        k: how many updates are added, at least 1.
    """
    return rule(
        "apply_every", every_step, slots=every_slots, shared=every_shared, hyper={"k": k}, domain={"k": "[1, inf)"}
    )
