"""Which examples make a step: sizes, ragged ends, accumulation, order, and streams of batches."""

import threading
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_cases import bits, close

import jopt
from jopt.train import loop, program
from jopt.train.batches import BatchSize, rounded, segments, split_evenly

W = {"w": np.zeros((), np.float32)}
SGD = jopt.sgd(0.1)


class Seen(NamedTuple):
    """A metric: how often each of 12 examples was used, at most three times, as digits of one number."""

    counts: Any

    def merge(self, other):
        return Seen(self.counts + other.counts)

    def compute(self):
        return (self.counts * 4.0 ** jnp.arange(12.0)).sum()


def counting(params, batch):
    """A loss of slope 1 whose metric counts which of up to 12 examples, numbered from 0, it saw."""
    hot = (batch[:, None] == jnp.arange(12)[None]).astype(jnp.float32).sum(0)
    return params["w"] + 0 * batch.astype(jnp.float32).mean(), {"seen": Seen(hot), "size": float(len(batch))}


def seen(row):
    """How often each example was used, of a row of the history."""
    return [int(row["seen"]) // 4**i % 4 for i in range(12)]


def run(data, loss=counting, params=W, tx=SGD, **options):
    length = {} if options.keys() & {"epochs", "steps"} else {"epochs": 1}
    return jopt.fit(loss, params, tx, data, **({"batch_size": 4, "progress": False} | length | options))


def numbers(count):
    return np.arange(count, dtype=np.int32)


def value(params, batch):
    """A loss whose gradient is the mean of the batch."""
    return params["w"] * batch.mean(), {"mean": batch.mean()}


def gradients(found):
    """The gradient of every step, of a run with `value` that recorded them all."""
    return found.history.column("mean").tolist()


# The last batch -----------------------------------------------------------------------------------


def test_a_ragged_batch_is_kept_with_its_own_mean():
    found = run(np.float32([1, 2, 3, 4, 10, 20]), value, shuffle=False, log_every=1)
    assert gradients(found) == [2.5, 15.0]
    assert float(found.params["w"]) == pytest.approx(-0.1 * 17.5)
    epoch = run(np.float32([1, 2, 3, 4, 10, 20]), value, shuffle=False)
    assert gradients(epoch) == [pytest.approx(40 / 6)]  # the mean over examples, not over batches


def test_a_ragged_batch_can_be_dropped():
    found = run(numbers(11), last_batch="drop", shuffle=False)
    assert (found.step, seen(found.history[0])) == (2, [1] * 8 + [0] * 4)
    shuffled = run(numbers(11), last_batch="drop", epochs=6)
    assert shuffled.step == 12
    assert all(sum(seen(row)) == 8 for row in shuffled.history)


@pytest.mark.parametrize("last", ["keep", "drop"])
def test_data_smaller_than_the_batch_work(last):
    found = run(numbers(3), batch_size=64, last_batch=last, epochs=2, eval_data=numbers(2))
    assert found.step == 2
    assert seen(found.history[0]) == [1, 1, 1] + [0] * 9
    assert found.history[0]["eval_size"] == 2


def test_every_example_comes_once_an_epoch_in_an_order_of_its_own():
    found = run(numbers(12), epochs=3, log_every=1)
    orders = [[tuple(seen(row)) for row in found.history][i : i + 3] for i in (0, 3, 6)]
    for order in orders:
        assert np.sum(order, 0).tolist() == [1] * 12
    assert len(set(map(tuple, orders))) == 3
    again, other = (run(numbers(12), epochs=3, log_every=1, key=key) for key in (0, 7))
    assert again.history.column("seen").tolist() == found.history.column("seen").tolist()
    assert other.history.column("seen").tolist() != found.history.column("seen").tolist()


def test_without_shuffling_examples_come_as_they_lie():
    found = run(np.float32([1, 2, 3, 4]), value, batch_size=1, shuffle=False, epochs=2, log_every=1)
    assert gradients(found) == [1, 2, 3, 4, 1, 2, 3, 4]


# An order of the user's ---------------------------------------------------------------------------

CLASSES = np.int32([0] * 9 + [1] * 3)


def balanced(key, examples):
    """As many examples of one class as of the other, with repetitions."""
    zeros, ones = jax.random.split(key)
    drawn = jax.random.randint(zeros, (8,), 0, 9), 9 + jax.random.randint(ones, (8,), 0, 3)
    return jax.random.permutation(key, jnp.concatenate(drawn))


def test_a_function_of_the_key_gives_the_order():
    def loss(params, batch):
        mean, metrics = counting(params, batch[0])
        return mean, metrics | {"ones": batch[1].astype(jnp.float32).mean()}

    found = run((numbers(12), CLASSES), loss, shuffle=balanced, epochs=2)
    assert found.step == 8
    assert found.history.column("ones").tolist() == [0.5, 0.5]
    assert found.history[0]["seen"] != found.history[1]["seen"]


def test_a_function_may_leave_out_examples_and_repeat_them():
    found = run(numbers(12), shuffle=lambda key, n: jnp.arange(6) * 2 % n, batch_size=4)
    assert (found.step, seen(found.history[0])) == (2, [1, 0] * 6)


@pytest.mark.parametrize("order", [np.arange(5) - 1, np.arange(5) + 8])
def test_an_order_that_leads_out_of_the_data_is_an_error(order):
    with pytest.raises(ValueError, match=r"gave indices from .* numbers from 0 to 11 were expected"):
        run(numbers(12), shuffle=lambda key, n: jnp.asarray(order))


# Sizes --------------------------------------------------------------------------------------------


@pytest.fixture
def recipes(monkeypatch):
    """The distinct programs that a run asks for."""
    asked = set()
    monkeypatch.setattr(loop, "compiled", lambda recipe: asked.add(recipe) or program.compiled(recipe))
    return asked


def test_sizes_are_rounded_to_few():
    assert [rounded(x) for x in (0.3, 1, 2, 5, 7, 10, 11, 90, 100, 1000)] == [1, 1, 2, 4, 6, 8, 12, 96, 96, 1024]
    assert len({rounded(x) for x in range(1, 1025)}) == 20
    assert all(abs(rounded(x) - x) <= x / 4 for x in range(1, 5000))


def test_a_schedule_of_the_batch_size(recipes):
    found = run(numbers(12), batch_size=lambda step: 2 + step, epochs=3, log_every=1)
    sizes = found.history.column("size").tolist()
    assert sizes == [2, 3, 4, 3, 6, 6, 8, 4]
    assert sum(sizes) == 3 * 12  # epochs keep their examples
    assert {recipe.layout.size for recipe in recipes} == {2, 3, 4, 6, 8}


def test_a_range_of_batch_sizes():
    options = {"batch_size": (1, 6), "epochs": 6, "log_every": 1}
    sizes = [run(numbers(12), key=key, **options).history.column("size").tolist() for key in (0, 0, 1)]
    assert sizes[0] == sizes[1] != sizes[2]
    assert set(sizes[0]) <= {1, 2, 3, 4, 6}
    assert len(set(sizes[0])) > 2
    assert sum(sizes[0]) == 6 * 12


def test_micro_batches_need_one_program_for_all_sizes(recipes):
    found = run(numbers(12), batch_size=lambda step: 2 + step, micro_batch_size=2, epochs=4, log_every=1)
    assert {recipe.layout.size for recipe in recipes} == {2}
    totals = [sum(seen(row)) for row in found.history]
    assert totals == [2, 4, 4, 2, 6, 6, 8, 4, 10, 2]
    assert all(np.diff(found.history.column("step")) == 1)


@pytest.mark.parametrize("kind", ["accumulate", "micro_batch_size", "stream"])
def test_accumulation_is_the_big_batch(kind):
    x = np.random.default_rng(0).normal(size=(48, 3)).astype(np.float32)
    data, options = x, {"accumulate": 3}
    if kind == "micro_batch_size":
        options = {"micro_batch_size": 8}
    if kind == "stream":
        data = [x[:24], x[24:]]

    def loss(params, batch):
        return jnp.mean((batch @ params["w"] - 1) ** 2), {"mean": batch.mean()}

    start = {"batch_size": 24, "epochs": 2, "shuffle": False}
    big, split = (run(data, loss, {"w": x[0]}, jopt.adam(0.02), **start, **more) for more in ({}, options))
    assert split.step == big.step == 4
    for name in ("loss", "mean"):
        close(split.history.column(name), big.history.column(name), 1e-4)
    close(split.params["w"], big.params["w"], 1e-4)


def test_accumulation_weighs_micro_batches_by_their_weight():
    def loss(params, batch):
        x, w = batch
        total = w.sum()
        mean = (x * w).sum() / jnp.where(total > 0, total, 1)
        return params["w"] * mean, {"weight": total}

    x, w = np.float32([1, 2, 3, 4]), np.float32([0, 0, 3, 1])
    whole, split = (run((x, w), loss, shuffle=False, **options) for options in ({}, {"accumulate": 2}))
    assert float(split.params["w"]) == float(whole.params["w"]) == pytest.approx(-0.1 * 13 / 4)


def test_accumulation_gives_every_micro_batch_its_key_and_the_model_state():
    def loss(params, model_state, batch, key):
        return params["w"], ({"n": model_state["n"] + 1}, {"draw": jax.random.uniform(key)})

    options = {"accumulate": 4, "model_state": {"n": np.int32(0)}, "batch_size": 4, "log_every": 1, "epochs": 1}
    found = run(numbers(8), loss, **options)
    key = jax.random.fold_in(jax.random.key(0), 1)
    draws = [
        np.mean([jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, step), i)) for i in range(4)])
        for step in range(2)
    ]
    assert found.model_state == {"n": 8}
    np.testing.assert_allclose(found.history.column("draw"), draws, rtol=1e-6)


