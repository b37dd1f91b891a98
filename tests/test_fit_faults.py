"""What `fit` does when something goes wrong: numbers that are not finite, interrupts, signals."""

import functools
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from signal import SIGINT, SIGTERM

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fit_cases import BATCH, IMAGES, LABELS, bits, plain_loss, plain_params

import jopt
from jopt.train.fit import NonFiniteError, fit
from jopt.train.signals import Requests


@pytest.fixture(autouse=True)
def signals_of_a_terminal():
    """A job started in the background inherits an ignored SIGINT; a terminal's does not."""
    before = {
        SIGINT: signal.signal(SIGINT, signal.default_int_handler),
        SIGTERM: signal.signal(SIGTERM, signal.SIG_DFL),
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


TX = jopt.ema(jopt.adam(0.05), 0.9)
STATE = {"mean": np.zeros(3, np.float32), "seen": np.zeros((), np.int32)}
PARAMS = {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "slope": np.ones(2, np.float32)}


def loss_with_state(params, model_state, batch):
    """A regression whose gradient of "slope" is NaN, and nothing else, where the `flag` of a batch is 0."""
    x, y, flag = batch
    root = jnp.sqrt(jnp.abs(params["slope"] * flag[0])).sum()
    loss = jnp.mean((x @ params["kernel"] - y) ** 2) + 0.1 * root
    state = {"mean": 0.9 * model_state["mean"] + 0.1 * x.mean(0), "seen": model_state["seen"] + 1}
    return loss, (state, {"size": jnp.abs(x).mean()})


def batches(count, seed=0):
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    return [(draw(4, 3), draw(4, 2), np.ones(1, np.float32)) for _ in range(count)]


def spoiled(batch, how):
    """A batch that gives a NaN loss, an infinite one, or a finite one with a NaN in one gradient."""
    x, y, flag = batch
    if how == "gradient":
        return x, y, np.zeros_like(flag)
    return x, np.where(np.arange(4)[:, None] == 2, np.float32(how), y), flag


def train(data, **options):
    options = {"epochs": 1, "model_state": STATE, "max_nonfinite": 3, "progress": False} | options
    return fit(loss_with_state, PARAMS, TX, data, **options)


def everything(fit):
    return bits((fit.params, fit.state, fit.model_state, fit.eval_params))


# Numbers that are not finite ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 7])
@pytest.mark.parametrize("how", ["nan", "inf", "gradient"])
def test_a_skipped_step_leaves_everything_as_if_it_had_not_been(at, how):
    clean = batches(8)
    bad = spoiled(batches(1, seed=1)[0], how)
    found, expected = train([*clean[:at], bad, *clean[at:]]), train(clean)
    assert everything(found) == everything(expected)
    assert (found.step, found.skipped, expected.step, expected.skipped) == (9, 1, 8, 0)
    assert found.history[-1]["skipped"] == 1
    assert found.history[-1]["loss"] == expected.history[-1]["loss"]  # means leave it out


@pytest.mark.parametrize(
    ("how", "leaf"), [("gradient", "slope"), ("nan", "kernel")], ids=["one gradient", "the loss and all gradients"]
)
@pytest.mark.parametrize("steps_per_call", [1, 2, 32])
def test_too_many_in_a_row_raise_and_give_the_last_good_result(how, leaf, steps_per_call):
    clean = batches(9)
    data = [*clean[:4], *(spoiled(b, how) for b in clean[4:])]
    with pytest.raises(
        NonFiniteError, match=rf"3 steps in a row.*first in '{leaf}'.*up to step 7.*error.fit"
    ) as caught:
        train(data, steps_per_call=steps_per_call)
    stopped = caught.value.fit
    assert (stopped.step, stopped.skipped) == (7, 3)
    assert everything(stopped) == everything(train(clean[:4]))
    more = train(lambda epoch: [*data[:7], *clean[:2]], start=stopped)
    assert everything(more) == everything(train([*clean[:4], *clean[:2]]))


def test_a_loss_that_is_not_finite_by_itself_is_named():
    def loss(params, batch):
        return (params["w"] * batch[0]).mean() + jax.lax.stop_gradient(jnp.log(batch.min()))

    data = jnp.array([[1.0], [1.0], [-1.0], [-1.0]])
    with pytest.raises(NonFiniteError, match=r"2 steps in a row.*'the loss'"):
        fit(loss, {"w": jnp.ones(1)}, jopt.sgd(0.1), data, epochs=1, batch_size=1, shuffle=False, max_nonfinite=2)


def test_a_good_step_between_begins_the_count_anew():
    bad = [spoiled(b, "nan") for b in batches(5)]
    found = train([*bad[:2], *batches(1), *bad[2:4], *batches(1)])
    assert (found.step, found.skipped, found.finished) == (6, 4, True)


def test_without_a_guard_nothing_is_skipped():
    found = train([*batches(2), spoiled(batches(1)[0], "nan")], max_nonfinite=None)
    assert found.skipped == 0
    assert np.isnan(found.params["kernel"]).any()


# A KeyboardInterrupt anywhere --------------------------------------------------------------------

SIGNALS = (signal.SIGINT, signal.SIGTERM)
UNTOUCHED = bits((PARAMS, STATE))
TRAIN = str(Path(jopt.train.__file__).parent)


def press_twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def interrupt():
    raise KeyboardInterrupt


class Trace:
    """Does something at the k-th line that is executed in the training toolkit."""

    def __init__(self, k, action):
        self.k, self.action, self.lines, self.began, self.where = k, action, 0, False, ""

    def __call__(self, frame, event, arg):
        if frame.f_code.co_filename.startswith(TRAIN):
            self.began |= frame.f_code.co_name == "_train"
            return self.line
        return None

    def line(self, frame, event, arg):
        if event == "line":
            self.lines += 1
            if self.lines == self.k:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} in {frame.f_code.co_name}"
                self.action()
        return self.line


