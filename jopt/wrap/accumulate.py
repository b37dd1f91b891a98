"""Gradient accumulation: average several gradients, then step once."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jopt.control import run_if
from jopt.rule import Own, Whole
from jopt.scalars import ScalarOrSchedule
from jopt.state import StateMismatchError
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.finite import NONE, first_bad


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        micro_step: int32, gradients seen since the last step.
        used: int32, those of them that were finite and are in `total`.
        skipped: int32, gradients left out since `init` because they were not finite.
        total: ``{path: array}``, the sum of the used gradients.
        state: of the wrapped transform.
    """

    micro_step: Any
    used: Any
    skipped: Any
    total: dict[str, Any]
    state: Any

    clock_depends_on_data = True  # a window without one finite gradient does not step


def accumulate_init(params, *, inner):
    zero = jnp.zeros((), jnp.int32)
    total = {path: jnp.zeros_like(p) for path, p in params.items()}
    return Own(inner=AccumulateState(zero, zero, zero, total, inner(params)))


def _check(grads, total):
    held = {path: tuple(x.shape) for path, x in total.items()}
    given = {path: tuple(g.shape) for path, g in grads.items()}
    if held != given:
        path = min(path for path in held | given if held.get(path) != given.get(path))
        raise StateMismatchError(
            f"update: for the parameter {path!r} the state of accumulate holds a sum of shape {held.get(path)}, "
            f"{given.get(path)} was expected. The state was made for other parameters: make one with init(params)."
        )


def _add(grads, kept, every):
    """The state with one more gradient, and whether it is time to step."""
    _check(grads, kept.total)
    one = jnp.ones((), jnp.int32)
    fine = first_bad(grads) == NONE
    total = {path: jnp.where(fine, kept.total[path] + g, kept.total[path]) for path, g in grads.items()}
    kept = kept._replace(
        micro_step=kept.micro_step + one,
        used=kept.used + fine.astype(jnp.int32),
        skipped=kept.skipped + (~fine).astype(jnp.int32),
        total=total,
    )
    return kept, (kept.micro_step.astype(every.dtype) >= every) & (kept.used > 0)


def _emit(kept, step):
    """Step on the mean, and start a new sum in the same buffers."""
    mean = {path: x / kept.used.astype(jnp.finfo(x.dtype).dtype).astype(x.dtype) for path, x in kept.total.items()}
    result, state = step(mean, kept.state)
    zero = jnp.zeros_like(kept.used)
    total = {path: jnp.zeros_like(x) for path, x in kept.total.items()}
    return result, AccumulateState(zero, zero, kept.skipped, total, state)


def accumulate_update(grads, own, params, *, every, inner):
    def work(carry, operands):
        _, kept = carry
        handle, params = inner.given(operands[0]), operands[1]
        return _emit(kept, lambda mean, state: handle.update(mean, state, params))

    kept, due = _add(grads, own.inner, every)
    nothing = {path: jnp.zeros_like(g) for path, g in grads.items()}
    updates, kept = run_if(work, due, (nothing, kept), (inner.operands, params))
    return updates, own._replace(inner=kept)


def accumulate_apply(grads, own, params, *, every, inner):
    def work(carry, operands):
        params, kept = carry
        return _emit(kept, lambda mean, state: inner.given(operands).apply(mean, state, params))

    kept, due = _add(grads, own.inner, every)
    params, kept = run_if(work, due, (params, kept), inner.operands)
    return params, own._replace(inner=kept)


ACCUMULATE = Whole("accumulate", accumulate_update, accumulate_init, accumulate_apply)


def accumulate(tx: Any, every: ScalarOrSchedule) -> Transform:
    """Average `every` gradients, then run `tx` once; between, updates are zero.

    The mean equals the gradient of the joint batch if the micro-batches are of one size. A gradient
    with an infinity or NaN is left out of the mean and counted in the state; a window without any
    finite one is prolonged.

    Args:
        tx: the transform to run; extras such as ``value=`` reach it as given in the emitting call.
        every: how many gradients a step averages, at least 1: a number, or a schedule of the number
            of finished calls. Live, as ``every``.

    The sum has the compute dtype (float32 or wider; complex and float64 stay). Through
    `apply_gradients`, with donated state and parameters, a call that does not step touches the sum
    alone.
    """
    return whole(ACCUMULATE, hyper={"every": every}, domain={"every": "[1, inf)"}, inner=as_transform(tx, "accumulate"))
