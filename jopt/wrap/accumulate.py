"""Gradient accumulation: average several gradients, then step once."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jopt.control import run_if
from jopt.dtypes import enter
from jopt.rule import Own, Whole
from jopt.scalars import ScalarOrSchedule
from jopt.state import check_kept
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.finite import NONE, first_bad


class AccumulateState(NamedTuple):
    """State of `accumulate`.

    Attributes:
        micro_step: int32, gradients seen since the last step.
        used: int32, those of them that were finite and are in `total`.
        skipped: int32, gradients left out since `init` because they were not finite.
        total: ``{path: array}``, the sum of the used gradients; what it holds while `used` is 0 has no meaning.
        state: of the wrapped transform.
    """

    micro_step: Any
    used: Any
    skipped: Any
    total: dict[str, Any]
    state: Any

    clock_depends_on_data = True  # a window without one finite gradient does not step


def accumulate_init(params, *, inner):
    """Nothing gathered yet, beside the state of what is wrapped."""
    zero = jnp.zeros((), jnp.int32)
    total = {path: jnp.zeros_like(p) for path, p in params.items()}
    return Own(inner=AccumulateState(zero, zero, zero, total, inner(params)))


def _add(grads, kept, every):
    """The state with one more gradient, and whether it is time to step."""
    check_kept("accumulate", kept.total, grads)
    one = jnp.ones((), jnp.int32)
    fine, fresh = first_bad(grads) == NONE, kept.used == 0
    total = {}
    for path, g in grads.items():
        # A new window overwrites the last one's sum: zeroing it when the step is done would cost a pass.
        old, g = kept.total[path], enter(g)
        total[path] = jnp.where(fine, jnp.where(fresh, g, old + g), old)
    kept = kept._replace(
        micro_step=kept.micro_step + one,
        used=kept.used + fine.astype(jnp.int32),
        skipped=kept.skipped + (~fine).astype(jnp.int32),
        total=total,
    )
    return kept, (kept.micro_step.astype(every.dtype) >= every) & (kept.used > 0)


def _mean(total, used):
    return {path: x / used.astype(jnp.finfo(x.dtype).dtype).astype(x.dtype) for path, x in total.items()}


def _after(kept, state, due):
    """The state after a step, or without one."""
    zero = jnp.zeros_like(kept.used)
    micro_step, used = jnp.where(due, zero, kept.micro_step), jnp.where(due, zero, kept.used)
    return kept._replace(micro_step=micro_step, used=used, state=state)


def accumulate_update(grads, own, params, *, every, inner):
    """Gather; where a step is due the mean goes through what is wrapped, else updates are 0."""

    def work(carry, operands):
        numbers, params, total, used = operands
        return inner.given(numbers).update(_mean(total, used), carry[1], params)

    kept, due = _add(grads, own.inner, every)
    nothing = {path: jnp.zeros_like(x) for path, x in kept.total.items()}
    operands = (inner.operands, params, kept.total, kept.used)
    updates, state = run_if(work, due, (nothing, kept.state), operands)
    return updates, own._replace(inner=_after(kept, state, due))


def accumulate_apply(grads, own, params, *, every, inner):
    """As `accumulate_update`, with the step added to the parameters in their own buffers."""

    def work(carry, operands):
        numbers, total, used = operands
        return inner.given(numbers).apply(_mean(total, used), carry[1], carry[0])

    kept, due = _add(grads, own.inner, every)
    params, state = run_if(work, due, (params, kept.state), (inner.operands, kept.total, kept.used))
    return params, own._replace(inner=_after(kept, state, due))


ACCUMULATE = Whole("accumulate", accumulate_update, accumulate_init, accumulate_apply, enters=False)


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
