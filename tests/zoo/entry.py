"""An entry of the registry: a factory, and what it declares to the law suite."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jopt
from jopt.testing import Subject


@dataclasses.dataclass(frozen=True)
class Entry:
    """A factory with what it declares; each field but the first is one of `jopt.testing.Subject`.

    Args:
        make: makes the transform, with typical numbers; an optimizer's takes the learning rate.
        value: whether update needs ``value=``.
        extra: what else it needs, name by name.
        rated: whether `make` takes one number.
    """

    make: Callable[..., jopt.Transform]
    zero_gradient: bool = True
    complex: str | None = "pair"
    elementwise: bool = True
    matrices_only: bool = False
    random: bool = False
    reads_paths: bool = False
    value: bool = False
    extra: tuple[tuple[str, Any], ...] = ()
    rated: bool = False
    ulps: float = 64
    namespace: tuple[tuple[str, Any], ...] = ()

    def declared(self) -> dict[str, Any]:
        """What `check_transform` is told of it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        make, value, rated = own.pop("make"), own.pop("value"), own.pop("rated")
        own["namespace"] = dict(own["namespace"])
        return own | {
            "factory": make if rated else None,
            "extra": dict(own.pop("extra")) | ({"value": 1.0} if value else {}),
        }

    def subject(self) -> Subject:
        """The transform under test."""
        return Subject(self.make(), **self.declared())


RATE = 0.05


def rated(make: Callable[..., jopt.Transform], **declared: Any) -> Entry:
    """An optimizer, made from its learning rate alone."""
    return Entry(lambda rate=RATE: make(rate), rated=True, **declared)
