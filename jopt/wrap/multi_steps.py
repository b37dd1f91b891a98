"""Gradient accumulation under optax's name, with its options; `accumulate` is the plain way."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt.control import run_if
from jopt.engine import Parts
from jopt.linalg import sum_squares
from jopt.rule import Own, Whole
from jopt.rules.slots import dtype_name
from jopt.state import check_kept
from jopt.transform import Transform, as_transform, make_transform, whole
from jopt.wrap.arrays import beside, stored


class MultiStepsState(NamedTuple):
    """State of `MultiSteps`.

    Attributes:
        mini_step: int32, gradients taken since the last step.
        gradient_step: int32, finished steps.
        inner_opt_state: of the wrapped transform.
        acc_grads: ``{path: array}``, mean or sum of the gradients taken.
        skip_state: what `should_skip_update_fn` reported last.
    """

    mini_step: Any
    gradient_step: Any
    inner_opt_state: Any
    acc_grads: Any
    skip_state: Any

    clock_depends_on_data = True


def skip_not_finite(updates: Any, gradient_step: Any, params: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether gradients hold an infinity or NaN, for `MultiSteps`.

    Returns:
        The answer, and ``{"should_skip", "num_not_finite"}``.
    """
    bad = [jnp.sum(~jnp.isfinite(g), dtype=jnp.int32) for g in jax.tree.leaves(updates)]
    number = sum(bad, jnp.zeros((), jnp.int32))
    return number > 0, {"should_skip": number > 0, "num_not_finite": number}


