"""`minimize`: against transcriptions, SciPy, itself under vmap, and functions that misbehave."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import oracles.search
import pytest
import scipy.optimize

import jopt
from jopt.solvers import curvature, line
from jopt.solvers.result import BAD_START, CONVERGED

DENSE = ["bfgs", "ssbfgs", "ssbroyden"]
DESCENTS = ["lbfgs", *(pytest.param(name, marks=pytest.mark.slow) for name in DENSE)]
START = [-1.2, 1.0, 0.5, -0.7, 0.9]


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def rosenbrock_residuals(x):
    return jnp.concatenate([10.0 * (x[1:] - x[:-1] ** 2), 1 - x[:-1]])


def beale(x):
    return jnp.sum(beale_residuals(x) ** 2)


def beale_residuals(x):
    powers = jnp.arange(1, 4, dtype=x.dtype)
    return jnp.asarray([1.5, 2.25, 2.625], x.dtype) - x[0] + x[0] * x[1] ** powers


def ill_conditioned(x):
    return 0.5 * jnp.sum(jnp.logspace(0, 5, x.size, dtype=x.dtype) * x**2)


def shifted(x, target):
    return jnp.sum((x - target) ** 2)


# It finds the minimum ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", DESCENTS)
@pytest.mark.parametrize(
    ("fn", "start", "minimum"),
    [
        (rosenbrock, START, np.ones(5)),
        (beale, [1.0, 1.0], [3.0, 0.5]),
        (ill_conditioned, np.linspace(-3, 2, 8), np.zeros(8)),
        (lambda x: (x[0] - 3) ** 4 + jnp.cosh(x[1]), [0.0, 2.0], None),
        (lambda x: jnp.sum((x - 1e3) ** 2), [0.0], [1e3]),
    ],
)
def test_the_minimum_is_found(fn, start, minimum, method, x64):
    result = jopt.minimize(fn, jnp.asarray(start), method)
    assert result.converged
    assert result.grad_norm <= 1.5e-8
    theirs = scipy.optimize.minimize(
        lambda x: np.asarray(fn(x)), start, jac=jax.grad(fn), method="BFGS", options={"gtol": 1e-8}
    )
    assert result.value <= theirs.fun + 1e-11
    if minimum is not None:
        np.testing.assert_allclose(result.x, minimum, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("fn", "start"),
    [
        (rosenbrock_residuals, START),
        (beale_residuals, [1.0, 1.0]),
        (lambda x: {"a": x - 10.0, "b": 0.1 * jnp.sin(x[0]) * x}, [9.0, 8.0]),
        (lambda x: jnp.stack([x[0] + x[1] - 3, x[0] * x[2]]), [0.5, 1.0, 2.0]),  # fewer residuals than parameters
    ],
)
def test_least_squares_are_those_of_scipy(fn, start, x64):
    result = jopt.minimize(fn, jnp.asarray(start), "levenberg_marquardt")
    flat = lambda x: np.concatenate([np.ravel(r) for r in jax.tree.leaves(fn(jnp.asarray(x)))])  # noqa: E731
    theirs = scipy.optimize.least_squares(flat, start, xtol=1e-14, ftol=1e-14, gtol=1e-12)
    assert result.status == CONVERGED or result.grad_norm < 1e-6
    np.testing.assert_allclose(result.value, theirs.cost, rtol=1e-7, atol=1e-12)
    if len(flat(start)) >= len(start):
        np.testing.assert_allclose(result.x, theirs.x, rtol=1e-5, atol=1e-6)


def decay(params, t):
    return params["amount"] * jnp.exp(-params["rate"] * t) + params["floor"]


def test_a_curve_is_fitted_in_single_precision_through_a_tree():
    t = jnp.linspace(0, 4, 60)
    truth = {"amount": jnp.asarray(2.5), "rate": jnp.asarray(1.3), "floor": jnp.asarray([0.5])}
    y = decay(truth, t)
    start = jax.tree.map(jnp.ones_like, truth)
    fit = jopt.minimize(lambda p, t, y: decay(p, t) - y, start, "levenberg_marquardt", (t, y))
    descent = jopt.minimize(lambda p, t, y: jnp.mean((decay(p, t) - y) ** 2), start, args=(t, y), tol=1e-6)
    for result in (fit, descent):
        assert jax.tree.structure(result.x) == jax.tree.structure(truth)
        for name in truth:
            assert result.x[name].dtype == jnp.float32
            np.testing.assert_allclose(result.x[name], truth[name], rtol=2e-3)
    theirs, _ = scipy.optimize.curve_fit(lambda t, a, r, f: a * np.exp(-r * t) + f, np.asarray(t), np.asarray(y))
    np.testing.assert_allclose([fit.x["amount"], fit.x["rate"], fit.x["floor"][0]], theirs, rtol=1e-3)


def test_a_step_of_least_squares_does_not_depend_on_units(x64):
    """The damping is in units of the columns of J, so that kilometres and metres take the same path."""
    scale = jnp.asarray([1e-6, 1.0, 1e5])
    fn = lambda x: jnp.concatenate([10.0 * (x[1:] - x[:-1] ** 2), 1 - x])  # noqa: E731
    x = jnp.asarray([-1.0, 0.7, 0.3])
    for steps in (1, 3, 8):
        plain = jopt.minimize(fn, x, "levenberg_marquardt", max_steps=steps, tol=0.0)
        units = jopt.minimize(lambda z: fn(z * scale), x / scale, "levenberg_marquardt", max_steps=steps, tol=0.0)
        np.testing.assert_allclose(units.x * scale, plain.x, rtol=1e-6)


def test_few_evaluations_are_needed(x64):
    """Counted, so that a change for the worse is seen; SciPy's L-BFGS-B takes 609 for 520 steps."""
    result = jopt.minimize(rosenbrock, jnp.tile(jnp.asarray([-1.2, 1.0]), 50), tol=1e-5)
    assert result.converged
    assert result.value < 1e-10
    assert result.evaluations <= 750
    assert int(result.evaluations) <= 1.3 * int(result.steps)


