"""Scaling to mean 0 and deviation 1, with numbers from the training data alone."""

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Arrays = TypeVar("Arrays", np.ndarray, jax.Array)
Per = Literal["feature", "channel", "all"]

CHUNK = 4096  # examples that are widened to float64 at a time


class Statistics(NamedTuple):
    """Mean and deviation of training data; a pytree, so it can travel through `jit` and into checkpoints.

    Attributes:
        mean, deviation: float32, both of shape () or of the last axes of the data. A deviation is never 0.
    """

    mean: np.ndarray
    deviation: np.ndarray

    def apply(self, x: Arrays) -> Arrays:
        """(x − mean) / deviation, for one example or any batch; integers become float32."""
        x = _floating(x)
        scaled = x - _like(self.mean, x)
        scaled /= _like(self.deviation, x)  # in place where it is NumPy's: the data may fill half of the memory
        return scaled

    def invert(self, x: Arrays) -> Arrays:
        """Back from scaled values to those of the data: x · deviation + mean."""
        x = _floating(x)
        return x * _like(self.deviation, x) + _like(self.mean, x)


def normalize(train: Any, *others: Any, per: Per = "feature") -> tuple[Any, ...]:
    """Scale arrays by the mean and the deviation of the first one, the training data.

        x, x_test, statistics = normalize(x, x_test)

    The others (validation and test data) are scaled by the same numbers and have no part in them. A
    feature that never changes in training becomes 0 there, and keeps its unit elsewhere.

    Args:
        train: training data, shape (examples, ...).
        others: more arrays with the same axes but the first.
        per: "feature" has its own numbers for every position of an example, "channel" for every position
            on the last axis, "all" one mean and one deviation.

    Returns:
        The scaled arrays in order, integers as float32, and last the `Statistics`.

    Raises:
        ValueError: shapes do not agree, no examples, or values in `train` that are not finite.
    """
    statistics = _statistics(_on_host(train), per)
    for other in others:
        if np.shape(other)[1:] != np.shape(train)[1:]:
            raise ValueError(
                f"normalize: an array of shape {np.shape(other)} was given beside training data of shape "
                f"{np.shape(train)}, the same axes after the first were expected. Reshape one of them."
            )
    return (*(statistics.apply(_array(x)) for x in (train, *others)), statistics)


def _statistics(x: np.ndarray, per: Per) -> Statistics:
    kept = {"feature": x.ndim - 1, "channel": 1, "all": 0}.get(per)
    if kept is None:
        raise ValueError(
            f"normalize: per={per!r} was given, 'feature', 'channel' or 'all' was expected. Choose one of them."
        )
    if x.ndim < 1 + (per == "channel") or x.size == 0:
        raise ValueError(
            f"normalize: training data of shape {x.shape} was given with per={per!r}, examples on the first axis"
            f"{' and channels on the last' if per == 'channel' else ''} were expected. Reshape the data."
        )
    if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
        raise ValueError(
            f"normalize: {np.count_nonzero(~np.isfinite(x))} values of the training data are not finite, numbers were "
            f"expected. Fill or drop them first, for example with np.nan_to_num."
        )
    axes = tuple(range(x.ndim - kept))
    pieces = [x[i : i + CHUNK] for i in range(0, len(x), CHUNK)]
    n = np.prod([x.shape[axis] for axis in axes])
    # Two passes in double precision: one pass over squares loses digits where the mean is large.
    mean = sum(piece.sum(axes, dtype=np.float64) for piece in pieces) / n
    variance = sum(np.square(piece - mean, dtype=np.float64).sum(axes) for piece in pieces) / n
    # Rounding gives a constant feature a tiny deviation, and division by it would blow up noise.
    constant = x.min(axes) == x.max(axes)
    deviation = np.where(constant, 1.0, np.sqrt(variance))
    return Statistics(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))


def _array(x: Any) -> Any:
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _on_host(x: Any) -> np.ndarray:
    x = np.asarray(x)
    # NumPy sums bfloat16 and its kin badly; everything that is no float of its own is widened.
    return x if x.dtype.kind in "biuf" else x.astype(np.float32)


def _floating(x: Any) -> Any:
    x = _array(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(np.float32)


def _like(number: Any, x: Any) -> Any:
    """`number` with the rank and the dtype of `x`: nothing is promoted, nothing broadcast by rank."""
    number = number.reshape((1,) * (x.ndim - number.ndim) + number.shape)
    return number.astype(x.dtype)