@pytest.mark.parametrize(("how", "power"), [(None, 0), ("sqrt", 0.5), ("linear", 1)])
def test_the_learning_rate_follows_the_batch_size(how, power):
    found = run(numbers(12), batch_size=lambda step: 4 if step == 0 else 8, scale_learning_rate=how, epochs=1)
    assert found.step == 2
    assert float(found.params["w"]) == pytest.approx(-0.1 - 0.1 * 2**power)


def test_the_first_step_has_the_learning_rate_as_it_is():
    for data in (numbers(3), [numbers(3), numbers(6)]):  # fewer than batch_size; sizes of their own
        found = run(data, batch_size=8, scale_learning_rate="linear")
        assert float(found.params["w"]) == pytest.approx(-0.1 * (1 if found.step == 1 else 3))


def test_batches_split_evenly():
    assert split_evenly(12, 3) == (4, 3)
    assert split_evenly(10, 3) == (2, 5)
    assert split_evenly(7, 2) == (1, 7)
    assert split_evenly(3, 8) == (1, 3)


def test_segments_cover_an_epoch():
    for examples in range(1, 40):
        for size in (BatchSize(7), BatchSize((2, 9)), BatchSize(lambda step: 1 + step), BatchSize((3, 20), micro=3)):
            for last in ("keep", "drop"):
                runs, start = list(segments(examples, size, 5, last)), 0
                for one in runs:
                    assert (one.start, one.count > 0, one.size > 0) == (start, True, True)
                    start += one.size * one.count
                assert start == examples if last == "keep" else 0 < start <= examples