# The formulas ------------------------------------------------------------------------------------


def moves(n, count, seed=0):
    """Steps and changes of the gradient of a convex function, and a gradient to multiply."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, n))
    hessian = a @ a.T + np.eye(n)
    s = rng.standard_normal((count, n))
    return s, s @ hessian + 0.1 * s, rng.standard_normal((count, n))


def move(s, y, g, h, fresh):
    """A step as `curvature` is told of it, with sᵀH⁻¹s from H itself."""
    sbs = s @ np.linalg.solve(h, s)
    given = (*map(jnp.asarray, (s, y, y @ s, sbs, g)), jnp.asarray(fresh), jnp.ones((), bool))
    return curvature.Move(*given)


def test_the_compact_form_is_the_two_loops(x64):
    m, kind = 4, curvature.KINDS["lbfgs"]
    model, pairs = kind.start(7, jnp.float64, m), []
    for s, y, g in zip(*moves(7, 11), strict=True):
        pairs = [*pairs, (s, y)][-m:]
        model, hg = kind.update(model, move(s, y, g, np.eye(7), False))
        expected = oracles.search.lbfgs_direction(g, pairs, (s @ y) / (y @ y))
        np.testing.assert_allclose(hg, expected, rtol=1e-11, atol=1e-13)
    skipped = move(*(x[0] for x in moves(7, 1, 5)), np.eye(7), False)._replace(valid=jnp.zeros((), bool))
    again, hg = kind.update(model, skipped)
    jax.tree.map(np.testing.assert_array_equal, again, model)
    expected = oracles.search.lbfgs_direction(np.asarray(skipped.g), pairs, (s @ y) / (y @ y))
    np.testing.assert_allclose(hg, expected, rtol=1e-11, atol=1e-13)
    model, hg = kind.update(kind.restart(model, jnp.asarray(0.3)), skipped)
    np.testing.assert_allclose(hg, 0.3 * skipped.g, rtol=1e-14)


@pytest.mark.parametrize("method", DENSE)
def test_dense_updates_are_the_formulas(method, x64):
    n, kind = 6, curvature.KINDS[method]
    model, expected = kind.restart(kind.start(n, jnp.float64, 0), jnp.asarray(0.2)), None
    for i, (s, y, g) in enumerate(zip(*moves(n, 9), strict=True)):
        h = (s @ y) / (y @ y) * np.eye(n) if expected is None else expected
        b = s @ np.linalg.solve(h, s) / (y @ s)
        numbers = {"bfgs": (1.0, 1.0), "ssbfgs": (1.0, min(1.0, 1 / b))}
        phi, tau = numbers.get(method) or oracles.search.ssbroyden_numbers(h, s, y)
        expected = oracles.search.broyden_family(h, s, y, phi, tau)
        model, hg = kind.update(model, move(s, y, g, np.asarray(model), i == 0))
        np.testing.assert_allclose(model, expected, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(hg, expected @ g, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(model @ y, s, rtol=1e-7, atol=1e-9)
        assert np.linalg.eigvalsh(model)[0] > 0


@pytest.mark.parametrize("first", [1e-8, 1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("phi", [lambda a: (a - 2) ** 4 - a, lambda a: -a / (a**2 + 2), lambda a: jnp.cos(a) + a / 9])
def test_a_search_ends_on_the_strong_wolfe_conditions(phi, first, x64):
    value, slope = jax.value_and_grad(phi)(0.1)  # the last function goes uphill at 0
    sign = -jnp.sign(slope)
    line_phi = lambda a: phi(0.1 + sign * a)  # noqa: E731
    value, slope = jax.value_and_grad(line_phi)(0.0)
    search = line.start(value, slope, jnp.asarray(first))
    for _ in range(line.MOST_TRIALS):
        at = jax.value_and_grad(line_phi)(search.step)
        accepted, failed, after = line.judge(search, *at)
        assert not failed
        if accepted:
            break
        search = after
    assert accepted
    assert at[0] <= value + 1e-4 * search.step * slope
    assert abs(at[1]) <= 0.9 * abs(slope)


# Several starts, vmap, jit -----------------------------------------------------------------------


@pytest.mark.parametrize("method", [*DESCENTS, "levenberg_marquardt"])
def test_starts_side_by_side_are_runs_of_their_own(method, x64):
    fn = beale_residuals if method == "levenberg_marquardt" else beale
    starts = np.asarray([3.0, 0.5]) + np.random.default_rng(1).uniform(-0.7, 0.3, (6, 2))
    together = jopt.minimize(fn, starts, method, starts=True, max_steps=60)
    mapped = jax.vmap(lambda x: jopt.minimize(fn, x, method, max_steps=60))(jnp.asarray(starts))
    assert together.x.shape == (6, 2)
    assert len(set(np.asarray(together.steps))) > 1, "some lanes end before others"
    for i, x in enumerate(starts):
        alone = jopt.minimize(fn, x, method, max_steps=60)
        for lanes in (together, mapped):
            assert lanes.status[i] == alone.status
            assert abs(int(lanes.steps[i]) - int(alone.steps)) <= 1
            np.testing.assert_allclose(lanes.x[i], alone.x, rtol=1e-6, atol=1e-6)
    assert together.best().value == np.min(together.value)


def test_a_lane_that_has_ended_does_not_change(x64):
    starts = jnp.asarray([[1.0, 1.0, 1.0], [-1.2, 1.0, 0.5], [1.0, 1.0, 1.0]])
    result = jopt.minimize(rosenbrock, starts, starts=True)
    np.testing.assert_array_equal(result.x[0], starts[0])
    np.testing.assert_array_equal(result.evaluations, [1, result.evaluations[1], 1])
    assert result.evaluations[1] > 20
    assert result.reason[0].startswith("no entry of the gradient")


def test_a_result_shows_why_it_ended_and_the_best_of_one_start_is_itself(x64):
    result = jopt.minimize(beale, jnp.asarray([2.5, 0.4]))
    assert repr(result).startswith("Minimum(x=Array([3. , 0.5]")
    assert repr(result).endswith("reason='no entry of the gradient is larger than tol')")
    assert result.best() is result
    several = jopt.minimize(beale, jnp.asarray([[2.5, 0.4], [3.0, 0.5]]), starts=True)
    assert repr(several).count("no entry of the gradient") == 2
    shown = []
    jax.eval_shape(lambda: shown.append(repr(jopt.minimize(beale, jnp.asarray([2.5, 0.4])))))
    assert "status=" in shown[0]
    assert "status=" in repr(jax.eval_shape(lambda: jopt.minimize(beale, jnp.asarray([2.5, 0.4]))))


def test_one_bad_start_of_several_is_reported_and_not_raised():
    starts = jnp.asarray([[1.5, 2.0], [jnp.nan, 0.0]])
    result = jopt.minimize(beale, starts, starts=True)
    assert result.status[1] == BAD_START
    assert result.converged[0]
    np.testing.assert_array_equal(result.best().x, result.x[0])
    with pytest.raises(ValueError, match="not finite at x0"):
        jopt.minimize(beale, starts[1:], starts=True)


@pytest.mark.parametrize("method", [*DESCENTS, "levenberg_marquardt"])
def test_it_joins_a_jit_and_a_vmap_over_anything(method):
    residuals = method == "levenberg_marquardt"

    def fn(x, target):
        return x - target if residuals else jnp.sum((x - target) ** 2)

    targets = jnp.asarray([[1.0, 2.0], [3.0, -4.0]])

    @jax.jit
    def solve(target, tol):
        return jopt.minimize(fn, jnp.zeros(2), method, args=(target,), tol=tol)

    result = jax.vmap(solve)(targets, jnp.asarray([1e-3, 1e-4]))
    np.testing.assert_allclose(result.x, targets, atol=1e-3)
    closed = jax.jit(lambda c: jopt.minimize(lambda x: fn(x, c), jnp.zeros(2), method).x)(targets[0])
    np.testing.assert_allclose(closed, targets[0], atol=1e-3)


# What is traced, and what is kept ----------------------------------------------------------------


def test_a_second_call_traces_nothing():
    traces = []

    def fn(x, target):
        traces.append(1)
        return jnp.sum((x["a"] - target) ** 2)

    x0 = {"a": jnp.zeros(3)}
    jopt.minimize(fn, x0, args=(jnp.ones(3),))
    first = len(traces)
    assert first <= 3
    jopt.minimize(fn, {"a": np.ones(3, np.float32)}, args=(jnp.zeros(3),), tol=1e-5, max_steps=7)
    jopt.minimize(fn, x0, "lbfgs", (jnp.zeros(3),), tol=jnp.asarray(1e-2), max_steps=np.int64(9))
    assert len(traces) == first
    jopt.minimize(fn, x0, "bfgs", args=(jnp.ones(3),))
    assert len(traces) > first


def test_a_function_is_not_kept_alive():
    def run():
        def fn(x):
            return jnp.sum((x - 1) ** 2)

        jopt.minimize(fn, jnp.zeros(2))
        return weakref.ref(fn)

    alive = run()
    gc.collect()
    assert alive() is None


def test_leaves_go_back_in_their_shapes_and_dtypes():
    x0 = {"w": [jnp.ones((2, 3), jnp.bfloat16), 2.0], "b": np.zeros((), np.float16), "e": jnp.zeros((0, 2))}

    def fn(x):
        return sum(jnp.sum((leaf.astype(jnp.float32) - 0.5) ** 2) for leaf in jax.tree.leaves(x))

    result = jopt.minimize(fn, x0)
    got = jax.tree.map(lambda x: (x.shape, x.dtype.name), result.x)
    assert got == {
        "w": [((2, 3), "bfloat16"), ((), "float32")],
        "b": ((), "float16"),
        "e": ((0, 2), "float32"),
    }
    assert result.value < 1e-6
    assert result.value.dtype == jnp.float32


def test_double_precision_stays(x64):
    result = jopt.minimize(rosenbrock, np.asarray(START))
    assert result.x.dtype == result.value.dtype == result.grad_norm.dtype == jnp.float64
    single = jopt.minimize(rosenbrock, np.asarray(START, np.float32))
    assert single.x.dtype == single.value.dtype == jnp.float32


# Functions that misbehave ------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize("method", [*DESCENTS, "levenberg_marquardt"])
def test_a_region_without_values_is_stepped_around(method, bad):
    """Beyond 1 there is no value; the minimum is close to it, and the first step would cross."""

    def fn(x):
        inside = x[0] < 1
        safe = jnp.where(inside, x[0], 0.0)
        if method == "levenberg_marquardt":
            return jnp.where(inside, jnp.stack([3 * (safe - 0.9), x[1] - 2]), bad)
        return jnp.where(inside, -0.1 * jnp.log(1 - safe) - safe + (x[1] - 2) ** 2, bad)

    result = jopt.minimize(fn, jnp.asarray([-4.0, 0.0]), method, tol=1e-3)
    assert result.converged, result
    np.testing.assert_allclose(result.x, [0.9, 2.0], atol=2e-3)


@pytest.mark.parametrize("method", DESCENTS)
def test_what_cannot_be_lowered_stalls_and_says_so(method):
    result = jopt.minimize(lambda x: jnp.sum(jnp.abs(x - 0.3)), jnp.asarray([1.0, -1.0]), method)
    assert not result.converged
    assert "no step lowers the value" in result.reason
    np.testing.assert_allclose(result.x, 0.3, atol=0.1)
    rising = jopt.minimize(lambda x: jnp.sum(x) + 1e6 * jnp.sum(x**2), jnp.zeros(2) + 1e-7, method, tol=0.0)
    assert jnp.isfinite(rising.value)


def test_a_function_without_a_minimum_ends():
    for fn in (lambda x: jnp.sum(x), lambda x: -jnp.sum(jnp.exp(x))):
        result = jopt.minimize(fn, jnp.zeros(2), max_steps=50)
        assert not result.converged
        assert jnp.isfinite(result.value)


@pytest.mark.parametrize("method", [*DESCENTS, "levenberg_marquardt"])
def test_max_steps_are_not_exceeded(x64, method):
    fn = rosenbrock_residuals if method == "levenberg_marquardt" else rosenbrock
    result = jopt.minimize(fn, jnp.asarray(START), method, max_steps=3)
    assert (result.steps, result.reason) == (3, "max_steps were taken")
    assert result.value < rosenbrock(jnp.asarray(START))


def test_values_never_rise(x64):
    values = [jopt.minimize(rosenbrock, jnp.asarray(START), max_steps=n).value for n in range(1, 30)]
    assert np.all(np.diff(values) < 0)


def test_huge_and_tiny_scales(x64):
    for scale in (1e-8, 1e8):
        result = jopt.minimize(
            lambda x, scale: scale * beale(x), jnp.asarray([1.0, 1.0]), args=(scale,), tol=1e-9 * scale
        )
        assert result.converged
        np.testing.assert_allclose(result.x, [3.0, 0.5], rtol=1e-5)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: jopt.minimize(beale, jnp.asarray([1, 2])), TypeError, ["int32", "1.0 instead of 1"]),
        (lambda: jopt.minimize(beale, {"a": {"b": 1j}}), TypeError, ["'a/b'", "complex64"]),
        (lambda: jopt.minimize(beale, {}), TypeError, ["no leaves"]),
        (lambda: jopt.minimize(lambda x: x**2, jnp.ones(3)), TypeError, ["float32[3]", "real scalar"]),
        (lambda: jopt.minimize(lambda x: (x[0], x[1]), jnp.ones(3)), TypeError, ["real scalar"]),
        (lambda: jopt.minimize(lambda x: jnp.argmax(x), jnp.ones(3)), TypeError, ["int32[]", "real scalar"]),
        (lambda: jopt.minimize(lambda x: x > 0, jnp.ones(3), "levenberg_marquardt"), TypeError, ["residuals"]),
        (
            lambda: jopt.minimize(lambda x: jnp.sum(x**2), jnp.ones(3), "levenberg_marquardt"),
            TypeError,
            ["returned a scalar, float32[]", "not their sum of squares; a single one in the shape (1,)"],
        ),
        (lambda: jopt.minimize(beale, jnp.ones(2), "newton"), ValueError, ["'newton'", "ssbroyden"]),
        (lambda: jopt.minimize(beale, jnp.ones(2), tol=-1.0), ValueError, ["tol=-1.0"]),
        (lambda: jopt.minimize(beale, jnp.ones(2), max_steps=0), ValueError, ["max_steps=0"]),
        (lambda: jopt.minimize(beale, jnp.ones(2), "bfgs", memory_size=5), ValueError, ["memory_size=5", "'bfgs'"]),
        (lambda: jopt.minimize(beale, jnp.ones(2), starts=jnp.ones((3, 2))), TypeError, ["starts=True"]),
        (lambda: jopt.minimize(beale, {"a": jnp.ones((3, 2)), "b": 1.0}, starts=True), ValueError, ["leading ax"]),
        (lambda: jopt.minimize(beale, jnp.asarray([jnp.nan, 1.0])), ValueError, ["'beale'", "not finite at x0"]),
        (lambda: jopt.minimize(lambda x: jnp.sum(jnp.sqrt(x)), jnp.zeros(2)), ValueError, ["its gradient"]),
    ],
)
@pytest.mark.skipif(jax.config.jax_enable_x64, reason="the dtypes named are those of float32")
def test_errors_say_what_to_do(call, error, words):
    with pytest.raises(error) as raised:
        call()
    assert all(word in str(raised.value) for word in words), raised.value
