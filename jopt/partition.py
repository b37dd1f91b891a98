"""Composition: in sequence, and over chosen parameters."""

from collections.abc import Mapping, Sequence
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


def partition(
    cases: Sequence[tuple[Any, ...]] | Mapping[Any, Any],
    param_labels: Any = None,
    *,
    idle: str | Sequence[str] = "error",
) -> Transform:
    """Give every parameter exactly one of several transforms.

    Args:
        cases: an ordered list of ``(where, transform)`` or ``(name, where, transform)``; the first
            that matches a leaf claims it. `where` is a glob over paths, a regex, a predicate or a tree
            of booleans; end with ``(everything_else, ...)``. A case's name (else its pattern) prefixes
            the names of its hyper-parameters. Or, as in optax, a dict of transforms by label.
        param_labels: with a dict, the tree of the parameters' labels (or a prefix of it), or a function
            from the parameters' shapes and dtypes to one. A label that no parameter has is allowed then.
        idle: "error" refuses a case that claims no parameter, "allow" lets it be; or the names of those
            cases that may claim none.

    A parameter that no case claims is an error, at `init` and `update`.

    Raises:
        TypeError: a case of another form; labels without a dict, or a dict without labels.
        ValueError: two cases of one name; a label without a transform; `idle` names what is no case.
    """
    if isinstance(cases, Mapping) or param_labels is not None:
        return _by_labels(cases, param_labels)
    normal = []
    for case in cases:
        if not isinstance(case, tuple) or len(case) not in (2, 3):
            raise TypeError(
                f"partition: the case {case!r} was given, (where, transform) or (name, where, transform) was expected. "
                f"Pass for example ('**/bias', sgd(0.1))."
            )
        *name, where, tx = case
        chooser = paths.mask(where) if isinstance(where, bool | Mapping) else paths.where(where)
        label = name[0] if name else (chooser.glob if isinstance(chooser, paths.path) else repr(chooser))
        normal.append((str(label), chooser, as_transform(tx, "partition").parts))
    names = [name for name, _, _ in normal]
    _check_names(names)
    return make_transform((Group(tuple(normal), total=True, idle=_idle(idle, names)),))


def _idle(idle: Any, names: list[str]) -> str | tuple[str, ...]:
    if isinstance(idle, list | tuple) and set(idle) <= set(names):
        return tuple(idle)
    if isinstance(idle, str) and idle in ("error", "allow"):
        return idle
    raise ValueError(
        f"partition: idle={idle!r} was given, 'error' or 'allow', or some of {names}, was expected. Leave it out."
    )


def _by_labels(transforms: Any, param_labels: Any) -> Transform:
    """optax's form: transforms by label, and a tree of labels or a function that makes one."""
    if not isinstance(transforms, Mapping) or param_labels is None:
        raise TypeError(
            f"partition: a {type(transforms).__name__} and param_labels={param_labels!r} were given, a dict of "
            f"transforms with labels was expected, or a list alone. "
            f"Pass partition({{'a': tx}}, labels), or partition([(where, tx)])."
        )
    labels = param_labels if callable(param_labels) else paths.label_entries(param_labels)
    if not callable(labels):
        unknown = sorted({str(label) for _, label in labels if label not in transforms})
        if unknown:
            raise ValueError(
                f"partition: the labels {unknown} have no transform, some of {[str(t) for t in transforms]} were "
                f"expected. Add a transform for each; freeze() leaves parameters alone."
            )
    cases = [(str(t), paths.Labelled(labels, t), as_transform(tx, "partition").parts) for t, tx in transforms.items()]
    _check_names([name for name, _, _ in cases])
    return make_transform((Group(tuple(cases), total=True, idle="allow"),))


def _check_names(names: list[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(
            f"partition: the cases are named {names}, different names were expected. "
            f"Name them: (name, where, transform)."
        )


def multi_transform(transforms: Mapping[Any, Any], param_labels: Any) -> Transform:
    """Give every parameter the transform of its label: `partition` in optax's form, under its older name.

    Args:
        transforms: transforms by label.
        param_labels: the tree of labels, or a function that makes it.
    """
    return partition(transforms, param_labels)


def named_chain(*transforms: tuple[str, Any]) -> Transform:
    """A chain in which each transform has a name, which prefixes those of its numbers and its state.

    Args:
        *transforms: pairs of a name and a transform.

    Raises:
        ValueError: two of one name.
    """
    _check_names([name for name, _ in transforms])
    return chain(*(partition([(name, paths.everything_else, tx)], idle="allow") for name, tx in transforms))


def selective_transform(optimizer: Any, *, freeze_mask: Any) -> Transform:
    """Train some parameters, and leave the others without an update and without state.

    Args:
        optimizer: for those that are trained.
        freeze_mask: a tree of booleans (or a prefix of one), or one boolean: True where frozen.
    """
    if getattr(freeze_mask, "shape", None) == ():
        freeze_mask = bool(freeze_mask)
    frozen = ("freeze", paths.mask(freeze_mask), freeze())
    return partition([frozen, ("train", paths.everything_else, optimizer)], idle="allow")


def freeze(mask: Any = None, *, where: Any = None) -> Transform:
    """Set updates to zero, so that parameters stay.

    As a case of a `partition` it needs no argument, and its parameters have no state at all.

    Args:
        mask: optax's form of a mask: a tree of booleans, True where frozen.
        where: glob, regex or predicate of the leaves to freeze. With neither all are frozen.
    """
    return set_to_zero() if mask is None and where is None else masked(set_to_zero(), mask, where=where)
