"""Updates that shrink from layer to layer, by the names of the parameters."""

import re
from typing import Any

from jopt.paths import TreeMismatchError
from jopt.rule import Whole
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, whole

LAYERS = ("*embed*|positions|stem|input", "{}|*_{}", "**")
"""From the bottom to the top: embeddings, keys with a number, all else (norms and heads at the end)."""


_WILD = {"**": ".*", "*": "[^/]*", "?": "[^/]", "{}": r"(\d+)"}


def _search(globs: str, path: str) -> re.Match[str] | None:
    """Look for keys in a path that one of the globs matches; ``{}`` is the number of a layer."""
    pieces = [re.split(r"(\*\*|\*|\?|\{\})", glob) for glob in globs.split("|")]
    keys = ["".join(_WILD.get(piece, re.escape(piece)) for piece in glob) for glob in pieces]
    return re.search("|".join(f"(?:^|/){key}(?:/|$)" for key in keys), path)


def layer_of(path: str, layers: tuple[str, ...], depth: int | None) -> int | None:
    """Which layer a parameter is in, from 0 at the bottom; None if no pattern matches.

    Raises:
        TreeMismatchError: its number is not below `depth`.
    """
    below = 0
    for glob in layers:
        found = _search(glob, path)
        if found is None:
            below += depth if depth is not None and "{}" in glob else 1
            continue
        number = next((int(n) for n in found.groups() if n is not None), 0)
        if depth is not None and "{}" in glob and number >= depth:
            raise TreeMismatchError(
                f"layerwise_decay: the parameter {path!r} is in layer {number} by {glob!r}, a number below depth="
                f"{depth} was expected. Pass depth={number + 1} or more, or a pattern that reads another number."
            )
        return below + number
    return None


def layer_count(layers: tuple[str, ...], depth: int | None) -> int:
    """How many layers the patterns name."""
    return sum(depth if depth is not None and "{}" in glob else 1 for glob in layers)


def _layer(path: str, layers: tuple[str, ...], depth: int | None) -> int:
    found = layer_of(path, layers, depth)
    if found is None:
        raise TreeMismatchError(
            f"layerwise_decay: the parameter {path!r} matches none of the patterns {layers}, exactly one layer was "
            f"expected for it. Add a pattern for it; '**' at the end takes the rest."
        )
    return found


def layerwise_update(grads, own, params, *, decay, layers, depth):
    """Each update times the factor of its layer."""
    top = layer_count(layers, depth) - 1
    factors = {}
    for path in grads:
        layer = _layer(path, layers, depth)
        factors.setdefault(layer, decay ** (top - layer))
    return {path: g * factors[_layer(path, layers, depth)].astype(g.dtype) for path, g in grads.items()}, own


def layerwise_note(leaf, *, layers, depth):
    """The factor of a leaf, for `explain`."""
    return f"layer {_layer(leaf.path, layers, depth)} of 0..{layer_count(layers, depth) - 1}"


LAYERWISE = Whole("layerwise_decay", layerwise_update, note=layerwise_note)


def layerwise_decay(
    decay: ScalarOrSchedule, depth: int | None = None, layers: tuple[str, ...] | list[str] = LAYERS
) -> Transform:
    """Scale updates down from the top layer to the bottom, so that fine-tuning keeps what is general.

        u = dᵀ⁻ˡ g   for a parameter in layer l of 0, ..., T

    Anywhere in a chain, before or after the learning rate. `explain` shows the layer of each
    parameter.

    Args:
        decay: d in (0, 1], commonly 0.65 to 0.9.
        depth: how many layers ``{}`` counts; needed where a pattern has one.
        layers: patterns from the bottom to the top, of which the first that matches a path claims it.
            A pattern is one layer, or `depth` layers if it has a ``{}``, which stands for a number
            from 0: ``("embed", "layers_{}|layers/{}", "norm|head")``. ``|`` joins alternatives, ``*``
            matches within a key, ``**`` anything; the keys may stand anywhere in the path, and the
            first number counts. The default: embeddings, then numbered keys, then all else.

    Raises:
        ValueError: `depth` is missing or idle, or two patterns have a ``{}``.
        TreeMismatchError: at `update`, a parameter that no pattern matches, or a number beyond `depth`.

    Reference: [clark2020electra], section 3.2.
    """
    layers = tuple(layers)
    counted = [glob for glob in layers if "{}" in glob]
    if len(counted) > 1 or (len(counted) == 1) != (depth is not None) or (depth is not None and depth < 1):
        raise ValueError(
            f"layerwise_decay: depth={depth!r} was given with the patterns {layers}, of which {len(counted)} have a "
            f"{{}}; at most one, and depth ≥ 1 exactly with one, was expected. Pass for example depth=12."
        )
    static: dict[str, Any] = {"depth": depth, "layers": layers}
    return whole(LAYERWISE, hyper={"decay": decay}, static=static, domain={"decay": "(0, 1]"})
