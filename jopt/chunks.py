"""Running an element-wise function over an array a few rows at a time, in place.

On CPU, XLA fuses arrays of one dtype into one loop, but not codes with numbers: it would make every
decoded slot an array of its own, and copy every donated code. A loop over rows whose carry are the
codes needs neither, and what it decodes stays in the cache.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jopt.formats import Stored, cut, from_words, to_words

CHUNK = 1 << 16
"""Elements at a time: some arrays of so many float32 fit into the second cache."""

Step = Callable[..., tuple[jax.Array, Any]]


def rows_at_a_time(g: jax.Array, slots: Any) -> int | None:
    """How many rows of a leaf to run at a time; None runs it whole: it is small, sharded, or nothing is coded."""
    entries = jax.tree.leaves(slots, is_leaf=lambda x: isinstance(x, Stored))
    if (
        not any(isinstance(x, Stored) for x in entries)
        or g.size < 4 * CHUNK
        or jnp.iscomplexobj(g)
        or any(x.shape != g.shape for x in entries)
    ):
        return None
    kind = jax.typeof(g)
    if any(kind.sharding.spec) or getattr(kind, "vma", None):
        return None
    unit, row = _unit(g.shape), g.size // g.shape[0]
    rows = max(1, CHUNK // row // unit) * unit
    return rows if 2 * rows <= g.shape[0] else None


def in_chunks(step: Step, rows: int, g: jax.Array, slots: Any, p: Any, out: jax.Array | None) -> tuple[jax.Array, Any]:
    """`step(g, slots, p, start) -> (value, slots)` over a leaf, `rows` rows at a time.

    Args:
        step: element-wise; `start` is the place of the first element it is given.
        rows: from `rows_at_a_time`.
        g, slots, p: of the whole leaf.
        out: where values go, overwritten; None overwrites p.
    """
    n, row = g.shape[0], g.size // g.shape[0]
    kept, read = (p if out is None else out, slots), (g, None if out is None else p)
    read_words = jax.tree.map(to_words, read)

    def some(size, carry):
        start, words = carry
        values, slots = _take(words, kept, g.shape, start, size)
        g_part, p_part = _take(read_words, read, g.shape, start, size)
        part = (
            g_part,
            slots,
            (values if out is None else p_part),
            start.astype(jnp.uint32) * jnp.asarray(row, jnp.uint32),
        )
        kinds = jax.eval_shape(step, *part)

        def nothing(*_):
            return jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), kinds)

        # A branch that XLA cannot decide keeps it from fusing what is read here with what is written below: it would
        # read the whole array after a part was overwritten, and copy the array for that.
        return start + size, _put(words, jax.lax.cond(start >= 0, step, nothing, *part), g.shape, start)

    carry = jnp.zeros((), jnp.int32), jax.tree.map(to_words, kept)
    carry = jax.lax.fori_loop(0, n // rows, lambda i, carry: some(rows, carry), carry)
    _, words = some(n % rows, carry) if n % rows else carry
    return jax.tree.map(lambda x, like: from_words(x, like.dtype), words, kept)


def _unit(shape: tuple[int, ...]) -> int:
    """Rows that share a scale."""
    axis, _, length = cut(shape)
    return length if axis == 0 else 1


def _first(x: jax.Array, shape: tuple[int, ...], start: Any) -> tuple[Any, int]:
    """Where in x the row `start` of a leaf of this shape is, and how many rows one of x stands for."""
    unit = 1 if x.shape[0] == shape[0] else _unit(shape)
    return start // unit, unit


def _take(words: Any, like: Any, shape: tuple[int, ...], start: Any, size: int) -> Any:
    def take(x, y):
        first, unit = _first(x, shape, start)
        return from_words(jax.lax.dynamic_slice_in_dim(x, first, -(-size // unit), axis=0), y.dtype)

    return jax.tree.map(take, words, like)


def _put(words: Any, values: Any, shape: tuple[int, ...], start: Any) -> Any:
    def put(x, value):
        return jax.lax.dynamic_update_slice_in_dim(x, to_words(value), _first(x, shape, start)[0], axis=0)

    return jax.tree.map(put, words, values)
