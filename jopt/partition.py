"""Composition: in sequence, and over chosen parameters."""

from collections.abc import Sequence
from typing import Any

from jopt import paths
from jopt.rule import Group
from jopt.rules.scale import set_to_zero
from jopt.transform import Transform, as_transform, make_transform, masked


def chain(*transforms: Any) -> Transform:
    """Run transforms one after another; the updates of each are the gradients of the next.

    Args:
        *transforms: jopt transforms, or any with optax's `init` and `update`. Nested chains flatten
            into one, with one clock and one state; a foreign transform keeps its own.

    Raises:
        TypeError: something given is no transform.
    """
    return make_transform(tuple(part for tx in transforms for part in as_transform(tx, "chain").parts))


def partition(cases: Sequence[tuple[Any, ...]], *, idle: str = "error") -> Transform:
    """Give every parameter exactly one of several transforms.

    Args:
        cases: an ordered list of ``(where, transform)`` or ``(name, where, transform)``; the first
            that matches a leaf claims it. `where` is a glob over paths, a regex or a predicate; end
            with ``(everything_else, ...)``. A case's name (else its pattern) prefixes the names of
            its hyper-parameters.
        idle: "error" refuses a case that claims no parameter, "allow" lets it be.

    A parameter that no case claims is an error, at `init` and `update`.

    Raises:
        TypeError: a case of another form.
        ValueError: two cases of one name.
    """
    if idle not in ("error", "allow"):
        raise ValueError(f"partition: idle={idle!r} was given, 'error' or 'allow' was expected. Leave it out.")
    normal = []
    for case in cases:
        if not isinstance(case, tuple) or len(case) not in (2, 3):
            raise TypeError(
                f"partition: the case {case!r} was given, (where, transform) or (name, where, transform) was expected. "
                f"Pass for example ('**/bias', sgd(0.1))."
            )
        *name, where, tx = case
        chooser = paths.where(where)
        label = name[0] if name else (chooser.glob if isinstance(chooser, paths.path) else repr(chooser))
        normal.append((str(label), chooser, as_transform(tx, "partition").parts))
    names = [name for name, _, _ in normal]
    if len(set(names)) < len(names):
        raise ValueError(
            f"partition: the cases are named {names}, different names were expected. "
            f"Name them: (name, where, transform)."
        )
    return make_transform((Group(tuple(normal), total=True, idle=idle),))


def freeze(mask: Any = None, *, where: Any = None) -> Transform:
    """Set updates to zero, so that parameters stay.

    As a case of a `partition` it needs no argument, and its parameters have no state at all.

    Args:
        mask: optax's form of a mask: a tree of booleans, True where frozen.
        where: glob, regex or predicate of the leaves to freeze. With neither all are frozen.
    """
    return set_to_zero() if mask is None and where is None else masked(set_to_zero(), mask, where=where)
