"""Equal matrices of several leaves, one after another in one array, and back again."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopt.axes import View


def split(views: tuple[View, ...], gs: Any, slots: Any, shapes: Any, ps: Any, salts: Any) -> list[Any]:
    """Of each leaf its matrices: gradient, slots (of these shapes each), parameter and salt, along a first axis."""
    found = []
    for view, g, s, p, salt in zip(views, gs, slots, ps, salts, strict=True):
        x = view.matrices(g)
        kept = {name: view.split(slot, g.shape, shapes[name]) for name, slot in s.items()}
        found.append(
            (x, kept, None if p is None else view.matrices(p), None if salt is None else _streams(salt, len(x)))
        )
    return found


def _streams(salt: Any, number: int) -> jax.Array:
    """A stream of random numbers for each matrix; that of a leaf which is one is the leaf's own."""
    return jnp.asarray(salt, jnp.uint32) + jnp.arange(number, dtype=jnp.uint32) * np.uint32(2654435769)


def together(leaves: list[Any]) -> Any:
    """The matrices of several leaves, one after another."""
    return jax.tree.map(lambda *xs: jnp.concatenate(xs), *leaves)


def apart(results: Any, leaves: list[Any], starts: Any) -> list[Any]:
    """What `together` joined, or what came of it, by leaf; they begin at `starts`."""

    def one(leaf, start):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, len(leaf[0])), results)

    return [one(leaf, start) for leaf, start in zip(leaves, starts, strict=True)]


def starts_of(leaves: list[Any]) -> tuple[np.int32, ...]:
    """Where the matrices of each leaf begin among all."""
    return tuple(np.cumsum([0, *(len(leaf[0]) for leaf in leaves[:-1])], dtype=np.int32))


def hidden(numbers: tuple[np.int32, ...], count: jax.Array) -> tuple[Any, ...]:
    """The same numbers, in a way that the compiler of the CPU does not see which.

    Else taking each matrix out of the results is a kernel of its own, and compiling these takes longer
    than all the rest (100 matrices: 5 s); like this they are one kernel.
    """
    if len(numbers) == 1:
        return numbers
    return jax.lax.cond(count >= 0, lambda: numbers, lambda: numbers[::-1])


def joined(views: tuple[View, ...], results: list[Any], gs: Any, before: Any) -> list[Any]:
    """(update, slots) of each leaf from those of its matrices; the leaves were `gs` and `before`."""
    from jax.experimental.shard_alike import shard_alike  # where it is needed: `import jopt` loads no more of JAX

    found = []
    transposes = len(set(views)) > 1
    for view, (u, slots), g, old in zip(views, results, gs, before, strict=True):
        x = view.array(u, g.shape)
        mine = {name: _settled(view.join(slot, g.shape), g.shape) for name, slot in slots.items()}
        if transposes:
            # On an Auto mesh the compiler might lay a matrix out as the others of its batch, which are transposes.
            x = shard_alike(x, g)[0]
            mine = {name: shard_alike(slot, old[name])[0] for name, slot in mine.items()}
        found.append((x, mine))
    return found


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


def _settled(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A slot that lies whole on every device, unless it lies as its leaf: else an Auto mesh would place it anew."""
    mesh = jax.typeof(x).sharding.mesh
    if x.shape == shape or AxisType.Auto not in mesh.axis_types:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*(None,) * x.ndim)))
