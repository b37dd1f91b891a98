"""Applying updates to parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jopt import dtypes
from jopt.paths import TreeMismatchError, flatten
from jopt.transform import Transform, as_transform


def apply_updates(params: Any, updates: Any) -> Any:
    """Add updates to parameters, each leaf in its own dtype.

    Leaves that are not trained (integers, keys), and those whose update is None or float0, stay.

    Raises:
        TreeMismatchError: the trees differ in their leaves or in a shape.
    """
    p, layout = flatten(params)
    u, _ = flatten(updates)
    if p.keys() != u.keys():
        raise TreeMismatchError(
            f"apply_updates(params, updates): the leaves {sorted(p.keys() ^ u.keys())} are in one tree only, the same "
            f"leaves were expected in both. Pass the updates that `update` returned for these parameters."
        )
    return layout.unflatten({path: _add(path, p[path], u[path]) for path in p})


def _add(path: str, p: Any, u: Any) -> Any:
    if p is None or u is None or not dtypes.is_trained(p) or not dtypes.is_trained(u):
        return p
    p, u = jnp.asarray(p), jnp.asarray(u)
    if p.shape != u.shape:
        raise TreeMismatchError(
            f"apply_updates(params, updates): the update of {path!r} has the shape {u.shape}, {p.shape} was expected. "
            f"Nothing broadcasts: pass the updates that `update` returned."
        )
    with jax.numpy_dtype_promotion("standard"):  # an update may be wider than its parameter, to land on a rounding
        wide = jnp.promote_types(p.dtype, u.dtype)
    return (p.astype(wide) + u.astype(wide)).astype(p.dtype)


def apply_gradients(tx: Any, grads: Any, state: Any, params: Any, **extra: Any) -> tuple[Any, Any]:
    """Update and apply in one fused step.

    The same result as `update` and `apply_updates`, without the updates as arrays of their own.
    Wrappers that often do nothing (`accumulate`, guards) then leave the parameters' buffers alone;
    donate `state` and `params` in your own `jax.jit` for that.

    Args:
        tx: any transform, ours or optax's.
        grads: gradients, a tree like `params`.
        state: from ``tx.init(params)``.
        params: the parameters.
        **extra: extras such as ``value=loss``.

    Returns:
        ``(params, state)``.
    """
    if isinstance(tx, Transform):
        return tx.apply(grads, state, params, extra)
    if not callable(getattr(tx, "update", None)):
        as_transform(tx, "apply_gradients")  # which says what is wrong
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
    return apply_updates(params, updates), state
