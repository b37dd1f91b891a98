"""Every rule and optimizer against its NumPy transcription, over one recorded sequence of gradients."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from zoo import ORACLES, RANDOM, SYMBOLS
from zoo.cases import SHAPES

import jopt
import jopt.clip
import jopt.optimizers
import jopt.regularize
import jopt.rules

STEPS = 1000
BARE = -0.01  # a bare rule's direction is subtracted in small steps; what steps itself is added as it is

PARAMS, GRADS, LOSSES = oracles.record(SHAPES, STEPS)


def narrowed(tree, real):
    """float64 arrays with the values that `real` can hold."""
    return {name: np.asarray(x, real).astype(np.float64) for name, x in tree.items()}


def inputs(case, real):
    params, grads = narrowed(PARAMS, real), narrowed(GRADS, real)
    if case.name == "zero_nans":
        grads["kernel"][::7, 1, 2] = np.nan
        grads["gain"][5] = np.nan
    return {n: params[n] for n in case.only}, {n: grads[n] for n in case.only}


def replay(case, real):
    """All steps of jopt in one scan: updates, parameters and slots after each."""
    tx, rate = case.transform(), 1.0 if case.steps_itself else BARE
    params, grads = inputs(case, real)
    params = {n: jnp.asarray(x, real) for n, x in params.items()}
    extra = {"value": jnp.asarray(LOSSES, real)} if case.value else {}

    def step(carry, now):
        params, state = carry
        updates, state = tx.update(now[0], state, params, **now[1])
        params = {n: p + jnp.asarray(rate, real) * updates[n] for n, p in params.items()}
        return (params, state), (updates, params, state.slots)

    grads = {n: jnp.asarray(x, real) for n, x in grads.items()}
    run = jax.jit(lambda params, state, seen: jax.lax.scan(step, (params, state), seen)[1])
    return jax.tree.map(np.asarray, run(params, tx.init(params), (grads, extra)))


def transcribe(case, real):
    """All steps of the oracle in float64: updates, parameters and memories after each."""
    oracle, rate = oracles.find(case.name), 1.0 if case.steps_itself else float(real(BARE))
    defaults = inspect.signature(getattr(jopt, case.name)).parameters
    params, grads = inputs(case, real)
    memory = {} if case.tree else {name: {} for name in params}
    rows = []
    for t in range(1, STEPS + 1):
        g = {name: x[t - 1] for name, x in grads.items()}
        numbers = {name: _live(case, t, name, real, defaults, oracle) for name in params}
        extra = {"value": float(real(LOSSES[t - 1]))} if case.value else {}
        if case.tree:
            u = oracle(g, params, memory, t, **extra, **next(iter(numbers.values())))
        else:
            u = {name: oracle(g[name], p, memory[name], t, **extra, **numbers[name]) for name, p in params.items()}
        params = {name: p + rate * u[name] for name, p in params.items()}
        rows.append((u, params, {name: _memory_of(name, memory, case.tree) for name in params}))
    return rows


def _memory_of(leaf, memory, tree):
    """What the oracle keeps for a leaf; one over the tree keeps dicts of arrays beside its numbers."""
    if not tree:
        return dict(memory[leaf])
    return {symbol: x[leaf] for symbol, x in memory.items() if isinstance(x, dict)}


def _live(case, t, leaf, real, defaults, oracle):
    """The numbers given, and the factory's defaults: both as the state holds them."""
    taken = inspect.signature(oracle).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    found = {n: float(real(p.default)) for n, p in defaults.items() if isinstance(p.default, float)}
    found = {n: v for n, v in found.items() if takes_any or n in taken}
    return found | case.numbers_at(t, leaf, real)


def check(case, real, tolerance):
    got_updates, got_params, got_slots = replay(case, real)
    rows = transcribe(case, real)
    for name in got_params:
        compare_leaf(case, name, rows, got_updates[name], got_params[name], real, tolerance)
    for part, slots in got_slots.items():
        symbols = SYMBOLS[part.split("/")[-1].removesuffix("_2")]
        for slot, arrays in slots.items():
            for name, x in arrays.items():
                symbol = next(s for s in symbols[slot] if s in rows[-1][2][name])
                expected = np.stack([np.broadcast_to(row[2][name][symbol], x.shape[1:]) for row in rows])
                assert oracles.error(x, expected) <= tolerance, f"{part}/{slot} of {name}"


def compare_leaf(case, name, rows, updates, params, real, tolerance):
    """Updates and parameters of one leaf; where an update is a small difference, the parameters alone."""
    expected_u = np.stack([row[0][name] for row in rows])
    expected_p = np.stack([row[1][name] for row in rows])
    sure = np.ones(expected_u.shape, bool)
    if "argument" in rows[0][2].get(name, {}):
        # A sign is exact, unless its argument is within rounding of zero.
        arguments = np.stack([np.abs(row[2][name]["argument"]) for row in rows])
        terms = np.stack([row[2][name]["terms"] for row in rows])
        sure = arguments >= 20 * float(np.finfo(real).eps) * terms
        assert np.mean(~sure) < 1e-3
        if not case.steps_itself:
            np.testing.assert_array_equal(updates[sure], expected_u[sure])
            updates = np.where(sure, updates, expected_u)
    followed = np.logical_and.accumulate(sure, axis=0)
    if not case.last:
        assert oracles.error(np.where(followed, updates, expected_u), expected_u) <= tolerance, f"the update of {name}"
    assert oracles.error(np.where(followed, params, expected_p), expected_p) <= tolerance, name


