"""L-BFGS and line searches as transforms: against transcriptions, and against optax on a function."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles.search
import pytest

import jopt


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def joined(params):
    return rosenbrock(jnp.concatenate([params["a"].ravel(), params["b"]]))


def parameters(real=jnp.float64):
    return {"a": jnp.asarray([[-1.2, 1.0], [0.3, 0.5]], real), "b": jnp.asarray([1.1, -0.4, 0.2], real)}


@contextlib.contextmanager
def lenient():
    """optax needs implicit promotions."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def run(library, tx, steps, params, fn=joined):
    """The values before, and the parameters after each step."""
    value_and_grad = library.value_and_grad_from_state(fn)

    @jax.jit
    def step(params, state):
        value, grad = value_and_grad(params, state=state)
        updates, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fn)
        return optax.apply_updates(params, updates), state, value

    state, seen = tx.init(params), []
    for _ in range(steps):
        params, state, value = step(params, state)
        seen.append((float(value), np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])))
    return seen, state


CASES = {
    "lbfgs": (lambda m: m.lbfgs(), 60, 1e-12),
    # 60 steps of a method that magnifies rounding: from 2e-16 at the first step.
    "lbfgs_unscaled": (lambda m: m.lbfgs(memory_size=3, scale_init_precond=False), 40, 1e-10),
    "zoom": (lambda m: m.chain(m.sgd(1.0), m.scale_by_zoom_linesearch(15)), 50, 1e-12),
    "zoom_short": (lambda m: m.chain(m.sgd(1e-3), m.scale_by_zoom_linesearch(2)), 30, 1e-12),
    "zoom_strict": (
        lambda m: m.chain(m.sgd(1.0), m.scale_by_zoom_linesearch(15, curv_rtol=0.1, approx_dec_rtol=None)),
        30,
        1e-12,
    ),
    "zoom_bounded": (lambda m: m.chain(m.sgd(1.0), m.scale_by_zoom_linesearch(15, max_learning_rate=0.002)), 30, 1e-12),
    "backtracking": (
        lambda m: m.chain(m.sgd(1.0), m.scale_by_backtracking_linesearch(25, store_grad=True)),
        60,
        1e-12,
    ),
    "backtracking_loose": (
        lambda m: m.chain(
            m.sgd(1.0),
            m.scale_by_backtracking_linesearch(30, 0.3, 0.5, 2.0, 0.5, atol=1e-3, rtol=1e-3, store_grad=True),
        ),
        40,
        1e-12,
    ),
}


SOON = ("lbfgs", "backtracking")


@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_double_precision_is_optax(name, x64):
    make, steps, tolerance = CASES[name]
    got, _ = run(jopt, make(jopt), steps, parameters())
    with lenient():
        wanted, _ = run(optax, make(optax), steps, parameters())
    np.testing.assert_allclose([v for v, _ in got], [v for v, _ in wanted], rtol=10 * tolerance)
    np.testing.assert_allclose([x for _, x in got], [x for _, x in wanted], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["lbfgs", "backtracking", "zoom_short"])
def test_single_precision_is_optax(name):
    make, steps, _ = CASES[name]
    params = parameters(jnp.float32)
    steps = min(steps, 8)  # later, rounding decides which way the search turns
    got, _ = run(jopt, make(jopt), steps, params)
    with lenient():
        wanted, _ = run(optax, make(optax), steps, params)
    np.testing.assert_allclose([x for _, x in got], [x for _, x in wanted], rtol=2e-5, atol=2e-6)


# Against the transcriptions ------------------------------------------------------------------------

SPD = np.diag([1.0, 3.0, 10.0, 30.0]) + 0.5


def quadratic(x):
    return 0.5 * x @ jnp.asarray(SPD, x.dtype) @ x


