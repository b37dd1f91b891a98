"""Every rule and optimizer against its NumPy transcription, over one recorded sequence of gradients."""

import dataclasses
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import jopt
import jopt.clip
import jopt.optimizers
import jopt.regularize
import jopt.rules
from jopt import schedules

STEPS = 1000
BARE = -0.01  # a bare rule's direction is subtracted in small steps; what steps itself is added as it is
SHAPES = {"kernel": (5, 3), "bias": (5,), "gain": (), "wide": (3, 6), "filters": (2, 2, 3, 2)}
LEAVES = ["kernel", "bias", "gain"]  # the others only where a rule looks at shapes


@dataclasses.dataclass(frozen=True)
class Both:
    """One schedule twice: jopt's, and NumPy's of the step from 0."""

    jopt: object
    numpy: object


FALL = Both(schedules.exponential_decay(0.05, 300, 0.5), lambda n: 0.05 * 0.5 ** (n / 300))
RISE = Both(schedules.linear_schedule(0.8, 0.95, 500), lambda n: 0.8 + 0.15 * min(n / 500, 1.0))
FADE = Both(schedules.cosine_decay_schedule(0.1, 1000), lambda n: 0.05 * (1.0 + math.cos(math.pi * n / 1000)))


# They see the stepped parameters, so that what enters them is a step already.
LAST_IN_CHAIN = ("average_params", "clip_params", "keep_params_nonnegative", "max_norm_constraint", "soft_threshold")


class Case:
    """A factory with its numbers, and how it is replayed.

    Args:
        name: of the factory in jopt and of its oracle.
        only: leaves to run on.
        masked: {number: leaves on which it holds}; it is 0 on the others.
        static: arguments that jopt alone is given.
        slow: left to the slow tier.
        tolerance: relative bounds (float64, float32) where the usual ones cannot hold.
        **numbers: arguments of both.
    """

    def __init__(self, name, only=LEAVES, masked=None, static=None, slow=False, tolerance=(1e-12, 1e-5), **numbers):
        self.name, self.only, self.masked, self.numbers = name, only, masked or {}, numbers
        self.static, self.slow, self.tolerance = static or {}, slow, tolerance

    def __repr__(self):
        shown = [n + ("@" if isinstance(v, Both) else f"={v}" * (v is not True)) for n, v in self.numbers.items()]
        return "-".join([self.name, *shown, *self.static]).replace(" ", "")

    @property
    def steps_itself(self):
        return self.name in jopt.optimizers.__all__ or self.name in LAST_IN_CHAIN

    def transform(self):
        given = {name: value.jopt if isinstance(value, Both) else value for name, value in self.numbers.items()}
        return getattr(jopt, self.name)(**given, **self.static)

    def numbers_at(self, t, leaf, real):
        """The numbers of step t as `real` holds them: jopt's live numbers are float32 without x64."""
        found = {}
        for name, value in self.numbers.items():
            value = value.numpy(t - 1) if isinstance(value, Both) else value
            value = 0.0 if leaf not in self.masked.get(name, [leaf]) else value
            found[name] = float(real(value)) if isinstance(value, float) else value
        return found


def on(leaves, number="weight_decay", **static):
    """A mask: jopt is given `static`, and the oracle the number on these leaves alone."""
    return {"static": static, "masked": {number: leaves}}


MATRICES = ["kernel", "wide"]
UNITS = [*LEAVES, "filters"]
# Newton-Schulz multiplies small singular values by 3.4445 at each of 5 steps, that is by up to 485, and
# the rounding of its input with them.
MUON = (1e-11, 5e-4)
# In float32 each step rounds the parameter by up to 3e-8 of itself: 1000 steps of one small size, all rounded
# the same way, add up to 3e-5. This is the parameter's dtype, not the rule's arithmetic.
ROUNDED = (1e-12, 3e-5)

