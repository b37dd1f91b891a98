"""`minimize`: arguments, flat vectors, the loop, and the result."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import dtypes
from jopt.paths import Flat, Layout, flatten
from jopt.scalars import integer, number, raw
from jopt.solvers import descent, least_squares
from jopt.solvers.curvature import KINDS
from jopt.solvers.result import BAD_START, REASONS, RUNNING, Minimum
from jopt.train.cache import cached

METHODS = (*KINDS, "levenberg_marquardt")


def minimize(
    fn: Callable[..., Any],
    x0: Any,
    method: str = "lbfgs",
    args: tuple[Any, ...] = (),
    *,
    tol: float | jax.Array | None = None,
    max_steps: int | jax.Array = 1000,
    memory_size: int | None = None,
    starts: bool = False,
) -> Minimum:
    """Minimize a smooth function of few parameters: one compiled loop on the device.

    For curve fits, physics-informed networks and the like: deterministic functions. For losses of
    random batches take an optimizer and `fit`.

    ==================== ===================================================== ==================
    method               what it keeps of the curvature                        memory
    ==================== ===================================================== ==================
    lbfgs                the last `memory_size` steps                          2 · memory_size · n
    bfgs                 the inverse Hessian                                   n²
    ssbfgs, ssbroyden    the same, rescaled; slower to forget, often deeper    n²
    levenberg_marquardt  the Jacobian of residuals, for least squares          mn + n²
    ==================== ===================================================== ==================

    Args:
        fn: ``fn(x, *args) -> scalar``. For ``levenberg_marquardt`` it returns the residuals, an array
            or tree of arrays, and half their sum of squares is minimized.
        x0: where to start: any tree of real arrays. 16-bit ones are stepped in float32.
        args: further arguments of `fn`, trees of arrays. Other values of them compile nothing anew.
        tol: converged once no entry of the gradient is larger; None takes √eps of the dtype
            (1.5e-8 in float64, 3.5e-4 in float32).
        max_steps: steps at most.
        memory_size: of ``lbfgs``: how many steps are remembered; None takes 10.
        starts: every leaf of `x0` has a leading axis of starting points. They run side by side, each as
            it would alone, and those that have ended do not change; ``.best()`` of the result takes the
            lowest.

    The same `fn` with the same shapes compiles once; a function or lambda that is made anew compiles
    anew. Inside of `jit` and `vmap` it is part of what surrounds it. Reverse-mode derivatives do not
    cross the loop.

    Raises:
        TypeError: `x0` holds integers or complex numbers, or `fn` returns something else than the method needs.
        ValueError: an unknown method, or a start at which `fn` or its gradient is not finite (of several
            starts: all of them).

    Reference: [liu1989limited], [nocedal2006numerical], [urban2025unveiling], [more1978levenberg].
    """
    options = _options(method, memory_size, starts)
    flat, layout = _leaves(x0, starts)
    real = _widest(flat)
    tol = jnp.sqrt(jnp.finfo(real).eps) if tol is None else raw(number(tol, "minimize", "tol", "[0, inf)"))
    limit = raw(integer(max_steps, "minimize", "max_steps", at_least=1))
    operands = (flat, tuple(args), jnp.asarray(tol, real), jnp.asarray(limit, jnp.int32))
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(operands)):
        return _solve(fn, options, layout, *operands)
    key = (fn, options, layout)
    result = cached(fn, key, lambda: jax.jit(lambda *given: _solve(fn, options, layout, *given)))(*operands)
    return result if isinstance(result.status, jax.core.Tracer) else _with_a_good_start(result, fn)


@dataclasses.dataclass(frozen=True)
class _Options:
    method: str
    memory_size: int
    starts: bool


def _options(method: str, memory_size: Any, starts: Any) -> _Options:
    if method not in METHODS:
        raise ValueError(f"minimize: method={method!r} was given, one of {METHODS} was expected. Choose one of them.")
    if memory_size is not None and method != "lbfgs":
        raise ValueError(
            f"minimize: memory_size={memory_size!r} was given with method={method!r}, which has no such memory; "
            f"it was expected with 'lbfgs' alone. Leave it out."
        )
    size = 10 if memory_size is None else integer(memory_size, "minimize", "memory_size", at_least=1)
    if not isinstance(size, int):
        raise TypeError("minimize: a traced memory_size was given, a plain integer was expected: it is a shape.")
    if not isinstance(starts, bool):
        raise TypeError(
            f"minimize: starts={type(starts).__name__} was given, True or False was expected. Pass the starting "
            f"points as x0, along a leading axis of every leaf, and starts=True."
        )
    return _Options(method, size, starts)


def _leaves(x0: Any, starts: bool) -> tuple[Flat, Layout]:
    """The leaves of x0 as arrays, and how they go back."""
    flat, layout = flatten(x0)
    if not flat:
        raise TypeError("minimize: x0 has no leaves, at least one real array was expected. Pass the starting point.")
    for path, x in flat.items():
        dtype = None if x is None else dtypes.dtype_of(x)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"minimize: the leaf {path!r} of x0 is {'None' if dtype is None else dtype}, a real floating array was "
                f"expected. Write 1.0 instead of 1, split complex numbers, and pass what is fixed in args."
            )
    arrays = {path: jnp.asarray(x) for path, x in flat.items()}
    lengths = {path: x.shape[0] if x.ndim else None for path, x in arrays.items()}
    if starts and (len(set(lengths.values())) > 1 or None in lengths.values() or 0 in lengths.values()):
        raise ValueError(
            f"minimize: with starts=True leading axes of {lengths} were given, one common length of at least 1 was "
            f"expected. Stack the starting points along axis 0 of every leaf."
        )
    return arrays, layout


def _widest(flat: Flat) -> Any:
    """float64 if a leaf has it, else float32: the dtype of all arithmetic."""
    return max((dtypes.compute_dtype(x.dtype) for x in flat.values()), key=lambda dtype: dtype.itemsize)


def _with_a_good_start(result: Minimum, fn: Any) -> Minimum:
    if np.all(np.asarray(result.status) == BAD_START):
        raise ValueError(
            f"minimize: {getattr(fn, '__name__', fn)!r} is {np.asarray(result.value)} at x0: {REASONS[BAD_START]}, "
            f"finite numbers were expected. Start elsewhere, or look for the operation with jax.debug_nans(True)."
        )
    return result


# The loop ----------------------------------------------------------------------------------------


def _solve(fn: Any, options: _Options, layout: Layout, flat: Flat, args: Any, tol: Any, max_steps: Any) -> Minimum:
    shapes = {path: x.shape[options.starts :] for path, x in flat.items()}
    kinds = {path: x.dtype for path, x in flat.items()}
    dtype = _widest(flat)

    def join(flat):
        return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in flat.values()])

    def split(x):
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
        parts = jnp.split(x, ends[:-1])
        pieces = zip(shapes.items(), parts, strict=True)
        return layout.unflatten({path: part.reshape(shape).astype(kinds[path]) for (path, shape), part in pieces})

    begin, turn = _stages(fn, options, split, args, dtype, tol, max_steps)
    x = jax.vmap(join)(flat) if options.starts else join(flat)
    # The loop is around the lanes, and each turn itself leaves a lane alone that has ended: `vmap` of a
    # loop would copy the memory of all lanes at every turn, to select those.
    turn = jax.vmap(turn) if options.starts else turn
    run = jax.lax.while_loop(
        lambda run: jnp.any(run.status == RUNNING), turn, (jax.vmap(begin) if options.starts else begin)(x)
    )
    largest = jnp.max(jnp.abs(run.g), axis=-1, initial=0)
    x = jax.vmap(split)(run.x) if options.starts else split(run.x)
    return Minimum(x, run.value, largest, run.steps, run.evaluations, run.status)


def _stages(fn, options, split, args, dtype, tol, max_steps):
    """The first state of a run from x, and one turn of it."""
    if options.method == "levenberg_marquardt":

        def residuals(x):
            return _residuals(fn(split(x), *args), dtype)

        return (
            lambda x: least_squares.begin(residuals, x, tol),
            lambda run: least_squares.turn(residuals, run, tol, max_steps),
        )

    def value(x):
        return _scalar(fn(split(x), *args), fn).astype(dtype)

    kind, value_and_grad = KINDS[options.method], jax.value_and_grad(value)
    return (
        lambda x: descent.begin(kind, value_and_grad, x, tol, options.memory_size),
        lambda run: descent.turn(kind, value_and_grad, run, tol, max_steps),
    )


def _scalar(value: Any, fn: Any) -> jax.Array:
    got = jax.tree.map(lambda x: f"{dtypes.dtype_of(x)}{list(np.shape(x))}", value)
    real = not isinstance(got, str) or not jnp.issubdtype(dtypes.dtype_of(value), jnp.floating)
    if real or np.shape(value) != ():
        raise TypeError(
            f"minimize: {getattr(fn, '__name__', fn)!r} returned {got}, a real scalar was expected. Return for example "
            f"jnp.sum(residuals**2); method='levenberg_marquardt' takes the residuals themselves."
        )
    return jnp.asarray(value)


def _residuals(values: Any, dtype: Any) -> jax.Array:
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(values)]
    if not leaves or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
        got = jax.tree.map(lambda x: f"{dtypes.dtype_of(x)}{list(np.shape(x))}", values)
        raise TypeError(
            f"minimize(method='levenberg_marquardt'): fn returned {got}, real residuals were expected: an array, or a "
            f"tree of arrays. Return prediction - target, not its square."
        )
    if len(leaves) == 1 and not leaves[0].ndim:
        raise TypeError(
            f"minimize(method='levenberg_marquardt'): fn returned a scalar, {leaves[0].dtype}[], an array of residuals "
            f"was expected. Return the residuals, not their sum of squares; a single one in the shape (1,)."
        )
    return jnp.concatenate([jnp.ravel(x).astype(dtype) for x in leaves])