def skip_large_updates(
    updates: Any, gradient_step: Any, params: Any, max_squared_norm: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether the squared norm of gradients is not below a bound, or NaN, for `MultiSteps`.

    Give it its bound with ``functools.partial(skip_large_updates, max_squared_norm=...)``.

    Returns:
        The answer, and ``{"should_skip", "norm_squared"}``.
    """
    total = sum_squares([jnp.asarray(g) for g in jax.tree.leaves(updates)])
    skip = ~(total < jnp.asarray(max_squared_norm, total.dtype))
    return skip, {"should_skip": skip, "norm_squared": total}


def steps_init(params, *, should_skip_update_fn, accumulator_dtype, layout, inner):
    """An empty sum, and no steps counted."""
    zero = jnp.zeros((), jnp.int32)
    skipped = ()
    if should_skip_update_fn is not None:
        zeros = layout.tree({path: jnp.zeros_like(p) for path, p in params.items()})
        skipped = should_skip_update_fn(zeros, zero, layout.tree(params))[1]
    total = {path: stored(jnp.zeros_like(p), accumulator_dtype) for path, p in params.items()}
    return Own(inner=MultiStepsState(zero, zero, inner(params), total, skipped))


def _gather(grads, kept, params, every_k_schedule, use_grad_mean, should_skip_update_fn, layout):
    """The gradients so far with this one, whether to step, and the state but for the inner one."""
    check_kept("MultiSteps", kept.acc_grads, grads)
    skip, skipped = jnp.zeros((), bool), ()
    if should_skip_update_fn is not None:
        tree = None if params is None else layout.tree(params)
        skip, skipped = should_skip_update_fn(layout.tree(grads), kept.gradient_step, tree)
    every = every_k_schedule(kept.gradient_step) if callable(every_k_schedule) else every_k_schedule
    taken = kept.mini_step + jnp.ones_like(kept.mini_step)
    total = {}
    for path, g in grads.items():
        old = kept.acc_grads[path].astype(g.dtype)
        total[path] = old + (g - old) / beside(taken, g) if use_grad_mean else old + g
    emit = (taken.astype(jnp.result_type(float)) >= jnp.asarray(every, jnp.result_type(float))) & ~skip
    acc = {
        path: jnp.where(skip, x, jnp.where(emit, jnp.zeros_like(x), stored(total[path], x.dtype)))
        for path, x in kept.acc_grads.items()
    }
    new = kept._replace(
        mini_step=jnp.where(skip, kept.mini_step, jnp.where(emit, 0, taken)),
        gradient_step=kept.gradient_step + emit.astype(jnp.int32),
        acc_grads=acc,
        skip_state=skipped,
    )
    return total, emit, new


def steps_update(grads, own, params, *, every_k_schedule, use_grad_mean, should_skip_update_fn, layout, inner):
    """Add the gradients up; every k-th time run the optimizer, else the updates are zero."""

    def work(carry, operands):
        numbers, total, params = operands
        return inner.given(numbers).update(total, carry[1], params)

    total, emit, new = _gather(grads, own.inner, params, every_k_schedule, use_grad_mean, should_skip_update_fn, layout)
    nothing = {path: jnp.zeros_like(g) for path, g in grads.items()}
    u, state = run_if(work, emit, (nothing, own.inner.inner_opt_state), (inner.operands, total, params))
    return u, own._replace(inner=new._replace(inner_opt_state=state))


def steps_apply(grads, own, params, *, every_k_schedule, use_grad_mean, should_skip_update_fn, layout, inner):
    """The same on the parameters."""

    def work(carry, operands):
        params, state = carry
        return inner.given(operands[0]).apply(operands[1], state, params)

    total, emit, new = _gather(grads, own.inner, params, every_k_schedule, use_grad_mean, should_skip_update_fn, layout)
    params, state = run_if(work, emit, (params, own.inner.inner_opt_state), (inner.operands, total))
    return params, own._replace(inner=new._replace(inner_opt_state=state))


STEPS = Whole("MultiSteps", steps_update, steps_init, steps_apply)


class MultiSteps(Transform):
    """Gather gradients over several calls, then step once: optax's class, which here is a transform.

    Prefer `accumulate`, which leaves gradients that are not finite out by itself; this is for code that
    moves over.

    Args:
        opt: the transform to run.
        every_k_schedule: how many gradients a step takes: a number, or a function of the finished steps.
        use_grad_mean: whether the step takes their mean; else it takes their sum.
        should_skip_update_fn: ``(updates, gradient_step, params) -> (bool, report)``: gradients to leave
            out, such as `skip_not_finite`.
        accumulator_dtype: dtype of the gathered gradients in the state; complex ones keep theirs.

    Differs: optax runs `opt` at every call and throws away all results but the last.
    """

    __slots__ = ()

    def __new__(
        cls,
        opt: Any,
        every_k_schedule: Any,
        use_grad_mean: bool = True,
        should_skip_update_fn: Callable[..., Any] | None = None,
        accumulator_dtype: Any = jnp.float32,
    ) -> "MultiSteps":
        rate = {"every_k_schedule": every_k_schedule}
        static = {
            "use_grad_mean": bool(use_grad_mean),
            "should_skip_update_fn": should_skip_update_fn,
            "accumulator_dtype": dtype_name(accumulator_dtype, "MultiSteps", "accumulator_dtype"),
        }
        by_steps = callable(every_k_schedule)  # of finished steps, not of calls, so that the engine cannot call it
        tx = whole(
            STEPS,
            hyper={} if by_steps else rate,
            static=static | (rate if by_steps else {}),
            domain={"every_k_schedule": "[1, inf)"},
            inner=as_transform(opt, "MultiSteps"),
        )
        return super().__new__(cls, tx.init, tx.update)

    def __reduce__(self):
        return _of_parts, (self.parts,)

    def gradient_transformation(self) -> Transform:
        """The transform, which this is already."""
        return Transform(self.init, self.update)

    def has_updated(self, state: Any) -> jax.Array:
        """Whether the last call stepped."""
        kept = state if isinstance(state, MultiStepsState) else state.inner["MultiSteps"]
        return (kept.mini_step == 0) & (kept.gradient_step > 0)


def _of_parts(parts: Parts) -> Transform:
    """The same configuration as an object of this class: JAX tells classes apart where a transform is static."""
    tx = make_transform(parts)
    return Transform.__new__(MultiSteps, tx.init, tx.update)