def traced(k, action, call):
    """The result of a call in which something happens at the k-th line, and the trace."""
    trace, before = Trace(k, action), sys.gettrace()
    sys.settrace(trace)
    try:
        return call(), trace
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "fit", None), trace
    finally:
        sys.settrace(before)


CHUNKS = {"steps_per_call": 2, "log_every": 2, "epochs": None, "steps": 6}


@functools.cache
def at_steps():
    """{step: content} after each chunk, without interrupts."""
    begun = bits((PARAMS, TX.init(PARAMS), STATE, PARAMS))
    return {0: begun} | {step: everything(train(batches(6), **(CHUNKS | {"steps": step}))) for step in (2, 4, 6)}


POSITIONS = [pytest.param(count, marks=marks) for count, marks in ((10, ()), (300, pytest.mark.slow))]


# A file that was opened, but not kept yet, is left to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("action", [interrupt, press_twice])
@pytest.mark.parametrize("kind", ["stream", "arrays", "checkpoint"])
def test_an_interrupt_at_any_line_leaves_a_good_result(kind, action, positions, tmp_path):
    handlers = list(map(signal.getsignal, SIGNALS))
    data = batches(6)
    if kind == "arrays":  # the same batches
        data = tuple(
            np.concatenate(parts) for parts in zip(*[(x, y, np.repeat(f, 4)) for x, y, f in data], strict=True)
        )

    def run(k, start=None):
        folder = {"checkpoint": tmp_path / str(k)} if kind == "checkpoint" else {}
        feed = data if kind == "arrays" else lambda epoch: data
        options = CHUNKS | {"batch_size": 4, "shuffle": False, "eval_data": data, "eval_every": 4, "start": start}
        return train(feed, callbacks=lambda moment: None, **options, **folder)

    run("first")  # so that everything is compiled
    lines = traced(None, None, functools.partial(run, "second"))[1].lines
    assert lines > 300
    for k in np.linspace(1, lines, positions).astype(int):
        result, trace = traced(k, action, functools.partial(run, k))
        if action is interrupt and trace.where.startswith("signals.py"):  # real ones are held back in there
            list(map(signal.signal, SIGNALS, handlers))
        assert list(map(signal.getsignal, SIGNALS)) == handlers, trace.where
        if result is None:
            assert not trace.began, trace.where
        else:
            assert everything(result) == at_steps()[result.step], trace.where
            assert everything(run("more", result)) == at_steps()[6], trace.where
        if kind == "checkpoint":
            assert everything(run(k)) == at_steps()[6], trace.where
    assert bits((PARAMS, STATE)) == UNTOUCHED


@pytest.mark.slow
def test_an_interrupt_while_compiling_leaves_what_was_given():
    def run(k):
        def fresh(params, model_state, batch):
            return loss_with_state(params, model_state, batch)

        data, options = batches(2), {"model_state": STATE, "steps": 2, "steps_per_call": 2, "progress": False}
        return traced(k, interrupt, lambda: fit(fresh, PARAMS, TX, data, eval_data=data, **options))

    lines = run(None)[1].lines
    for k in np.linspace(1, lines, 40).astype(int):
        result, trace = run(k)
        assert result is not None or not trace.began, trace.where
        if result is not None:
            assert everything(result) == at_steps()[result.step], trace.where
        assert bits((PARAMS, STATE)) == UNTOUCHED


# Signals -----------------------------------------------------------------------------------------


