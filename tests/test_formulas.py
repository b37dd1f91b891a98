"""Every block of docs/formulas.md runs, and gives the formula it stands for."""

import math
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt import schedules

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "formulas.md").read_text()
SETUP, *BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
NAMES = [re.match(r"# formula: (\S+)\n|", block)[1] for block in BLOCKS]
STEPS = 40
FALL = schedules.exponential_decay(0.1, 10, 0.5)

# The transcriptions, by the name of the formula. Those of updates are generators of the parameters
# after each step; they get the gradient as a function of a point and the step from 0, the start, and
# the page's numbers, where k.gamma is a function of the step.
UPDATES, SCHEDULES, DEVIATIONS = {}, {}, {}


def update(*names):
    return lambda function: UPDATES.update(dict.fromkeys(names, function))


def plain(name):
    """A formula θ ← θ − γₜ u whose u needs the gradient, its own memory and the step from 1."""

    def register(direction):
        def points(grad, x, k):
            s = {}
            for t in range(STEPS):
                x = x - k.gamma(t) * direction(grad(x, t), x, s, t + 1, k)
                yield x

        UPDATES[name] = points
        return direction

    return register


# Momentum ----------------------------------------------------------------------------------------

plain("gradient-descent")(lambda g, x, s, t, k: g)


@update("heavy-ball")
def _heavy_ball(grad, x, k):
    before = x
    for t in range(STEPS):
        x, before = x - k.gamma(t) * grad(x, t) + k.mu * (x - before), x
        yield x


@update("classical-momentum")
def _classical_momentum(grad, x, k):
    v = 0.0
    for t in range(STEPS):
        v = k.mu * v - k.gamma(t) * grad(x, t)
        x = x + v
        yield x


@plain("momentum")
def _momentum(g, x, s, t, k):
    s["m"] = k.mu * s.get("m", 0.0) + g
    return s["m"]


plain("momentum-average")(lambda g, x, s, t, k: _mean(g, s, "m", k.mu))
plain("momentum-average-corrected")(lambda g, x, s, t, k: _mean(g, s, "m", k.mu) / (1 - k.mu**t))


@update("nesterov-lookahead")
def _lookahead(grad, x, k):
    v = 0.0
    for t in range(STEPS):
        v = k.mu * v - k.gamma(t) * grad(x + k.mu * v, t)
        x = x + v
        yield x + k.mu * v


@update("nesterov-sequence")
def _sequence(grad, y, k):
    x = y
    for t in range(STEPS):
        x, before = y - k.gamma(t) * grad(y, t), x
        y = x + k.mu * (x - before)
        yield y


@plain("nesterov")
def _nesterov(g, x, s, t, k):
    s["m"] = k.mu * s.get("m", 0.0) + g
    return g + k.mu * s["m"]


# AdaGrad, RMSProp, AdaDelta ----------------------------------------------------------------------


def _mean(x, s, name, decay):
    s[name] = decay * s.get(name, 0.0) + (1 - decay) * x
    return s[name]


def _total(g, s):
    s["G"] = s.get("G", 0.0) + g * g
    return s["G"]


def _variance(g, s, k):
    return _mean(g * g, s, "v", k.rho) - _mean(g, s, "m", k.rho) ** 2


plain("adagrad-eps-outside")(lambda g, x, s, t, k: g / (np.sqrt(_total(g, s)) + k.eps))
plain("adagrad-eps-inside")(lambda g, x, s, t, k: g / np.sqrt(_total(g, s) + k.eps))
plain("rmsprop-eps-inside")(lambda g, x, s, t, k: g / np.sqrt(_mean(g * g, s, "v", k.rho) + k.eps))
plain("rmsprop-eps-outside")(lambda g, x, s, t, k: g / (np.sqrt(_mean(g * g, s, "v", k.rho)) + k.eps))
plain("rmsprop-centered")(lambda g, x, s, t, k: g / np.sqrt(_variance(g, s, k) + k.eps))
plain("rmsprop-centered-eps-outside")(lambda g, x, s, t, k: g / (np.sqrt(_variance(g, s, k)) + k.eps))


@update("rmsprop-graves")
def _graves(grad, x, k):
    s, delta = {}, 0.0
    for t in range(STEPS):
        g = grad(x, t)
        delta = k.mu * delta - k.gamma(t) * g / np.sqrt(_variance(g, s, k) + k.eps)
        x = x + delta
        yield x


@update("adadelta")
def _adadelta(grad, x, k):
    s = {}
    for t in range(STEPS):
        g = grad(x, t)
        delta = -np.sqrt(s.get("x", 0.0) + k.eps) / np.sqrt(_mean(g * g, s, "v", k.rho) + k.eps) * g
        _mean(delta * delta, s, "x", k.rho)
        x = x + delta
        yield x


