"""Formats that slots are stored in: 16 bits, 8 bits with a scale for every block, stochastic rounding.

A block is a run of up to 256 elements in row-major order that are cut from one axis, so that codes
keep the shape, and the sharding, of the array they stand for. A slot in such a format is a `Stored`:
the engine decodes it before a rule and encodes it after, and no rule knows.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey

from jopt import dtypes

BLOCK = 256


@dataclasses.dataclass(frozen=True)
class Format:
    """How an array is stored.

    Args:
        name: in `store`, in messages, and in the paths of a checkpoint.
        dtype: of the codes.
        power: x is stored as its root of this degree, so that small numbers keep relative precision.
        top: the largest code, that of the largest number of a block; 0 stores without a scale.
        random: whether a number between two codes takes either by chance, right in the mean.
    """

    name: str
    dtype: Any
    power: int = 1
    top: float = 0.0
    random: bool = False

    @property
    def boxed(self) -> bool:
        """Whether a slot is a `Stored`; else it is an array of a narrow dtype."""
        return self.top > 0 or self.random

    @property
    def mark(self) -> int | None:
        """The code of what is not finite, which has no part in the scale; floating formats have their own."""
        return None if jnp.issubdtype(self.dtype, jnp.floating) else -128 if self.signed else 255

    @property
    def signed(self) -> bool:
        """Whether it can hold negative numbers."""
        return jnp.dtype(self.dtype) != jnp.uint8


def _formats() -> dict[str, Format]:
    found = [Format("bfloat16", jnp.bfloat16), Format("bfloat16_sr", jnp.bfloat16, random=True)]
    for suffix, random in (("", False), ("_sr", True)):
        found.append(Format(f"int8{suffix}", jnp.int8, 2, 127.0, random))
        found.append(Format(f"uint8{suffix}", jnp.uint8, 4, 254.0, random))
    for name, dtype in (("float8_e4m3", jnp.float8_e4m3fn), ("float8_e5m2", jnp.float8_e5m2)):
        found.append(Format(name, dtype, 1, float(jnp.finfo(dtype).max)))
    return {format.name: format for format in found}


FORMATS = _formats()
"""Every format by name."""


@jax.tree_util.register_pytree_with_keys_class
class Stored:
    """A slot of one parameter in fewer bits: codes in the shape of the array, and a scale for each block.

    Attributes:
        codes: what is kept of each element; those of a floating format are its bits, as integers.
        scale: what the codes of a block are multiplied with, before the power; None without blocks.
        format: how to read them.
    """

    __slots__ = ("codes", "format", "scale")

    def __init__(self, codes: Any, scale: Any, format: Format):
        self.codes, self.scale, self.format = codes, scale, format

    @classmethod
    def of(cls, x: jax.Array, format: Format, chance: Any = None) -> "Stored":
        """Encode an array; a random format needs a `Chance`."""
        assert chance is not None or not format.random
        x = x.astype(jnp.float32)
        if not format.top:
            return cls(to_words(round_at_random(x, format.dtype, chance).astype(format.dtype)), None, format)
        codes, scale = _encode(x, format, chance)
        return cls(to_words(codes), scale, format)

    def decode(self) -> jax.Array:
        """The numbers, in float32."""
        codes = from_words(self.codes, self.format.dtype).astype(jnp.float32)
        return codes if self.scale is None else _decode(codes, self.scale, self.format)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def size(self) -> int:
        return self.codes.size

    @property
    def dtype(self) -> Any:
        """Of the numbers, not of their codes."""
        return jnp.dtype(jnp.float32)

    @property
    def sharding(self) -> Any:
        return self.codes.sharding

    def __repr__(self) -> str:
        return f"Stored({self.format.name!r}, codes={self.codes!r}, scale={self.scale!r})"

    def tree_flatten_with_keys(self):
        # The format is in the path: codes of another format do not load into it.
        return ((GetAttrKey(self.format.name), self.codes), (GetAttrKey("scale"), self.scale)), self.format

    @classmethod
    def tree_unflatten(cls, format, children):
        codes, scale = children
        return cls(codes, scale, format)


def store_as(x: jax.Array, format: Format) -> Any:
    """A slot in a format, before the first update; one that is not real stays as it is."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    if not format.boxed:
        return dtypes.leave(x, format.dtype)
    return Stored.of(x, format, Chance(np.uint32(0)))