# Streams ------------------------------------------------------------------------------------------

PARTS = [np.float32([i, i + 1]) for i in range(5)]
MEANS = [0.5, 1.5, 2.5, 3.5, 4.5]


def generator():
    yield from PARTS


@pytest.mark.parametrize(
    ("make", "epochs"),
    [
        (lambda: PARTS, 2),
        (lambda: [jnp.asarray(p) for p in PARTS], 2),
        (lambda: lambda epoch: PARTS, 2),
        (lambda: lambda epoch: generator(), 2),
        (generator, 1),
        (lambda: iter(PARTS), 1),
    ],
    ids=["list", "device arrays", "factory of lists", "factory of generators", "generator", "iterator"],
)
@pytest.mark.parametrize("steps_per_call", [1, 3, "auto"])
def test_a_stream_of_any_kind(make, epochs, steps_per_call):
    found = run(make(), value, epochs=epochs, log_every=1, steps_per_call=steps_per_call)
    assert gradients(found) == MEANS * epochs
    assert (found.step, found.finished) == (5 * epochs, True)


def test_a_factory_is_called_once_for_every_epoch():
    epochs = []

    def factory(epoch):
        epochs.append(epoch)
        return PARTS

    run(factory, value, epochs=3, steps_per_call=1)
    assert epochs == [0, 1, 2]


def test_a_ragged_stream_is_run_as_it_comes():
    parts = [np.ones(n, np.float32) * n for n in (2, 2, 3, 1, 1, 2)]
    found = run(parts, value, log_every=1)
    assert gradients(found) == [2, 2, 3, 1, 1, 2]
    whole = run(parts, value)
    assert gradients(whole) == [pytest.approx(sum(n * n for n in (2, 2, 3, 1, 1, 2)) / 11)]


@pytest.mark.parametrize("wanted", [{"steps": 9}, {"epochs": 3}])
def test_a_stream_that_ends_early_says_so(wanted):
    found = run(iter(PARTS), value, **wanted)
    assert (found.step, found.stopped_because, found.finished) == (5, "the data ended", False)