def signals_at(step, *numbers):
    """A callback that raises signals in this process."""

    def callback(moment):
        if moment.step == step:
            for number in numbers:
                signal.raise_signal(number)

    return callback


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGINT, "interrupted by Ctrl-C"), (signal.SIGTERM, "stopped by SIGTERM")]
)
def test_a_signal_stops_after_the_chunk_and_handlers_come_back(number, why):
    before = list(map(signal.getsignal, SIGNALS))
    stopped = train(batches(6), callbacks=signals_at(4, number), **CHUNKS)
    assert (stopped.stopped_because, stopped.step, stopped.finished) == (why, 4, False)
    assert everything(stopped) == at_steps()[4]
    assert list(map(signal.getsignal, SIGNALS)) == before
    assert everything(train(lambda epoch: batches(6), start=stopped, **CHUNKS)) == at_steps()[6]


def test_a_second_interrupt_raises_with_the_result():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(batches(6), callbacks=signals_at(2, signal.SIGINT, signal.SIGINT), **CHUNKS)
    assert everything(caught.value.fit) == at_steps()[2]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_interrupt_waits_while_buffers_change_hands():
    asked = Requests()
    asked.take(signal.SIGINT, None)
    asked.hold()
    asked.take(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        asked.release()
    asked.release()  # once
    with pytest.raises(KeyboardInterrupt):
        asked.take(signal.SIGINT, None)
    assert asked.reason == "interrupted by Ctrl-C"


def test_a_second_sigterm_does_not_raise():
    stopped = train(batches(6), callbacks=signals_at(2, signal.SIGTERM, signal.SIGTERM), **CHUNKS)
    assert (stopped.stopped_because, stopped.step) == ("stopped by SIGTERM", 2)


def test_worker_threads_set_no_handlers():
    before, seen, results = signal.getsignal(signal.SIGINT), [], []

    def work():
        results.append(train(batches(6), callbacks=lambda _: seen.append(signal.getsignal(signal.SIGINT)), **CHUNKS))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert everything(results[0]) == at_steps()[6]
    assert seen == [before] * 3


PROCESS = """
import signal, sys
import jax.numpy as jnp
import jopt

def loss(w, batch):
    return ((w - batch) ** 2).mean()

def ready(moment):
    if moment.step == 200:
        print("ready", flush=True)

for _ in range(2):
    fit = jopt.fit(loss, jnp.zeros(3), jopt.sgd(0.1), jnp.ones((8, 3)), steps=10**9, batch_size=8, log_every=1000,
        progress=False, callbacks=ready)
    alive = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    print(fit.stopped_because, fit.step > 0, bool(jnp.allclose(fit.params, 1)), alive, flush=True)
"""


def test_an_ignored_signal_stays_ignored():
    signal.signal(SIGINT, signal.SIG_IGN)
    run = train(batches(6), callbacks=signals_at(2, SIGINT, SIGINT), **CHUNKS)
    assert signal.getsignal(SIGINT) is signal.SIG_IGN
    assert everything(run) == at_steps()[6]


def test_signals_from_outside_end_a_run_with_its_result():
    environment = os.environ | {"PYTHONPATH": str(Path(jopt.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        for number, why in ((signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted by Ctrl-C")):
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
            assert child.stdout.readline() == f"{why} True True True\n"
        assert child.wait(60) == 0
    finally:
        child.kill()
        child.stdout.close()


# What belongs to the caller ----------------------------------------------------------------------


def test_the_callers_arrays_stay_alive_and_as_they_were():
    given = jax.tree.map(jnp.array, (PARAMS, STATE, tuple(map(np.concatenate, zip(*batches(6), strict=True)))[:2]))
    params, state, (x, y) = given
    before = bits(given)
    data = (x, y, jnp.ones(len(x)))
    options = {"model_state": state, "batch_size": 4, "epochs": 1, "progress": False, "model_state_reset": "epoch"}
    first = fit(loss_with_state, params, TX, data, **options)
    kept = everything(first)
    second = fit(loss_with_state, None, TX, data, **(options | {"epochs": 2}), start=first)
    assert second.step == 2 * first.step
    assert everything(first) == kept != everything(second)
    assert bits(given) == before


def test_a_rerun_with_equal_configuration_does_not_trace():
    traces = []

    def loss(params, batch):
        traces.append(1)
        return plain_loss(params, batch)

    def run(rate):
        data = (IMAGES, LABELS)
        fit(loss, plain_params(), jopt.adam(rate), data, epochs=1, batch_size=BATCH, eval_data=data, progress=False)

    run(0.1)
    first = len(traces)
    assert first > 0
    run(0.1)
    run(0.2)
    assert len(traces) == first
