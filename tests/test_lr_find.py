"""The learning-rate range test and the sweep of constant rates."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jopt
from jopt.models import MLP
from jopt.train.fit import fit
from jopt.train.lr_find import LRFind, longest_descent, lr_find, noise, steepest, valley
from jopt.train.lr_sweep import LRSweep, lr_sweep
from jopt.train.plots import STYLE

CURVATURE = 10.0
EDGE = 2 / CURVATURE  # gradient descent on this curvature diverges above
DATA = np.asarray(jax.random.normal(jax.random.key(1), (640, 8)))
LABELLED = (DATA, np.asarray(DATA[:, 0] > 0, np.int32))
START = {"w": np.full(8, 4, np.float32)}
CROSS_ENTROPY = "softmax_cross_entropy_with_integer_labels"


def quadratic(params, batch):
    """Its gradient is noisy, so that training keeps a distance from the minimum, as real training does."""
    return 0.5 * CURVATURE * jnp.mean(jnp.sum((params["w"][None] - batch) ** 2, -1))


def bits(tree):
    leaves = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    )
    return [np.asarray(x).tobytes() for x in leaves]


@pytest.fixture
def compilations():
    """Counts what XLA compiles while the test runs."""
    events, listening = [], [True]

    def listen(event, duration, **_):
        if listening[0] and event.endswith("backend_compile_duration"):
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield events
    listening[0] = False


# The rules of suggestion --------------------------------------------------------------------------


def test_the_longest_descent_steps_over_bumps():
    losses = np.array([5.0, 5.1, 4.0, 4.5, 3.0, 2.0, 2.5, 1.0, 6.0, 7.0])
    places = longest_descent(losses)
    assert len(places) == 5
    assert np.all(np.diff(losses[places]) < 0)
    assert (places[0], places[-1]) in ((0, 7), (1, 7))


def test_the_longest_descent_is_as_long_as_by_trying_all():
    for seed in range(20):
        losses = np.random.default_rng(seed).permutation(9).astype(float)
        found = losses[longest_descent(losses)]
        longest = max(
            bin(chosen).count("1")
            for chosen in range(1, 2**9)
            if np.all(np.diff(losses[[i for i in range(9) if chosen >> i & 1]]) < 0)
        )
        assert len(found) == longest
        assert np.all(np.diff(found) < 0)


def test_the_valley_is_two_thirds_down_the_longest_descent():
    falls = np.concatenate([np.full(10, 5.0), np.linspace(5, 2, 31), np.linspace(2.1, 9, 20)])
    assert valley(falls) == 9 + 20 or valley(falls) == 10 + 20
    noisy = falls + 0.05 * np.random.default_rng(0).normal(size=len(falls))
    assert abs(valley(noisy) - 30) <= 4


def test_steepest_is_in_log_rate():
    rates = np.geomspace(1e-4, 1, 81)
    losses = 1 / (1 + np.exp(4 * np.log(rates / 1e-2)))
    assert rates[steepest(losses, rates)] == pytest.approx(1e-2, rel=0.06)


def test_noise_is_the_deviation_around_a_trend():
    drawn = np.random.default_rng(0).normal(size=4000)
    assert noise(np.linspace(0, 300, 4000) + 0.3 * drawn) == pytest.approx(0.3, rel=0.06)
    assert noise(np.linspace(3, 1, 50)) == pytest.approx(0, abs=1e-12)


# The range test -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "low", "high", "late"), [("exponential", 1e-6, 100, 3), ("linear", 0.01, 0.5, 1.5)]
)
def test_it_diverges_near_the_edge_of_stability_and_suggests_below(schedule, low, high, late):
    found = lr_find(quadratic, START, jopt.sgd(0.1), DATA, low=low, high=high, steps=200, schedule=schedule)
    assert EDGE <= found.diverged <= late * EDGE
    assert found.diverged == found.rates[-1]
    for rate in (found.valley, found.steepest, found.minimum):
        assert 0.005 * EDGE < rate < EDGE
    assert float(found) == found.suggestion == found.valley
    trained = fit(quadratic, START, jopt.sgd(float(found)), DATA, epochs=5, progress=False).params["w"]
    assert np.abs(trained).max() < 0.5


def test_suggestions_scale_with_the_curvature():
    def steep(params, batch):
        return 100 * quadratic(params, batch)

    options = {"low": 1e-7, "high": 1e3, "steps": 201}  # the rates of one test are a hundred times the other's
    flat, curved = (lr_find(of, START, jopt.sgd, DATA, **options) for of in (quadratic, steep))
    for rule in ("valley", "steepest", "minimum"):
        assert getattr(flat, rule) / getattr(curved, rule) == pytest.approx(100, rel=0.8)


def test_losses_and_means_are_those_of_a_plain_loop():
    low, high, steps, beta = 1e-3, 0.1, 30, 0.9
    found = lr_find(
        quadratic, START, jopt.sgd(1.0), DATA, low=low, high=high, steps=steps, shuffle=False, smoothing=beta
    )
    w, mean = np.asarray(START["w"], np.float64), 0.0
    for i, rate in enumerate(np.geomspace(low, high, steps)):
        batch = np.asarray(DATA, np.float64)[np.arange(i * 32, (i + 1) * 32) % 640]
        loss = 0.5 * CURVATURE * np.mean(np.sum((w - batch) ** 2, -1))
        mean = beta * mean + (1 - beta) * loss
        assert found.rates[i] == pytest.approx(rate)
        assert found.losses[i] == pytest.approx(loss, rel=1e-4)
        assert found.smoothed[i] == pytest.approx(mean / (1 - beta ** (i + 1)), rel=1e-4)
        w = w - rate * CURVATURE * (w - batch.mean(0))
    assert found.diverged is None


def test_it_begins_where_fit_does():
    found = lr_find(quadratic, START, jopt.sgd(0.1), DATA, low=1e-3, high=1e-3 * (1 + 1e-9), steps=20, key=3)
    trained = fit(quadratic, START, jopt.sgd(1e-3), DATA, steps=20, log_every=1, key=3, progress=False)
    assert found.losses == pytest.approx(trained.history.column("loss"), rel=1e-5)


def test_more_steps_than_batches_shuffle_anew():
    def example(params, batch):
        return params["w"] * 0 + batch[0]

    options = {"batch_size": 1, "steps": 18, "stop_div": math.inf}
    seen = lr_find(example, {"w": np.float32(1)}, jopt.sgd, np.arange(6.0, dtype=np.float32), **options)
    epochs = seen.losses.reshape(3, 6)
    assert np.sort(epochs, 1).tolist() == [list(range(6))] * 3
    assert not (epochs[0] == epochs[1]).all()
    small = lr_find(quadratic, START, jopt.sgd, DATA[:5], batch_size=64, steps=12, high=0.01)
    assert len(small.rates) == 12


def test_it_ends_at_the_first_loss_that_is_not_finite():
    def breaks(params, batch):
        return jnp.where(params["w"] < 0.9, jnp.nan, params["w"] + 0 * batch.sum())

    found = lr_find(breaks, {"w": np.float32(1)}, jopt.sgd, DATA, low=1e-3, high=1, steps=50)
    assert found.diverged == found.rates[-1]
    assert np.isnan(found.losses[-1])
    assert np.isfinite(found.losses[:-1]).all()
    assert len(found.losses) < 50


def test_negative_losses_do_not_end_it():
    def negative(params, batch):
        return -5 - params["w"] + 0 * batch.sum()

    found = lr_find(negative, {"w": np.float32(1)}, jopt.sgd, DATA, high=0.1)
    assert found.diverged is None
    assert len(found.losses) == 100


def test_it_is_pure():
    params = {"w": jnp.full(8, 4.0)}
    data = jnp.asarray(DATA)
    tx = jopt.adam(0.1)
    before = bits((params, data)), repr(tx)
    first = lr_find(quadratic, params, tx, data)
    second = lr_find(quadratic, params, tx, data)
    assert (bits((params, data)), repr(tx)) == before
    assert not params["w"].is_deleted()
    assert bits((first.losses, first.smoothed)) == bits((second.losses, second.smoothed))


def test_a_key_reaches_a_loss_that_takes_one():
    def noisy(params, batch, key):
        return quadratic(params, batch) + jax.random.normal(key)

    one, same, other = (lr_find(noisy, START, jopt.sgd, DATA, steps=9, key=key).losses for key in (1, 1, 2))
    assert (one == same).all()
    assert not np.isclose(one, other).any()


# Transforms ---------------------------------------------------------------------------------------


def adamw_by_optax(rate):
    return optax.adamw(rate)


@pytest.mark.parametrize(
    "tx",
    [
        jopt.adamw(3.0),
        jopt.adamw,
        adamw_by_optax,
        jopt.skip_nonfinite(jopt.adamw(3.0)),
        lambda rate: jopt.chain(jopt.clip_by_global_norm(1e9), jopt.adamw(rate)),
    ],
    ids=["live number", "function", "optax", "wrapped", "chain"],
)
def test_the_rate_is_set_however_the_transform_is_given(tx):
    expected = lr_find(quadratic, START, jopt.adamw(1e-3), DATA, steps=40)
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        found = lr_find(quadratic, START, tx, DATA, steps=40)
    assert found.losses == pytest.approx(expected.losses, rel=2e-4)


def parted(head=1e-3, body=1e-3):
    return jopt.partition([("head", "head", jopt.sgd(head)), ("body", "**", jopt.sgd(body))])


def two_leaves(params, batch):
    return quadratic({"w": jnp.concatenate([params["head"], params["body"]])}, batch)


TWO = {"head": np.full(4, 4, np.float32), "body": np.full(4, 4, np.float32)}


def test_one_of_several_rates_is_chosen_by_name():
    name = "head/scale_by_learning_rate/learning_rate"
    found = lr_find(two_leaves, TWO, parted(body=0.0), DATA, name=name, high=0.1)
    by_function = lr_find(two_leaves, TWO, lambda rate: parted(rate, 0.0), DATA, high=0.1)
    assert found.losses == pytest.approx(by_function.losses, rel=1e-5)
    assert found.losses.min() > quadratic({"w": jnp.r_[jnp.zeros(4), jnp.full(4, 3.0)]}, DATA)  # the body is frozen


@pytest.mark.parametrize(
    ("tx", "says"),
    [
        (parted(), "it has several.*head/scale_by_learning_rate/learning_rate.*name="),
        (jopt.adam(jopt.schedules.cosine_decay_schedule(1e-3, 10)), "follows a schedule.*function learning rate"),
        (jopt.scale_by_adam(), "it has no number 'learning_rate'.*scale_by_adam/b1.*function"),
        (optax.adam(1e-3), "it has no number 'learning_rate'"),
        (
            lambda n: jopt.adam(jopt.schedules.cosine_decay_schedule(1e-3, 10)),
            "the function given as tx made .*schedule",
        ),
    ],
    ids=["several", "scheduled", "none", "foreign", "function of steps"],
)
def test_a_transform_without_one_live_rate_is_an_error(tx, says):
    with pytest.raises(ValueError, match=f"lr_find.*{says}"):
        lr_find(two_leaves, TWO, tx, DATA)


def test_a_function_that_fails_is_told_what_it_was_called_with():
    def of_steps(total):
        raise ValueError(f"{total} is no number of steps")

    with pytest.raises(ValueError, match="1e-07 is no number") as caught:
        lr_find(quadratic, START, of_steps, DATA)
    assert "with a learning rate" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"low": 1.0, "high": 0.1}, "low=1.0 and high=0.1"),
        ({"low": 0.0}, "0 < low < high"),
        ({"steps": 1}, "at least 2"),
        ({"schedule": "cosine"}, "schedule='cosine'"),
        ({"smoothing": 1.0}, "smoothing=1.0"),
        ({"stop_div": 1.0}, "stop_div=1.0"),
        ({"suggestion": "slide"}, "suggestion='slide'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"precision": "f16"}, "dynamic scale"),
    ],
)
def test_arguments_are_checked(options, says):
    with pytest.raises(ValueError, match=f"lr_find.*{says}"):
        lr_find(quadratic, START, jopt.sgd, DATA, **options)


def test_batches_have_to_be_arrays():
    with pytest.raises(TypeError, match=r"lr_find: data of type list .*concatenate"):
        lr_find(quadratic, START, jopt.sgd, [DATA, DATA])


def test_accumulation_gives_the_same_curve():
    plain = lr_find(quadratic, START, jopt.sgd, DATA, high=0.1)
    split = lr_find(quadratic, START, jopt.sgd, DATA, high=0.1, accumulate=4)
    assert split.losses == pytest.approx(plain.losses, rel=1e-4)


# Models, and no second compilation ----------------------------------------------------------------


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(8, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.1, rngs=rngs)
        self.out = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.hidden(x)))))


def linen_net():
    return MLP((16,), 2, dropout=0.1, batch_norm=True)


MODELS = {"linen": linen_net, "nnx": lambda: NnxNet(nnx.Rngs(0))}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("search", [lr_find, functools.partial(lr_sweep, n=5, steps=40)], ids=["find", "sweep"])
def test_models_with_batch_norm_are_untouched_and_compile_once(kind, search, compilations):
    model = MODELS[kind]()
    before = bits(nnx.state(model)) if kind == "nnx" else None
    first = search(model, None, jopt.adam(1e-3), LABELLED, loss=CROSS_ENTROPY)
    if kind == "nnx":
        assert bits(nnx.state(model)) == before
    assert 1e-4 < float(first) < 1
    compilations.clear()
    again = search(MODELS[kind](), None, jopt.adam(5e-2), LABELLED, loss=CROSS_ENTROPY)
    assert compilations == []
    assert bits(again.losses) == bits(first.losses)


def test_other_numbers_compile_nothing(compilations):
    lr_find(quadratic, START, jopt.adam(1e-3, b1=0.8), DATA, steps=33)
    compilations.clear()
    lr_find(
        quadratic, START, jopt.adam(1e-2, b1=0.9), DATA, steps=33, low=1e-5, high=3, smoothing=0.5, stop_div=9, key=4
    )
    assert compilations == []


def test_a_model_without_a_loss_is_an_error():
    with pytest.raises(TypeError, match="without loss="):
        lr_find(nn.Dense(2), None, jopt.sgd, LABELLED)


# What is shown ------------------------------------------------------------------------------------


def test_without_descent_there_is_no_suggestion():
    found = lr_find(quadratic, START, jopt.sgd, DATA, low=1e-12, high=1e-10)
    assert found.suggestion is None
    assert (found.valley, found.steepest, found.minimum) == (None, None, None)
    with pytest.raises(ValueError, match=r"lr_find: .* the noise of a batch .*Raise high="):
        float(found)
    assert "no suggestion" in repr(found)


def test_too_few_points_say_so():
    with pytest.raises(ValueError, match=r"has 4 points.*raise steps=.*at least 5"):
        float(lr_find(quadratic, START, jopt.sgd, DATA, steps=9, high=1e-3))
    with pytest.raises(ValueError, match="before it diverged; lower low="):
        float(lr_find(quadratic, START, jopt.sgd, DATA, low=5, high=10))


def test_the_table_marks_the_suggestion():
    found = lr_find(quadratic, START, jopt.sgd, DATA, suggestion="minimum")
    assert float(found) == found.minimum
    marked = [line for line in str(found).splitlines() if "←" in line]
    assert len(marked) == 1
    assert marked[0].startswith("minimum / 10")
    assert f"diverged at {found.diverged:.3g}" in repr(found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own
def test_plots():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = lr_find(quadratic, START, jopt.sgd, DATA)
    _, ax = found.plot()
    assert ax.get_xscale() == "log"
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"valley: {found.valley:.2g}" in labels
    with matplotlib.rc_context(STYLE):
        _, own = plt.subplots()
    swept = lr_sweep(quadratic, START, jopt.sgd, DATA, steps=20, n=9)
    assert swept.plot(own)[1] is own
    assert f"suggestion: {float(swept):.2g}" in [text.get_text() for text in own.get_legend().get_texts()]
    empty = LRFind(np.zeros(0), np.zeros(0), np.zeros(0), None)
    empty.plot(own)
    assert "rates none" in repr(empty)
    plt.close("all")


# The sweep ----------------------------------------------------------------------------------------


def test_the_good_band_of_a_quadratic_ends_at_the_edge_of_stability():
    swept = lr_sweep(quadratic, START, jopt.sgd(0.1), DATA, low=1e-4 * EDGE, high=10 * EDGE, n=26, steps=60)
    low, high = swept.band
    assert 0.5 * EDGE < high < EDGE
    # (1 − rate L)²⁺ᵗ of the excess is left after t steps; a tenth of it at the lower end.
    assert low == pytest.approx(math.log(10) / 2 / 55 / CURVATURE, rel=0.8)
    assert swept.decades == pytest.approx(math.log10(high / low))
    assert low < float(swept) < high
    assert float(swept) == pytest.approx(math.sqrt(low * high))
    assert low <= swept.best <= high
    assert (
        np.isinf(swept.final[swept.rates > 1.9 * EDGE]).all() or (swept.final[swept.rates > EDGE] > swept.start).all()
    )
    assert f"{swept.decades:.1f} decades" in repr(swept)


@pytest.mark.parametrize("tx", [jopt.adam(1.0), jopt.adam], ids=["live number", "function"])
def test_a_lane_is_the_run_at_its_rate(tx):
    swept = lr_sweep(quadratic, START, tx, DATA, low=1e-3, high=1e-1, n=3, steps=30)
    for rate, losses in zip(swept.rates, swept.losses, strict=True):
        alone = fit(quadratic, START, jopt.adam(rate), DATA, steps=30, log_every=1, progress=False)
        assert losses == pytest.approx(alone.history.column("loss"), rel=1e-4)


def exploding(params, batch):
    """NaN and infinite lanes: the square root of a negative number far from the minimum."""
    return jnp.sqrt(1e4 - jnp.sum(params["w"] ** 2)) + quadratic(params, batch)


@pytest.mark.parametrize("loss", [quadratic, exploding])
def test_lanes_that_break_leave_the_others_bit_equal(loss):
    tame = lr_sweep(loss, START, jopt.adam, DATA, low=1e-3, high=1e-1, n=3, steps=60)
    wild = lr_sweep(loss, START, jopt.adam, DATA, low=1e-3, high=1e35, n=3, steps=60)
    assert not np.isfinite(wild.final[2])
    assert bits(wild.losses[0]) == bits(tame.losses[0])


def test_the_band_is_contiguous_and_says_where_it_is_open():
    rates = np.geomspace(1e-4, 1, 5)

    def swept(*final):
        return LRSweep(rates, np.zeros((5, 7)), np.array(final, float), 2.0, 0.1)

    assert swept(1.0, 1.9, 1.05, 1.0, 3.0).band == (rates[0], rates[0])  # the first of two best
    assert swept(1.0, 1.9, 1.05, 0.99, 3.0).band == (rates[2], rates[3])
    assert swept(np.inf, 1.9, 1.05, 1.0, 1.01).band == (rates[2], rates[4])
    assert "reaches the upper end" in repr(swept(np.inf, 1.9, 1.05, 1.0, 1.01))
    assert "at least" not in repr(swept(1.9, 1.9, 1.05, 1.0, 1.9))
    assert swept(1.0, 1.0, 1.0, 1.0, 1.0).decades == pytest.approx(4)


@pytest.mark.parametrize(("low", "high", "tip"), [(1e-12, 1e-11, "Raise high="), (1e3, 1e30, "Lower low=")])
def test_a_sweep_in_which_nothing_improves_has_no_suggestion(low, high, tip):
    swept = lr_sweep(lambda p, b: quadratic(p, b * 0), START, jopt.sgd, DATA, low=low, high=high, n=3, steps=40)
    if tip == "Raise high=":
        swept = LRSweep(swept.rates, swept.losses, np.maximum(swept.final, swept.start), swept.start, 0.1)
    assert swept.best is None
    assert swept.band is None
    assert swept.decades == 0
    assert "none lowered the loss" in repr(swept)
    with pytest.raises(ValueError, match=f"lr_sweep: .*{tip}"):
        float(swept)


def test_arguments_of_a_sweep_are_checked():
    with pytest.raises(ValueError, match="lr_sweep: smoothing=2"):
        lr_sweep(quadratic, START, jopt.sgd, DATA, smoothing=2)
    with pytest.raises(ValueError, match="lr_sweep: 0 rates"):
        lr_sweep(quadratic, START, jopt.sgd, DATA, n=0)
