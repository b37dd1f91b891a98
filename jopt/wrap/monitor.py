"""Norms of gradients, updates and parameters, recorded beside a transform."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jopt.linalg import Gradients
from jopt.partition import chain
from jopt.rule import Own, Whole, no_params
from jopt.scalars import scalar_dtype
from jopt.state import states
from jopt.transform import Transform, whole
from jopt.wrap.measures import MeasuresState, SnapshotState, monitor_measures

_NAMES = ("grad_norm", "update_norm", "param_norm", "update_ratio", "clip_factor")


def gradients_update(grads, own, params, *, norms, measures):
    """Note the norm of the gradients that enter, and what has been measured before them."""
    # The norm is kept with the arrays it is of: a clip that follows asks for the same one.
    opened = {"grad_norm": Gradients(grads, norms).norm(), "before": frozenset(measures)}
    measures.setdefault(GRADIENTS.name, []).append(opened)  # a stack, because monitors nest
    return grads, own


def updates_init(params):
    """Zeros, until the first update."""
    return Own(scalars={name: jnp.zeros((), scalar_dtype()) for name in _NAMES})


def updates_update(grads, own, params, *, norms, measures):
    """Record norms of gradients, updates and parameters, and the first clip between them."""
    if params is None:
        raise no_params("monitor")
    opened = measures[GRADIENTS.name].pop()
    update_norm, param_norm = Gradients(grads, norms).norm(), Gradients(params, norms).norm()
    moves = param_norm > 0
    inside = [seen for part, seen in measures.items() if part not in opened["before"]]
    factors = [seen["clip_factor"] for seen in inside if "clip_factor" in seen]
    return grads, own._replace(
        scalars={
            "grad_norm": opened["grad_norm"],
            "update_norm": update_norm,
            "param_norm": param_norm,
            "update_ratio": jnp.where(moves, update_norm / jnp.where(moves, param_norm, 1), 0),
            "clip_factor": factors[0] if factors else jnp.ones((), scalar_dtype()),
        }
    )


GRADIENTS = Whole("monitor_gradients", gradients_update)
UPDATES = Whole("monitor_updates", updates_update, updates_init)


def monitor_gradients() -> Transform:
    """Measure the gradients that reach this place, for `monitor_updates` to record."""
    return whole(GRADIENTS)


def monitor_updates() -> Transform:
    """Record norms of the updates at this place, of the parameters, and of the measured gradients."""
    return whole(UPDATES)


def monitor(tx: Any) -> Transform:
    """Record norms beside a transform; the updates are not changed.

    Of the last update: ``grad_norm`` (before `tx`), ``update_norm`` (after it), ``param_norm``,
    ``update_ratio`` = update_norm / param_norm, and ``clip_factor`` (of the first
    `clip_by_global_norm` in `tx`, 1 without one). The gradient's norm is computed once, also if
    `tx` clips by it. Read them with `monitored`.

    Args:
        tx: the transform to watch; or, as in optax, a dict of names and functions of the updates (or
            `measure_with_ema` of one), which are then measured at this place of a chain.
    """
    if isinstance(tx, Mapping):
        return monitor_measures(tx)
    return chain(monitor_gradients(), tx, monitor_updates())


def monitored(state: Any) -> dict[str, Any]:
    """What `monitor` and `snapshot` recorded in the last update, from a state of any nesting; empty without one.

    Names are prefixed by what the monitor is inside of (``accumulate/grad_norm``); those of a second
    monitor in one chain by ``monitor_2/``, and so on, in the order in which they end.
    """
    found = {}
    for scope, s in states(state):
        for part, kept in s.inner.items():
            prefix = scope + part.rpartition("/")[0] + ("/" if "/" in part else "")
            if isinstance(kept, SnapshotState | MeasuresState):
                found |= {prefix + name: value for name, value in kept[0].items()}
        for part, values in s.scalars.items():
            group, slash, name = part.rpartition("/")
            if name.startswith(UPDATES.name):
                number = name.removeprefix(UPDATES.name)
                prefix = scope + group + slash + (f"monitor{number}/" if number else "")
                found |= {prefix + name: value for name, value in values.items()}
    return found
