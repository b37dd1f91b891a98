"""Numbers as configuration: what a hyper-parameter may be, and how two of them compare.

A hyper-parameter is a Python float, a tracer (wrapped in `Traced`, compared by identity) or a
schedule (any callable of the integer step). Concrete NumPy and JAX scalars become Python numbers
here, so that configurations hash, compare, print and pickle.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Schedule: TypeAlias = Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]
Number: TypeAlias = float | int | np.ndarray | jax.Array
ScalarOrSchedule: TypeAlias = Number | Schedule

FINITE = "(-inf, inf)"
NONNEGATIVE = "[0, inf)"
POSITIVE = "(0, inf)"
DECAY = "[0, 1)"
FRACTION = "[0, 1]"


class Traced:
    """A number that is only known inside a trace; equal to another only if both are one tracer."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<traced {self.value.aval}>"


def number(value: Any, call: str, name: str, domain: str = FINITE) -> "float | Traced":
    """Normalise one hyper-parameter that is not a schedule.

    Args:
        value: a real scalar: Python, NumPy, JAX, or a tracer.
        call: the function the user called, for the message.
        name: the argument's name, for the message.
        domain: an interval such as ``"[0, 1)"``; checked where the value is concrete.

    Raises:
        TypeError: not a real scalar.
        ValueError: outside the domain, or NaN.
    """
    if isinstance(value, Traced):
        return value
    if isinstance(value, jax.core.Tracer):
        _check_scalar(value, call, name)
        return Traced(value)
    if isinstance(value, bool | str | bytes) or value is None or callable(value):
        raise TypeError(
            f"{call}: {name}={value!r} was given, a real number was expected. Pass a float, or a scalar array."
        )
    array = np.asarray(value)
    _check_scalar(array, call, name)
    result = float(array)
    if not _inside(result, domain):
        raise ValueError(
            f"{call}: {name}={result!r} was given, a number in {domain} was expected. "
            f"Choose {name} inside that interval."
        )
    return result


def integer(value: Any, call: str, name: str, at_least: int = 0) -> "int | Traced":
    """Normalise one whole number (a count of steps); a float such as 1e3 is accepted if it is whole."""
    result = number(value, call, name)
    if isinstance(result, Traced):
        return result
    if result != int(result) or result < at_least:
        raise ValueError(
            f"{call}: {name}={value!r} was given, a whole number of at least {at_least} was expected. "
            f"Round it, for example {name}={max(at_least, round(result))}."
        )
    return int(result)


def size(value: Any, call: str, name: str, at_least: int = 1) -> int:
    """Normalise one whole number that shapes the program or the state, so that no traced one can be it."""
    result = integer(value, call, name, at_least)
    if isinstance(result, Traced):
        raise TypeError(
            f"{call}: {name}={value!r} was given, a Python integer was expected: it shapes the program. "
            f"Make a transform for each {name}."
        )
    return result


def number_or_schedule(value: Any, call: str, name: str, domain: str = FINITE) -> Any:
    """Normalise one hyper-parameter: callables are schedules and stay as they are."""
    return value if callable(value) else number(value, call, name, domain)


def raw(value: Any) -> Any:
    """The Python number or the tracer itself, ready for arithmetic."""
    return value.value if isinstance(value, Traced) else value


def scalar_dtype() -> Any:
    """Dtype of every scalar of the engine: float32, or float64 under x64; never the parameter's."""
    return jnp.result_type(float)


def _check_scalar(value: Any, call: str, name: str) -> None:
    if value.ndim != 0:
        raise TypeError(
            f"{call}: {name} of shape {tuple(value.shape)} was given, a scalar was expected. "
            f"To try several values at once, map over them: jax.vmap(lambda {name}: ...)(values)."
        )
    if not (np.issubdtype(value.dtype, np.number) or jnp.issubdtype(value.dtype, jnp.floating)) or jnp.issubdtype(
        value.dtype, jnp.complexfloating
    ):
        raise TypeError(
            f"{call}: {name} of dtype {value.dtype} was given, a real number was expected. "
            f"Pass a float, or a scalar array."
        )


def _inside(value: float, domain: str) -> bool:
    low, high = (float(part) for part in domain[1:-1].split(","))
    above = value >= low if domain[0] == "[" else value > low
    below = value <= high if domain[-1] == "]" else value < high
    return above and below
