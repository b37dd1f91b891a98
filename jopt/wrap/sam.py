"""Sharpness-aware minimization: the gradient at a point that was first moved uphill."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.control import run_if
from jopt.linalg import Gradients
from jopt.partition import chain
from jopt.paths import TreeMismatchError, flatten
from jopt.rule import Own, Whole
from jopt.rules import scale_by_learning_rate
from jopt.rules.each import wide
from jopt.scalars import NONNEGATIVE, ScalarOrSchedule, size
from jopt.state import AVERAGED, check_kept, keep_hyperparams
from jopt.transform import Transform, as_transform, whole
from jopt.wrap.arrays import beside


class SAMState(NamedTuple):
    """States of the two optimizers of `sam`, by the names of its arguments."""

    optimizer: Any
    adv_optimizer: Any

    clock_depends_on_data = True  # the counter of gradients, which `sweep_axes` batches, decides whose turn it is


def _fresh(adversary, params, state, reset_state):
    return keep_hyperparams(adversary.init(params), state) if reset_state else state


# One gradient a call: the trainer sees the moved parameters ------------------------------------------


def sam_init(params, *, inner):
    """Home is where the parameters are; no steps taken from it."""
    states = SAMState(**{name: init(params) for name, init in inner.items()})
    return Own({AVERAGED: params}, {"steps_since_sync": jnp.zeros((), jnp.int32)}, states)


def sam_update(grads, own, params, *, sync_period, reset_state, inner):
    """Climb away from home for some updates, then step from home by the gradient found there."""

    def ascend(carry, operands):
        handle, grads, p = inner["adv_optimizer"].given(operands[0]), operands[1], operands[2]
        u, state = handle.update(grads, carry[1], p)
        return {path: -x for path, x in u.items()}, state

    def descend(carry, operands):
        handle, adversary = (inner[name].given(x) for name, x in zip(SAMState._fields, operands[0], strict=True))
        grads, p = operands[1:]
        _, home, state, adv_state = carry
        u, state = handle.update(grads, state, home)
        home = {path: home[path] + u[path] for path in u}
        adv_state = _fresh(adversary, home, adv_state, reset_state)
        return {path: x - p[path] for path, x in home.items()}, home, state, adv_state

    p, home = wide(params, "sam"), own.slots.get(AVERAGED, {})
    check_kept("sam", home, grads)
    steps, state, adv_state = own.scalars["steps_since_sync"], *own.inner
    home = {path: jnp.where(steps == 0, p[path], x) for path, x in home.items()}
    last = steps >= sync_period - 1
    u = {path: jnp.zeros_like(x) for path, x in p.items()}
    u, adv_state = run_if(ascend, ~last, (u, adv_state), (inner["adv_optimizer"].operands, grads, p))
    both = tuple(inner[name].operands for name in SAMState._fields)
    u, home, state, adv_state = run_if(descend, last, (u, home, state, adv_state), (both, grads, p))
    steps = jnp.where(last, 0, steps + jnp.ones_like(steps))
    return u, Own({AVERAGED: home}, {"steps_since_sync": steps}, SAMState(state, adv_state))


SAM = Whole("sam", sam_update, sam_init)


# All gradients in one call --------------------------------------------------------------------------


def opaque_init(params, *, inner):
    """The states of both optimizers."""
    return Own(inner=SAMState(**{name: init(params) for name, init in inner.items()}))


def opaque_update(
    grads, own, params, *, sync_period, reset_state, batch_axis_name, opaque_mode, grad_fn, layout, rest, inner
):
    """Climb and step in one update, with gradients from `grad_fn`."""
    home, state = wide(params, "sam"), own.inner.adv_optimizer
    p, g = home, grads
    for i in range(sync_period - 1):
        u, state = inner["adv_optimizer"].update(g, state, p)
        p = {path: p[path] - u[path] for path in u}
        moved = {path: dtypes.leave(x, params[path].dtype) for path, x in p.items()}
        g = _gradients(grad_fn(layout.unflatten(rest | moved), i), p)
        g = g if batch_axis_name is None else jax.lax.pmean(g, batch_axis_name)
    state = _fresh(inner["adv_optimizer"], home, state, reset_state)
    u, outer = inner["optimizer"].update(g, own.inner.optimizer, params)
    return u, own._replace(inner=SAMState(outer, state))


def _gradients(tree, params):
    flat, _ = flatten(tree)
    wrong = sorted(path for path, p in params.items() if path not in flat or flat[path].shape != p.shape)
    if wrong:
        raise TreeMismatchError(
            f"sam: grad_fn(params, i) returned no gradient of the right shape for {wrong}, one for each parameter "
            f"was expected. Return jax.grad of the loss with respect to the parameters it is given."
        )
    return {path: dtypes.enter(flat[path]).astype(p.dtype) for path, p in params.items()}


OPAQUE_SAM = Whole("sam", opaque_update, opaque_init)


def sam(
    optimizer: Any,
    adv_optimizer: Any,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
) -> Transform:
    """Step by the gradient at a point that an adversary moved uphill (sharpness-aware minimization).

        p̃ ← p − adversary(∇f(p)),   uphill, `sync_period` − 1 times
        p ← p + optimizer(∇f(p̃))

    By default each call gets one gradient: the parameters that `update` leads to are p̃ between two steps
    of the optimizer, and ``eval_params(state, params)`` is p. With `opaque_mode` each call is a whole
    step, p is never left, and the gradients at p̃ come from an extra:
    ``update(grads, state, params, grad_fn=lambda params, i: jax.grad(loss)(params, batch))``.

    Args:
        optimizer: steps the parameters.
        adv_optimizer: its downhill steps are taken uphill; in the paper
            ``chain(normalize(), sgd(rho))`` with rho 0.05 to 0.1.
        sync_period: gradients for one step of the optimizer, at least 1.
        reset_state: whether the adversary starts afresh at each step of the optimizer. So do its
            schedules then: a radius that follows one needs ``reset_state=False``.
        opaque_mode: whether one call takes all gradients, so that statistics of a batch norm and the
            like only ever see p.
        batch_axis_name: a mapped axis to average the gradients of `grad_fn` over; needs `opaque_mode`.

    Differs: optax's plain mode with ``sync_period=1`` forgets every other step; here it is `optimizer`.
        Each optimizer runs only when it is its turn.
    Reference: [foret2021sharpness].

    Raises:
        ValueError: `batch_axis_name` without `opaque_mode`.
    """
    if batch_axis_name is not None and not opaque_mode:
        raise ValueError(
            f"sam: batch_axis_name={batch_axis_name!r} was given with opaque_mode=False, None was expected. Average "
            f"the gradients that you pass, or set opaque_mode=True."
        )
    inner = {"optimizer": as_transform(optimizer, "sam"), "adv_optimizer": as_transform(adv_optimizer, "sam")}
    static = {"sync_period": size(sync_period, "sam", "sync_period"), "reset_state": bool(reset_state)}
    if opaque_mode:
        return whole(OPAQUE_SAM, static=static | {"opaque_mode": True, "batch_axis_name": batch_axis_name}, inner=inner)
    return whole(SAM, static=static, inner=inner)


# Adaptive sharpness ----------------------------------------------------------------------------------


def adaptive_ascent_update(grads, own, params, *, eta, norms):
    """The normalised direction of ascent, by the size of each parameter."""
    p = wide(params, "scale_by_adaptive_sharpness")
    size = {path: (jnp.abs(x) + eta.astype(jnp.finfo(x.dtype).dtype)).astype(x.dtype) for path, x in p.items()}
    scaled = {path: size[path] * g for path, g in grads.items()}
    norm = Gradients(scaled, norms).norm()
    norm = jnp.where(norm > 0, norm, 1)
    return {path: size[path] * (x / beside(norm, x)) for path, x in scaled.items()}, own


ADAPTIVE_ASCENT = Whole("scale_by_adaptive_sharpness", adaptive_ascent_update)


def scale_by_adaptive_sharpness(eta: ScalarOrSchedule = 0.01) -> Transform:
    """Turn a gradient into ASAM's direction of ascent, in which large weights move further.

        u = T²g / ‖Tg‖,   T = |p| + η,   the norm over all arrays

    Args:
        eta: η ≥ 0, which lets weights near zero move too.

    Reference: [kwon2021asam].
    """
    return whole(ADAPTIVE_ASCENT, hyper={"eta": eta}, domain={"eta": NONNEGATIVE})


def asam(
    optimizer: Any,
    rho: ScalarOrSchedule = 0.5,
    eta: ScalarOrSchedule = 0.01,
    *,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
    batch_axis_name: str | None = None,
) -> Transform:
    """Sharpness-aware minimization whose ball scales with the weights, so that rescaling layers changes nothing.

        p̃ = p + ρ T²g / ‖Tg‖,   T = |p| + η
        p ← p + optimizer(∇f(p̃))

    Args:
        optimizer: steps the parameters.
        rho: ρ ≥ 0; about ten times that of `sam`.
        eta: η ≥ 0, which lets weights near zero move too.
        sync_period, reset_state, opaque_mode, batch_axis_name: as for `sam`.

    Reference: [kwon2021asam].
    """
    adversary = chain(scale_by_adaptive_sharpness(eta), scale_by_learning_rate(rho))
    return sam(optimizer, adversary, sync_period, reset_state, opaque_mode, batch_axis_name)
