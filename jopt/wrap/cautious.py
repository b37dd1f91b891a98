"""Cautious updates: no step in a coordinate where the update and the gradient disagree."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt.dtypes import from_pair, to_pair
from jopt.partition import chain
from jopt.rule import Part, Whole
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, as_transform, leaves_of, whole


def gradients_update(grads, own, params, *, measures):
    """Remember the gradients for the `updates_update` that comes after the transform."""
    measures.setdefault(GRADIENTS.name, []).append(grads)  # a stack, because wrappers nest
    return grads, own


@jax.jit
def _keep_what_agrees(u, g, floor):
    u, g, is_complex = to_pair(u), to_pair(g), jnp.iscomplexobj(u)
    agrees = (jnp.sign(u) * jnp.sign(g) > 0).astype(u.dtype)
    u = u * agrees / jnp.maximum(jnp.mean(agrees), floor.astype(u.dtype))
    return from_pair(u) if is_complex else u


def updates_update(updates, own, params, *, floor, measures):
    """Keep of the updates what points as the gradients do."""
    grads = measures[GRADIENTS.name].pop()
    return {path: _keep_what_agrees(u, grads[path], floor) for path, u in updates.items()}, own


GRADIENTS = Whole("cautious_gradients", gradients_update)
UPDATES = Whole("cautious_updates", updates_update)


def cautious_gradients() -> Transform:
    """Show the gradients that reach this place to `cautious_updates`."""
    return whole(GRADIENTS)


def cautious_updates(floor: ScalarOrSchedule = 1e-3) -> Transform:
    """Keep of the updates at this place what agrees with the gradients that were shown."""
    return whole(UPDATES, hyper={"floor": floor}, domain={"floor": "(0, 1]"})


def cautious(tx: Any, floor: ScalarOrSchedule = 1e-3) -> Transform:
    """Keep of an update what points as the gradient does, and make up for the rest.

        φ = 1 where ug > 0, else 0
        u ← uφ / max(mean(φ), κ),   the mean over the array

    It goes around the rule alone, where updates still point uphill; decay and learning rate come after:

        chain(cautious(scale_by_adam()), add_decayed_weights(0.1), scale_by_learning_rate(1e-3))

    The names of the state are those without it, so that it can be put around a running optimizer.

    Args:
        tx: rules, without a learning rate. A foreign transform (of optax) must point uphill too: it is
            not checked.
        floor: κ in (0, 1], against dividing by nearly nothing.

    Raises:
        ValueError: `tx` holds, at any depth, a learning rate or a negative `scale`, after which updates
            point downhill.

    Reference: [liang2024cautious], Algorithm 1.
    """
    tx = as_transform(tx, "cautious")
    downhill = [part.name for part in leaves_of(tx.parts) if _points_downhill(part)]
    if downhill:
        raise ValueError(
            f"cautious: {tx!r} was given, with {downhill[0]} in it; rules that point uphill were expected. Put it "
            f"around the rule: chain(cautious(scale_by_adam()), scale_by_learning_rate(1e-3)), or call cautious_adamw."
        )
    return chain(cautious_gradients(), tx, cautious_updates(floor))


_DOWNHILL = frozenset(
    {
        "scale_by_learning_rate",
        "scale_with_corrected_decay",
        "scale_by_madgrad",
        "scale_by_cocob",
        "scale_by_shrinking_rate",
        "scale_by_hyperball_rate",
    }
)


def _points_downhill(part: Part) -> bool:
    """Whether a part turns updates downhill, as far as its name and its plain numbers show."""
    factor = dict(part.hyper).get("step_size") if part.of.name == "scale" else None
    return part.of.name in _DOWNHILL or (isinstance(factor, int | float) and factor < 0)
