"""Random changes of images, equal by configuration: steps for `augment`.

A step is called as `step(key, images)` with images of shape (batch, height, width) or
(batch, height, width, channels), and returns images of the same dtype, floating or integer. Every
example draws its own numbers. Steps are pure, so they run under `jit`, `vmap` and `scan`; two steps with
the same settings are equal and hash alike, so a notebook cell that is run again compiles nothing.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jopt import scalars

Fill = float | Literal["edge"]


@dataclasses.dataclass(frozen=True)
class Shift:
    """Move every image by a few whole pixels, each distance and direction as likely as another.

    Args:
        max_pixels: the farthest move along each of the two axes.
        fill: what comes in from outside: a pixel value, or "edge" to repeat the border.
    """

    max_pixels: int = 1
    fill: Fill = "edge"

    def __post_init__(self) -> None:
        settle_counts(self, 0, "max_pixels")
        _settle_fill(self)

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        _check_fits(self, self.max_pixels, images)
        return _window(key, _pad(self, images, self.max_pixels), images.shape[1:3])


@dataclasses.dataclass(frozen=True)
class Crop:
    """Pad every image on all four sides and cut a window out of it at a random place.

    Without `size` this is a shift. With it images become smaller: evaluate on `crop.center(images)`.

    Args:
        padding: pixels added on each side.
        size: height and width of the window, or one number for both; None keeps the image's.
        fill: what the padding holds: a pixel value, or "edge" to repeat the border.
    """

    padding: int = 0
    size: int | tuple[int, int] | None = None
    fill: Fill = "edge"

    def __post_init__(self) -> None:
        settle_counts(self, 0, "padding")
        _settle_fill(self)
        if self.size is not None:
            pair = self.size if isinstance(self.size, tuple | list) else (self.size, self.size)
            if len(pair) != 2:
                raise ValueError(
                    f"Crop: size={self.size!r} was given, a height and a width were expected. "
                    f"Pass for example size=(24, 24)."
                )
            settle(self, size=tuple(scalars.raw(scalars.integer(side, "Crop", "size", 1)) for side in pair))

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        return _window(key, _pad(self, images, self.padding), self._window_of(images))

    def center(self, images: jax.Array) -> jax.Array:
        """The window in the middle of every image, for evaluation."""
        images = check_images(self, images)
        (high, wide), padded = self._window_of(images), _pad(self, images, self.padding)
        top, left = (padded.shape[1] - high) // 2, (padded.shape[2] - wide) // 2
        return padded[:, top : top + high, left : left + wide]

    def _window_of(self, images: jax.Array) -> tuple[int, int]:
        high, wide = self.size if isinstance(self.size, tuple) else images.shape[1:3]
        if high > images.shape[1] + 2 * self.padding or wide > images.shape[2] + 2 * self.padding:
            raise ValueError(
                f"{self!r}: images of {images.shape[1]} × {images.shape[2]} pixels were given, at least the window "
                f"without its padding was expected. Choose a smaller size."
            )
        return high, wide


@dataclasses.dataclass(frozen=True)
class Flip:
    """Mirror some of the images.

    Args:
        horizontal: probability that left and right change places.
        vertical: probability that top and bottom change places.
    """

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        settle_numbers(self, scalars.FRACTION, "horizontal", "vertical")

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        chosen = jax.random.uniform(key, (2, len(images)), jnp.float32)
        for chance, draw, axis in ((self.vertical, chosen[0], 1), (self.horizontal, chosen[1], 2)):
            if chance > 0:
                images = jnp.where(_beside(draw < chance, images), jnp.flip(images, axis), images)
        return images


@dataclasses.dataclass(frozen=True)
class Rotate:
    """Turn every image about its middle by a random angle, up to `max_degrees` either way.

    A new pixel is the bilinear mean of the four old ones around the place it comes from. Integer images
    are rounded.

    Args:
        max_degrees: the largest angle, in degrees, in [0, 180]; angles are uniform.
        fill: what comes in from outside: a pixel value, or "edge" to repeat the border.
    """

    max_degrees: float = 10.0
    fill: Fill = "edge"

    def __post_init__(self) -> None:
        settle_numbers(self, "[0, 180]", "max_degrees")
        _settle_fill(self)

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        if self.max_degrees == 0:
            return images
        most = math.radians(self.max_degrees)
        angle = jax.random.uniform(key, (len(images), 1, 1), jnp.float32, -most, most)
        high, wide = images.shape[1:3]
        down = (jnp.arange(high, dtype=jnp.float32) - (high - 1) / 2)[None, :, None]
        right = (jnp.arange(wide, dtype=jnp.float32) - (wide - 1) / 2)[None, None, :]
        rows = jnp.cos(angle) * down - jnp.sin(angle) * right + (high - 1) / 2
        columns = jnp.sin(angle) * down + jnp.cos(angle) * right + (wide - 1) / 2
        if self.fill != "edge":  # one pixel of it all around: beyond, the edge repeats
            images, rows, columns = _pad(self, images, 1), rows + 1, columns + 1
        return _bilinear(images, rows, columns)


@dataclasses.dataclass(frozen=True)
class Noise:
    """Add independent Gaussian noise to every pixel and channel.

    Integer images are rounded and stay in the range of their dtype. Floating images are not clipped:
    their noise may leave the range of the data.

    Args:
        deviation: standard deviation, in the unit of the pixels: 0.1 suits normalized images, 10 uint8.
    """

    deviation: float = 0.1

    def __post_init__(self) -> None:
        settle_numbers(self, scalars.NONNEGATIVE, "deviation")

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        if self.deviation == 0:
            return images
        noise = jax.random.normal(key, images.shape, jnp.float32)
        precise = widened(images)
        return narrowed(precise + self.deviation * noise.astype(precise.dtype), images.dtype)


@dataclasses.dataclass(frozen=True)
class Cutout:
    """Cover a square of every image.

    Its middle is any pixel with equal chance, so near the border less is covered.

    Args:
        size: side of the square in pixels.
        fill: the value of covered pixels; 0 is the mean of normalized images.
    """

    size: int = 2
    fill: float = 0.0

    def __post_init__(self) -> None:
        settle_counts(self, 0, "size")
        settle_numbers(self, scalars.FINITE, "fill")

    def __call__(self, key: jax.Array, images: jax.Array) -> jax.Array:
        images = check_images(self, images)
        _check_fits(self, self.size - 1, images)
        fill = _fill_value(self, images.dtype)
        inside = jnp.ones((len(images), 1, 1), bool)
        for own, length, axis in zip(jax.random.split(key), images.shape[1:3], (1, 2), strict=True):
            start = jax.random.randint(own, (len(images), 1, 1), 0, length, jnp.int32) - self.size // 2
            place = jnp.arange(length, dtype=jnp.int32).reshape((1, -1, 1) if axis == 1 else (1, 1, -1))
            inside = inside & (start <= place) & (place < start + self.size)
        return jnp.where(inside.reshape(inside.shape + (1,) * (images.ndim - 3)), fill, images)


def check_images(step: Any, images: Any) -> jax.Array:
    """The images as an array of shape (batch, height, width) or (batch, height, width, channels)."""
    images = jnp.asarray(images)
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"{step!r}: an array of shape {images.shape} was given, images of shape (batch, height, width) or "
            f"(batch, height, width, channels) were expected. Reshape it; one image needs images[None]."
        )
    return check_pixels(step, images)


def check_pixels(step: Any, x: Any) -> jax.Array:
    """The array, if it can be mixed and rounded: floating, or integers of at most 16 bits."""
    x = jnp.asarray(x)
    small = jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize <= 2
    if not small and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{step!r}: an array of dtype {x.dtype} was given, pixels were expected: floating, or integers of 8 or "
            f"16 bits. Convert it first, for example with x.astype(jnp.uint8) or x.astype(jnp.float32)."
        )
    return x


def widened(x: jax.Array) -> jax.Array:
    """`x` in float32 or wider, for arithmetic."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def narrowed(x: jax.Array, dtype: Any) -> jax.Array:
    """`x` back in `dtype`; integers are rounded and stay in range."""
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.clip(jnp.round(x), jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)
    return x.astype(dtype)


