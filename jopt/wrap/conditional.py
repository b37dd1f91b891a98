"""Transforms that run only when a condition holds, under optax's names."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from jopt import dtypes
from jopt.control import run_if
from jopt.rule import Own, Whole
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.finite import NONE, first_bad


class ConditionalState(NamedTuple):
    """State of `conditionally_mask` and `conditionally_transform`: that of the wrapped transform."""

    inner_state: Any

    clock_depends_on_data = True


class ApplyIfFiniteState(NamedTuple):
    """State of `apply_if_finite`.

    Attributes:
        notfinite_count: int32, bad updates in a row.
        last_finite: bool, whether the last gradient was finite.
        total_notfinite: int32, bad updates since `init`.
        inner_state: of the wrapped transform.
    """

    notfinite_count: Any
    last_finite: Any
    total_notfinite: Any
    inner_state: Any

    clock_depends_on_data = True


def _update_if(wanted, otherwise, grads, state, params, inner):
    """The updates and state of `inner` if `wanted`, else `otherwise` and the state as it is."""

    def work(carry, operands):
        numbers, grads, params = operands
        return inner.given(numbers).update(grads, carry[1], params)

    return run_if(work, wanted, (otherwise, state), (inner.operands, grads, params))


def _apply_if(wanted, grads, state, params, inner):
    """The stepped parameters and the state if `wanted`, else both as they are."""

    def work(carry, operands):
        params, state = carry
        return inner.given(operands[0]).apply(operands[1], state, params)

    return run_if(work, wanted, (params, state), (inner.operands, grads))


def _nothing(grads):
    return {path: jnp.zeros_like(g, dtype=dtypes.compute_dtype(g.dtype)) for path, g in grads.items()}


# A condition of the user ---------------------------------------------------------------------------


def conditional_init(params, *, inner):
    """The state of what is wrapped."""
    return Own(inner=ConditionalState(inner(params)))


def _asked(should_transform_fn, forward_extra_args, count, extra):
    answer = jnp.asarray(should_transform_fn(count, **(extra if forward_extra_args else {})))
    if answer.shape or answer.dtype != bool:
        raise TypeError(
            f"update: should_transform_fn returned an array of {answer.dtype}{list(answer.shape)}, one boolean was "
            f"expected. Return for example step % 2 == 0."
        )
    return answer


def mask_update(grads, own, params, *, should_transform_fn, forward_extra_args, count, extra, inner):
    """Run the transform if asked to; else the updates are zero."""
    wanted = _asked(should_transform_fn, forward_extra_args, count, extra)
    u, state = _update_if(wanted, _nothing(grads), grads, own.inner.inner_state, params, inner)
    return u, own._replace(inner=ConditionalState(state))


def mask_apply(grads, own, params, *, should_transform_fn, forward_extra_args, count, extra, inner):
    """The same on the parameters; else they stay."""
    wanted = _asked(should_transform_fn, forward_extra_args, count, extra)
    params, state = _apply_if(wanted, grads, own.inner.inner_state, params, inner)
    return params, own._replace(inner=ConditionalState(state))


def transform_update(grads, own, params, *, should_transform_fn, forward_extra_args, count, extra, inner):
    """Run the transform if asked to; else the gradients pass."""
    wanted = _asked(should_transform_fn, forward_extra_args, count, extra)
    u, state = _update_if(wanted, grads, grads, own.inner.inner_state, params, inner)
    return u, own._replace(inner=ConditionalState(state))


MASK = Whole("conditionally_mask", mask_update, conditional_init, mask_apply, enters=False)
TRANSFORM = Whole("conditionally_transform", transform_update, conditional_init)


def conditionally_mask(
    inner: Any, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> Transform:
    """Run a transform at certain steps only; at the others updates are zero and its state stays.

    Args:
        inner: the transform.
        should_transform_fn: ``(step, **extras) -> bool``, step being how many updates came before.
        forward_extra_args: whether the function is given the extras of `update`.
    """
    static = {"should_transform_fn": should_transform_fn, "forward_extra_args": bool(forward_extra_args)}
    return whole(MASK, static=static, inner=as_transform(inner, "conditionally_mask"))


def conditionally_transform(
    inner: Any, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> Transform:
    """Run a transform at certain steps only; at the others updates pass unchanged and its state stays.

    Args:
        inner: the transform.
        should_transform_fn: ``(step, **extras) -> bool``, step being how many updates came before.
        forward_extra_args: whether the function is given the extras of `update`.
    """
    static = {"should_transform_fn": should_transform_fn, "forward_extra_args": bool(forward_extra_args)}
    return whole(TRANSFORM, static=static, inner=as_transform(inner, "conditionally_transform"))


# Finite gradients, for a while ---------------------------------------------------------------------


def finite_init(params, *, inner):
    """Nothing skipped yet, beside the state of what is wrapped."""
    zero = jnp.zeros((), jnp.int32)
    return Own(inner=ApplyIfFiniteState(zero, jnp.ones((), bool), zero, inner(params)))


def _accepts(grads, kept, max_consecutive_errors):
    fine = first_bad(grads) == NONE
    missed = (~fine).astype(jnp.int32)
    in_a_row = jnp.where(fine, 0, kept.notfinite_count + missed)
    kept = kept._replace(notfinite_count=in_a_row, last_finite=fine, total_notfinite=kept.total_notfinite + missed)
    return fine | (in_a_row.astype(max_consecutive_errors.dtype) > max_consecutive_errors), kept


def finite_update(grads, own, params, *, max_consecutive_errors, inner):
    """Run the transform on finite gradients; of others the updates are zero, until there were too many."""
    wanted, kept = _accepts(grads, own.inner, max_consecutive_errors)
    u, state = _update_if(wanted, _nothing(grads), grads, kept.inner_state, params, inner)
    return u, own._replace(inner=kept._replace(inner_state=state))


def finite_apply(grads, own, params, *, max_consecutive_errors, inner):
    """The same on the parameters, which others leave alone."""
    wanted, kept = _accepts(grads, own.inner, max_consecutive_errors)
    params, state = _apply_if(wanted, grads, kept.inner_state, params, inner)
    return params, own._replace(inner=kept._replace(inner_state=state))


FINITE = Whole("apply_if_finite", finite_update, finite_init, finite_apply, enters=False)


def apply_if_finite(inner: Any, max_consecutive_errors: ScalarOrSchedule) -> Transform:
    """Skip updates with an infinity or NaN, but accept them after too many in a row.

    That is optax's way of giving up. `skip_nonfinite` never lets one in, and raises an alarm instead.

    Args:
        inner: the transform to guard.
        max_consecutive_errors: bad updates in a row that are skipped; the next one is accepted.
    """
    return whole(
        FINITE,
        hyper={"max_consecutive_errors": max_consecutive_errors},
        domain={"max_consecutive_errors": NONNEGATIVE},
        inner=as_transform(inner, "apply_if_finite"),
    )