# Adam --------------------------------------------------------------------------------------------


def _adam(g, s, t, k):
    m, v = _mean(g, s, "m", k.b1), _mean(g * g, s, "v", k.b2)
    return m / (1 - k.b1**t) / (np.sqrt(v / (1 - k.b2**t)) + k.eps)


plain("adam")(lambda g, x, s, t, k: _adam(g, s, t, k))


@plain("adam-uncorrected")
def _uncorrected(g, x, s, t, k):
    return _mean(g, s, "m", k.b1) / (np.sqrt(_mean(g * g, s, "v", k.b2)) + k.eps)


@plain("adam-eps-hat")
def _eps_hat(g, x, s, t, k):
    return math.sqrt(1 - k.b2**t) / (1 - k.b1**t) * _uncorrected(g, x, s, t, k)


@plain("nadam")
def _nadam(g, x, s, t, k):
    m, v = _mean(g, s, "m", k.b1), _mean(g * g, s, "v", k.b2) / (1 - k.b2**t)
    return (k.b1 * m / (1 - k.b1 ** (t + 1)) + (1 - k.b1) * g / (1 - k.b1**t)) / (np.sqrt(v) + k.eps)


@plain("amsgrad")
def _amsgrad(g, x, s, t, k):
    m = _mean(g, s, "m", k.b1)
    s["w"] = np.maximum(s.get("w", 0.0), _mean(g * g, s, "v", k.b2))
    return m / (np.sqrt(s["w"]) + k.eps)


@plain("adamax")
def _adamax(g, x, s, t, k):
    s["w"] = np.maximum(k.b2 * s.get("w", 0.0), np.abs(g) + k.eps)
    return _mean(g, s, "m", k.b1) / (1 - k.b1**t) / s["w"]


# Penalties, clipping, constraints ----------------------------------------------------------------


def _norm(x):
    return math.sqrt(math.fsum(np.ravel(x) ** 2))


plain("l2-sum-of-squares")(lambda g, x, s, t, k: g + 2 * k.lam * x)
plain("l2-half")(lambda g, x, s, t, k: g + k.lam * x)
plain("l2-norm")(lambda g, x, s, t, k: g + k.lam * x / _norm(x))
plain("adam-l2")(lambda g, x, s, t, k: _adam(g + k.lam * x, s, t, k))
plain("adamw")(lambda g, x, s, t, k: _adam(g, s, t, k) + k.lam * x)
plain("adamw-paper")(lambda g, x, s, t, k: k.alpha * _adam(g, s, t, k) + k.lam * x)
plain("momentum-weight-decay")(lambda g, x, s, t, k: _momentum(g, x, s, t, k) + k.lam * x)
plain("l1-subgradient")(lambda g, x, s, t, k: g + k.lam * np.sign(x))
plain("clip-value")(lambda g, x, s, t, k: np.minimum(np.maximum(g, -k.lam), k.lam))
plain("clip-norm")(lambda g, x, s, t, k: g * min(1.0, k.lam / _norm(g)))


@update("decay-without-rate")
def _decay_without_rate(grad, x, k):
    s = {}
    for t in range(STEPS):
        x = (1 - k.lam) * x - k.gamma(t) * _adam(grad(x, t), s, t + 1, k)
        yield x


@update("l1-proximal")
def _proximal(grad, x, k):
    for t in range(STEPS):
        x = x - k.gamma(t) * grad(x, t)
        x = np.sign(x) * np.maximum(np.abs(x) - k.gamma(t) * k.lam, 0.0)
        yield x


@update("max-norm")
def _max_norm(grad, x, k):
    for t in range(STEPS):
        x = x - k.gamma(t) * grad(x, t)
        x = np.stack([unit * min(1.0, k.alpha / _norm(unit)) for unit in x.T], axis=1)
        yield x


# Initialisation and schedules --------------------------------------------------------------------

DEVIATIONS["he"] = lambda n_in, n_out: math.sqrt(2 / n_in)
DEVIATIONS["xavier-normal"] = lambda n_in, n_out: math.sqrt(2 / (n_in + n_out))
DEVIATIONS["xavier-uniform"] = lambda n_in, n_out: math.sqrt(6 / (n_in + n_out)) / math.sqrt(3)


def _half_cosine(start, end, share):
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0)))


def _restarts(n):
    start, length = 0, 20
    while n >= start + length:
        start, length = start + length, 2 * length
    return _half_cosine(0.1, 0.0, (n - start) / length)


