"""Quasi-Newton methods as one flat loop: each turn evaluates the function once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt import linalg
from jopt.solvers import line
from jopt.solvers.curvature import Kind, Move
from jopt.solvers.result import BAD_START, CONVERGED, MAX_STEPS, RUNNING, STALLED


class Descent(NamedTuple):
    """A minimization under way.

    Attributes:
        x, value, g: the point, the function there, and its gradient.
        d: the direction of the search.
        model: what approximates the inverse Hessian.
        fresh: whether it is a multiple of the identity, so that d is the steepest descent.
        search: the line search along d.
        steps, evaluations, status: as in `Minimum`.
    """

    x: Any
    value: Any
    g: Any
    d: Any
    model: Any
    fresh: Any
    search: line.Search
    steps: Any
    evaluations: Any
    status: Any


def begin(kind: Kind, value_and_grad: Callable[..., Any], x: Any, tol: Any, memory_size: int) -> Descent:
    """The state before the first step, along the steepest descent."""
    value, g = value_and_grad(x)
    fine, scale = jnp.isfinite(value) & jnp.all(jnp.isfinite(g)), _first_scale(g)
    model = kind.restart(kind.start(x.shape[0], x.dtype, memory_size), scale)
    status = jnp.where(fine, jnp.where(_largest(g) <= tol, CONVERGED, RUNNING), BAD_START).astype(jnp.int32)
    d = -scale * g
    search = line.start(value, jnp.sum(g * d), jnp.ones_like(value))
    none, true = jnp.zeros((), jnp.int32), jnp.ones((), bool)
    return Descent(x, value, g, d, model, true, search, none, none + 1, status)


def turn(kind: Kind, value_and_grad: Callable[..., Any], run: Descent, tol: Any, max_steps: Any) -> Descent:
    """One evaluation: a step if the search accepts it, else the next trial. What has ended stays as it is."""
    running = run.status == RUNNING
    tried = run.x + run.search.step * run.d
    value, g = value_and_grad(tried)
    slope = jnp.sum(g * run.d)
    accepted, failed, search = line.judge(run.search, value, slope)
    accepted, failed = accepted & running, failed & running
    # No Wolfe step in twenty trials: a kink, or rounding. If so even for the steepest descent, it is the end.
    settled = accepted & run.search.settles
    stalled = (failed | settled) & run.fresh

    # By how much the slope has changed is yᵀs, but for the factor of the step.
    step, before = run.search.step, run.search.start.slope
    ys, least = step * (slope - before), jnp.finfo(value.dtype).eps * step * -before
    move = Move(tried - run.x, g - run.g, ys, -step * step * before, g, run.fresh, accepted & (ys > least))
    model, hg = kind.update(run.model, move)
    turned = accepted & ~(jnp.sum(hg * g) > 0)  # no descent: only rounding can bring this about
    x, value, g = (jnp.where(accepted, a, b) for a, b in ((tried, run.x), (value, run.value), (g, run.g)))
    restart, scale = failed | settled | turned, _first_scale(g)
    fresh = restart | (run.fresh & ~move.valid)
    model = jax.tree.map(lambda a, b: jnp.where(restart, a, b), kind.restart(model, scale), model)
    d = jnp.where(restart, -scale * g, jnp.where(accepted, -hg, run.d))
    begun = line.start(value, jnp.sum(g * d), jnp.ones_like(value))
    search = jax.tree.map(lambda a, b: jnp.where(accepted | failed, a, b), begun, search)

    steps = run.steps + accepted.astype(jnp.int32)
    status = jnp.where(steps.astype(max_steps.dtype) >= max_steps, MAX_STEPS, jnp.where(stalled, STALLED, RUNNING))
    status = jnp.where(accepted & (_largest(g) <= tol), CONVERGED, status)
    status = jnp.where(running, status, run.status).astype(jnp.int32)
    evaluations = run.evaluations + running.astype(jnp.int32)
    return Descent(x, value, g, d, model, fresh, search, steps, evaluations, status)


def _largest(g: Any) -> Any:
    return jnp.max(jnp.abs(g), initial=0)


def _first_scale(g: Any) -> Any:
    """The steepest descent's first trial is no longer than 1: nothing is known of the curvature."""
    return 1 / jnp.maximum(linalg.norm(g), 1)
