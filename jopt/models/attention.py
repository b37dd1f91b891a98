"""Scaled dot-product self-attention with several heads, the part that ResNet and Transformer share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jopt.dtypes import compute_dtype
from jopt.models.activations import Initializer, output_initializer

ROTATION_BASE = 10_000.0  # the slowest pair of numbers turns once in about 2π · this many steps


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool = False) -> jax.Array:
    """Mean of the values, weighted by how well each query agrees with each key.

        softmax(q kᵀ / √d) v

    The weights are computed in float32 at least, for half-precision inputs too.

    Args:
        q: queries (batch, heads, time, d); `k` keys and `v` values likewise.
        causal: a step sees itself and the steps before it only.
    """
    agreement = q @ k.swapaxes(-1, -2) / jnp.asarray(q.shape[-1] ** 0.5, q.dtype)
    agreement = agreement.astype(compute_dtype(q.dtype))
    if causal:
        time = q.shape[-2]
        past = jnp.tril(jnp.ones((1, 1, time, time), bool))
        agreement = jnp.where(past, agreement, -jnp.inf)
    return nn.softmax(agreement).astype(v.dtype) @ v


def rotate(x: jax.Array) -> jax.Array:
    """Rotary positions: turn each pair of numbers by an angle that grows with the step.

        (a, b) → (a cos tω − b sin tω,  a sin tω + b cos tω)        ω = base^(−2i/d) for pair i at step t

    The agreement of a turned query with a turned key depends on the distance of their steps alone.

    Args:
        x: queries or keys (batch, heads, time, d), d even.
    """
    time, half = x.shape[-2], x.shape[-1] // 2
    speed = ROTATION_BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = jnp.outer(jnp.arange(time, dtype=jnp.float32), speed)[None, None]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Attention(nn.Module):
    """Self-attention over sequences of shape (batch, time, channels).

        x → query, key, value (dense) → split in heads → rotate? → attend → join → dense

    Kernels of queries, keys and values are apart, so that each is a matrix of its own to an optimizer;
    their deviation 1/√channels gives each head queries and keys of unit size whatever the number of heads.
    The last kernel starts at zero: beside a residual the block starts as the identity.

    Args:
        heads: number of heads, a divisor of the channels.
        causal: a step sees itself and the steps before it only.
        rotary: rotary positions; without them the block does not know the order of the steps.
        kernel_init: initialiser of every kernel instead of these.
    """

    heads: int
    causal: bool = False
    rotary: bool = False
    kernel_init: Initializer | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, time, channels = x.shape

        def project(name: str) -> jax.Array:
            y = nn.Dense(channels, use_bias=False, kernel_init=self.kernel_init or output_initializer(), name=name)(x)
            return y.reshape(batch, time, self.heads, -1).swapaxes(1, 2)

        q, k, v = project("query"), project("key"), project("value")
        if self.rotary:
            q, k = rotate(q), rotate(k)
        joined = attend(q, k, v, self.causal).swapaxes(1, 2).reshape(batch, time, channels)
        return nn.Dense(channels, kernel_init=self.kernel_init or nn.initializers.zeros, name="out")(joined)
