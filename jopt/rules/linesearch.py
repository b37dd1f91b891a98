"""Line searches: scale a direction of descent so that a step along it lowers the loss enough."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.paths import Flat, flatten
from jopt.rule import Own, Whole, no_params
from jopt.rules.lbfgs import add, inner
from jopt.scalars import POSITIVE, Number, scalar_dtype
from jopt.state import check_kept, states
from jopt.transform import Transform, whole


class Line(NamedTuple):
    """The loss along a direction: φ(α) = f(p + αu).

    Attributes:
        value: φ(0).
        slope: φ′(0).
        grad: the gradient at 0, conjugated where complex, as optimizers are given it.
        at: α to the value there.
        all_at: α to (value, slope, gradient) there.
    """

    value: Any
    slope: Any
    grad: Flat
    at: Callable[[Any], Any]
    all_at: Callable[[Any], tuple[Any, Any, Flat]]


def line_of(name, updates, params, layout, rest, value, value_fn, grad, extra):
    """The line that a search is about."""
    if params is None:
        raise no_params(name)
    named = {key for key, p in inspect.signature(value_fn).parameters.items() if p.kind is not p.VAR_KEYWORD}
    given = {key: x for key, x in extra.items() if key in named}

    def function(flat):
        return jnp.asarray(value_fn(layout.tree(rest | flat), **given))

    def stepped(step):
        wide = add({path: dtypes.compute(params[path]) for path in updates}, step, updates)
        return {path: x.astype(params[path].dtype) for path, x in wide.items()}

    def at(step):
        return function(stepped(step)).astype(scalar_dtype())

    def all_at(step):
        value, raw = jax.value_and_grad(function)(stepped(step))
        raw = {path: dtypes.compute(g) for path, g in raw.items()}
        return value.astype(scalar_dtype()), inner({path: jnp.conj(u) for path, u in updates.items()}, raw), raw

    if grad is None:
        start = {path: jnp.conj(g) for path, g in all_at(jnp.zeros((), scalar_dtype()))[2].items()}
    else:
        flat = flatten(grad)[0]
        start = {path: dtypes.enter(flat[path]) for path in updates}
    return Line(jnp.asarray(value, scalar_dtype()), inner(updates, start), start, at, all_at)


def _errors_init(names):
    numbers = dict.fromkeys(names, jnp.full((), jnp.inf, scalar_dtype()))
    return numbers | {
        "learning_rate": jnp.ones((), scalar_dtype()),
        "num_linesearch_steps": jnp.zeros((), jnp.int32),
    }


def _zero_gradient(params):
    return {"grad": {path: jnp.zeros_like(p, dtype=dtypes.compute_dtype(p.dtype)) for path, p in params.items()}}


def _scaled(updates, rate):
    return {path: rate.astype(u.dtype) * u for path, u in updates.items()}


# Backtracking --------------------------------------------------------------------------------------


def backtracking_init(params, *, store_grad):
    """A step length of 1, and errors that are not known yet."""
    return Own(_zero_gradient(params) if store_grad else {}, _errors_init(("value", "decrease_error")))


def backtracking_update(
    updates,
    own,
    params,
    *,
    value,
    value_fn,
    grad=None,
    layout,
    rest,
    extra,
    max_backtracking_steps,
    slope_rtol,
    decrease_factor,
    increase_factor,
    max_learning_rate,
    atol,
    rtol,
    store_grad,
):
    """The longest of the falling step lengths that decreases the loss enough."""
    for kept in own.slots.values():
        check_kept(BACKTRACKING.name, kept, updates)
    line = line_of(BACKTRACKING.name, updates, params, layout, rest, value, value_fn, grad, extra)

    def error_at(rate, value):
        error = value - (1 + rtol) * line.value - rate * slope_rtol * line.slope
        return jnp.where(jnp.isnan(error), jnp.inf, jnp.maximum(error, 0))

    def searching(loop):
        _, _, error, tried = loop
        return ~(error <= atol) & (tried.astype(atol.dtype) <= max_backtracking_steps)

    def again(loop):
        rate, _, _, tried = loop
        rate = jnp.where(tried > 0, decrease_factor * rate, rate)
        value = line.at(rate)
        return rate, value, error_at(rate, value), tried + jnp.ones_like(tried)

    guess = jnp.minimum(increase_factor * own.scalars["learning_rate"], max_learning_rate)
    begun = (guess, line.value, jnp.full_like(guess, jnp.inf), jnp.zeros((), jnp.int32))
    rate, value, error, tried = jax.lax.while_loop(searching, again, begun)
    # Nothing finite was met: stay. The rate tried last is kept, for the next search to start from.
    taken = jnp.where(jnp.isinf(error), 0, rate)
    slots = {}
    if store_grad:
        value, _, raw = line.all_at(taken)
        slots = {"grad": raw}
    numbers = {
        "value": jnp.where(taken > 0, value, line.value),
        "decrease_error": error,
        "learning_rate": rate,
        "num_linesearch_steps": tried,
    }
    return _scaled(updates, taken), own._replace(slots=slots, scalars=numbers)


BACKTRACKING = Whole("scale_by_backtracking_linesearch", backtracking_update, backtracking_init)


def scale_by_backtracking_linesearch(
    max_backtracking_steps: Number,
    slope_rtol: Number = 1e-4,
    decrease_factor: Number = 0.8,
    increase_factor: Number = 1.5,
    max_learning_rate: Number = 1.0,
    atol: Number = 0.0,
    rtol: Number = 0.0,
    store_grad: bool = False,
) -> Transform:
    """Shrink the step until the loss falls enough (the condition of Armijo).

        α = min(ηα₋, α_max);   while  f(p + αu) > (1 + δ)f(p) + c α uᵀg + ε:   α ← ζα
        u ← αu

    Last in a chain, after the sign is turned: u must point downhill. Needs
    ``update(grads, state, params, value=, value_fn=)``; of what else is passed, `value_fn` gets what it names.

    Args:
        max_backtracking_steps: how often α shrinks at most.
        slope_rtol: c, the share of the slope by which the loss must fall.
        decrease_factor: ζ in (0, 1).
        increase_factor: η; inf starts each search from α_max.
        max_learning_rate: α_max.
        atol, rtol: ε and δ, by which the condition may be missed.
        store_grad: whether to keep the gradient at the new point, for `value_and_grad_from_state`.

    Differs: ``grad=`` may be left out, and is then computed. Where no step is finite the parameters stay, as
        in optax, but the next search goes on from the last step tried; optax's stays at 0 for good.
    Reference: [nocedal2006numerical].
    """
    numbers = {
        "max_backtracking_steps": max_backtracking_steps,
        "slope_rtol": slope_rtol,
        "decrease_factor": decrease_factor,
        "increase_factor": increase_factor,
        "max_learning_rate": max_learning_rate,
        "atol": atol,
        "rtol": rtol,
    }
    domain = dict.fromkeys(numbers, "[0, inf)")
    domain |= {"decrease_factor": "(0, 1)", "increase_factor": "(0, inf]", "max_learning_rate": "(0, inf)"}
    return whole(BACKTRACKING, hyper=numbers, static={"store_grad": bool(store_grad)}, domain=domain)


# Zoom ----------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """A step α with the value and the slope there."""

    step: Any
    value: Any
    slope: Any


class Zoom(NamedTuple):
    """A search under way: the last point, the bracket, and the best point that decreases enough."""

    last: Point
    grad: Flat
    low: Point
    high: Point
    reference: Point
    safe: Point
    safe_grad: Flat
    found: Any
    done: Any
    failed: Any
    decrease_error: Any
    curvature_error: Any
    tried: Any


def zoom_init(params):
    """A step length of 1, and errors that are not known yet."""
    return Own(_zero_gradient(params), _errors_init(("value", "decrease_error", "curvature_error")))


def zoom_update(
    updates,
    own,
    params,
    *,
    value,
    value_fn,
    grad=None,
    layout,
    rest,
    extra,
    max_linesearch_steps,
    max_learning_rate,
    tol,
    increase_factor,
    slope_rtol,
    curv_rtol,
    approx_dec_rtol,
    stepsize_precision,
    initial_guess_strategy,
):
    """A step length that meets the strong Wolfe conditions, or the best one seen."""
    for kept in own.slots.values():
        check_kept(ZOOM.name, kept, updates)
    line = line_of(ZOOM.name, updates, params, layout, rest, value, value_fn, grad, extra)
    rate = own.scalars["learning_rate"]
    guess = rate if initial_guess_strategy == "keep" else jnp.ones_like(rate)
    highest = jnp.full_like(rate, jnp.inf) if max_learning_rate is None else max_learning_rate

    def errors(at):
        decrease = at.value - line.value - slope_rtol * at.step * line.slope
        if approx_dec_rtol is not None:
            near = at.value - line.value - approx_dec_rtol * jnp.abs(line.value)
            decrease = jnp.minimum(jnp.maximum(at.slope - (2 * slope_rtol - 1) * line.slope, near), decrease)
        curvature = jnp.abs(at.slope) - curv_rtol * jnp.abs(line.slope)
        return (jnp.where(jnp.isnan(e), jnp.inf, jnp.maximum(e, 0)) for e in (decrease, curvature))

    def turn(z):
        longer = jnp.where(z.tried == 0, guess, increase_factor * z.last.step)
        step = jnp.where(z.found, _zoomed(z.low, z.high, z.reference), jnp.minimum(longer, highest))
        value, slope, grad = line.all_at(step)
        at = Point(step, value, slope)
        decrease, curvature = errors(at)
        enough, good = decrease <= tol, jnp.maximum(decrease, curvature) <= tol
        bracketed = _bracketed(z, at, decrease > 0, good)
        zoomed = _narrowed(z, at, decrease > 0)
        low, high, reference = (_pick(z.found, a, b) for a, b in zip(zoomed, bracketed[:3], strict=True))
        found = z.found | bracketed[3]

        better = enough & (~z.found | (at.value < z.safe.value))
        safe, safe_grad = _pick(better, at, z.safe), _pick_flat(better, grad, z.safe_grad)
        tried = z.tried + jnp.ones_like(z.tried)
        narrow = z.found & (jnp.abs(z.high.step - z.low.step) <= stepsize_precision) & (safe.step > 0)
        done = good | (~z.found & (longer >= highest) & ~found)
        failed = ((tried.astype(rate.dtype) >= max_linesearch_steps) | narrow) & ~done
        return Zoom(at, grad, low, high, reference, safe, safe_grad, found, done, failed, decrease, curvature, tried)

    here, no, inf = (
        Point(jnp.zeros_like(rate), line.value, line.slope),
        jnp.zeros((), bool),
        jnp.full_like(rate, jnp.inf),
    )
    count = jnp.zeros((), jnp.int32)
    begun = Zoom(here, line.grad, here, here, here, here, line.grad, no, no, no, inf, inf, count)
    z = jax.lax.while_loop(lambda z: ~(z.done | z.failed), turn, begun)
    fallback = z.failed & ((z.safe.step > 0) | jnp.isinf(z.decrease_error))
    at, raw = _pick(fallback, z.safe, z.last), _pick_flat(fallback, z.safe_grad, z.grad)
    numbers = {
        "value": at.value,
        "decrease_error": z.decrease_error,
        "curvature_error": z.curvature_error,
        "learning_rate": at.step,
        "num_linesearch_steps": z.tried,
    }
    return _scaled(updates, at.step), own._replace(slots={"grad": raw}, scalars=numbers)


def _pick(condition, one, other):
    return Point(*(jnp.where(condition, a, b) for a, b in zip(one, other, strict=True)))


def _pick_flat(condition, one, other):
    return {path: jnp.where(condition, x, other[path]) for path, x in one.items()}


def _bracketed(z, at, high_enough, good):
    """Algorithm 3.5 of Nocedal and Wright: whether the last two points enclose an acceptable step."""
    rises = high_enough | ((at.value >= z.last.value) & (z.tried > 0))
    turns = (at.slope >= 0) & ~rises
    low, high = _pick(turns, at, z.last), _pick(turns, z.last, at)
    return low, high, low, rises | turns | good


def _narrowed(z, at, high_enough):
    """Algorithm 3.6: the bracket with the new point as one end, and the point that it replaces."""
    rises = high_enough | (at.value >= z.low.value)
    swaps = (at.slope * (z.high.step - z.low.step) >= 0) & ~rises
    low, high = _pick(rises, z.low, at), _pick(rises, at, _pick(swaps, z.low, z.high))
    return low, high, _pick(rises | swaps, z.high, z.low)


def _zoomed(low, high, reference):
    """A step in the bracket: where a cubic is lowest, else a parabola, else the middle; off the ends."""
    width = jnp.abs(high.step - low.step)
    left, right = jnp.minimum(low.step, high.step), jnp.maximum(low.step, high.step)
    to_high, to_reference = high.step - low.step, reference.step - low.step
    bend = (high.value - low.value - low.slope * to_high) / to_high**2
    bend_reference = (reference.value - low.value - low.slope * to_reference) / to_reference**2
    a = (bend - bend_reference) / (to_high - to_reference)
    b = bend - a * to_high
    cubic = low.step + (jnp.sqrt(b * b - 3 * a * low.slope) - b) / (3 * a)
    parabola = low.step - low.slope / (2 * bend)

    def inside(step, margin):
        return (step > left + margin * width) & (step < right - margin * width)

    step = jnp.where(inside(parabola, 0.1), parabola, (low.step + high.step) / 2)
    return jnp.where(inside(cubic, 0.2), cubic, step)


ZOOM = Whole("scale_by_zoom_linesearch", zoom_update, zoom_init)


def scale_by_zoom_linesearch(
    max_linesearch_steps: Number,
    max_learning_rate: Number | None = None,
    tol: Number = 0.0,
    increase_factor: Number = 2.0,
    slope_rtol: Number = 1e-4,
    curv_rtol: Number = 0.9,
    approx_dec_rtol: Number | None = 1e-6,
    stepsize_precision: Number = 1e-5,
    initial_guess_strategy: str = "keep",
) -> Transform:
    """Find a step with enough decrease and a small slope (the strong Wolfe conditions).

        f(p + αu) ≤ f(p) + c₁αuᵀg + ε   and   |uᵀ∇f(p + αu)| ≤ c₂|uᵀg| + ε
        u ← αu

    Steps grow until two enclose such an α, then the enclosure shrinks by interpolation. Last in a chain,
    after the sign is turned: u must point downhill. Needs ``update(grads, state, params, value=, value_fn=)``;
    of what else is passed, `value_fn` gets what it names. Value and gradient at the new point are in the
    state: see `value_and_grad_from_state`.

    Args:
        max_linesearch_steps: evaluations at most; then the best step with enough decrease is taken.
        max_learning_rate: the largest α; None is no bound.
        tol: ε ≥ 0.
        increase_factor: by which α grows, > 1.
        slope_rtol, curv_rtol: c₁ and c₂.
        approx_dec_rtol: where f(p + αu) is within this share of f(p), a condition on slopes may stand for the
            decrease, which rounding hides; None never.
        stepsize_precision: of an enclosure so small its best step is taken.
        initial_guess_strategy: "one", for Newton-like directions, or "keep", the last α, for gradients.

    Differs: ``grad=`` may be left out, and is then computed; no `verbose`, as the state holds both errors.
    Reference: [nocedal2006numerical], [hager2006algorithm].
    """
    if initial_guess_strategy not in ("one", "keep"):
        raise ValueError(
            f"scale_by_zoom_linesearch: initial_guess_strategy={initial_guess_strategy!r} was given, 'one' or 'keep' "
            f"was expected. Choose 'one' after scale_by_lbfgs, 'keep' after sgd."
        )
    numbers = {
        "max_linesearch_steps": max_linesearch_steps,
        "max_learning_rate": max_learning_rate,
        "tol": tol,
        "increase_factor": increase_factor,
        "slope_rtol": slope_rtol,
        "curv_rtol": curv_rtol,
        "approx_dec_rtol": approx_dec_rtol,
        "stepsize_precision": stepsize_precision,
    }
    absent = {name: None for name, x in numbers.items() if x is None}
    domain = dict.fromkeys(numbers, "[0, inf)")
    domain |= {"curv_rtol": "[0, inf]", "increase_factor": "(1, inf)", "max_learning_rate": POSITIVE}
    return whole(
        ZOOM,
        hyper={name: x for name, x in numbers.items() if x is not None},
        static=absent | {"initial_guess_strategy": initial_guess_strategy},
        domain=domain,
    )


def value_and_grad_from_state(value_fn: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """`jax.value_and_grad` that takes both from the state of a line search, which has computed them.

    ``value_and_grad_from_state(fn)(params, *args, state=state, **kwargs)``: before the first step, and
    where the value in the state is not finite, they are computed. Only for functions without noise.

    Args:
        value_fn: ``value_fn(params, *args, **kwargs) -> scalar``.

    Raises:
        ValueError: the state holds no line search with a gradient, or several.
    """

    def value_and_grad(params: Any, *args: Any, state: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, stored = _stored(state)
        flat, layout = flatten(params)
        computed = jax.eval_shape(jax.value_and_grad(value_fn), params, *args, **kwargs)
        kept = layout.tree({path: g.astype(dtypes.dtype_of(flat[path])) for path, g in stored.items()})
        return jax.lax.cond(
            jnp.isfinite(value),
            lambda *_: (value.astype(computed[0].dtype), kept),
            lambda params, args, kwargs: jax.value_and_grad(value_fn)(params, *args, **kwargs),
            params,
            args,
            kwargs,
        )

    return value_and_grad


def _stored(state: Any) -> tuple[Any, Flat]:
    """Value and gradient of the one line search in a state."""
    searches: dict[str, tuple[Any, Any]] = {
        scope + part: (numbers["value"], s.slots.get(part, {}).get("grad"))
        for scope, s in states(state)
        for part, numbers in s.scalars.items()
        if "num_linesearch_steps" in numbers
    }
    with_gradient = [found for found in searches.values() if found[1] is not None]
    if len(with_gradient) != 1:
        raise ValueError(
            f"value_and_grad_from_state: the state holds the line searches {sorted(searches)}, {len(with_gradient)} of "
            f"them with a gradient; one was expected. Chain one scale_by_zoom_linesearch, or one "
            f"scale_by_backtracking_linesearch with store_grad=True."
        )
    return with_gradient[0]
