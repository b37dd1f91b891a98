"""Steps for `augment` that change labels: mixup, cutmix, label smoothing.

A step is called as `step(key, (x, y))`. Classes become soft labels of shape (batch, classes), for losses
such as `softmax_cross_entropy`; each row sums to 1.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from jopt import scalars
from jopt.data.images import check_images, check_pixels, narrowed, settle_counts, settle_numbers, widened

Batch = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Mixup:
    """Mix every example, and its label, with another one of the batch.

        λ ~ Beta(α, α)        x ← λx + (1 − λ)x'        y ← λy + (1 − λ)y'

    One λ serves the whole batch; who is mixed with whom is random. `x` may have any shape.

    Args:
        alpha: α ≥ 0; small values keep one of the two nearly whole, 1 is uniform, 0 mixes nothing.
        classes: number of classes, where labels are integers; None where they are soft labels or
            targets of a regression.

    Reference: [zhang2018mixup].
    """

    alpha: float = 0.2
    classes: int | None = None
    takes_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_numbers(self, scalars.NONNEGATIVE, "alpha")
        _settle_classes(self)

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        x, y = _pair(self, batch)
        x, y = check_pixels(self, x), soft_labels(self, y)
        if self.alpha == 0:
            return x, y
        draw, pair = jax.random.split(key)
        share = _share(draw, self.alpha)
        partner = jax.random.permutation(pair, len(x))
        return narrowed(_mix(share, widened(x), partner), x.dtype), _mix(share, y, partner)


@dataclasses.dataclass(frozen=True)
class Cutmix:
    """Paste a rectangle of another example into every image; labels mix by area.

        λ ~ Beta(α, α)        sides of the rectangle: √(1 − λ) of the image's
        y ← (1 − a)y + ay'    a: share of the image that the rectangle covers

    One λ serves the whole batch; each image has its own place for the rectangle, which the border cuts.

    Args:
        alpha: α ≥ 0; 1 is uniform, 0 pastes nothing.
        classes: number of classes, where labels are integers; None where they are soft labels.

    Reference: [yun2019cutmix].
    """

    alpha: float = 1.0
    classes: int | None = None
    takes_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_numbers(self, scalars.NONNEGATIVE, "alpha")
        _settle_classes(self)

    def __call__(self, key: jax.Array, batch: Batch) -> Batch:
        x, y = _pair(self, batch)
        x, y = check_images(self, x), soft_labels(self, y)
        if self.alpha == 0:
            return x, y
        draw, place, pair = jax.random.split(key, 3)
        side = jnp.sqrt(1 - _share(draw, self.alpha))
        middle = jax.random.uniform(place, (2, len(x), 1), jnp.float32)
        rows, columns = (_covered(m, side, length) for m, length in zip(middle, x.shape[1:3], strict=True))
        area = rows.mean(1, dtype=jnp.float32) * columns.mean(1, dtype=jnp.float32)
        partner = jax.random.permutation(pair, len(x))
        inside = (rows[:, :, None] & columns[:, None, :]).reshape(x.shape[:3] + (1,) * (x.ndim - 3))
        return jnp.where(inside, x[partner], x), _mix((1 - area).reshape((-1,) + (1,) * (y.ndim - 1)), y, partner)


@dataclasses.dataclass(frozen=True)
class LabelSmoothing:
    """Give a share of every label to all classes alike.

        y ← (1 − s)y + s/k

    Args:
        smoothing: s, in [0, 1].
        classes: k, where labels are integers; None where they are soft labels of shape (batch, k).
    """

    smoothing: float = 0.1
    classes: int | None = None
    takes_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle_numbers(self, scalars.FRACTION, "smoothing")
        _settle_classes(self)

    def __call__(self, key: jax.Array, batch: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """The batch with soft labels; `key` is not used, nothing here is random."""
        x, y, *rest = batch
        y = soft_labels(self, y)
        if y.ndim < 2:
            raise ValueError(
                f"{self!r}: labels of shape {y.shape} and dtype {y.dtype} were given, classes as integers or soft "
                f"labels of shape (batch, classes) were expected. Targets of a regression cannot be smoothed."
            )
        return x, (1 - self.smoothing) * y + self.smoothing / y.shape[-1], *rest


def soft_labels(step: Any, y: Any) -> jax.Array:
    """Integer classes as one-hot float32 of shape (batch, classes); numbers as they are, float32 or wider."""
    y = jnp.asarray(y)
    if jnp.issubdtype(y.dtype, jnp.integer) and y.ndim == 1 and step.classes is not None:
        return jax.nn.one_hot(y, step.classes, dtype=jnp.float32)
    if not jnp.issubdtype(y.dtype, jnp.floating) or (step.classes is not None and y.shape[1:] != (step.classes,)):
        wanted = "(batch,) and classes=" if step.classes is None else f"(batch,), or floats (batch, {step.classes})"
        raise ValueError(
            f"{step!r}: labels of shape {y.shape} and dtype {y.dtype} were given, integers of shape {wanted} were "
            f"expected. Say how many classes there are, for example {type(step).__name__}(classes=10)."
        )
    return widened(y)


def _pair(step: Any, batch: Any) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            f"{step!r}: a batch of {found} was given, (x, y) was expected. Weights and other arrays cannot be mixed: "
            f"leave them out, or leave out this step."
        )
    return batch[0], batch[1]


def _settle_classes(step: Any) -> None:
    if step.classes is not None:
        settle_counts(step, 2, "classes")


def _share(key: jax.Array, alpha: float) -> jax.Array:
    # Beta(1, 1) is uniform; the general case samples by rejection, in a loop.
    if alpha == 1:
        return jax.random.uniform(key, (), jnp.float32)
    return jax.random.beta(key, alpha, alpha, (), jnp.float32)


def _mix(share: jax.Array, values: jax.Array, partner: jax.Array) -> jax.Array:
    share = share.astype(values.dtype)
    return share * values + (1 - share) * values[partner]


def _covered(middle: jax.Array, side: jax.Array, length: int) -> jax.Array:
    """Which of `length` pixels lie in a stretch around `middle`; both as shares of the length."""
    place = (jnp.arange(length, dtype=jnp.float32) + 0.5)[None, :] / length
    return jnp.abs(place - middle) < side / 2
