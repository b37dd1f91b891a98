"""The dtype policy: which leaves are trained, in what arithmetic, and how values come back.

Rules never cast. A gradient enters in the compute dtype (float32, or wider if it is wider) and
saturated at ±1e18, so that its square is finite; infinities and NaN pass, for guards to see.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SATURATION = 1e18  # its square, summed over a few elements, is finite in float32


def dtype_of(leaf: Any) -> Any:
    """The dtype a leaf has in JAX, also for Python numbers, NumPy arrays and abstract arrays."""
    if hasattr(leaf, "dtype"):
        return (
            leaf.dtype
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
            else jax.dtypes.canonicalize_dtype(leaf.dtype)
        )
    return jnp.result_type(leaf)


def is_trained(leaf: Any) -> bool:
    """Whether a leaf is a real or complex array; integers, booleans, keys, float0 and None are not."""
    return leaf is not None and jnp.issubdtype(dtype_of(leaf), jnp.inexact)


def compute_dtype(dtype: Any) -> Any:
    """float32 for every real dtype up to 32 bits, float64 for float64; the complex twin likewise."""
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.dtype(dtype)
    return jnp.dtype(jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32)


def compute(x: Any) -> jax.Array:
    """Cast to the compute dtype."""
    return jnp.asarray(x).astype(compute_dtype(dtype_of(x)))


def enter(g: Any) -> jax.Array:
    """Cast a gradient to the compute dtype and saturate its finite values at ±1e18."""
    g = compute(g)
    if jnp.iscomplexobj(g):
        return jax.lax.complex(_saturate(g.real, SATURATION), _saturate(g.imag, SATURATION))
    return _saturate(g, SATURATION)


def leave(x: jax.Array, dtype: Any) -> jax.Array:
    """Cast an update back; what is finite stays finite in a dtype of smaller range."""
    dtype = jnp.dtype(dtype)
    if x.dtype == dtype:
        return x
    if jnp.issubdtype(dtype, jnp.complexfloating) or jnp.issubdtype(x.dtype, jnp.complexfloating):
        return x.astype(dtype)
    if jnp.finfo(dtype).max < jnp.finfo(x.dtype).max:
        x = _saturate(x, float(jnp.finfo(dtype).max))
    return x.astype(dtype)


def _saturate(x: jax.Array, bound: float) -> jax.Array:
    # Plain `lax`: this is traced for every kind of leaf, and each `jnp` function traces a `jit` of its own.
    low, high = np.asarray(-bound, x.dtype), np.asarray(bound, x.dtype)
    return jax.lax.select(jax.lax.is_finite(x), jax.lax.clamp(low, x, high), x)


def to_pair(x: jax.Array) -> jax.Array:
    """A complex array as a real one with a leading axis (real, imaginary); real arrays stay."""
    return jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x


def from_pair(x: jax.Array) -> jax.Array:
    """The complex array of a (real, imaginary) pair."""
    return jax.lax.complex(x[0], x[1])
