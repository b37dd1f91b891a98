"""L-BFGS and the line searches. Their gradients must be of a function: `test_linesearch.py` replays them on some."""

import jax
import jax.numpy as jnp

import jopt
from zoo.entry import Entry, rated


def bowl(params):
    """Σ|x|², in the dtype of scalars; the same for a complex leaf and its pair."""
    total = jnp.zeros((), jnp.result_type(float))
    for x in jax.tree.leaves(params):
        if jnp.issubdtype(x.dtype, jnp.inexact):
            total = total + sum(jnp.sum(part.astype(total.dtype) ** 2) for part in (x.real, x.imag))
    return total


EXTRA = (("value", 1.0), ("value_fn", bowl))

OPTIMIZERS = {
    # Its products of vectors sum in another order under vmap, and quotients of them multiply the rounding.
    "lbfgs": rated(lambda rate: jopt.lbfgs(rate, linesearch=None), ulps=512),
    "lbfgs_searching": Entry(jopt.lbfgs, extra=EXTRA, ulps=512),
}

RULES = {
    "scale_by_backtracking_linesearch": Entry(lambda: jopt.scale_by_backtracking_linesearch(5), extra=EXTRA),
    "scale_by_backtracking_linesearch_storing": Entry(
        lambda: jopt.scale_by_backtracking_linesearch(5, store_grad=True), extra=EXTRA
    ),
    "scale_by_lbfgs": Entry(jopt.scale_by_lbfgs, ulps=512),
    "scale_by_zoom_linesearch": Entry(lambda: jopt.scale_by_zoom_linesearch(5), extra=EXTRA),
}

REPLAYED = "the recorded gradients are of no function; test_linesearch.py replays it on functions"
RANDOM = dict.fromkeys(
    ("lbfgs", "scale_by_backtracking_linesearch", "scale_by_lbfgs", "scale_by_zoom_linesearch"), REPLAYED
)
UNCOMPARED = RANDOM | {"value_and_grad_from_state": "test_linesearch.py compares it"}

EXCEPTIONS = {
    "lbfgs": "its default line search is ours, of the same numbers",
    "scale_by_backtracking_linesearch": "no verbose",
    "scale_by_zoom_linesearch": "no verbose",
}