SCHEDULES |= {
    "constant": lambda n: 0.1,
    "step": lambda n: 0.1 * 0.5 ** (n // 30),
    "exponential": lambda n: 0.1 * 0.5 ** (n / 30),
    "exponential-rate": lambda n: 0.1 * math.exp(-0.02 * n),
    "inverse-time": lambda n: 0.1 / (1 + 0.02 * n),
    "polynomial": lambda n: 0.01 + 0.09 * (1 - min(n, 80) / 80) ** 2,
    "cosine": lambda n: _half_cosine(0.1, 0.01, n / 80),
    "restarts": _restarts,
    "warmup": lambda n: 0.1 * min(n / 10, 1),
    "warmup-cosine": lambda n: 0.1 * n / 10 if n < 10 else _half_cosine(0.1, 0.0, (n - 10) / 70),
    "cyclical": lambda n: 0.01 + 0.09 * (1 - abs(n / 15 - 2 * (n // 30) - 1)),
    "one-cycle": lambda n: _half_cosine(0.1 / 25, 0.1, n / 30) if n < 30 else _half_cosine(0.1, 4e-7, (n - 30) / 70),
    "one-cycle-momentum": lambda n: _half_cosine(*((0.95, 0.85, n / 30) if n < 30 else (0.85, 0.95, (n - 30) / 70))),
    "inverse-sqrt": lambda n: 0.1 * n / 10 if n < 10 else 0.1 * math.sqrt(10 / n),
    "transformer": lambda n: 512**-0.5 * min((n + 1) ** -0.5, (n + 1) * 10**-1.5),
    "warmup-stable-decay": lambda n: 0.1 * (min(n / 10, 1) if n < 60 else max(1 - (n - 60) / 20, 0)),
}


# The page against them ---------------------------------------------------------------------------


def run_block(name, **numbers):
    """What a block defines, after the setup with some of its numbers replaced."""
    space = {"__name__": "formulas"}
    exec(SETUP, space)
    space |= numbers
    exec(BLOCKS[NAMES.index(name)], space)
    return types.SimpleNamespace(**space)


def gradient(seed=0):
    """The gradient of a strongly convex quadratic of a (4, 3) matrix, with noise of the step's own; and a start."""
    rng = np.random.default_rng(seed)
    half = rng.standard_normal((3, 3))
    hessian, shift = half @ half.T / 3 + 0.1 * np.eye(3), rng.standard_normal((4, 3))
    noise = 0.3 * rng.standard_normal((STEPS, 4, 3))
    return lambda x, t: (x - shift) @ hessian + noise[t], rng.standard_normal((4, 3))


def follow(tx, grad, x):
    """The parameters after each step of a chain, eagerly."""
    params = {"kernel": jnp.asarray(x)}
    state, points = tx.init(params), []
    for t in range(STEPS):
        g = {"kernel": jnp.asarray(grad(np.asarray(params["kernel"]), t))}
        updates, state = tx.update(g, state, params)
        params = jopt.apply_updates(params, updates)
        points.append(np.asarray(params["kernel"]))
    return np.stack(points)


def distance(name, other, gamma, **numbers):
    """How far the chains of two formulas part, relative to the size of the parameters."""
    grad, x = gradient()
    first = follow(run_block(name, gamma=gamma).tx, grad, x)
    second = follow(run_block(other, gamma=gamma, **numbers).tx, grad, x)
    return np.max(np.abs(first - second)) / np.max(np.abs(first))


def test_every_block_is_named_and_every_formula_is_tested():
    assert SETUP.startswith("# setup\n")
    assert None not in NAMES
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) == UPDATES.keys() | SCHEDULES.keys() | DEVIATIONS.keys()


def test_the_index_names_every_formula_under_its_section():
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| (.+?) \|", PAGE, re.MULTILINE)
    sections = re.split(r"^## (.+)\n", PAGE, flags=re.MULTILINE)[1:]
    assert [title for title, _, _ in rows] == sections[::2]
    for (title, anchor, formulas), text in zip(rows, sections[1::2], strict=True):
        assert anchor == title.lower().replace(" ", "-")
        assert re.findall(r"`([^`]+)`", formulas) == re.findall(r"^# formula: (\S+)$", text, re.MULTILINE)


def test_the_page_is_narrow_enough_to_read():
    blocks = [line for block in BLOCKS for line in block.splitlines()]
    assert max(map(len, blocks)) <= 120


@pytest.mark.parametrize("name", UPDATES)
def test_a_chain_follows_its_formula(name, x64):
    grad, x = gradient()
    numbers = run_block(name, gamma=FALL)
    k = types.SimpleNamespace(**vars(numbers) | {"gamma": lambda t: 0.1 * 0.5 ** (t / 10)})
    expected = np.stack(list(UPDATES[name](grad, x, k)))
    got = follow(numbers.tx, grad, x)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected)))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_follows_its_formula(name, x64):
    schedule = run_block(name).schedule
    for count in range(150):
        value = schedule(jnp.asarray(count, jnp.int32))
        assert float(value) == pytest.approx(SCHEDULES[name](count), rel=1e-11, abs=1e-17)


