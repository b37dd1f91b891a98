"""Same name, same arguments, same numbers as optax 0.2.8; and the differences that are meant."""

import contextlib
import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import oracles
import pytest
from zoo import EXCEPTIONS, OPTAX, UNCOMPARED
from zoo.cases import DECAYING, PARITY_SHAPES

import jopt
from jopt import schedules

STEPS = 100
PARAMS, GRADS, LOSSES = oracles.record(PARITY_SHAPES, STEPS, seed=3)
DIFFERENCES = pathlib.Path(__file__).parents[1] / "docs" / "differences.md"


def theirs(name):
    """What optax has under a name; its contrib counts too."""
    for module in (optax.contrib, optax, optax.schedules):  # in this order: a name that moved warns in optax
        if hasattr(module, name):
            return getattr(module, name)
    return None


@contextlib.contextmanager
def lenient():
    """optax needs implicit promotions."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Numbers -------------------------------------------------------------------------------------------


def held(numbers):
    """Plain numbers as a live float32 holds them."""
    return [float(np.float32(x)) if type(x) is float else x for x in numbers]


def pair(case, hold=list):
    """(ours, optax's); our numbers pass through `hold`."""
    args, kwargs = hold(case.args), dict(zip(case.kwargs, hold(case.kwargs.values()), strict=True))
    if case.name == "scale_by_nadam":
        return jopt.scale_by_nadam(*args), optax.scale_by_adam(*case.args, nesterov=True)
    other = case.kwargs
    if case.name == "scale_by_muon":  # in 0.2.8 its default works for a bare array only
        other = other | {"weight_dimension_numbers": {name: optax.contrib.MuonDimensionNumbers() for name in case.only}}
    return getattr(jopt, case.name)(*args, **kwargs), theirs(case.theirs)(*case.args, **other)


def run_both(case, real, given=None, hold=list):
    """Updates and parameters of both libraries after every step, each following its own.

    Args:
        real: the dtype of parameters and gradients.
        given: the dtype whose values they have, where it is a narrower one.
        hold: what our numbers pass through.
    """
    ours, other = pair(case, hold)
    rate = jnp.asarray(-0.01 if case.bare else 1.0, real)
    params, grads, _ = oracles.record(case.only, STEPS, seed=3)
    given = given or real
    params = {name: jnp.asarray(params[name].astype(given), real) for name in case.only}
    extra = {"value": jnp.abs(jnp.asarray(LOSSES.astype(given or real), real))} if case.value else {}

    def advance(tx, g, carry, extra):
        params, state = carry
        updates, state = tx.update(g, state, params, **extra)
        new = {n: p + rate * u for (n, p), u in zip(params.items(), updates.values(), strict=True)}
        return (new, state), (updates, new)

    def step(carry, now):
        mine, seen = advance(ours, now[0], carry[0], now[1])
        with lenient():
            his, wanted = advance(optax.with_extra_args_support(other), now[0], carry[1], now[1])
        return (mine, his), (seen, wanted)

    with lenient():
        state = other.init(params)
    grads = {name: jnp.asarray(grads[name].astype(given), real) for name in case.only}
    run = jax.jit(lambda carry, seen: jax.lax.scan(step, carry, seen)[1])
    return jax.tree.map(np.asarray, run(((params, ours.init(params)), (params, state)), (grads, extra)))


def check(case, real, tolerance):
    got, wanted = run_both(case, real)
    for what, mine, his in zip(("update", "parameter"), got, wanted, strict=True):
        for name in mine:
            assert mine[name].dtype == his[name].dtype == real
            if what == "update" and case.last:
                continue
            assert oracles.error(mine[name], his[name]) <= tolerance, f"the {what} {name}"


def tier(slow):
    return [
        pytest.param(
            case, id=re.sub(r"( ?at ?0x[0-9a-f]+)", "", repr(case)), marks=[pytest.mark.slow] if slow(case) else []
        )
        for case in OPTAX
    ]


@pytest.mark.parametrize("case", tier(lambda case: case.slow))
def test_double_precision_is_optax(case, x64):
    check(case, np.float64, case.f64)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="optax's constants are float64 then")
@pytest.mark.parametrize("case", tier(lambda case: case.slow or case.name not in ("adamw", "lars") or case.kwargs))
def test_single_precision_is_optax(case):
    check(case, np.float32, case.f32)