def settle(step: Any, **values: Any) -> None:
    """Set fields of a frozen step, while it is made."""
    for name, value in values.items():
        object.__setattr__(step, name, value)


def settle_numbers(step: Any, domain: str, *names: str) -> None:
    """Check settings, and make them Python floats: 10 and 10.0 are one configuration."""
    for name in names:
        settle(step, **{name: _concrete(step, name, scalars.number(getattr(step, name), _name(step), name, domain))})


def settle_counts(step: Any, at_least: int, *names: str) -> None:
    """Check settings that are whole numbers."""
    for name in names:
        settle(step, **{name: _concrete(step, name, scalars.integer(getattr(step, name), _name(step), name, at_least))})


def _name(step: Any) -> str:
    return type(step).__name__


def _concrete(step: Any, name: str, value: Any) -> Any:
    if isinstance(value, scalars.Traced):
        raise TypeError(
            f"{_name(step)}: {name}={value!r} was given, a number known before tracing was expected: steps compare by "
            f"their settings. Make the step outside of jit and vmap."
        )
    return value


def _settle_fill(step: Any) -> None:
    if step.fill != "edge":
        settle_numbers(step, scalars.FINITE, "fill")


def _fill_value(step: Any, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.integer):
        low, high = int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)
        if step.fill != round(step.fill) or not low <= step.fill <= high:
            raise ValueError(
                f"{step!r}: {dtype} images were given with fill={step.fill!r}, a whole number from {low} to {high} "
                f"was expected. Choose one, or convert the images to float32."
            )
    return jnp.asarray(step.fill, dtype)


