"""Equal matrices of several leaves, one after another in one array, and back again."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from jopt.axes import View


def stacked(views: tuple[View, ...], gs: Any, slots: Any, shapes: Any, ps: Any, salts: Any) -> Any:
    """(gradients, slots, parameters, salts) of the matrices of all leaves, one run after another.

    Args:
        views: how each leaf is matrices of one and the same shape.
        gs, slots, ps, salts: by leaf; parameters and salts may be None.
        shapes: of the slots of one matrix.
    """

    def stack(run):
        view, shape = views[run[0]], gs[run[0]].shape

        def of_leaf(g, s, p, salt):
            x = view.matrices(g)
            kept = {name: view.split(slot, shape, shapes[name]) for name, slot in s.items()}
            return x, kept, None if p is None else view.matrices(p), None if salt is None else _streams(salt, len(x))

        leaves = [(gs[i], slots[i], ps[i], salts[i]) for i in run]
        if len(run) == 1:
            return of_leaf(*leaves[0])
        return jax.tree.map(_flattened, jax.vmap(of_leaf)(*jax.tree.map(lambda *xs: jnp.stack(xs), *leaves)))

    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *map(stack, _runs(views, gs)))


def unstacked(views: tuple[View, ...], results: Any, gs: Any, before: Any, starts: tuple[Any, ...]) -> list[Any]:
    """(update, slots) of each leaf from those of all matrices, which lie as `stacked` laid them.

    Args:
        views, gs: as `stacked` was given them.
        results: the updates and slots of all matrices.
        before: the slots by leaf, as they were.
        starts: where the matrices of each leaf begin, from `starts_of`, perhaps `hidden`.
    """

    def of_leaf(view, start, g, old):
        number = math.prod(view.batch(g.shape))
        u, slots = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, number), results)
        slots = {name: view.join(slot, g.shape) for name, slot in slots.items()}
        return _placed(view.array(u, g.shape), slots, g, old)

    return [of_leaf(*leaf) for leaf in zip(views, starts, gs, before, strict=True)]


def starts_of(views: tuple[View, ...], gs: Any) -> tuple[np.uint32, ...]:
    """Where the matrices of each leaf begin among all; unsigned, as of others JAX asks whether they are negative."""
    starts, total = [np.uint32(0)] * len(gs), 0
    for run in _runs(views, gs):
        for i in run:
            starts[i] = np.uint32(total)
            total += math.prod(views[i].batch(gs[i].shape))
    return tuple(starts)


def _runs(views: tuple[View, ...], gs: Any) -> list[list[int]]:
    """Which leaves are alike: they are turned into matrices in one go, as compiling that for each is slow."""
    runs: dict[Any, list[int]] = {}
    for i, (view, g) in enumerate(zip(views, gs, strict=True)):
        runs.setdefault((view, g.shape), []).append(i)
    return list(runs.values())


def _flattened(x: jax.Array) -> jax.Array:
    """Matrices by leaf, one after another; a sharded array is not reshaped without need."""
    return jax.lax.squeeze(x, (1,)) if x.shape[1] == 1 else x.reshape(-1, *x.shape[2:])


def _streams(salt: Any, number: int) -> jax.Array:
    """A stream of random numbers for each matrix; that of a leaf which is one is the leaf's own."""
    return jnp.asarray(salt, jnp.uint32) + jnp.arange(number, dtype=jnp.uint32) * np.uint32(2654435769)


def hidden(numbers: tuple[np.uint32, ...], count: jax.Array) -> tuple[Any, ...]:
    """The same numbers, in a way that the compiler of the CPU does not see which.

    Else taking each matrix out of the results is a kernel of its own, and compiling these takes longer
    than all the rest (100 matrices: 5 s); like this they are one kernel.
    """
    if len(numbers) == 1:
        return numbers
    return jax.lax.cond(count >= 0, lambda: numbers, lambda: numbers[::-1])


def _placed(x: jax.Array, slots: Any, g: Any, before: Any) -> Any:
    """The update and slots of a leaf, on the devices where its gradient and slots were.

    On an Auto mesh the compiler might lay a matrix out as the others of its batch, which may be transposes.
    """
    if AxisType.Auto not in jax.typeof(x).sharding.mesh.axis_types:
        return x, slots
    from jax.experimental.shard_alike import shard_alike  # where it is needed: `import jopt` loads no more of JAX

    return shard_alike(x, g)[0], {name: shard_alike(slot, before[name])[0] for name, slot in slots.items()}


def one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `jax.vmap`, in a loop: on CPU a matrix that stays in the cache is up to twice as fast as a batch."""

    def run(*stacked):
        if len(jax.tree.leaves(stacked)[0]) == 1:
            one = function(*jax.tree.map(lambda x: jax.lax.squeeze(x, (0,)), stacked))
            return jax.tree.map(lambda x: jnp.expand_dims(x, 0), one)
        return jax.lax.map(lambda xs: function(*xs), stacked)

    return run


def one_of(x: jax.Array, i: jax.Array) -> jax.Array:
    """Matrix i of a stack."""
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False)