@pytest.mark.slow
@pytest.mark.skipif(jax.config.jax_enable_x64, reason="nothing is float32 then")
@pytest.mark.parametrize("case", tier(lambda case: True))
def test_single_precision_rounds_no_worse_than_optax(case):
    """Each against itself in double precision, with its numbers as it holds them: ours are live float32."""
    single = run_both(case, np.float32)
    jax.config.update("jax_enable_x64", True)
    try:
        double = run_both(case, np.float64, given=np.float32, hold=held)
    finally:
        jax.config.update("jax_enable_x64", False)
    mine, his = (
        max(oracles.error(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
        for a, b in zip(single, double, strict=True)
    )
    print(f"error of jopt {mine:.1e}, of optax {his:.1e}")
    assert mine <= case.coarser * his + 1e-6


def test_a_scheduled_b1_is_that_of_inject_hyperparams(x64):
    rise = schedules.linear_schedule(0.8, 0.95, 50)
    ours = jopt.adamw(DECAYING, b1=rise, weight_decay=0.1)
    other = optax.inject_hyperparams(optax.adamw)(DECAYING, b1=rise, weight_decay=0.1)
    params = {name: jnp.asarray(x) for name, x in PARAMS.items()}
    mine, his = (params, ours.init(params)), (params, other.init(params))
    for t in range(10):
        g = {name: jnp.asarray(x[t]) for name, x in GRADS.items()}
        u, state = ours.update(g, mine[1], mine[0])
        mine = jopt.apply_updates(mine[0], u), state
        with lenient():
            v, state = other.update(g, his[1], his[0])
            his = optax.apply_updates(his[0], v), state
        for name in u:
            np.testing.assert_allclose(u[name], v[name], rtol=1e-12)


# Signatures --------------------------------------------------------------------------------------


def same_named():
    """(name, ours, optax's) of every public function that optax has under the same name."""
    for module, names in ((jopt, [n for n in vars(jopt) if not n.startswith("_")]), (schedules, schedules.__all__)):
        for name in names:
            ours, other = getattr(module, name), theirs(name)
            if other is not None and (inspect.isfunction(ours) or inspect.isclass(ours)) and callable(other):
                if module is schedules and name == "Schedule":
                    continue  # a type alias in optax
                yield name, ours, other


def positional(function):
    """Names and defaults of the positional arguments, in order; a starred one has no name to call it by."""
    parameters = inspect.signature(function).parameters.values()
    starred = [("*", p.empty) for p in parameters if p.kind is p.VAR_POSITIONAL]
    return [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] + starred


def keyword_only(function):
    return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}


def departures(ours, other):
    """How a call that works with optax could fail, or mean something else."""
    found = []
    if positional(ours) != positional(other):
        found.append(f"positional {positional(ours)} against {positional(other)}")
    mine, his = keyword_only(ours), keyword_only(other)
    found += [f"keyword {n}={his[n]!r}" for n in his if n not in mine or mine[n] != his[n]]
    found += [f"{n} has no default" for n in mine.keys() - his.keys() if mine[n] is inspect.Parameter.empty]
    return found


@pytest.mark.skipif(not optax.__version__.startswith("0.2.8"), reason="the comparison is with optax 0.2.8")
def test_signatures_are_those_of_optax_but_for_the_listed_exceptions():
    compared = list(same_named())
    assert len(compared) >= 60
    differing = {name: departures(ours, other) for name, ours, other in compared if departures(ours, other)}
    assert differing.keys() == EXCEPTIONS.keys(), differing


@pytest.mark.parametrize("name", EXCEPTIONS)
def test_every_exception_stands_in_the_page_of_differences(name):
    assert re.search(rf"^\|[^|]*`{name}[`(]", DIFFERENCES.read_text(), re.MULTILINE)


def test_every_same_named_transform_is_compared_by_its_numbers():
    """A new name that optax has too needs a case above, or a reason here."""
    no_numbers = {"chain", "apply_updates", "masked", "partition", "add_noise", "ema", "monitor"}
    no_numbers |= set(schedules.__all__)  # in test_schedules_oracles.py
    wrappers = {name for name, ours, _ in same_named() if ours.__module__.startswith("jopt.wrap")}
    missing = {name for name, _, _ in same_named()} - no_numbers - wrappers - {case.name for case in OPTAX}
    assert missing == UNCOMPARED.keys()


def test_the_page_of_differences_has_one_row_for_a_name():
    for table in re.split(r"\n## ", DIFFERENCES.read_text()):
        names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| `")]
        assert [name for name in set(names) if names.count(name) > 1] == []


# The differences that are meant; the page's claims that are not obvious from a signature ---------


def first(tx, g, p=None, **extra):
    """The first update from fresh state."""
    p = jnp.zeros_like(g) if p is None else p
    with lenient():
        return np.asarray(tx.update(g, tx.init(p), p, **extra)[0])


@pytest.mark.parametrize("name", ["adam", "nadam", "amsgrad", "adamax", "rmsprop"])
def test_a_float16_zero_gradient_is_nan_in_optax_and_zero_here(name):
    zero = jnp.zeros(2, jnp.float16)
    assert np.all(np.isnan(first(getattr(optax, name)(0.1), zero)))
    np.testing.assert_array_equal(first(getattr(jopt, name)(0.1), zero), 0)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="float64 does not overflow")
def test_large_finite_gradients_saturate_where_optax_drops_them():
    large = jnp.asarray([1e25, 1.0], jnp.float32)
    assert first(optax.adam(0.1), large)[0] == 0
    np.testing.assert_allclose(first(jopt.adam(0.1), large), -0.1, rtol=1e-5)
    np.testing.assert_array_equal(first(optax.clip_by_global_norm(1.0), large), 0)
    np.testing.assert_allclose(first(jopt.clip_by_global_norm(1.0), large), [1, 1e-18], rtol=1e-5)
    np.testing.assert_allclose(first(jopt.scale(1.0), large), [1e18, 1], rtol=1e-6)


def test_a_clip_lets_what_is_not_finite_pass_and_survives_zero():
    bad = jnp.asarray([jnp.inf, 1.0])
    np.testing.assert_array_equal(first(optax.clip_by_global_norm(1.0), bad), [np.nan, 0])
    np.testing.assert_array_equal(first(jopt.clip_by_global_norm(1.0), bad), [np.inf, 1])
    assert np.all(np.isnan(first(optax.clip_by_global_norm(0.0), jnp.zeros(2))))
    np.testing.assert_array_equal(first(jopt.clip_by_global_norm(0.0), jnp.zeros(2)), 0)


def test_second_moments_of_bfloat16_parameters_are_float32():
    params = jnp.ones(2, jnp.bfloat16)
    assert optax.adam(0.1).init(params)[0].nu.dtype == jnp.bfloat16
    assert jopt.adam(0.1).init(params).slots["scale_by_adam"]["nu"][""].dtype == jnp.float32
    assert first(optax.sgd(np.float32(0.1)), params).dtype == jnp.float32
    assert first(jopt.sgd(np.float32(0.1)), params).dtype == jnp.bfloat16


def test_a_bfloat16_first_moment_is_averaged_in_float32():
    """A constant gradient has itself as its mean: optax's is off by the rounding of each product."""

    def last(library, steps=60):
        tx, g = library.scale_by_adam(mu_dtype=jnp.bfloat16), jnp.asarray([0.1])

        def step(state, _):
            with lenient():
                u, state = tx.update(g, state, g)
            return state, u

        return float(jax.lax.scan(step, tx.init(g), None, steps)[1][-1, 0])

    assert abs(last(jopt) - 1) < 0.02 < abs(last(optax) - 1)


def test_a_negative_metric_reduces_on_a_plateau():
    def scale_after(tx, steps):
        state = tx.init(jnp.ones(1))
        for _ in range(steps):
            u, state = tx.update(jnp.ones(1), state, jnp.ones(1), value=jnp.asarray(-1.0))
        return float(u[0])

    assert scale_after(jopt.reduce_on_plateau(patience=3), 4) == pytest.approx(0.1)
    with lenient():
        assert scale_after(optax.contrib.reduce_on_plateau(patience=3), 8) == 1.0
    with pytest.raises(ValueError, match="rtol"):
        optax.contrib.reduce_on_plateau(rtol=0.0)
    jopt.reduce_on_plateau(rtol=0.0)


def test_too_few_muon_coefficients_are_an_error():
    triples = ((3.4445, -4.7750, 2.0315),) * 3
    first(optax.contrib.scale_by_muon(triples, 5), jnp.eye(2))  # runs three steps
    with pytest.raises(ValueError, match="exactly 5"):
        jopt.scale_by_muon(triples, 5)


def test_nobody_conjugates():
    """jax.grad of a real f(z) is the conjugate of the direction of descent: conjugate it yourself."""
    target, z = jnp.asarray([1 + 2j, -1 + 0.5j]), jnp.zeros(2, jnp.result_type(complex))

    def loss(z):
        return jnp.sum(jnp.abs(z - target) ** 2)

    for tx in (jopt.sgd(0.1), optax.sgd(0.1)):
        right = z + first(tx, jnp.conj(jax.grad(loss)(z)), z)
        wrong = z + first(tx, jax.grad(loss)(z), z)
        assert loss(right) < 0.7 * loss(z) < loss(wrong)


def test_complex_parameters_are_pairs_for_elementwise_rules():
    z = jnp.asarray([3 + 4j])
    np.testing.assert_allclose(first(optax.adam(1.0), z), -0.6 - 0.8j, rtol=1e-4)
    np.testing.assert_allclose(first(jopt.adam(1.0), z), -1 - 1j, rtol=1e-4)
    np.testing.assert_allclose(first(optax.sign_sgd(1.0), z), -0.6 - 0.8j, rtol=1e-4)
    np.testing.assert_allclose(first(jopt.sign_sgd(1.0), z), -1 - 1j)
    for name in ("clip_by_global_norm", "clip_by_block_rms"):
        np.testing.assert_allclose(first(getattr(jopt, name)(1.0), z), first(getattr(optax, name)(1.0), z), rtol=1e-6)


@pytest.mark.skipif(jax.config.jax_enable_x64, reason="the rounding is float32's")
def test_centered_rmsprop_keeps_its_variance_from_going_negative():
    """A constant gradient has variance 0, which rounding makes negative: a root of it is NaN."""
    g = jnp.asarray(np.geomspace(0.1, 1e3, 200), jnp.float32)

    def runs(library):
        tx = library.scale_by_stddev(0.95, bias_correction=True)

        def step(state, _):
            with lenient():
                u, state = tx.update(g, state, g)
            return state, u

        return np.asarray(jax.lax.scan(step, tx.init(g), None, 300)[1])

    assert np.any(np.isnan(runs(optax)))
    assert np.all(np.isfinite(runs(jopt)))


def test_adadelta_without_a_rate_goes_uphill_in_both():
    g = jnp.ones(2)
    np.testing.assert_allclose(first(jopt.adadelta(), g), first(optax.adadelta(), g), rtol=1e-5)
    assert np.all(first(jopt.adadelta(), g) > 0)


def test_numbers_outside_their_domain_are_errors_here_alone():
    for make in (
        lambda m: m.sgd(-0.1),
        lambda m: m.adam(0.1, b1=1.5),
        lambda m: m.adam(float("nan")),
        lambda m: m.clip(-1.0),
    ):
        make(optax)
        with pytest.raises(ValueError, match="was expected"):
            make(jopt)


def test_masks_are_read_by_path():
    """A list in the mask may stand for a tuple in the parameters; in the state a masked leaf has no entry."""
    params, mask = {"a": jnp.ones(1), "b": (jnp.ones(1),)}, {"a": True, "b": [False]}
    tx = jopt.masked(jopt.trace(0.9), mask)
    assert tx.init(params).slots["trace"]["trace"].keys() == {"a"}
    with pytest.raises(ValueError, match=r"different types|Expected list"):
        optax.masked(optax.trace(0.9), mask).init(params)


def test_a_mask_function_sees_shapes_and_not_values():
    seen = []
    tx = jopt.masked(jopt.scale(2.0), lambda params: jax.tree.map(lambda x: seen.append(x) is None, params))
    tx.update({"a": jnp.ones(3)}, tx.init({"a": jnp.ones(3)}), {"a": jnp.ones(3)})
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in seen)


def test_integers_and_float0_pass_and_unknown_extras_are_ignored():
    params = {"n": jnp.arange(3), "w": jnp.ones(2)}
    grads = {"n": np.zeros(3, jax.dtypes.float0), "w": jnp.ones(2)}
    tx = jopt.adam(0.1)
    u, _ = tx.update(grads, tx.init(params), params, value=1.0, nonsense=2)
    assert u["n"].dtype == jax.dtypes.float0
    with lenient(), pytest.raises(TypeError):
        optax.adam(0.1).update(grads, optax.adam(0.1).init(params), params)


def test_noise_does_not_depend_on_the_other_leaves():
    zeros = {"a": jnp.zeros(2), "b": jnp.zeros(2)}

    def noise(library, tree):
        tx = library.add_noise(1.0, 0.5, 0)
        return tx.update(tree, tx.init(tree), tree)[0]

    alone = {"b": zeros["b"]}
    np.testing.assert_array_equal(noise(jopt, zeros)["b"], noise(jopt, alone)["b"])
    with lenient():
        assert not np.array_equal(noise(optax, zeros)["b"], noise(optax, alone)["b"])


def test_lars_uses_one_norm_of_gradient_and_decay_in_both():
    """The paper has ‖g‖ + λ‖p‖ in the denominator; optax and jopt have ‖g + λp‖."""
    g, p = jnp.asarray([3.0, 0.0]), jnp.asarray([0.0, 4.0])
    step = first(jopt.lars(1.0, weight_decay=1.0, trust_coefficient=1.0, momentum=0.0), g, p)
    np.testing.assert_allclose(step, -(g + p) * 4 / 5, rtol=1e-6)