CASES = [
    Case("identity"),
    Case("set_to_zero"),
    Case("scale", step_size=-0.3),
    Case("scale", step_size=FALL, slow=True),
    Case("scale_by_schedule", step_size_fn=FALL),
    Case("scale_by_learning_rate", learning_rate=0.3),
    Case("scale_by_learning_rate", learning_rate=FADE, flip_sign=False),
    Case("trace", decay=0.9),
    Case("trace", decay=0.9, nesterov=True, slow=True),
    Case("trace", decay=RISE),
    Case("nesterov_trace", decay=0.95),
    Case("scale_by_ema", decay=0.9),
    Case("scale_by_ema", decay=0.95, debias=False),
    Case("average_params", decay=0.99),
    Case("sgd", learning_rate=0.05),
    Case("sgd", learning_rate=FALL, momentum=0.9),
    Case("sgd", learning_rate=0.05, momentum=0.9, nesterov=True, slow=True),
    Case("momentum", learning_rate=0.02, slow=True),
    Case("momentum", learning_rate=FADE, momentum=RISE),
    Case("nesterov", learning_rate=0.02),
    Case("scale_by_root_sum"),
    Case("scale_by_root_sum", initial_accumulator_value=0.2, eps=1e-3, slow=True),
    Case("scale_by_rss"),
    Case("scale_by_rss", initial_accumulator_value=0.0, eps=1e-3, slow=True),
    Case("adagrad", learning_rate=0.1),
    Case("adagrad", learning_rate=FALL, initial_accumulator_value=0.0, eps=1e-6, slow=True),
    Case("scale_by_rms", slow=True),
    Case("scale_by_rms", decay=0.99, eps=1e-4, initial_scale=0.5, eps_in_sqrt=False, bias_correction=True),
    Case("scale_by_stddev", eps=1e-4, slow=True),
    Case("scale_by_stddev", decay=0.95, eps=1e-4, initial_scale=0.5, eps_in_sqrt=False, bias_correction=True),
    Case("rmsprop", learning_rate=0.01),
    Case("rmsprop", learning_rate=FALL, decay=RISE, eps_in_sqrt=False, slow=True),
    Case("rmsprop", learning_rate=0.01, eps=1e-4, centered=True, momentum=0.9),
    Case("rmsprop", learning_rate=FALL, momentum=0.9, nesterov=True, bias_correction=True, slow=True),
    Case("scale_by_adadelta"),
    Case("scale_by_adadelta", rho=0.95, eps=1e-4, slow=True),
    Case("adadelta", slow=True),
    Case("adadelta", learning_rate=0.5, weight_decay=0.01, **on(["kernel"], where="kernel")),
    Case("scale_by_adam"),
    Case("scale_by_adam", b1=0.8, b2=0.95, eps=1e-4, eps_root=1e-5),
    Case("scale_by_adam", nesterov=True, slow=True),
    Case("scale_by_uncorrected_adam", slow=True),
    Case("scale_by_nadam", b1=0.95, b2=0.98, slow=True),
    Case("scale_by_amsgrad", slow=True),
    Case("scale_by_amsgrad", eps_root=1e-6, bias_correction_mu=False, bias_correction_nu=False),
    Case("scale_by_adamax", b2=0.99, slow=True),
    Case("adam", learning_rate=0.01),
    Case("adam", learning_rate=0.01, bias_correction=False),
    Case("adam", learning_rate=FALL, b1=RISE, slow=True),
    Case("adamw", learning_rate=0.01, tolerance=ROUNDED, slow=True),
    Case("adamw", learning_rate=0.01, b2=0.95, weight_decay=0.1, nesterov=True, slow=True),
    Case("adamw", learning_rate=FALL, b1=RISE, weight_decay=FADE),
    Case("adamw", learning_rate=0.01, weight_decay=0.1, **on(["kernel"], where=jopt.ndim(2))),
    Case("adamw", learning_rate=FALL, weight_decay=FADE, **on(["bias"], mask={n: n == "bias" for n in LEAVES})),
    Case("nadam", learning_rate=0.01, slow=True),
    Case("nadamw", learning_rate=FALL, weight_decay=0.1),
    Case("amsgrad", learning_rate=0.01, slow=True),
    Case("adamax", learning_rate=0.01, slow=True),
    Case("adamaxw", learning_rate=0.01, weight_decay=FADE),
    Case("scale_by_sign", slow=True),
    Case("scale_by_lion", tolerance=ROUNDED, slow=True),
    Case("lion", learning_rate=0.01, slow=True),
    Case("lion", learning_rate=FALL, b1=RISE, weight_decay=0.1, **on(["kernel"], where="kernel")),
    Case("sign_sgd", learning_rate=FALL),
    Case("signum", learning_rate=0.01),
    Case("scale_by_trust_ratio", slow=True),
    Case("scale_by_trust_ratio", min_norm=0.5, trust_coefficient=0.1, eps=1e-3),
    Case("lars", learning_rate=0.5, slow=True),
    Case("lars", learning_rate=FALL, weight_decay=0.1, trust_coefficient=0.02, eps=1e-3, nesterov=True),
    Case("lamb", learning_rate=0.01, slow=True),
    Case("lamb", learning_rate=FALL, weight_decay=0.1, **on(["kernel"], where=jopt.ndim(2))),
    Case("normalize_by_update_norm", slow=True),
    Case("normalize_by_update_norm", scale_factor=0.5, eps=1e-2),
    Case("scale_by_muon", only=MATRICES, tolerance=MUON, slow=True),
    Case("scale_by_muon", only=MATRICES, beta=0.9, nesterov=False, ns_steps=3, tolerance=MUON, slow=True),
    Case("scale_by_muon", only=MATRICES, ns_coeffs=((4.0, -6.9, 3.4), (2.9, -3.1, 1.2)), ns_steps=2, tolerance=MUON),
    Case("scale_by_shape", only=MATRICES),
    Case("scale_by_shape", only=MATRICES, consistent_rms=0.2),
    Case("muon", only=[*LEAVES, "wide"], learning_rate=0.01, tolerance=MUON, slow=True),
    Case(
        "muon",
        learning_rate=FALL,
        weight_decay=0.1,
        consistent_rms=0.2,
        adam_learning_rate=0.003,
        adam_weight_decay=FADE,
        tolerance=MUON,
    ),
    Case("clip", max_delta=0.5),
    Case("clip_by_global_norm", max_norm=1.0),
    Case("clip_by_global_norm", max_norm=FALL, slow=True),
    Case("clip_by_block_rms", threshold=0.3),
    Case("adaptive_grad_clip", only=UNITS, clipping=0.1),
    Case("adaptive_grad_clip", only=UNITS, clipping=FADE, eps=0.5, slow=True),
    Case("zero_nans"),
    Case("centralize", only=UNITS),
    Case("add_decayed_weights", weight_decay=0.1, slow=True),
    Case("add_decayed_weights", weight_decay=FADE, **on(["bias", "gain"], where="bias|gain")),
    Case("add_l1_subgradient", l1=0.1),
    Case("soft_threshold", l1=0.5, step_size=0.1, tolerance=ROUNDED, slow=True),
    Case("soft_threshold", l1=0.5, step_size=FALL, **on(["kernel"], "l1", where="kernel")),
    Case("keep_params_nonnegative"),
    Case("clip_params", low=-0.3, high=0.2),
    Case("max_norm_constraint", only=UNITS, max_norm=0.7),
    Case("reduce_on_plateau", patience=3, slow=True),
    Case(
        "reduce_on_plateau",
        factor=0.5,
        patience=5,
        rtol=0.0,
        atol=1e-3,
        cooldown=4,
        accumulation_size=3,
        min_scale=0.01,
    ),
]

