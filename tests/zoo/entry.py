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
        extra: other extras that update needs, name and value.
        rated: whether `make` takes one number.
        grad_fn: the ``grad_fn=`` that update needs.
    """

    make: Callable[..., jopt.Transform]
    zero_gradient: bool = True
    complex: str | None = "pair"
    elementwise: bool = True
    matrices_only: bool = False
    random: bool = False
    reads_paths: bool = False
    lands: bool = False
    value: bool = False
    rated: bool = False
    grad_fn: Callable[..., Any] | None = None
    ulps: float = 64
    namespace: tuple[tuple[str, Any], ...] = ()
    extra: tuple[tuple[str, Any], ...] = ()

    def declared(self) -> dict[str, Any]:
        """What `check_transform` is told of it."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        make, value, rated, grad_fn = (own.pop(name) for name in ("make", "value", "rated", "grad_fn"))
        own["namespace"] = dict(own["namespace"])
        given = ({"value": 1.0} if value else {}) | ({} if grad_fn is None else {"grad_fn": grad_fn})
        own["extra"] = dict(own["extra"]) | given
        return own | {"factory": make if rated else None}

    def subject(self) -> Subject:
        """The transform under test."""
        return Subject(self.make(), **self.declared())


RATE = 0.05


def rated(make: Callable[..., jopt.Transform], **declared: Any) -> Entry:
    """An optimizer, made from its learning rate alone."""
    return Entry(lambda rate=RATE: make(rate), rated=True, **declared)
