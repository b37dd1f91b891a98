"""Running means of what a loss reports, as a value that a compiled loop carries."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

WEIGHT = "weight"
"""A metric of this name is the weight of its batch in every mean; without it the number of examples is."""


class ExpMean(NamedTuple):
    """The exponential of a weighted mean: perplexity, of the mean loss.

    Attributes:
        total: weighted sum.
        weight: sum of the weights.
    """

    total: Any
    weight: Any

    def merge(self, other: "ExpMean") -> "ExpMean":
        """Both together."""
        return ExpMean(self.total + other.total, self.weight + other.weight)

    def compute(self) -> Any:
        """exp(total / weight)."""
        return jnp.exp(self.total / self.weight)


class Means(NamedTuple):
    """Means since the last reset.

    Attributes:
        weight: sum of the weights, float32.
        values: ``{name: mean}``.
        objects: ``{name: metric}``, metrics that merge by themselves; without meaning while `weight` is 0.
    """

    weight: Any
    values: dict[str, Any]
    objects: dict[str, Any]


def split(metrics: Mapping[str, Any], examples: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """What a loss returned as (weight, numbers, objects).

    Raises:
        TypeError: a metric is neither a real scalar nor an object with `merge` and `compute`.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"fit: the loss returned metrics of type {type(metrics).__name__}, a dictionary of names and scalars was "
            f'expected. Return (loss, {{"accuracy": accuracy}}).'
        )
    weight = jnp.asarray(metrics.get(WEIGHT, examples), jnp.float32)
    values, objects = {}, {}
    for name, value in metrics.items():
        if callable(getattr(value, "merge", None)) and callable(getattr(value, "compute", None)):
            objects[name] = value
        elif name != WEIGHT:
            values[name] = _scalar(name, value)
    return weight, values, objects


def _scalar(name: str, value: Any) -> jax.Array:
    dtype = jnp.result_type(value)
    real = any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    if np.shape(value) or not real:
        raise TypeError(
            f"fit: the metric {name!r} is {dtype}{list(np.shape(value))}, a real scalar was expected. "
            f"Return its mean, or an object with merge and compute."
        )
    return jnp.asarray(value).astype(jnp.float32)


def empty(weight: Any, values: Mapping[str, Any], objects: Mapping[str, Any]) -> Means:
    """Means of nothing, of the type that `add` keeps; takes the result of `split`, or its shapes."""
    del weight
    zeros = jax.tree.map(lambda x: jnp.zeros(np.shape(x), x.dtype), dict(objects))
    return Means(jnp.zeros((), jnp.float32), {name: jnp.zeros((), jnp.float32) for name in values}, zeros)


def add(means: Means, weight: Any, values: Mapping[str, Any], objects: Mapping[str, Any], counts: Any = True) -> Means:
    """The means with one more batch; `counts` says whether it is used at all.

    μ ← μ + (x − μ) w / W,   W the sum of the weights so far: exact to rounding however many batches.
    """
    weight = jnp.where(counts, weight, 0)
    total = means.weight + weight
    share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
    new = {}
    for name, mean in means.values.items():
        x = values[name]
        # Where the batch has no share, its value may be NaN, and NaN · 0 is not 0.
        new[name] = jnp.where(share > 0, mean + (x - mean) * share, mean)
    first, used = means.weight == 0, weight > 0
    merged = {name: _merged(means.objects[name], metric, first, used) for name, metric in objects.items()}
    return Means(total, new, merged)


def _merged(old: Any, new: Any, first: Any, used: Any) -> Any:
    return jax.tree.map(
        lambda old, new, both: jnp.where(used, jnp.where(first, new, both), old), old, new, old.merge(new)
    )


def read(means: Means) -> dict[str, float]:
    """The means as plain numbers; NaN where nothing was counted."""
    weight = float(means.weight)
    found = {name: float(mean) for name, mean in means.values.items()}
    found |= {name: float(metric.compute()) if weight else math.nan for name, metric in means.objects.items()}
    names = sorted(found, key=lambda name: (name != "loss", name))  # the loss first, as people read
    return {name: found[name] if weight else math.nan for name in names}