@pytest.mark.parametrize("memory_size", [2, 10])
def test_the_two_loops_follow_the_book(memory_size, x64):
    start, rate, steps = np.array([1.0, -2.0, 0.5, 3.0]), 0.7, 25
    tx = jopt.lbfgs(rate, memory_size, linesearch=None)
    expected = oracles.search.lbfgs(None, lambda x: SPD @ x, start, steps, memory_size, rate)

    def step(carry, _):
        x, state = carry
        u, state = tx.update(jax.grad(quadratic)(x), state, x)
        return (x + u, state), x + u

    x = jnp.asarray(start)
    got = jax.lax.scan(step, (x, tx.init(x)), length=steps)[1]
    # Later the differences of close points keep fewer digits, in both.
    np.testing.assert_allclose(got[:8], expected[:8], rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_backtracking_takes_the_first_step_that_decreases_enough(x64):
    x = np.array([1.0, -2.0, 0.5, 3.0])
    g = SPD @ x
    tx = jopt.scale_by_backtracking_linesearch(40, slope_rtol=0.2, max_learning_rate=2.0)
    u, state = tx.update(
        -jnp.asarray(g), tx.init(jnp.asarray(x)), jnp.asarray(x), value=quadratic(jnp.asarray(x)), value_fn=quadratic
    )
    rate = oracles.search.backtracking(lambda x: 0.5 * x @ SPD @ x, x, -g, g, 1.5, 0.2, 0.8, 40)
    np.testing.assert_allclose(u, -rate * g, rtol=1e-12)
    assert state.scalars["scale_by_backtracking_linesearch"]["num_linesearch_steps"] > 5


def test_zoom_meets_the_strong_wolfe_conditions(x64):
    x = jnp.asarray([-1.2, 1.0, -0.5, 0.8])
    value, g = jax.value_and_grad(rosenbrock)(x)
    for scale in (1e-6, 1e-2, 1.0, 50.0):
        tx = jopt.scale_by_zoom_linesearch(30, curv_rtol=0.2)
        u, state = tx.update(-scale * g, tx.init(x), x, value=value, value_fn=rosenbrock)
        after, slope = jax.value_and_grad(rosenbrock)(x + u)
        assert after <= value + 1e-4 * (u @ g)
        assert abs(slope @ u) <= 0.2 * abs(g @ u)
        kept = state.slots["scale_by_zoom_linesearch"]["grad"][""]
        np.testing.assert_allclose(kept, slope, rtol=1e-9)


# What is ours ----------------------------------------------------------------------------------------


def test_the_gradient_may_be_left_out(x64):
    params = parameters()
    value, grad = jax.value_and_grad(joined)(params)
    tx = jopt.lbfgs()
    given, _ = tx.update(grad, tx.init(params), params, value=value, grad=grad, value_fn=joined)
    computed, _ = tx.update(grad, tx.init(params), params, value=value, value_fn=joined)
    for name in params:
        np.testing.assert_allclose(given[name], computed[name], rtol=1e-12)


def test_the_function_gets_the_extras_it_names():
    def shifted(x, shift, *, scale=1.0):
        return scale * jnp.sum((x - shift) ** 2)

    x, shift = jnp.zeros(3), jnp.asarray([1.0, 2.0, 3.0])
    value, grad = jax.value_and_grad(shifted)(x, shift)
    tx = jopt.lbfgs()
    state = tx.init(x)
    for _ in range(3):
        u, state = tx.update(grad, state, x, value=value, value_fn=shifted, shift=shift, unheard_of=1.0)
        x = x + u
        value, grad = jax.value_and_grad(shifted)(x, shift)
    np.testing.assert_allclose(x, shift, rtol=1e-4)


def test_only_some_leaves_are_searched_and_the_function_sees_all():
    params = {"w": jnp.asarray([3.0, -2.0]), "n": jnp.arange(2), "frozen": jnp.asarray([1.0, 1.0])}

    def fn(params):
        return jnp.sum((params["w"] - params["n"].astype(jnp.float32) * params["frozen"]) ** 2)

    tx = jopt.masked(jopt.chain(jopt.sgd(1.0), jopt.scale_by_zoom_linesearch(15)), where="w")
    value, grad = jax.value_and_grad(fn, allow_int=True)(params)
    u, _ = tx.update(grad | {"frozen": jnp.zeros(2)}, tx.init(params), params, value=value, value_fn=fn)
    np.testing.assert_allclose(params["w"] + u["w"], [0.0, 1.0], atol=1e-5)
    np.testing.assert_array_equal(u["frozen"], 0)


def walled(x):
    """Infinite from 1 on."""
    return jnp.where(x[0] < 1, -jnp.log1p(-jnp.minimum(x[0], 0.999999)) - 3 * x[0], jnp.inf)


@pytest.mark.parametrize("search", ["scale_by_zoom_linesearch", "scale_by_backtracking_linesearch"])
def test_a_wall_of_infinity_is_not_crossed(search):
    x, tx = jnp.zeros(1), getattr(jopt, search)(30)
    u, _ = tx.update(jnp.asarray([5.0]), tx.init(x), x, value=walled(x), value_fn=walled)
    assert 0 < u[0] < 1
    assert walled(x + u) < walled(x)


def test_a_failed_search_stays_and_the_next_one_recovers():
    def nowhere(x):
        return jnp.where(jnp.all(x == 0), 0.0, jnp.nan) + 0 * jnp.sum(x)

    x, tx = jnp.zeros(2), jopt.scale_by_backtracking_linesearch(3, store_grad=True)
    u, state = tx.update(-jnp.ones(2), tx.init(x), x, value=jnp.zeros(()), value_fn=nowhere)
    np.testing.assert_array_equal(u, 0)
    assert jnp.isfinite(state.scalars["scale_by_backtracking_linesearch"]["value"])

    def fine(x):
        return jnp.sum((x + 1) ** 2)

    u, state = tx.update(-jnp.ones(2), state, x, value=fine(x), value_fn=fine)
    assert fine(x + u) < fine(x)
    with lenient():  # optax's rate is 0 from then on
        tx = optax.scale_by_backtracking_linesearch(3)
        g = jnp.ones(2)
        _, state = tx.update(-g, tx.init(x), x, value=jnp.zeros(()), grad=g, value_fn=nowhere)
        u, _ = tx.update(-g, state, x, value=fine(x), grad=2 * g, value_fn=fine)
    np.testing.assert_array_equal(u, 0)


def test_value_and_grad_come_from_the_state_without_another_call():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return jnp.sum((x - 2) ** 2)

    x, tx = jnp.zeros(3), jopt.lbfgs()
    value_and_grad = jopt.value_and_grad_from_state(counted)
    state = tx.init(x)
    first, grad = value_and_grad(x, state=state)
    jax.effects_barrier()
    assert (first, len(calls)) == (12.0, 1)
    u, state = tx.update(grad, state, x, value=first, grad=grad, value_fn=counted)
    jax.effects_barrier()
    before = len(calls)
    value, grad = value_and_grad(x + u, state=state)
    jax.effects_barrier()
    assert len(calls) == before
    np.testing.assert_allclose(value, jnp.sum((x + u - 2) ** 2), rtol=1e-6)
    np.testing.assert_allclose(grad, 2 * (x + u - 2), rtol=1e-6)


def test_errors_say_what_is_missing():
    x = jnp.ones(2)
    tx = jopt.lbfgs()
    with pytest.raises(TypeError, match=r"value_fn"):
        tx.update(x, tx.init(x), x, value=1.0)
    with pytest.raises(TypeError, match="params=None"):
        tx.update(x, tx.init(x), value=1.0, value_fn=jnp.sum)
    with pytest.raises(ValueError, match="line searches"):
        jopt.value_and_grad_from_state(jnp.sum)(x, state=jopt.sgd(0.1).init(x))
    stateless = jopt.scale_by_backtracking_linesearch(3)
    with pytest.raises(ValueError, match="store_grad"):
        jopt.value_and_grad_from_state(jnp.sum)(x, state=stateless.init(x))
    with pytest.raises(ValueError, match="'one' or 'keep'"):
        jopt.scale_by_zoom_linesearch(3, initial_guess_strategy="two")
    with pytest.raises(ValueError, match="memory_size"):
        jopt.scale_by_lbfgs(0)