def test_an_unknown_length_is_enough_without_a_schedule():
    assert run(lambda epoch: generator(), value, epochs=2).step == 10
    with pytest.raises(TypeError, match=r"not known for this data; steps= was expected"):
        run(lambda epoch: generator(), value, tx=lambda n: jopt.sgd(0.1), epochs=2)
    assert run(lambda epoch: generator(), value, tx=lambda n: jopt.sgd(0.1 / n), steps=7).step == 7


@pytest.mark.parametrize("data", [[], iter(()), lambda epoch: ()], ids=["list", "iterator", "factory"])
def test_an_empty_stream_is_an_error(data):
    with pytest.raises(ValueError, match=r"gave no batch, at least one was expected"):
        run(data, value, steps=3)


class WrongError(Exception):
    pass


@pytest.mark.parametrize("good", [0, 3])
def test_an_exception_in_a_generator_reaches_the_caller(good):
    def broken():
        yield from PARTS[:good]
        raise WrongError("file 7 is damaged")

    before = threading.active_count()
    with pytest.raises(WrongError, match="file 7 is damaged") as caught:
        run(broken(), value, steps=10, steps_per_call=1)
    assert threading.active_count() == before
    if good:  # what was trained until then is not lost
        assert bits(caught.value.fit.params) == bits(run(PARTS[:good], value).params)


def test_a_stream_is_prefetched_a_little_and_left_alone_afterwards():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield PARTS[0]

    before = threading.active_count()
    run(endless(), value, steps=10, steps_per_call=2)
    assert threading.active_count() == before
    used = len(taken)
    assert 10 <= used <= 10 + 8
    time.sleep(0.2)
    assert len(taken) == used


def test_a_factory_of_the_epoch_resumes_without_a_notice():
    def factory(epoch):
        random = np.random.default_rng(epoch)
        return (random.normal(size=2).astype(np.float32) for _ in range(5))

    whole = run(factory, value, steps=13)
    for stop in (2, 5, 6, 12):
        some = run(factory, value, steps=stop)
        assert bits(run(factory, value, steps=13, start=some).params) == bits(whole.params), stop


def test_a_plain_generator_is_skipped_forward_with_a_notice():
    some = run(generator(), value, steps=2)
    with pytest.warns(UserWarning, match=r"skips 2 batches of generator.*get_state and set_state"):
        more = run(generator(), value, steps=5, start=some, log_every=1)
    assert gradients(more)[1:] == MEANS[2:]
    with pytest.warns(UserWarning, match="skips 2"), pytest.raises(ValueError, match=r"ended after 1 batches.*used 2"):
        run(iter(PARTS[:1]), value, steps=5, start=some)


class Source:
    """A loader with a state; it counts how many batches were made."""

    def __init__(self, length=5):
        self.length, self.at, self.made, self.set = length, 0, 0, []

    def __iter__(self):
        while self.at < self.length:
            self.at, self.made = self.at + 1, self.made + 1
            yield np.float32([self.at - 1, self.at])
        self.at = 0

    def get_state(self):
        return {"at": self.at}

    def set_state(self, state):
        self.set.append(state)
        self.at = state["at"]


@pytest.mark.parametrize("stop", [2, 3, 4, 5, 7])
def test_a_source_with_a_state_goes_on_without_reading_anew(stop):
    whole = run(Source(), value, steps=10, log_every=1)
    assert gradients(whole) == MEANS * 2
    some, source = run(Source(), value, steps=stop, log_every=1), Source()
    more = run(source, value, steps=10, start=some, log_every=1)
    assert source.set == [{"at": stop % 5 if stop != 5 else 5}]
    assert gradients(more) == gradients(whole)
    assert bits(more.params) == bits(whole.params)


def test_a_run_that_ended_with_an_epoch_goes_on_with_the_next():
    some = run(Source(), value, epochs=1, log_every=1)
    assert gradients(run(Source(), value, epochs=2, start=some, log_every=1)) == MEANS * 2


def test_streams_and_arrays_agree():
    x = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)

    def loss(params, batch):
        return jnp.mean((batch @ params["w"] - 1) ** 2)

    arrays, stream = (run(data, loss, {"w": x[0]}, shuffle=False) for data in (x, [x[:4], x[4:8], x[8:]]))
    assert arrays.step == stream.step == 3
    close(arrays.params["w"], stream.params["w"])
