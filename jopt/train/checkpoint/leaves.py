"""One leaf as a record and bytes, and back: arrays of every dtype, random keys, Python numbers, None."""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train.checkpoint import strict_json, trees
from jopt.train.checkpoint.errors import CheckpointError
from jopt.train.checkpoint.trees import Keys

FLOAT0 = "float0"
DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz"),
    *("float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float6_e2m3fn", "float6_e3m2fn", "float4_e2m1fn"),
    *("int1", "int2", "int4", "uint1", "uint2", "uint4", FLOAT0),
)
PYTHON = {"bool": bool, "int": int, "float": float, "complex": complex}
MAX_SIZE = 1 << 62
MAX_AXES = 64


class Spec(NamedTuple):
    """What a leaf is, apart from its values; two leaves fit if these are equal.

    Attributes:
        kind: "array", "key", "python" or "none".
        dtype: of the array, of the key (``key<fry>``), or the Python type.
        shape: of the array, or of the array of keys.
    """

    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "none":
            return "None"
        if self.kind == "python":
            return f"Python {self.dtype}"
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


class Record(NamedTuple):
    """A leaf as the manifest describes it.

    Attributes:
        keys: its typed path.
        spec: what it is.
        value: a Python number, or None.
        words: of a random key: the shape of its data after the shape of the array.
        implementation: of a random key.
        blob: the number of its blob; None if it has none.
    """

    keys: Keys
    spec: Spec
    value: Any = None
    words: tuple[int, ...] = ()
    implementation: str = ""
    blob: int | None = None

    @property
    def path(self) -> str:
        return self.keys.path

    @property
    def nbytes(self) -> int:
        """Bytes of its blob."""
        shape, dtype = (*self.spec.shape, *self.words), "uint32" if self.spec.kind == "key" else self.spec.dtype
        size = 1
        for length in shape:
            size *= length
        return size * dtype_named(dtype).itemsize


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of a name in `DTYPES`."""
    return jax.dtypes.float0 if name == FLOAT0 else np.dtype(name)


def spec_of(call: str, keys: Keys, leaf: Any) -> Spec:
    """What a leaf is.

    Raises:
        CheckpointError: a checkpoint cannot hold it.
    """
    if leaf is None:
        return Spec("none")
    if type(leaf) in PYTHON.values():
        return Spec("python", type(leaf).__name__)
    if isinstance(leaf, jax.core.Tracer):
        raise CheckpointError(
            f"{call}: the leaf {keys.path!r} is only known inside a trace; an array was expected. "
            f"Call it outside of jit, vmap and grad."
        )
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return Spec("key", str(leaf.dtype), tuple(leaf.shape))
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic):
        name = FLOAT0 if leaf.dtype == jax.dtypes.float0 else np.dtype(leaf.dtype).name
        if name in DTYPES:
            return Spec("array", name, tuple(leaf.shape))
    kind = leaf.dtype if hasattr(leaf, "dtype") else type(leaf).__name__
    raise CheckpointError(
        f"{call}: the leaf {keys.path!r} is of type {kind}; a numeric array, a random key, a Python number or None was "
        f"expected. Convert it, or put it into meta."
    )


def to_record(call: str, keys: Keys, leaf: Any, blob: int) -> Record:
    """The record of a leaf; `blob` is the number of its blob if it needs one."""
    spec = spec_of(call, keys, leaf)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise CheckpointError(f"{call}: the leaf {keys.path!r} is a shape without values. Pass arrays.")
    if spec.kind in ("none", "python"):
        if isinstance(leaf, int) and leaf.bit_length() > strict_json.MAX_BITS:
            raise CheckpointError(
                f"{call}: the leaf {keys.path!r} is a whole number of {leaf.bit_length()} bits; at most "
                f"{strict_json.MAX_BITS} were expected. Save it as an array."
            )
        return Record(keys, spec, value=leaf)
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise CheckpointError(f"{call}: the array {keys.path!r} has been donated. Save what the step returned.")
        if not leaf.is_fully_addressable:
            raise CheckpointError(
                f"{call}: parts of {keys.path!r} are on devices of other processes; an array of this process was "
                f"expected. Gather it first, or save with orbax."
            )
    if spec.kind == "array":
        return Record(keys, spec, blob=blob)
    implementation = jax.random.key_impl(leaf)
    if not isinstance(implementation, str):
        raise CheckpointError(
            f"{call}: the random key {keys.path!r} has the unregistered implementation {implementation!r}; "
            f"one that jax.random.key knows by name was expected. Use jax.random.key(seed)."
        )
    words = jax.eval_shape(jax.random.key_data, leaf).shape[leaf.ndim :]
    return Record(keys, spec, words=tuple(words), implementation=implementation, blob=blob)


def to_bytes(leaf: Any) -> memoryview:
    """The values of an array leaf, little-endian, in C order."""
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        # An array remembers its copy on the host. This one shares the buffers and is thrown away, so
        # that a save does not leave a second model in memory.
        shards = [shard.data for shard in leaf.addressable_shards]
        leaf = jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)
    array = np.asarray(leaf)
    if not array.dtype.itemsize:  # float0
        return memoryview(b"")
    array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("="), copy=False))
    return _swapped(array).reshape(-1).view(np.uint8).data


def _swapped(array: np.ndarray) -> np.ndarray:
    return array if sys.byteorder == "little" else array.byteswap()


# In the manifest ---------------------------------------------------------------------------------


def to_json(record: Record) -> dict[str, Any]:
    """A record as JSON."""
    spec, found = record.spec, {"path": trees.to_json(record.keys), "kind": record.spec.kind}
    if spec.kind == "python":
        return found | {"dtype": spec.dtype, "value": strict_json.encode(_parts(record.value), "a number")}
    if spec.kind == "none":
        return found
    found |= {"dtype": spec.dtype, "shape": list(spec.shape), "blob": record.blob}
    if spec.kind == "key":
        found |= {"implementation": record.implementation, "words": list(record.words)}
    return found


def _parts(value: Any) -> Any:
    return [value.real, value.imag] if isinstance(value, complex) else value


def from_json(call: str, value: Any) -> Record:
    """The record that `to_json` was given.

    Raises:
        ValueError: it makes no such value.
        CheckpointError: a dtype that this version does not know.
    """
    if not isinstance(value, dict):
        raise ValueError("a leaf is no JSON object")
    keys = trees.from_json(value.get("path"))
    match value:
        case {"kind": "none"}:
            return Record(keys, Spec("none"))
        case {"kind": "python", "dtype": str(name), "value": number} if name in PYTHON:
            return Record(keys, Spec("python", name), _number(name, strict_json.decode(number)))
        case {"kind": "array", "dtype": str(name), "shape": list(shape), "blob": int(blob)}:
            if name not in DTYPES:
                raise CheckpointError(
                    f"{call}: the leaf {keys.path!r} has the dtype {name[:80]!r}, which this version of jopt does not "
                    f"know; one of {', '.join(DTYPES)} was expected. Load it with a newer jopt."
                )
            return Record(keys, Spec("array", name, _shape(shape)), blob=blob)
        case {
            "kind": "key",
            "dtype": str(dtype),
            "shape": list(shape),
            "blob": int(blob),
            "implementation": str(name),
            "words": list(words),
        }:
            return Record(keys, Spec("key", dtype, _shape(shape)), None, _shape(words), name, blob)
    raise ValueError(f"the leaf {keys.path[:80]!r} is described wrongly")


def _shape(lengths: list[Any]) -> tuple[int, ...]:
    size = 1
    for length in lengths:
        if type(length) is not int or length < 0:
            raise ValueError("a shape has a wrong length")
        size *= max(length, 1)
        if size > MAX_SIZE:
            raise ValueError("a shape is too large")
    if len(lengths) > MAX_AXES:
        raise ValueError("a shape has too many axes")
    return tuple(lengths)


def _number(name: str, value: Any) -> Any:
    if name == "complex":
        match value:
            case [float(real), float(imag)]:
                return complex(real, imag)
    elif type(value) is PYTHON[name]:
        return value
    raise ValueError(f"a Python {name} is described wrongly")


# Back to a leaf ----------------------------------------------------------------------------------


def from_bytes(record: Record, data: np.ndarray) -> np.ndarray:
    """The values of an array leaf (of a random key: its data) from the bytes of its blob.

    Raises:
        ValueError: no such array has these bytes.
    """
    spec = record.spec
    if spec.dtype == FLOAT0:
        return np.zeros(spec.shape, jax.dtypes.float0)
    if spec.dtype == "bool" and data.size and data.max() > 1:
        raise ValueError("a boolean is neither 0 nor 1")
    dtype = dtype_named("uint32" if spec.kind == "key" else spec.dtype)
    return _swapped(data.view(dtype)).reshape((*spec.shape, *record.words))


def place(call: str, record: Record, value: Any, like: Any) -> Any:
    """A loaded leaf as `like` has it: on its devices, in NumPy, or a Python number.

    Args:
        call: for messages.
        record: what was saved.
        value: the array from `from_bytes`, or the Python number.
        like: the leaf to be like; the record's spec fits it.

    Raises:
        CheckpointError: the implementation of a random key is unknown.
    """
    if record.spec.kind in ("none", "python"):
        return value
    if record.spec.kind == "key":
        return _put(wrap_key(call, record, value), like)
    if isinstance(like, np.generic):
        return value[()]
    return value if isinstance(like, np.ndarray) else _put(value, like)


def _put(value: Any, like: Any) -> Any:
    chosen = isinstance(like, jax.ShapeDtypeStruct) or like.committed
    if chosen and like.sharding is not None:
        return jax.device_put(value, like.sharding)
    # A copy: an array that only borrows NumPy's memory could not be donated.
    return value if isinstance(value, jax.Array) else jnp.array(value)


def wrap_key(call: str, record: Record, data: np.ndarray) -> jax.Array:
    """The array of random keys with this data.

    Raises:
        CheckpointError: this version of JAX does not know the implementation.
    """
    try:
        keys = jax.random.wrap_key_data(jnp.array(data), impl=record.implementation)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{call}: the random key {record.path!r} has the implementation {record.implementation[:80]!r}, which this "
            f"version of JAX does not know with {list(record.words)} words; threefry2x32 or rbg were expected. "
            f"Load it with the version of JAX that saved it ({error})."
        ) from None
    if keys.shape != record.spec.shape or str(keys.dtype) != record.spec.dtype:
        raise CheckpointError(
            f"{call}: the random key {record.path!r} was saved as {record.spec}, and is {keys.dtype}{list(keys.shape)} "
            f"here; the same was expected. Load it with the version of JAX that saved it."
        )
    return keys
