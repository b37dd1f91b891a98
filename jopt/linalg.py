"""Norms of trees and products of matrices: the arithmetic that several rules share."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jopt import dtypes
from jopt.scalars import scalar_dtype

# A sum of squares outside these bounds may have lost elements whose squares vanish in float32, or hold
# some beyond the saturation of `dtypes.enter` (1e18).
_TINY, _HUGE = 1e-22, 1e36
_SCALE = 2.0**60
_CHUNK = 16
_SMALL = 4096


def fold(step: Callable[..., jax.Array], start: jax.Array, leaves: Sequence[Any], *operands: Any) -> jax.Array:
    """``step(... step(start, leaf_1, *operands) ..., leaf_n, *operands)``, in few equations.

    Leaves of one kind go through one inner `jit` in chunks, so that a thousand of them trace like a
    hundred.

    Args:
        step: a module-level function of (total, leaf, *operands).
        start: the first total.
        leaves: arrays.
    """
    total = start
    for alike in _chunks(leaves):
        total = _fold_chunk(step, total, alike, operands)
    return total


def _chunks(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    """Leaves of one kind together, a few at a time; a leaf is an array, or a tuple of arrays that go together."""
    kinds: dict[Any, list[Any]] = {}
    for leaf in leaves:
        kinds.setdefault(tuple(map(jax.typeof, jax.tree.leaves(leaf))), []).append(leaf)
    for alike in kinds.values():
        for i in range(0, len(alike), _CHUNK):
            yield alike[i : i + _CHUNK]


def _join_small(leaves: Sequence[Any]) -> list[Any]:
    """The same numbers in fewer arrays: small ones are joined, as compiling a reduction for each is slow."""
    small: dict[Any, list[Any]] = {}
    rest = []
    for leaf in leaves:
        kind = jax.typeof(leaf)
        joins = kind.size <= _SMALL and jnp.issubdtype(kind.dtype, jnp.floating) and not is_sharded(leaf)
        small.setdefault(kind, []).append(leaf) if joins else rest.append(leaf)
    joined: dict[Any, list[Any]] = {}
    for kind, alike in small.items():
        for i in range(0, len(alike), _CHUNK):
            joined.setdefault(kind.dtype, []).append(_join_chunk(alike[i : i + _CHUNK]))
    return [jnp.concatenate(chunks) for chunks in joined.values()] + rest


@jax.jit
def _join_chunk(leaves: list[jax.Array]) -> jax.Array:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in leaves])


@functools.partial(jax.jit, static_argnums=0)
def _fold_chunk(step, total, leaves, operands):
    for leaf in leaves:
        total = step(total, leaf, *operands)
    return total


def _add_squares(total: jax.Array, g: jax.Array) -> jax.Array:
    return total + _squares(dtypes.compute(g), g.dtype).astype(total.dtype)


def _add_scaled_squares(total: jax.Array, g: jax.Array, scale: jax.Array) -> jax.Array:
    g = dtypes.compute(g)
    for x in (g.real, g.imag) if jnp.iscomplexobj(g) else (g,):
        scale = scale.astype(x.dtype)
        most = jax.lax.square(scale * dtypes.SATURATION)
        # `min` saturates without a temporary array; + 0·x lets infinities through, as NaN.
        total = total + jnp.sum(jax.lax.min(jax.lax.square(x * scale), most) + x * 0).astype(total.dtype)
    return total


def _squares(x: jax.Array, read_as: Any) -> jax.Array:
    """Σ|x|². An array read as it is goes through a dot product, which makes no temporary on any backend."""
    if jnp.iscomplexobj(x):
        return jnp.sum(x.real * x.real + x.imag * x.imag)
    if read_as != x.dtype or x.ndim == 0 or is_sharded(x):
        return jnp.sum(x * x)
    axes = tuple(range(x.ndim))
    return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), precision=jax.lax.Precision.HIGHEST)


def sum_squares(leaves: Sequence[Any]) -> jax.Array:
    """Σ|x|² over all elements as they are: infinite or NaN if one is, or if it overflows."""
    return fold(_add_squares, jnp.zeros((), scalar_dtype()), _join_small(leaves))


def global_norm(leaves: Sequence[Any], axis_name: Any = None) -> jax.Array:
    """The Euclidean norm of all arrays together as gradients: saturated at ±1e18, finite wherever they are.

    One pass; a second one, rescaled, runs only where the sum of squares is very large or very small.
    Complex arrays count by their absolute values. No arrays have the norm 0.

    Args:
        leaves: real or complex arrays of any shapes.
        axis_name: mesh axes of an enclosing `shard_map` to sum over; None is local.
    """
    if not leaves:
        return jnp.zeros((), scalar_dtype())

    def everywhere(total):
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    leaves = _join_small(leaves)
    total = everywhere(sum_squares(leaves))
    scale = jnp.where(total <= 1, _SCALE, 1 / _SCALE).astype(total.dtype)

    def rescaled():
        squares = everywhere(fold(_add_scaled_squares, jnp.zeros_like(total), leaves, scale))
        return _safe_sqrt(squares) / scale

    # The root is inside the branches: its slope at 0 is infinite, and only the branch taken is differentiated.
    return jax.lax.cond((total >= _TINY) & (total < _HUGE), lambda: jnp.sqrt(total), rescaled)


# What parts over the whole tree keep or divide by stays within the square of a saturated gradient, so that a few
# such numbers add up to something finite in float32.
_MOST = dtypes.SATURATION**2


def total(term: Callable[..., jax.Array], *trees: Mapping[str, jax.Array], **numbers: jax.Array) -> jax.Array:
    """Σ term(x, y, ...) over all elements of flat trees of real arrays, within ±1e36.

    Args:
        term: a module-level function of one array of each tree, element by element.
        trees: of the same paths; the arrays of a path have one shape and dtype.
        numbers: scalars that the term takes by name, in the dtype of its arrays.
    """
    result = jnp.zeros((), scalar_dtype())
    for alike in _chunks([tuple(tree[path] for tree in trees) for path in trees[0]]):
        result = _add_terms(term, result, alike, numbers)
    return jnp.clip(result, -_MOST, _MOST)


@functools.partial(jax.jit, static_argnums=0)
def _add_terms(term, result, leaves, numbers):
    for arrays in leaves:
        own = {name: x.astype(arrays[0].dtype) for name, x in numbers.items()}
        result = result + jnp.sum(term(*arrays, **own)).astype(result.dtype)
    return result


def vdot(xs: Mapping[str, jax.Array], ys: Mapping[str, jax.Array]) -> jax.Array:
    """Σ x·y over all elements of two flat trees of real arrays, within ±1e36."""
    return total(jax.lax.mul, xs, ys)


def distance(xs: Mapping[str, jax.Array], ys: Mapping[str, jax.Array]) -> jax.Array:
    """The Euclidean distance of two flat trees of real arrays, at most 1e18."""
    return _safe_sqrt(total(_squared_difference, xs, ys))


def along(g: jax.Array, x0: jax.Array, x: jax.Array) -> jax.Array:
    """g·(x₀ − x) of each element: a term for `total`, the progress that a gradient saw since the start."""
    return g * (x0 - x)


def _squared_difference(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(x - y)


def sum_abs(xs: Mapping[str, jax.Array]) -> jax.Array:
    """Σ|x| over all elements of a flat tree, at most 1e36."""
    return total(jnp.abs, xs)


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """√x with slope 0 at 0."""
    positive = x != 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, jnp.ones_like(x))), jnp.zeros_like(x))


def abs_square(x: jax.Array) -> jax.Array:
    """|x|² of each element, real also where x is complex."""
    return x.real * x.real + x.imag * x.imag if jnp.iscomplexobj(x) else x * x


def norm(x: jax.Array) -> jax.Array:
    """The Euclidean norm of one array, finite wherever it is, with slope 0 at 0."""
    top = jnp.max(jnp.abs(x), initial=0.0)
    scale = jax.lax.stop_gradient(jnp.where((top > 0) & jnp.isfinite(top), top, jnp.ones_like(top)))
    y = x / scale.astype(x.dtype)
    return scale * _safe_sqrt(jnp.sum(abs_square(y)))


def rms(x: jax.Array) -> jax.Array:
    """The root mean square of one array; 0 of an empty one."""
    return norm(x) / jnp.sqrt(jnp.asarray(max(x.size, 1), norm_dtype(x)))


def norm_dtype(x: jax.Array) -> Any:
    """The real dtype of the norms of x."""
    return jnp.finfo(x.dtype).dtype


class Gradients(Mapping[str, jax.Array]):
    """The gradients a tree rule sees: leaves in the compute dtype, and their norm, computed once."""

    def __init__(self, leaves: Mapping[str, Any], norms: dict[Any, Any]):
        self._leaves, self._norms = leaves, norms

    def __getitem__(self, path: str) -> jax.Array:
        return dtypes.enter(self._leaves[path])

    def __iter__(self) -> Iterator[str]:
        return iter(self._leaves)

    def __len__(self) -> int:
        return len(self._leaves)

    def norm(self, axis_name: Any = None) -> jax.Array:
        """`global_norm` of all leaves; asked twice of the same arrays, it is computed once."""
        leaves = list(self._leaves.values())
        asked = (axis_name, *map(id, leaves))
        if asked not in self._norms:
            # The leaves stay beside their norm: once freed, their ids could become those of other arrays.
            self._norms[asked] = (global_norm(leaves, axis_name), leaves)
        return self._norms[asked][0]


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product of two matrices; on an Explicit mesh its rows lie as a's and its columns as b's.

    Where both would lie on one mesh axis the rows keep it.
    """
    rows, columns = _spec(a)[0], _spec(b)[1]
    if rows is None and columns is None and not (is_sharded(a) or is_sharded(b)):
        return a @ b
    if rows is not None and _names(rows) & _names(columns):
        columns = None
    # The mesh of the operands: outside of `jax.set_mesh` a bare PartitionSpec means nothing.
    mesh = jax.typeof(a if is_sharded(a) else b).sharding.mesh
    return jnp.einsum("ik,kj->ij", a, b, out_sharding=NamedSharding(mesh, PartitionSpec(rows, columns)))


def _spec(x: jax.Array) -> tuple[Any, Any]:
    spec = jax.typeof(x).sharding.spec
    entries = tuple(spec) + (None,) * (x.ndim - len(spec))
    return entries[-2], entries[-1]


def is_sharded(x: jax.Array) -> bool:
    """Whether the type of an array says that an axis of it is sharded (on an Explicit mesh)."""
    return any(entry is not None for entry in jax.typeof(x).sharding.spec)


def _names(entry: Any) -> set[Any]:
    return set(entry) if isinstance(entry, tuple) else {entry} - {None}
