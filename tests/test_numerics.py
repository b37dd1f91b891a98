"""Numbers that break optimizers: sixteen bits, extreme and missing gradients, norms that overflow, slopes at zero."""

import contextlib
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import EVERYTHING
from zoo import OPTIMIZERS as ZOO
from zoo.classic import OPTIMIZERS

import jopt
from jopt import linalg
from jopt.testing.number_laws import assert_run_is_finite
from jopt.testing.subject import Subject, default_params, run_steps, take_step

SATURATED = 1e18  # what a huge gradient counts as, see docs/differences.md


@contextlib.contextmanager
def precision(x64):
    """Double precision on or off."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", x64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def settings(examples):
    return hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)


def tree(values, dtype):
    """A matrix and a vector of nine numbers."""
    values = np.asarray(values).astype(dtype)
    return {"kernel": jnp.asarray(values[:6].reshape(2, 3)), "bias": jnp.asarray(values[6:])}


def start(dtype):
    return tree([0.5, -1.5, 2.0, 1.0, -0.25, 0.75, 1.25, -2.0, 0.5], dtype)


def normal(seed, dtype):
    return tree(np.random.default_rng(seed).normal(size=9), dtype)


# Sixteen bits ------------------------------------------------------------------------------------


def second_moments(dtype):
    """Of Adam after 1000 gradients of 1, and after 3000 more of 0.01."""
    tx = jopt.adam(1e-4)

    def body(carry, gradient):
        _, state, params = take_step(tx, {"w": jnp.full((3,), gradient, dtype)}, *carry, {})
        return (state, params), None

    params = {"w": jnp.ones((3,), dtype)}
    gradients = (jnp.full((1000,), 1.0, jnp.float32), jnp.full((3000,), 0.01, jnp.float32))
    run = jax.jit(lambda carry, xs: jax.lax.scan(lambda c, x: body(c, x.astype(dtype)), carry, xs)[0])
    early = run((tx.init(params), params), gradients[0])
    late = run(early, gradients[1])
    return [carry[0].slots["scale_by_adam"]["nu"]["w"] for carry in (early, late)]


def test_second_moment_of_bfloat16_adam_is_that_of_float32():
    narrow, wide = second_moments(jnp.bfloat16), second_moments(jnp.float32)
    for got, expected in zip(narrow, wide, strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=0.01)
    exact = [1 - 0.999**1000, (1 - 0.999**1000) * 0.999**3000 + (1 - 0.999**3000) * 1e-4]
    for got, expected in zip(wide, exact, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_float16_gradients_of_zero_little_and_much_are_finite(name):
    tx = OPTIMIZERS[name].make()
    params = start(np.float16)
    with jax.disable_jit():
        for order in ((0.0, 1e-4, 300.0), (300.0, 0.0), (1e-4,)):
            gradients = [tree(np.full(9, value), np.float16) for value in order]
            run = run_steps(lambda *step: take_step(tx, *step, {}), params, gradients, tx.init(params))
            assert_run_is_finite(run, f"{name}, float16 gradients {order}")


def test_a_float32_update_lands_on_a_bfloat16_parameter():
    p, target = jnp.asarray([1.0, -3.0], jnp.bfloat16), jnp.asarray([1.0078125, -2.984375], jnp.bfloat16)
    update = target.astype(jnp.float32) - p.astype(jnp.float32)
    stepped = jopt.apply_updates({"w": p}, {"w": update})["w"]
    assert stepped.dtype == jnp.bfloat16
    np.testing.assert_array_equal(stepped, target)


# Huge gradients ----------------------------------------------------------------------------------


def run_with_a_huge_gradient(name, huge, dtype):
    """Two plain steps, a huge one and five plain ones; of each its updates and the parameters after it."""
    tx = OPTIMIZERS[name].make()
    gradients = [normal(seed, dtype) for seed in range(8)]
    gradients[2] = tree(np.full(9, huge), dtype)
    step = jax.jit(lambda *step: take_step(tx, *step, {}))
    run = run_steps(step, start(dtype), gradients, tx.init(start(dtype)))
    assert_run_is_finite(run, f"{name} in {dtype.__name__} with a gradient of {huge:g}")
    return jax.tree.map(np.asarray, (run.updates, run.params))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_huge_gradient_does_what_the_saturated_one_does_in_float64(name):
    with precision(x64=False):
        updates, params = run_with_a_huge_gradient(name, 1e25, np.float32)
    with precision(x64=True):
        expected = run_with_a_huge_gradient(name, SATURATED, np.float64)
    for got, wanted in zip(jax.tree.leaves((updates, params)), jax.tree.leaves(expected), strict=True):
        # 2e-4 of the largest element: float32 knows 1 − b2 to 5e-5 (b2 = 0.999).
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-4 * np.max(np.abs(wanted)))
    for update in jax.tree.leaves(updates[3:]):
        assert np.all(update != 0), f"{name} is frozen"


any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@functools.cache
def small_subject(name):
    entry = ZOO[name]
    return Subject(entry.make(), params=start(np.float32), **entry.declared())


def check_finite_closure(name, examples):
    subject = small_subject(name)

    @settings(examples)
    @hypothesis.given(st.lists(st.lists(any_float32, min_size=9, max_size=9), min_size=3, max_size=3))
    def finite_in_finite_out(gradients):
        run = subject.loop(subject.tx, subject.params, [tree(values, np.float32) for values in gradients])
        assert_run_is_finite(run, f"{name}, gradients {gradients}")

    finite_in_finite_out()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_finite_gradients_give_finite_steps(name):
    check_finite_closure(name, 200 // len(OPTIMIZERS) + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_finite_gradients_give_finite_steps_many_times(name):
    check_finite_closure(name, 500 if name in OPTIMIZERS else 100)


# Infinities and NaN stay where they came from ----------------------------------------------------

# One number of theirs, a distance or a product, is of the whole tree: a guard (`skip_nonfinite`) belongs around them.
WHOLE_TREE = {"dadapt_adamw", "dog", "dowg", "lbfgs", "prodigy", "prodigy_decay"}
CONFINING = [
    pytest.param(name, marks=[] if name in OPTIMIZERS else pytest.mark.slow)
    for name, entry in ZOO.items()
    if entry.elementwise and not entry.random and not entry.value and not entry.extra and name not in WHOLE_TREE
]
CONFINING += ["clip_by_global_norm", "chain"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CONFINING)
def test_a_bad_element_stays_alone(name, bad):
    tx = EVERYTHING[name].make()
    params = default_params()
    subject = Subject(tx)

    def run(value):
        gradients = [subject.gradients(step) for step in range(3)]
        kernel = gradients[1]["dense"]["kernel"]
        gradients[1]["dense"]["kernel"] = kernel if value is None else kernel.at[1, 2].set(value)
        with jax.disable_jit():
            return run_steps(subject.stepper(tx), params, gradients, tx.init(params))

    clean, dirty = run(None), run(bad)
    clips = name in ("clip_by_global_norm", "chain")  # the step of the bad gradient is then not clipped
    for step, (expected, got) in enumerate(zip(clean.updates, dirty.updates, strict=True)):
        spoilt = np.zeros((8, 4), bool)
        spoilt[1, 2] = step > 0
        kernel = np.asarray(got["dense"]["kernel"])
        assert np.all(np.isfinite(kernel[~spoilt]))
        assert np.all(np.isfinite(got["dense"]["bias"]))
        assert np.all(np.isfinite(got["out"][0]))
        if not clips:
            np.testing.assert_array_equal(kernel[~spoilt], np.asarray(expected["dense"]["kernel"])[~spoilt])
            np.testing.assert_array_equal(got["dense"]["bias"], expected["dense"]["bias"])
            np.testing.assert_array_equal(got["out"][0], expected["out"][0])
        elif step == 1:
            assert np.all(np.asarray(got["dense"]["bias"]) != 0), "hidden by a factor of zero"


@pytest.mark.parametrize("name", ["lamb", "lars"])
def test_a_bad_leaf_stays_alone(name):
    tx, params = OPTIMIZERS[name].make(), default_params()
    subject = Subject(tx)
    clean, dirty = subject.gradients(0), subject.gradients(0)
    dirty["dense"]["kernel"] = dirty["dense"]["kernel"].at[1, 2].set(jnp.nan)
    with jax.disable_jit():
        expected, _, _ = subject.stepper(tx)(clean, tx.init(params), params)
        got, _, _ = subject.stepper(tx)(dirty, tx.init(params), params)
    np.testing.assert_array_equal(got["dense"]["bias"], expected["dense"]["bias"])
    np.testing.assert_array_equal(got["out"][0], expected["out"][0])


# Norms and clips ---------------------------------------------------------------------------------

# Zero, or of a size whose products with factors of this size are no denormals, which CPUs flush to zero.
ordinary = st.floats(width=32, min_value=2.0**-60, max_value=2.0**59)
elements = st.one_of(st.just(0.0), ordinary, ordinary.map(lambda x: -x))
vectors = st.lists(elements, min_size=9, max_size=9)


def norm64(values):
    return float(np.linalg.norm(np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(values)])))


@jax.jit
def tree_norm(values):
    return linalg.global_norm(jax.tree.leaves(values))


@settings(200)
@hypothesis.given(vectors, st.integers(-40, 59))
def test_global_norm_is_that_of_float64_at_any_scale(values, scale):
    with np.errstate(over="ignore"):
        values = tree(np.clip(np.asarray(values) * 2.0**scale, -SATURATED, SATURATED), np.float32)
    assert float(tree_norm(values)) == pytest.approx(norm64(values), rel=1e-5)


@pytest.mark.parametrize(
    ("values", "norm"),
    [
        ([3e38] * 4, 2 * SATURATED),
        ([1e18] * 4, 2e18),
        ([3e-30, 4e-30], 5e-30),
        ([1e-25] * 4, 2e-25),
        ([0.0, 0.0], 0.0),
        ([1e18, 1e-20], 1e18),
        ([], 0.0),
    ],
)
def test_global_norm_of_extremes(values, norm):
    assert float(linalg.global_norm([jnp.asarray(values, jnp.float32)])) == pytest.approx(norm, rel=1e-6)


def test_global_norm_of_float16_does_not_overflow():
    assert float(linalg.global_norm([jnp.full((100,), 300.0, jnp.float16)])) == pytest.approx(3000, rel=1e-6)


def test_global_norm_of_complex_counts_absolute_values():
    assert float(linalg.global_norm([jnp.asarray([3 + 4j], jnp.complex64), jnp.asarray([12.0])])) == pytest.approx(13)


@jax.jit
def clip(values, max_norm):
    tx = jopt.clip_by_global_norm(max_norm)
    return tx.update(values, tx.init(values))[0]


@settings(200)
@hypothesis.given(vectors, st.integers(-30, 30), st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**60, width=32)))
def test_clip_by_global_norm(values, scale, max_norm):
    values = tree(np.clip(np.asarray(values) * 2.0**scale, -1e17, 1e17), np.float32)
    clipped = clip(values, jnp.float32(max_norm))
    norm, result = norm64(values), norm64(clipped)
    assert result <= max_norm * (1 + 1e-6)
    if norm <= max_norm * (1 - 1e-6):
        assert result == norm
    factor = min(1.0, max_norm / norm) if norm else 1.0
    for got, given in zip(jax.tree.leaves(clipped), jax.tree.leaves(values), strict=True):
        np.testing.assert_allclose(got, np.asarray(given, np.float64) * factor, rtol=1e-5, atol=1e-37)
    again = clip(clipped, jnp.float32(max_norm))
    for got, given in zip(jax.tree.leaves(again), jax.tree.leaves(clipped), strict=True):
        np.testing.assert_allclose(got, given, rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize(
    ("values", "max_norm", "expected"),
    [
        ([0.0, 0.0], 0.0, [0.0, 0.0]),
        ([3.0, 4.0], 0.0, [0.0, 0.0]),
        ([3e38, 0.0], 1.0, [1.0, 0.0]),
        ([3e30, -3e30], 2.0**0.5, [1.0, -1.0]),
        ([3e-30, 4e-30], 5e-31, [3e-31, 4e-31]),
        ([3e-30, 4e-30], 1.0, [3e-30, 4e-30]),
        ([3.0, 4.0], np.inf, [3.0, 4.0]),
    ],
)
def test_clip_by_global_norm_of_extremes(values, max_norm, expected):
    tx, values = jopt.clip_by_global_norm(max_norm), jnp.asarray(values, jnp.float32)
    np.testing.assert_allclose(tx.update(values, tx.init(values))[0], expected, rtol=1e-6)


def test_clip_by_global_norm_keeps_float16_gradients_whose_squares_overflow():
    tx, values = jopt.clip_by_global_norm(1.0), jnp.full((4,), 300.0, jnp.float16)
    np.testing.assert_allclose(tx.update(values, tx.init(values))[0], 0.5, rtol=1e-3)


@pytest.mark.parametrize("make", [jopt.clip, jopt.clip_by_block_rms, jopt.adaptive_grad_clip])
@settings(50)
@hypothesis.given(vectors)
def test_other_clips_never_grow_an_element(make, values):
    values, params, tx = tree(values, np.float32), start(np.float32), make(0.01)
    clipped = tx.update(values, tx.init(params), params)[0]
    for got, given in zip(jax.tree.leaves(clipped), jax.tree.leaves(values), strict=True):
        assert np.all(np.abs(got) <= np.abs(given) * (1 + 1e-6))
        assert np.all(np.sign(got) * np.sign(given) >= 0)


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e10, 3e38])
def test_bounds_of_the_other_clips(scale):
    values = {"w": jnp.asarray(np.random.default_rng(0).uniform(0.1, 1.0, (8, 4)) * scale, jnp.float32)}
    params = {"w": jnp.ones((8, 4), jnp.float32)}

    def clipped(tx):
        return np.asarray(tx.update(values, tx.init(params), params)[0]["w"], np.float64)

    assert np.max(np.abs(clipped(jopt.clip(0.5)))) <= 0.5
    assert np.sqrt(np.mean(clipped(jopt.clip_by_block_rms(0.5)) ** 2)) <= 0.5 * (1 + 1e-6)
    units = np.linalg.norm(clipped(jopt.adaptive_grad_clip(0.1)), axis=0)
    assert np.all(units <= 0.1 * np.sqrt(8) * (1 + 1e-6))


# Slopes ------------------------------------------------------------------------------------------

SMOOTH = {
    "clip_by_global_norm": lambda: jopt.clip_by_global_norm(1.0),
    "clip_by_block_rms": lambda: jopt.clip_by_block_rms(1.0),
    "adaptive_grad_clip": lambda: jopt.adaptive_grad_clip(0.1),
    "normalize_by_update_norm": jopt.normalize_by_update_norm,
    "adam": lambda: jopt.adam(0.1, eps_root=1e-8),
    "amsgrad": lambda: jopt.amsgrad(0.1, eps_root=1e-8),
    "lamb": lambda: jopt.lamb(0.1, eps_root=1e-8),
    "lars": lambda: jopt.lars(0.1),
    "muon": lambda: jopt.muon(0.1, adam_eps_root=1e-8),
    "accumulate": lambda: jopt.accumulate(jopt.sgd(0.1), 1),
    "skip_nonfinite": lambda: jopt.skip_nonfinite(jopt.sgd(0.1)),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_slopes_at_a_zero_gradient_are_finite(name):
    tx = SMOOTH[name]()

    def total(gradients, params):
        updates, _ = tx.update(gradients, tx.init(params), params)
        return sum(jnp.sum(u * jnp.arange(1, u.size + 1, dtype=u.dtype).reshape(u.shape)) for u in updates.values())

    zero, slopes = tree(np.zeros(9), np.float32), jax.jit(jax.grad(total, argnums=(0, 1)))
    for params in (start(np.float32), zero):
        for slope in jax.tree.leaves(slopes(zero, params)):
            assert np.all(np.isfinite(slope)), f"{name}: {slope}"


def test_slope_of_the_learning_rate_is_that_of_finite_differences():
    with precision(x64=True):

        @jax.jit
        def loss_after_steps(rate):
            tx, params = jopt.adamw(rate), start(np.float64)
            state = tx.init(params)
            for _ in range(2):
                gradients = jax.tree.map(lambda p: 2 * p, params)
                updates, state = tx.update(gradients, state, params)
                params = jopt.apply_updates(params, updates)
            return sum(jnp.sum(p**2) for p in params.values())

        slope = jax.grad(loss_after_steps)(0.05)
        near = [loss_after_steps(0.05 + step) for step in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope, (near[0] - near[1]) / 2e-6, rtol=1e-6)