def _check_fits(step: Any, pixels: int, images: jax.Array) -> None:
    if pixels >= min(images.shape[1:3]):
        raise ValueError(
            f"{step!r}: images of {images.shape[1]} × {images.shape[2]} pixels were given, larger ones were expected "
            f"for this setting. Choose a smaller number of pixels."
        )


def _beside(values: jax.Array, images: jax.Array) -> jax.Array:
    """One value for each example, with the rank of the images."""
    return values.reshape((-1,) + (1,) * (images.ndim - 1))


def _pad(step: Any, images: jax.Array, pixels: int) -> jax.Array:
    widths = [(0, 0), (pixels, pixels), (pixels, pixels), (0, 0)][: images.ndim]
    if step.fill == "edge":
        return jnp.pad(images, widths, mode="edge")
    return jnp.pad(images, widths, constant_values=_fill_value(step, images.dtype))


def _window(key: jax.Array, images: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """A window of `size` out of every image, each place as likely as another."""
    room = jnp.asarray([whole - side + 1 for whole, side in zip(images.shape[1:3], size, strict=True)], jnp.int32)
    corner = jax.random.randint(key, (len(images), 2), 0, room[None, :], jnp.int32)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], *(jnp.zeros((), jnp.int32),) * (image.ndim - 2))
        return jax.lax.dynamic_slice(image, start, (*size, *image.shape[2:]))

    return jax.vmap(cut)(images, corner)


def _bilinear(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """The images at real-valued places (batch, height, width); beyond the border it repeats."""
    example = jnp.arange(len(images), dtype=jnp.int32)[:, None, None]
    precise = widened(images)

    def neighbours(place: jax.Array, length: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        place = jnp.clip(place, 0, length - 1)
        low = jnp.floor(place)
        low, weight = low.astype(jnp.int32), (place - low).astype(precise.dtype)
        return low, jnp.minimum(low + 1, length - 1), weight.reshape(weight.shape + (1,) * (images.ndim - 3))

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return precise.at[example, row, column].get(mode="promise_in_bounds")

    top, bottom, below = neighbours(rows, images.shape[1])
    left, right, beside = neighbours(columns, images.shape[2])
    upper = at(top, left) * (1 - beside) + at(top, right) * beside
    lower = at(bottom, left) * (1 - beside) + at(bottom, right) * beside
    return narrowed(upper * (1 - below) + lower * below, images.dtype)
