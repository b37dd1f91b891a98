"""Slots in fewer bits, around any transform: `store`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jopt.engine import Parts
from jopt.formats import FORMATS
from jopt.paths import where as where_
from jopt.rule import Group, Part, Rule, Storage
from jopt.transform import Transform, as_transform, make_transform

NONNEGATIVE = ("nu", "nu_max", "sum_of_squares", "sum_of_squares_max")
"""Slots that hold no negative number: "int8" is "uint8" for them."""


def store(tx: Any, formats: Mapping[str, str], where: Any = None) -> Transform:
    """Keep slots of a transform in fewer bits; its rules run in float32 all the same.

    Each update decodes a slot, runs the rule and encodes the slot again, in one pass over each
    parameter.

        bfloat16, bfloat16_sr       2 bytes an element
        int8, int8_sr               1.02 bytes, 127 steps of either sign, finer near zero (√)
        uint8, uint8_sr             1.02 bytes, 254 steps, for what is never negative (fourth root)
        float8_e4m3, float8_e5m2    1.02 bytes

    Those of 8 bits share a float32 scale among up to 256 neighbours. ``_sr`` rounds at random, right
    in the mean and always the same for a path and step, so that changes too small for one step add up;
    the others round to the nearest. In 8 bits a second moment that is not zero does not become zero.

    Args:
        tx: any transform, wrappers and chains included; every part of it that keeps such a slot is
            stored so. A later `store` around this one wins where both name a slot.
        formats: slot to format, such as ``{"mu": "int8", "nu": "int8"}``. "int8" is "uint8" for the
            second moments "nu", "nu_max" and "sum_of_squares"; name "uint8" for other slots that are
            never negative.
        where: glob, regex or predicate of the parameters whose slots are stored so; None takes all.

    A slot of integers or complex numbers stays as it is. What is not finite is NaN in
    8 bits, and spoils no neighbour. `explain` prints the bytes.

    Differs: the paper has blocks of 2048 and another code of 8 bits, which it looks up in a table.
    Reference: [dettmers2022eightbit].

    Raises:
        ValueError: a slot that `tx` does not keep, or an unknown format.
        TypeError: `tx` is no transform, or `formats` no mapping.
    """
    tx = as_transform(tx, "store")
    if not isinstance(formats, Mapping):
        raise TypeError(
            f"store: formats={formats!r} was given, a mapping from slots to formats was expected. "
            f"Pass for example {{'mu': 'int8', 'nu': 'int8'}}."
        )
    unknown = sorted({repr(name) for name in formats.values() if name not in FORMATS})
    if unknown:
        raise ValueError(
            f"store: the formats {', '.join(unknown)} were given, some of {sorted(FORMATS)} were expected. Name these."
        )
    chosen = {slot: _suited(slot, name) for slot, name in formats.items()}
    found: set[str] = set()
    parts = _stored(tx.parts, chosen, None if where is None else where_(where), found)
    missing = sorted(set(chosen) - found)
    if missing:
        raise ValueError(
            f"store: formats for the slots {missing} were given, slots of {tx!r} were expected, which keeps "
            f"{_all_slots(tx.parts) or 'none'}. Name these (an optax transform keeps a state of its own)."
        )
    return make_transform(parts)


def _suited(slot: str, name: str) -> str:
    return f"u{name}" if slot in NONNEGATIVE and name in ("int8", "int8_sr") else name


def _stored(parts: Parts, formats: Mapping[str, str], where: Any, found: set[str]) -> Parts:
    """The parts, each with the formats of the slots that it keeps; `found` collects those slots."""
    stored: list[Part | Group] = []
    for part in parts:
        if isinstance(part, Group):
            cases = [(name, chooser, _stored(inner, formats, where, found)) for name, chooser, inner in part.cases]
            stored.append(dataclasses.replace(part, cases=tuple(cases)))
            continue
        if isinstance(part.inner, Transform):
            inner = make_transform(_stored(part.inner.parts, formats, where, found))
            part = dataclasses.replace(part, inner=inner)
        mine = tuple((slot, name) for slot, name in formats.items() if slot in _slots(part))
        found |= {slot for slot, _ in mine}
        stored.append(dataclasses.replace(part, storage=(*part.storage, Storage(mine, where))) if mine else part)
    return tuple(stored)


def _all_slots(parts: Parts) -> list[str]:
    found: set[str] = set()
    for part in parts:
        if isinstance(part, Group):
            found |= {slot for _, _, inner in part.cases for slot in _all_slots(inner)}
            continue
        found |= _slots(part)
        found |= set(_all_slots(part.inner.parts)) if isinstance(part.inner, Transform) else set()
    return sorted(found)


# A rule may keep other slots for a vector, a small matrix, a large one or a filter, and for 16 bits.
_SAMPLES = tuple(
    jax.ShapeDtypeStruct(shape, dtype)
    for dtype in ("float32", "bfloat16")
    for shape in ((8,), (8, 8), (1024, 1024), (3, 3, 16, 16))
)


def _slots(part: Part) -> set[str]:
    """The names of the slots that a part itself keeps, found by making its state for sample parameters."""
    if (part.of.slots if isinstance(part.of, Rule) else part.of.init) is None:
        return set()
    inner = make_transform(()) if isinstance(part.inner, Transform) else part.inner
    alone = make_transform((dataclasses.replace(part, inner=inner, storage=()),))
    found: set[str] = set()
    for sample in _SAMPLES:
        try:
            state = jax.eval_shape(alone.init, sample)
        except (TypeError, ValueError, KeyError):  # a rule for matrices alone, or a foreign one for other trees
            continue
        found |= {slot for slots in state.slots.values() for slot in slots}
    return found