def tier(cases, is_slow):
    return [pytest.param(case, id=repr(case), marks=[pytest.mark.slow] if is_slow(case) else []) for case in cases]


# One of each kind of arithmetic: sums, averages, powers of b2, norms of arrays and of the tree, signs, matrices.
QUICK = [
    "trace",
    "scale_by_root_sum",
    "scale_by_adam",
    "scale_by_stddev",
    "lamb",
    "clip_by_global_norm",
    "lion",
    "scale_by_muon",
]


@pytest.mark.parametrize("case", tier(ORACLES, lambda case: case.slow))
def test_double_precision_follows_the_paper(case, x64):
    check(case, np.float64, case.tolerance[0])


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="scalars are float64 then")
@pytest.mark.parametrize("case", tier(ORACLES, lambda case: case.slow or case.name not in QUICK))
def test_single_precision_follows_the_paper(case):
    check(case, np.float32, case.tolerance[1])


def test_every_public_rule_and_optimizer_has_a_transcription():
    public = {name: getattr(jopt, name) for name in (*jopt.optimizers.__all__, *jopt.rules.__all__)}
    for name, value in vars(jopt).items():
        if getattr(value, "__module__", "") in ("jopt.clip", "jopt.regularize", "jopt.plateau", "jopt.privacy"):
            public[name] = value
    assert public.keys() - RANDOM.keys() == {case.name for case in ORACLES} - set(jopt.wrap.__all__)
    for case in ORACLES:
        assert inspect.isfunction(oracles.find(case.name))


def test_every_slot_has_a_symbol_and_every_symbol_is_a_slot():
    seen = {}
    for case in ORACLES:
        params = {name: jnp.zeros(SHAPES[name]) for name in case.only}
        for part, slots in case.transform().init(params).slots.items():
            seen.setdefault(part.split("/")[-1], set()).update(slots)
    assert seen == {name: set(slots) for name, slots in SYMBOLS.items()}


@pytest.mark.parametrize("name", ["scale_by_adam", "lion", "clip_by_global_norm"])
def test_a_wrong_transcription_is_noticed(name, monkeypatch, x64):
    """The comparison itself can fail: one part in 10⁹ at a single step is seen."""
    case = next(case for case in ORACLES if case.name == name)
    right = oracles.find(name)

    def wrong(g, p, s, t, **numbers):
        u, off = right(g, p, s, t, **numbers), 1.0 + 1e-9 * (t == 900)
        return {leaf: x * off for leaf, x in u.items()} if isinstance(u, dict) else u * off

    wrong.__signature__ = inspect.signature(right)
    monkeypatch.setattr(oracles, "find", lambda name: wrong)
    with pytest.raises(AssertionError):
        check(case, np.float64, case.tolerance[0])


def noise(shapes, steps, eta, gamma, key=0):
    """The noise that add_noise adds to zero gradients, by step and leaf."""
    tx, zeros = jopt.add_noise(eta, gamma, key), {name: jnp.zeros(shape) for name, shape in shapes.items()}
    state, seen = tx.init(zeros), []
    for _ in range(steps):
        u, state = tx.update(zeros, state)
        seen.append({name: np.asarray(x, np.float64) for name, x in u.items()})
    return seen


def test_noise_is_gaussian_with_the_variance_of_the_paper():
    """Neelakantan et al. 2015, equation 1: σ²ₜ = η / (1 + t)^γ, with t from 0."""
    eta, gamma, n = 0.3, 0.55, 40_000
    for t, u in enumerate(noise({"w": (n,)}, 4, eta, gamma)):
        x = u["w"] / math.sqrt(eta / (1 + t) ** gamma)
        # Five standard errors of the mean, the variance, and the third and fourth moment of a normal.
        for moment, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(np.mean(x**moment) - expected) < 5 * math.sqrt(variance / n)


def test_noise_of_leaves_steps_and_keys_is_independent_and_repeats():
    n = 20_000
    shapes = {"a": (n,), "b": (n,)}
    first, second = noise(shapes, 2, 1.0, 0.0)
    other = noise(shapes, 1, 1.0, 0.0, key=1)[0]
    draws = [first["a"], first["b"], second["a"], second["b"], other["a"], other["b"]]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.max(np.abs(correlation)) < 5 / math.sqrt(n)
    np.testing.assert_array_equal(noise(shapes, 1, 1.0, 0.0)[0]["a"], first["a"])
