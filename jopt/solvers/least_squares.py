"""Levenberg-Marquardt: least squares with a damped linear model of the residuals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt import lapack
from jopt.solvers.curvature import product
from jopt.solvers.result import BAD_START, CONVERGED, MAX_STEPS, RUNNING, STALLED

FIRST_DAMPING = 1e-3


class Fit(NamedTuple):
    """A least-squares fit under way.

    Attributes:
        x: the point.
        value: ½‖r‖² there.
        g: its gradient Jᵀr.
        factor: (n, n), R of the Jacobian's QR decomposition.
        target: (n,), Qᵀr.
        weights: (n,), D: the largest norm so far of each column of J.
        damping: λ.
        growth: ν, by which the next rejection raises λ.
        steps, evaluations, status: as in `Minimum`.
    """

    x: Any
    value: Any
    g: Any
    factor: Any
    target: Any
    weights: Any
    damping: Any
    growth: Any
    steps: Any
    evaluations: Any
    status: Any


def begin(residuals: Callable[..., Any], x: Any, tol: Any) -> Fit:
    """The state before the first step."""
    value, g, factor, target = _linearize(residuals, x)
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(g))
    status = jnp.where(fine, jnp.where(_largest(g) <= tol, CONVERGED, RUNNING), BAD_START).astype(jnp.int32)
    none, damping = jnp.zeros((), jnp.int32), jnp.full_like(value, FIRST_DAMPING)
    weights = _columns(factor, jnp.zeros_like(x))
    return Fit(x, value, g, factor, target, weights, damping, jnp.full_like(value, 2), none, none + 1, status)


def turn(residuals: Callable[..., Any], run: Fit, tol: Any, max_steps: Any) -> Fit:
    """One damped step, taken if it lowers the value, else with more damping tried again.

        δ = argmin ‖Jδ + r‖² + λ‖Dδ‖²,   ρ = (f(x) − f(x + δ)) / (½‖Jδ‖² + λ‖Dδ‖²)
        λ ← λ max(1/3, 1 − (2ρ − 1)³) if ρ > 0,   else λ ← νλ, ν ← 2ν

    By QR: the normal equations would square the condition number.
    Reference: [more1978levenberg], [madsen2004methods].
    """
    running = run.status == RUNNING
    damped = jnp.sqrt(run.damping) * run.weights
    stacked = jnp.concatenate([run.factor, jnp.diag(damped)])
    q, r = lapack.qr(stacked)
    n = run.x.shape[0]
    delta = -_solve_triangle(r, product(run.target, q[:n]))
    tried = run.x + delta
    r_tried = residuals(tried)
    value = 0.5 * jnp.sum(r_tried * r_tried)
    linear = product(run.factor, delta)
    predicted = 0.5 * jnp.sum(linear * linear) + jnp.sum((damped * delta) ** 2)
    ratio = (run.value - value) / predicted
    accepted = running & (ratio > 0) & jnp.isfinite(value)

    def fresh(x):
        return _linearize(residuals, x)

    def stale(x):
        return run.value, run.g, run.factor, run.target

    new = jax.lax.cond(accepted, fresh, stale, tried)
    fine = jnp.all(jnp.isfinite(new[1]))  # a Jacobian that is not finite rejects the step as well
    accepted = accepted & fine
    value, g, factor, target = (
        jnp.where(accepted, a, b) for a, b in zip(new, (run.value, run.g, run.factor, run.target), strict=True)
    )
    weights = jnp.where(accepted, _columns(factor, run.weights), run.weights)
    shrunk = run.damping * jnp.maximum(1 / 3, 1 - (2 * ratio - 1) ** 3)
    damping = jnp.where(accepted, jnp.maximum(shrunk, jnp.finfo(value.dtype).tiny), run.damping * run.growth)
    growth = jnp.where(accepted, jnp.full_like(run.growth, 2), 2 * run.growth)
    steps = run.steps + accepted.astype(jnp.int32)
    still = jnp.all(jnp.abs(delta) <= jnp.finfo(value.dtype).eps * jnp.abs(run.x)) | ~jnp.isfinite(damping)
    status = jnp.where(steps >= max_steps, MAX_STEPS, jnp.where(still & ~accepted, STALLED, RUNNING))
    status = jnp.where(accepted & (_largest(g) <= tol), CONVERGED, status)
    after = Fit(
        jnp.where(accepted, tried, run.x),
        value,
        g,
        factor,
        target,
        weights,
        damping,
        growth,
        steps,
        run.evaluations + 1 + accepted.astype(jnp.int32),
        status.astype(jnp.int32),
    )
    return jax.tree.map(lambda a, b: jnp.where(running, a, b), after, run)


def _linearize(residuals: Callable[..., Any], x: Any) -> Any:
    """½‖r‖², Jᵀr, and R and Qᵀr of the decomposition J = QR: all a step needs, whatever the number of residuals."""
    n = x.shape[0]
    r = residuals(x)
    jacobian = (jax.jacfwd if n <= r.shape[0] else jax.jacrev)(residuals)(x)
    both = jnp.concatenate([jacobian, r[:, None]], axis=1)
    padding = jnp.zeros((max(0, n - r.shape[0]), n + 1), x.dtype)
    top = lapack.qr_factor(jnp.concatenate([both, padding]))
    g = product(r, jacobian)
    return 0.5 * jnp.sum(r * r), g, top[:n, :n], top[:n, n]


def _solve_triangle(r: Any, b: Any) -> Any:
    return lapack.solve_upper(r, b[:, None])[:, 0]


def _columns(factor: Any, before: Any) -> Any:
    """The norms of the Jacobian's columns, or the largest before; 1 for a parameter that had none."""
    norms = jnp.maximum(jnp.sqrt(jnp.sum(factor * factor, axis=0)), before)
    return jnp.where(norms > 0, norms, jnp.ones_like(norms))


def _largest(g: Any) -> Any:
    return jnp.max(jnp.abs(g), initial=0)