@pytest.mark.parametrize("name", DEVIATIONS)
def test_an_initialiser_has_the_deviation_of_its_formula(name):
    shape = (600, 200)
    x = np.asarray(run_block(name).init(jax.random.key(0), shape, jnp.float32), np.float64)
    # Four standard errors of a normal deviation: 1/√(2n) of itself; those cut or uniform have less.
    assert np.std(x) == pytest.approx(DEVIATIONS[name](*shape), rel=4 / math.sqrt(2 * x.size))
    assert abs(np.mean(x)) < 4 * np.std(x) / math.sqrt(x.size)
    if name == "xavier-uniform":
        bound = math.sqrt(6 / sum(shape))
        assert 0.999 * bound < np.max(np.abs(x)) <= bound * (1 + 1e-6)


def test_the_models_initialisers_are_those_of_the_page():
    models = pytest.importorskip("jopt.models")
    for activation, name in (("relu", "he"), ("tanh", "xavier-normal")):
        ours = models.matching_initializer(activation)(jax.random.key(0), (20, 30), jnp.float32)
        np.testing.assert_array_equal(ours, run_block(name).init(jax.random.key(0), (20, 30), jnp.float32))


# What the page says about pairs of formulas ------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), [("heavy-ball", "momentum"), ("nesterov-lookahead", "nesterov")])
def test_momentum_before_and_after_the_rate_agree_at_a_constant_rate_alone(name, other, x64):
    assert distance(name, other, 0.1) < 1e-12
    assert distance(name, other, FALL) > 1e-2


def test_momentum_with_a_rescaled_memory_is_the_heavy_ball(x64):
    def rescaled(count):  # μγₜ₋₁/γₜ; at the first step there is no memory
        return 0.9 * 2.0 ** (jnp.minimum(count, 1).astype(float) / 10)

    assert distance("heavy-ball", "momentum", FALL, mu=rescaled) < 1e-12


def test_averaged_momentum_is_momentum_at_a_tenth_of_the_rate(x64):
    grad, x = gradient()
    averaged = follow(run_block("momentum-average", gamma=0.1).tx, grad, x)
    np.testing.assert_allclose(averaged, follow(jopt.momentum(0.1 * (1 - 0.9), 0.9), grad, x), rtol=1e-12)


def test_eps_hat_scaled_with_the_correction_is_eps(x64):
    def scaled(count):
        return 1e-4 * jnp.sqrt(1 - 0.99 ** jnp.asarray(count + 1, float))

    assert distance("adam", "adam-eps-hat", 0.1, eps=scaled) < 1e-11
    assert distance("adam", "adam-eps-hat", 0.1) > 1e-6


def test_l2_is_decay_for_gradient_descent_and_not_for_adam_or_momentum(x64):
    grad, x = gradient()
    penalty = follow(run_block("l2-half", gamma=0.1).tx, grad, x)
    decay = follow(
        jopt.chain(jopt.identity(), jopt.add_decayed_weights(0.03), jopt.scale_by_learning_rate(0.1)), grad, x
    )
    np.testing.assert_array_equal(penalty, decay)
    assert distance("adam-l2", "adamw", 0.1) > 1e-2
    coupled = jopt.chain(jopt.add_decayed_weights(0.03), jopt.momentum(0.1, 0.9))
    assert (
        np.max(np.abs(follow(coupled, grad, x) - follow(run_block("momentum-weight-decay", gamma=0.1).tx, grad, x)))
        > 1e-2
    )


def test_the_lambda_of_the_paper_is_divided_by_alpha(x64):
    grad, x = gradient()
    paper = follow(run_block("adamw-paper", gamma=0.2).tx, grad, x)
    ours = follow(jopt.adamw(0.2 * 0.5, 0.9, 0.99, 1e-4, weight_decay=0.03 / 0.5), grad, x)
    np.testing.assert_allclose(ours, paper, rtol=1e-10)


def test_the_soft_threshold_reaches_zero_and_the_subgradient_does_not(x64):
    grad, x = (lambda x, t: 0.0 * x), np.full((4, 3), 0.011)
    proximal = follow(run_block("l1-proximal", gamma=0.1).tx, grad, x)
    subgradient = follow(run_block("l1-subgradient", gamma=0.1).tx, grad, x)
    assert np.all(proximal[-1] == 0)
    assert np.all(subgradient[-1] != 0)
    assert np.all(np.abs(subgradient[-1]) < 0.1 * 0.03)
