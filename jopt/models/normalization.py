"""Normalisation over a batch, over groups of channels, or over each vector.

Written here, not taken from Flax: its layers mix dtypes for half-precision inputs, which strict
promotion forbids.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jopt.dtypes import compute_dtype
from jopt.models.activations import check_choice

NORMS: tuple[str, ...] = ("batch", "group", "layer", "none")
EPSILON = 1e-5  # beside the variance: what is constant becomes zero, not noise
MEMORY = 0.9  # share of the running statistics that a batch leaves as they were
GROUP = 8  # most channels in a group


class Norm(nn.Module):
    """Shift and scale to mean 0 and variance 1, then to a learned bias and scale, channel by channel.

        y = (x − mean) / √(var + ε) · scale + bias

    Statistics are computed in float32 at least; the output has the dtype of the input.

    Args:
        kind: what shares a mean. "batch": a channel, over everything else, with running statistics in
            `batch_stats` for evaluation; "group": up to 8 channels of one example; "layer": one
            vector of channels; "none": the output is the input.
        train: for "batch", use and record the statistics of this batch.
    """

    kind: str
    train: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        check_choice("Norm", "kind", self.kind, NORMS)
        if self.kind == "none":
            return x
        channels = x.shape[-1:]
        wide = x.astype(compute_dtype(x.dtype))
        if self.kind == "batch":
            normal = self._by_running_statistics(wide)
        elif self.kind == "group":
            size = math.gcd(*channels, GROUP)
            groups = wide.reshape(x.shape[0], -1, channels[0] // size, size)
            normal = _normal(groups, *_statistics(groups, axis=(1, 3))).reshape(x.shape)
        else:
            normal = _normal(wide, *_statistics(wide, axis=(-1,)))
        scale = _along_last(self.param("scale", nn.initializers.ones, channels), wide)
        bias = _along_last(self.param("bias", nn.initializers.zeros, channels), wide)
        return (normal * scale + bias).astype(x.dtype)

    def _by_running_statistics(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1:]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        if not self.train:
            return _normal(x, _along_last(running_mean.value, x), _along_last(running_var.value, x))
        mean, var = _statistics(x, axis=tuple(range(x.ndim - 1)))
        if not self.is_initializing():
            for running, now in ((running_mean, mean), (running_var, var)):
                new = now.reshape(channels).astype(running.value.dtype)
                running.value = MEMORY * running.value + (1 - MEMORY) * new
        return _normal(x, mean, var)


def _statistics(x: jax.Array, axis: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return x.mean(axis, keepdims=True), x.var(axis, keepdims=True)


def _normal(x: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
    return (x - mean) * jax.lax.rsqrt(var + EPSILON)


def _along_last(vector: jax.Array, x: jax.Array) -> jax.Array:
    return vector.astype(x.dtype).reshape((1,) * (x.ndim - 1) + vector.shape)