def widen(x: Any, dtype: Any) -> Any:
    """A slot as a rule sees it: decoded, and in the dtype of the arithmetic where that is wider."""
    x = x.decode() if isinstance(x, Stored) else x
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < jnp.finfo(dtype).bits
    return x.astype(dtype) if narrow else x


def narrow(x: jax.Array, like: Any, chance: Any = None) -> Any:
    """A slot as the state holds it, in the format of the one it replaces."""
    if isinstance(like, Stored):
        return Stored.of(x, like.format, chance)
    return dtypes.leave(x, like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else x.astype(like.dtype)


def is_random(slots: Any) -> bool:
    """Whether a tree of slots holds a format that draws."""
    entries = jax.tree.leaves(slots, is_leaf=lambda x: isinstance(x, Stored))
    return any(isinstance(x, Stored) and x.format.random for x in entries)


# Bits --------------------------------------------------------------------------------------------


def to_words(x: jax.Array) -> jax.Array:
    """Floating numbers of 8 or 16 bits as integers of the same bits: on CPU, XLA writes to a part of an array of
    narrow floats by converting the whole of it."""
    bits = x.dtype.itemsize * 8
    if bits > 16 or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{bits}"))


def from_words(x: jax.Array, dtype: Any) -> jax.Array:
    """The inverse of `to_words`."""
    return x if x.dtype == dtype else jax.lax.bitcast_convert_type(x, dtype)


# Blocks ------------------------------------------------------------------------------------------


def cut(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Where blocks are cut: along which axis, how many of them, and how long each is there.

    Axes behind that one are in a block whole. The last block of an axis may be shorter.
    """
    inner = 1
    for axis in range(len(shape) - 1, -1, -1):
        n = shape[axis]
        if axis == 0 or inner * n > BLOCK:
            length = max(1, min(n, BLOCK // max(1, inner)))
            return axis, max(1, math.ceil(n / length)), length
        inner *= n
    return 0, 1, 1


def _encode(x: jax.Array, format: Format, chance: Any) -> tuple[jax.Array, jax.Array]:
    fine = jnp.isfinite(x)
    magnitude = jnp.where(fine, jnp.abs(x) if format.signed else jnp.maximum(x, 0), 0)
    scale = _root(_largest(magnitude), format.power) / format.top
    spread = _spread(scale, x.shape)
    y = _root(magnitude, format.power) / jnp.where(spread > 0, spread, 1)
    if format.mark is None:
        # What is not zero stays away from it, or an update would be divided by zero.
        y = jnp.where(x == 0, y, jnp.clip(y, float(jnp.finfo(format.dtype).smallest_subnormal), format.top))
        return jnp.where(fine, jnp.sign(x) * y, jnp.nan).astype(format.dtype), scale
    y = jnp.floor(y + uniform(x.shape, chance)) if format.random else jnp.round(y)
    if format.signed:
        codes = jnp.sign(x) * jnp.minimum(y, format.top)
    else:
        codes = jnp.where(x > 0, jnp.clip(y, 1, format.top), 0)
    return jnp.where(fine, codes, format.mark).astype(format.dtype), scale


def _decode(codes: jax.Array, scale: jax.Array, format: Format) -> jax.Array:
    y = codes * _spread(scale, codes.shape)
    if format.power == 2:
        y = y * jnp.abs(y)
    if format.power == 4:
        # The fourth power of the smallest code may underflow.
        y = jnp.where(y > 0, jnp.maximum(jnp.square(jnp.square(y)), float(jnp.finfo(jnp.float32).tiny)), 0)
    return y if format.mark is None else jnp.where(codes == format.mark, jnp.nan, y)


def _root(x: jax.Array, power: int) -> jax.Array:
    """The root of degree 1, 2 or 4."""
    return x if power == 1 else jnp.sqrt(x) if power == 2 else jnp.sqrt(jnp.sqrt(x))


def _largest(x: jax.Array) -> jax.Array:
    """The largest element of each block, with an axis for each of x."""
    if not x.ndim:
        return x
    axis, count, length = cut(x.shape)
    behind = tuple(range(axis + 1, x.ndim))
    if count == 1:
        return jnp.max(x, axis=(axis, *behind), keepdims=True, initial=0)
    padding = [(0, count * length - n if i == axis else 0) for i, n in enumerate(x.shape)]
    x = jnp.pad(x, padding) if any(after for _, after in padding) else x
    x = jnp.reshape(x, (*x.shape[:axis], count, length, *x.shape[axis + 1 :]))
    top = jnp.max(x, axis=tuple(range(axis + 1, x.ndim)), initial=0)
    return jnp.reshape(top, (*top.shape, *(1 for _ in behind)))


def _spread(scale: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The scale of each block, for its elements: an array that broadcasts to the shape."""
    axis, count, length = cut(shape)
    if count == 1:
        return scale
    behind = (1,) * (len(shape) - axis - 1)
    before = scale.shape[:axis]
    scale = jnp.broadcast_to(jnp.reshape(scale, (*before, count, 1, *behind)), (*before, count, length, *behind))
    scale = jnp.reshape(scale, (*before, count * length, *behind))
    return jax.lax.slice_in_dim(scale, 0, shape[axis], axis=axis)


# Chance ------------------------------------------------------------------------------------------


class Chance(NamedTuple):
    """What random numbers depend on.

    Attributes:
        seed: uint32.
        start: the place of the first element in its array, where that is taken in parts.
    """

    seed: Any
    start: Any = np.uint32(0)

    def fold(self, *words: Any) -> "Chance":
        """Another for each sequence of integers, such as a path's hash and a count."""
        seed = jnp.asarray(self.seed, jnp.uint32)
        for word in words:
            seed = _mix(seed * np.uint32(0x9E3779B1) + jnp.asarray(word).astype(jnp.uint32))
        return self._replace(seed=seed)


def bits(shape: tuple[int, ...], chance: Chance) -> jax.Array:
    """Random 32 bits for each element: a hash of its place and the seed, in integer operations that XLA fuses."""
    place, stride = jnp.full(shape, chance.start, jnp.uint32), 1
    for axis in range(len(shape) - 1, -1, -1):
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride % 2**32)
        stride *= max(1, shape[axis])
    return _mix(place * np.uint32(0x9E3779B1) + jnp.asarray(chance.seed, jnp.uint32))


def uniform(shape: tuple[int, ...], chance: Chance) -> jax.Array:
    """Random numbers in [0, 1) of 24 bits."""
    return (bits(shape, chance) >> np.uint32(8)).astype(jnp.float32) * np.float32(2**-24)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of 32 bits in which every bit depends on every other (constants of C. Wellons)."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def round_at_random(x: jax.Array, dtype: Any, chance: Chance) -> jax.Array:
    """float32 numbers that a 16-bit dtype holds, each one of the two neighbours of x and x in the mean."""
    info = jnp.finfo(dtype)
    dropped = 23 - info.nmant
    words = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = bits(x.shape, chance) >> np.uint32(32 - dropped)
    words = (words + noise) & np.uint32(2**32 - 2**dropped)
    top = float(info.max)
    rounded = jnp.clip(jax.lax.bitcast_convert_type(words, jnp.float32), -top, top)
    if info.nexp < 8:  # its subnormal numbers are equally far apart, and normal in float32
        step = np.float32(info.smallest_subnormal)
        whole = jnp.floor(x / step)
        up = uniform(x.shape, chance) < x / step - whole
        rounded = jnp.where(jnp.abs(x) < float(info.tiny), (whole + up.astype(x.dtype)) * step, rounded)
    return jnp.where(jnp.isfinite(x), rounded, x)
