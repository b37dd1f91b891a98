"""JSON that loads back as it was saved, also infinities and tuples, within a given amount of memory."""

import json
import math
from typing import Any

import numpy as np

FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
MAX_BITS = 8192  # Python refuses to read much longer ones


def encode(value: Any, place: str) -> Any:
    """A value as plain JSON; what JSON lacks becomes an object with one key that starts with ``$``.

    Args:
        value: None, booleans, numbers, strings; lists, tuples and dicts (with string keys) of them.
            NumPy and JAX scalars become Python numbers.
        place: what the value is, for messages.

    Raises:
        TypeError: something else is in it.
    """
    if isinstance(value, np.generic) or (hasattr(value, "item") and getattr(value, "ndim", None) == 0):
        value = value.item()
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise TypeError(f"{place} is a whole number of {value.bit_length()} bits; at most {MAX_BITS} were expected.")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, list | tuple):
        items = [encode(item, f"{place}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, dict):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise TypeError(f"{place} has the key {strange[0]!r}; its keys must be strings. Use str(key).")
        items = {key: encode(item, f"{place}[{key!r}]") for key, item in value.items()}
        return {"$dict": items} if any(key.startswith("$") for key in items) else items
    raise TypeError(
        f"{place} is of type {type(value).__name__}; None, booleans, numbers, strings, and lists, tuples and dicts of "
        f"them were expected. Convert it, or put arrays into the tree."
    )


def decode(value: Any) -> Any:
    """The value that `encode` was given.

    Raises:
        ValueError: an object with a ``$`` key that `encode` never makes.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value:
        case {"$float": str(name)} if len(value) == 1 and name in FLOATS:
            return FLOATS[name]
        case {"$tuple": list(items)} if len(value) == 1:
            return tuple(decode(item) for item in items)
        case {"$dict": dict(items)} if len(value) == 1:
            return {key: decode(item) for key, item in items.items()}
    if any(key.startswith("$") for key in value):
        raise ValueError(f"an object with the keys {sorted(value)[:3]}")
    return {key: decode(item) for key, item in value.items()}


def dump(value: Any) -> bytes:
    """Plain JSON as ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")


def memory(text: bytes) -> int:
    """An upper bound of the bytes that the parsed values take, without parsing: a file must not fill the memory.

    The numbers are those of CPython's lists, dicts with their keys, other values, and of strings, which
    are held as text, decoded, and as part of the values; an escape can make all of them wider.
    """
    lists, dicts, entries, others = (text.count(mark) for mark in (b"[", b"{", b":", b","))
    return 96 * lists + 176 * dicts + 100 * entries + 48 * others + (12 if b"\\u" in text else 4) * len(text)


def load(text: bytes) -> Any:
    """Plain JSON from ASCII.

    Raises:
        ValueError: it is no strict JSON, or nested too deeply.
    """
    try:
        return json.loads(text.decode("ascii"), parse_constant=_reject)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reject(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