# Which symbol of the oracle a slot is; every slot of the state is compared.
SYMBOLS = {
    "trace": {"trace": ("b", "d")},
    "nesterov_trace": {"trace": ("b", "d")},
    "scale_by_ema": {"ema": ("m",)},
    "average_params": {"averaged": ("average",)},
    "scale_by_root_sum": {"sum_of_squares": ("G",)},
    "scale_by_rss": {"sum_of_squares": ("G",)},
    "scale_by_rms": {"nu": ("r",)},
    "scale_by_stddev": {"mu": ("m",), "nu": ("n",)},
    "scale_by_adadelta": {"e_g": ("Eg2",), "e_x": ("Edx2",)},
    "scale_by_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_uncorrected_adam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_nadam": {"mu": ("m",), "nu": ("v",)},
    "scale_by_amsgrad": {"mu": ("m",), "nu": ("v",), "nu_max": ("v_hat",)},
    "scale_by_adamax": {"mu": ("m",), "nu": ("u",)},
    "scale_by_lion": {"mu": ("m",)},
    "scale_by_muon": {"mu": ("m",)},
}


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
    extra = {"value": jnp.asarray(LOSSES, real)} if case.name == "reduce_on_plateau" else {}

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
    oracle, rate = getattr(oracles, case.name), 1.0 if case.steps_itself else float(real(BARE))
    defaults = inspect.signature(getattr(jopt, case.name)).parameters
    params, grads = inputs(case, real)
    whole_tree = case.name in oracles.OVER_TREES
    memory = {} if whole_tree else {name: {} for name in params}
    rows = []
    for t in range(1, STEPS + 1):
        g = {name: x[t - 1] for name, x in grads.items()}
        numbers = {name: _live(case, t, name, real, defaults, oracle) for name in params}
        if whole_tree:
            extra = {"value": float(real(LOSSES[t - 1]))} if case.name == "reduce_on_plateau" else {}
            u = oracle(g, params, memory, t, **extra, **next(iter(numbers.values())))
        else:
            u = {name: oracle(g[name], p, memory[name], t, **numbers[name]) for name, p in params.items()}
        params = {name: p + rate * u[name] for name, p in params.items()}
        rows.append((u, params, {} if whole_tree else {name: dict(s) for name, s in memory.items()}))
    return rows


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
        if case.name in ("scale_by_sign", "scale_by_lion"):
            np.testing.assert_array_equal(updates[sure], expected_u[sure])
            updates = np.where(sure, updates, expected_u)
    followed = np.logical_and.accumulate(sure, axis=0)
    if case.name not in LAST_IN_CHAIN:
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


