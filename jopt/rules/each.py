"""What a part over the whole tree does array by array: rules' steps over flat trees of real arrays."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.paths import Flat
from jopt.rule import Own, no_params
from jopt.state import check_kept


def reals(flat: Flat) -> Flat:
    """The arrays in the compute dtype, a complex one as the pair (real, imaginary)."""
    return {path: dtypes.to_pair(dtypes.compute(x)) for path, x in flat.items()}


def unpaired(flat: Flat, like: Flat) -> Flat:
    """The arrays of `reals` as those of `like` are: pairs as complex arrays again."""
    return {path: dtypes.from_pair(x) if jnp.iscomplexobj(like[path]) else x for path, x in flat.items()}


def wide(params: Flat | None, name: str) -> Flat:
    """The parameters in the compute dtype.

    Args:
        params: as a part was given them.
        name: of the part, for the message.

    Raises:
        TypeError: there are none.
    """
    if params is None:
        raise no_params(name)
    return {path: dtypes.compute(p) for path, p in params.items()}


def opened(name: str, grads: Flat, own: Own, params: Flat | None) -> tuple[Flat, Flat]:
    """Gradients and parameters as `reals`, checked against each other and the slots.

    Raises:
        TypeError: there are no parameters.
        StateMismatchError: the slots were made for others.
    """
    g, x = reals(grads), reals(wide(params, name))
    for kept in own.slots.values():
        check_kept(name, kept, g)
    return g, x


def zeros(params: Flat) -> Flat:
    """Zeros like the parameters."""
    return {path: jnp.zeros_like(p) for path, p in params.items()}


def each(
    step: Callable[..., Any], grads: Flat, slots: Mapping[str, Flat], params: Flat, **numbers: Any
) -> tuple[Flat, dict[str, Flat]]:
    """Run ``step(g, s, p, **numbers) -> (u, s)``, a module-level function, on every array.

    Arrays of one kind share one inner `jit`, so that a further one costs one equation.

    Returns:
        Updates, and slots by name.
    """
    updates: Flat = {}
    new: dict[str, Flat] = {name: {} for name in slots}
    for path, g in grads.items():
        held = {name: flat[path] for name, flat in slots.items()}
        updates[path], after = _run(step, g, held, params[path], numbers)
        for name in slots:
            new[name][path] = after[name]
    return updates, new


@functools.partial(jax.jit, static_argnums=0)
def _run(step, g, s, p, numbers):
    numbers = {name: x.astype(g.dtype) for name, x in numbers.items()}
    u, new = step(g, {name: x.astype(g.dtype) for name, x in s.items()}, p, **numbers)
    return u, {name: dtypes.leave(new[name], x.dtype) for name, x in s.items()}


def over(x: jax.Array, y: jax.Array) -> jax.Array:
    """x / y, and 0 where y is not positive."""
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), 0)
