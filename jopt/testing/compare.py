"""Comparing trees leaf by leaf: bits, closeness in units of rounding, types, finiteness."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import dtypes
from jopt.paths import flatten


def assert_close(got: Any, expected: Any, what: str, ulps: float) -> None:
    """Every element within `ulps` roundings of the largest element of its leaf; infinities and NaN equal."""
    for path, a, b in _pairs(got, expected, what):
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            _assert_equal(path, a, b, what)
            continue
        x, y = _wide(a), _wide(b)
        finite = np.abs(y)[np.isfinite(y)]
        allowed = ulps * float(jnp.finfo(a.dtype).eps) * float(np.max(finite, initial=0.0))
        with np.errstate(invalid="ignore"):
            apart = np.where((x == y) | (np.isnan(x) & np.isnan(y)), 0.0, np.abs(x - y))
        if not np.all(apart <= allowed):
            raise AssertionError(
                f"{what}, leaf {path!r}: {_show(a)} was found, {_show(b)} was expected; the largest difference is "
                f"{np.max(apart):.3g}, {allowed:.3g} is allowed ({ulps:g} roundings)."
            )


def assert_same(got: Any, expected: Any, what: str) -> None:
    """Equal bits in every leaf."""
    for path, a, b in _pairs(got, expected, what):
        _assert_equal(path, a, b, what)


def assert_different(got: Any, expected: Any, what: str, ulps: float, advice: str) -> None:
    """Some leaf is not close; so that a declaration which is not needed does not stay."""
    try:
        assert_close(got, expected, what, ulps)
    except AssertionError:
        return
    raise AssertionError(f"{what}: a difference was expected, none was found. {advice}")


def assert_finite(tree: Any, what: str, before: Any = None) -> None:
    """No infinity and no NaN, except where `before` (an earlier value of the tree) has one already."""
    earlier = {} if before is None else flatten(before)[0]
    for path, x in flatten(tree)[0].items():
        if not dtypes.is_trained(x):
            continue
        bad = ~np.isfinite(_wide(_array(x)))
        if path in earlier:
            bad = bad & np.isfinite(_wide(_array(earlier[path])))
        if np.any(bad):
            raise AssertionError(f"{what}, leaf {path!r}: {_show(_array(x))} was found, finite values were expected.")


def assert_types(got: Any, expected: Any, what: str) -> None:
    """The same structure, shapes, dtypes and weak types; of arrays or of their abstract forms."""
    a, b = jax.tree.structure(got), jax.tree.structure(expected)
    if a != b:
        raise AssertionError(f"{what}: the structure {a} was found, {b} was expected.")
    here, there = flatten(got)[0], flatten(expected)[0]
    for path, x in here.items():
        if type_of(x) != type_of(there[path]):
            raise AssertionError(f"{what}, leaf {path!r}: {type_of(x)} was found, {type_of(there[path])} was expected.")


def type_of(x: Any) -> str:
    """Dtype, shape and weak type as one word."""
    if x is None:
        return "None"
    weak = getattr(x, "weak_type", None)
    weak = getattr(getattr(x, "aval", None), "weak_type", False) if weak is None else weak
    return f"{'weak ' if weak else ''}{dtypes.dtype_of(x)}{list(np.shape(x))}"


def _pairs(got: Any, expected: Any, what: str):
    a, b = flatten(got)[0], flatten(expected)[0]
    if a.keys() != b.keys():
        raise AssertionError(f"{what}: the leaves {sorted(a)} were found, {sorted(b)} were expected.")
    for path in a:
        if a[path] is None and b[path] is None:
            continue
        x, y = _array(a[path]), _array(b[path])
        if x.shape != y.shape or x.dtype != y.dtype:
            raise AssertionError(
                f"{what}, leaf {path!r}: {x.dtype}{list(x.shape)} was found, {y.dtype}{list(y.shape)} was expected."
            )
        yield path, x, y


def _assert_equal(path: str, a: np.ndarray, b: np.ndarray, what: str) -> None:
    if a.tobytes() != b.tobytes():
        raise AssertionError(f"{what}, leaf {path!r}: {_show(a)} was found, {_show(b)} was expected, bit for bit.")


def _array(x: Any) -> np.ndarray:
    """A leaf on the host; a random key as its words."""
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x)


def _wide(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.complex128 if jnp.issubdtype(x.dtype, jnp.complexfloating) else np.float64)


def _show(x: np.ndarray, most: int = 6) -> str:
    flat = np.asarray(x).reshape(-1)
    shown = ", ".join(f"{value:.6g}" if np.isrealobj(flat) else f"{value}" for value in flat[:most].tolist())
    return f"{x.dtype}{list(x.shape)} [{shown}{', ...' if flat.size > most else ''}]"