@pytest.mark.parametrize("case", tier(CASES, lambda case: case.slow))
def test_double_precision_follows_the_paper(case, x64):
    check(case, np.float64, case.tolerance[0])


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="scalars are float64 then")
@pytest.mark.parametrize("case", tier(CASES, lambda case: case.slow or case.name not in QUICK))
def test_single_precision_follows_the_paper(case):
    check(case, np.float32, case.tolerance[1])


def test_every_public_rule_and_optimizer_has_a_transcription():
    public = {name: getattr(jopt, name) for name in (*jopt.optimizers.__all__, *jopt.rules.__all__)}
    for name, value in vars(jopt).items():
        if getattr(value, "__module__", "") in ("jopt.clip", "jopt.regularize", "jopt.plateau"):
            public[name] = value
    random = {"add_noise"}  # below, by its statistics
    assert public.keys() - random == {case.name for case in CASES} - {"average_params"}
    for case in CASES:
        assert inspect.isfunction(getattr(oracles, case.name))


def test_every_slot_has_a_symbol_and_every_symbol_is_a_slot():
    for case in CASES:
        params = {name: jnp.zeros(SHAPES[name]) for name in case.only}
        for part, slots in case.transform().init(params).slots.items():
            assert slots.keys() == SYMBOLS[part.split("/")[-1]].keys()


@pytest.mark.parametrize("name", ["scale_by_adam", "lion", "clip_by_global_norm"])
def test_a_wrong_transcription_is_noticed(name, monkeypatch, x64):
    """The comparison itself can fail: one part in 10⁹ at a single step is seen."""
    case = next(case for case in CASES if case.name == name)
    right = getattr(oracles, name)

    def wrong(g, p, s, t, **numbers):
        u, off = right(g, p, s, t, **numbers), 1.0 + 1e-9 * (t == 900)
        return {leaf: x * off for leaf, x in u.items()} if isinstance(u, dict) else u * off

    wrong.__signature__ = inspect.signature(right)
    monkeypatch.setattr(oracles, name, wrong)
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
