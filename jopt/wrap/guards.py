"""Guards against gradients that are not finite."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jopt import dtypes
from jopt.control import run_if
from jopt.paths import flatten
from jopt.rule import Own, Whole
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.finite import NONE, first_bad


class GuardState(NamedTuple):
    """State of `skip_nonfinite`.

    Attributes:
        skipped: int32, updates skipped since `init`.
        consecutive: int32, of them the last in a row.
        alarm: bool, whether `consecutive` has reached `max_consecutive`.
        first_bad: int32, the place of the last offender among the sorted paths of the whole tree, -1 if
            none; `nonfinite_report` names it.
        state: of the wrapped transform.
    """

    skipped: Any
    consecutive: Any
    alarm: Any
    first_bad: Any
    state: Any

    clock_depends_on_data = True


def guard_init(params, *, inner):
    """Nothing skipped yet, beside the state of what is wrapped."""
    zero = jnp.zeros((), jnp.int32)
    return Own(inner=GuardState(zero, zero, jnp.zeros((), bool), jnp.full((), NONE, jnp.int32), inner(params)))


def _judge(grads, guard, max_consecutive, layout):
    """Whether the gradients are finite, and the guard's new account."""
    bad = first_bad(grads)
    fine = bad == NONE
    # A guard may see a part of the tree, of which the report knows nothing.
    places = [i for i, path in enumerate(sorted(layout.paths)) if path in grads]
    missed = (~fine).astype(jnp.int32)
    consecutive = jnp.where(fine, 0, guard.consecutive + missed)
    return fine, guard._replace(
        skipped=guard.skipped + missed,
        consecutive=consecutive,
        alarm=consecutive.astype(max_consecutive.dtype) >= max_consecutive,
        first_bad=jnp.where(fine, guard.first_bad, jnp.asarray([*places, NONE], jnp.int32)[bad]),
    )


def guard_update(grads, own, params, *, max_consecutive, layout, inner):
    """Step where all gradients are finite; else updates are 0 and the inner state stays."""

    def work(carry, operands):
        handle, grads, params = inner.given(operands[0]), operands[1], operands[2]
        return handle.update(grads, carry[1], params)

    fine, guard = _judge(grads, own.inner, max_consecutive, layout)
    nothing = {path: jnp.zeros_like(g, dtype=dtypes.compute_dtype(g.dtype)) for path, g in grads.items()}
    updates, state = run_if(work, fine, (nothing, guard.state), (inner.operands, grads, params))
    return updates, own._replace(inner=guard._replace(state=state))


def guard_apply(grads, own, params, *, max_consecutive, layout, inner):
    """As `guard_update`, with the step added to the parameters in their own buffers."""

    def work(carry, operands):
        params, state = carry
        return inner.given(operands[0]).apply(operands[1], state, params)

    fine, guard = _judge(grads, own.inner, max_consecutive, layout)
    params, state = run_if(work, fine, (params, guard.state), (inner.operands, grads))
    return params, own._replace(inner=guard._replace(state=state))


GUARD = Whole("skip_nonfinite", guard_update, guard_init, guard_apply, enters=False)


def skip_nonfinite(tx: Any, max_consecutive: ScalarOrSchedule = 5) -> Transform:
    """Skip updates whose gradients hold an infinity or NaN.

    A skipped update changes neither parameters nor the wrapped state, its clock included. It never
    gives up and lets NaN in: after `max_consecutive` in a row the state's ``alarm`` is set, for the
    training loop to stop on; `nonfinite_report` names the first array at fault.

    Args:
        tx: the transform to guard.
        max_consecutive: bad updates in a row that set the alarm, at least 1.

    Differs: optax's `apply_if_finite` accepts NaN after so many.
    """
    return whole(
        GUARD,
        hyper={"max_consecutive": max_consecutive},
        domain={"max_consecutive": "[1, inf)"},
        inner=as_transform(tx, "skip_nonfinite"),
    )


def nonfinite_report(state: Any, params: Any) -> dict[str, Any] | None:
    """What the outermost guard in a state has seen, on the host.

    Args:
        state: a state that holds one of `skip_nonfinite`, at any nesting.
        params: the parameters, for the names.

    Returns:
        ``{"skipped", "consecutive", "alarm", "first_bad"}`` with the path of the last array at fault
        (None if there was none); None where the state holds no guard.
    """
    guard = _find(state)
    if guard is None:
        return None
    flat, _ = flatten(params)
    place = int(guard.first_bad)
    return {
        "skipped": int(guard.skipped),
        "consecutive": int(guard.consecutive),
        "alarm": bool(guard.alarm),
        "first_bad": None if place == NONE else sorted(flat)[place],
    }


def _find(state: Any) -> GuardState | None:
    if isinstance(state, GuardState):
        return state
    below = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return next((found for found in map(_find, below) if found is not None), None)
