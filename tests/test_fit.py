"""What `fit` does when all goes well: losses, metrics, transforms, rules, callbacks."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_cases import IMAGES, LABELS, bits, close, plain_loss, plain_params

import jopt
from jopt.train.stopping import early_stopping, max_seconds, plateau, target

DATA = (IMAGES, LABELS)
ADAM = jopt.adam(0.02)


def run(loss=plain_loss, params=None, tx=ADAM, data=DATA, **options):
    """Two steps an epoch, unless told otherwise."""
    params = plain_params() if params is None else params
    length = {} if options.keys() & {"epochs", "steps"} else {"epochs": 2}
    return jopt.fit(loss, params, tx, data, **({"batch_size": 26, "progress": False} | length | options))


def descend(params, batch):
    """A loss of slope 1: every step of `sgd(r)` takes r."""
    return params["w"].sum() + 0 * batch.mean()


W = {"w": np.zeros(2, np.float32)}
ONES = np.ones((4, 1), np.float32)
slide = functools.partial(run, descend, W, tx=jopt.sgd(0.1), data=ONES, batch_size=4)


# Losses -------------------------------------------------------------------------------------------


def squares(params, batch):
    return ((params["w"][None] - batch) ** 2).mean(0).sum()


def with_key(params, batch, key):
    return squares(params, batch), {"draw": jax.random.uniform(key)}


def with_optional_key(params, batch, key=None):
    return squares(params, batch) + (0.0 if key is None else jnp.inf)


def with_own_argument(params, batch, strength=1.0):
    return strength * squares(params, batch)


def with_state(params, model_state, batch):
    return squares(params, batch), ({"n": model_state["n"] + 1}, {"count": model_state["n"]})


def with_state_and_key(params, model_state, batch, key):
    loss, metrics = with_key(params, batch, key)
    return loss, ({"n": model_state["n"] + 1}, metrics)


class Callable:
    def __call__(self, params, batch):
        return squares(params, batch), {}


BATCHES = np.arange(8, dtype=np.float32).reshape(4, 2)
TWICE = np.concatenate([BATCHES] * 2)
AFTER_ONE = {"w": -0.1 * 2 * -BATCHES.mean(0)}
LOSSES = [squares, with_key, with_own_argument, with_state, with_state_and_key, Callable(), functools.partial(squares)]


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_a_loss_of_any_signature(loss):
    state = {"model_state": {"n": np.int32(3)}} if "state" in getattr(loss, "__name__", "") else {}
    found = run(loss, W, jopt.sgd(0.1), BATCHES, batch_size=4, epochs=1, **state)
    close(found.params["w"], AFTER_ONE["w"])
    close(found.history[0]["loss"], squares(W, BATCHES))
    assert found.model_state == ({"n": 4} if state else None)
    if loss is with_state:
        assert found.history[0]["count"] == 3


def test_an_optional_key_is_given():
    with pytest.raises(jopt.NonFiniteError, match="'the loss'"):
        run(with_optional_key, W, jopt.sgd(0.1), BATCHES, steps=9)


def test_every_step_has_its_own_key_which_depends_on_the_seed_alone():
    options = {"batch_size": 4, "log_every": 1, "steps": 3}
    draws = [run(with_key, W, jopt.sgd(0.1), BATCHES, key=k, **options).history.column("draw") for k in (0, 0, 1)]
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), i) for i in range(3)]
    assert draws[0].tolist() == draws[1].tolist() == [float(jax.random.uniform(k)) for k in keys]
    assert len({*draws[0], *draws[2]}) == 6
    assert (
        run(with_key, W, jopt.sgd(0.1), BATCHES, key=jax.random.key(1), **options).history.column("draw")[0]
        == draws[2][0]
    )
    assert (
        run(with_key, W, jopt.sgd(0.1), BATCHES, key=jax.random.PRNGKey(1), **options).history[1]["draw"] == draws[2][1]
    )


def test_the_models_state_can_begin_anew_every_epoch():
    options = {"batch_size": 4, "epochs": 3, "model_state": {"n": np.int32(0)}, "log_every": 1}
    for reset, counts in ((None, [0, 1, 2, 3, 4, 5]), ("epoch", [0, 1, 0, 1, 0, 1])):
        found = run(with_state, W, jopt.sgd(0.1), TWICE, model_state_reset=reset, **options)
        assert found.history.column("count").tolist() == counts


def test_a_run_that_goes_on_begins_epochs_with_the_first_state():
    options = {"batch_size": 4, "model_state_reset": "epoch", "model_state": {"n": np.int32(0)}, "log_every": 1}
    some = run(with_state, W, jopt.sgd(0.1), TWICE, steps=3, **options)
    more = run(with_state, W, jopt.sgd(0.1), TWICE, steps=6, start=some, **options)
    assert more.history.column("count").tolist() == [0, 1, 0, 1, 0, 1]


# Metrics ------------------------------------------------------------------------------------------


class Largest(NamedTuple):
    value: Any

    def merge(self, other):
        return Largest(jnp.maximum(self.value, other.value))

    def compute(self):
        return self.value


def measured(params, batch):
    x, w = batch
    mean = (x * w).sum() / w.sum()
    return params["w"].sum() * 0 + mean, {"largest": Largest(x.max()), "weight": w.sum(), "even": x[0] % 2 == 0}


def test_means_are_weighted_and_objects_merge():
    x, w = np.float32([-5, -3, -4, -9]), np.float32([1, 0, 3, 2])
    found = run(measured, W, data=(x, w), batch_size=2, shuffle=False, epochs=1, eval_data=(x, w), eval_batch_size=3)
    row = found.history[0]
    for name in ("", "eval_"):
        close(row[f"{name}loss"], (x * w).sum() / w.sum())
        assert row[f"{name}largest"] == -3
        assert f"{name}weight" not in row
    close(row["even"], 5 / 6)


def test_what_the_history_has():
    tx = jopt.monitor(jopt.chain(jopt.clip_by_global_norm(0.1), jopt.adam(jopt.schedules.linear_schedule(0.1, 0.0, 5))))
    found = run(tx=tx, log_every=1, epochs=2)
    row = found.history[-1]
    assert found.history.column("step").tolist() == [1, 2, 3, 4]
    assert found.history.column("epoch").tolist() == [0.5, 1, 1.5, 2]
    close(found.history.column("learning_rate"), [0.1, 0.08, 0.06, 0.04])
    close(row["hyperparams/scale_by_adam/b1"], 0.9)
    assert 0 < row["monitor/clip_factor"] < 1
    assert np.all(np.diff(found.history.column("seconds")) >= 0)
    assert (found.step, found.epoch, found.finished, found.skipped) == (4, 2, True, 0)
    assert "step 4, epoch 2" in repr(found)
    assert "all steps are done" in repr(found)


# The transform ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "total"),
    [
        ({"steps": 5}, 5),
        ({"epochs": 3}, 6),
        ({"epochs": 3, "batch_size": 25}, 9),
        ({"epochs": 3, "batch_size": 25, "last_batch": "drop"}, 6),
        ({"epochs": 2, "accumulate": 2}, 4),
        ({"epochs": 2, "data": [ONES] * 3}, 6),
        ({"fast_dev_run": True, "epochs": 7}, 1),
    ],
)
def test_a_transform_may_be_a_function_of_the_number_of_steps(options, total):
    totals = []

    def tx(n):
        totals.append(n)
        return jopt.sgd(jopt.schedules.linear_schedule(0.1, 0.0, n))

    found = run(descend, W, **({"data": np.ones((52, 1), np.float32), "tx": tx} | options))
    assert totals == [total] == [found.step]
    close(found.history[-1]["learning_rate"], 0.1 / total)


def test_evaluation_uses_the_averaged_parameters():
    found = slide(tx=jopt.ema(jopt.sgd(0.1), 0.9), epochs=2, eval_data=ONES)
    averaged, last = (jopt.evaluate(descend, p, ONES)["loss"] for p in (found.eval_params, found.params))
    assert found.history[-1]["eval_loss"] == averaged != last


def test_the_loss_reaches_transforms_that_ask_for_it():
    found = slide(tx=jopt.chain(jopt.sgd(0.0), jopt.reduce_on_plateau(factor=0.5, patience=1)), steps=5)
    assert float(found.state.scalars["reduce_on_plateau"]["scale"]) == 0.5**4


@pytest.mark.parametrize(
    "tx",
    [
        pytest.param(optax.lbfgs(0.5), id="lbfgs", marks=pytest.mark.slow),
        pytest.param(optax.polyak_sgd(0.2), id="polyak"),
    ],
)
def test_transforms_of_optax_that_need_value_and_value_fn(tx):
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic needs it
        found = run(tx=jopt.chain(tx), batch_size=52, steps=4, shuffle=False)
        params = jax.tree.map(jnp.asarray, plain_params())
        loss, state = jax.jit(lambda p: plain_loss(p, DATA)), tx.init(params)
        step = jax.jit(functools.partial(tx.update, value_fn=loss))
        for _ in range(4):
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = step(grads, state, params, value=value, grad=grads)
            params = optax.apply_updates(params, updates)
    jax.tree.map(functools.partial(close, rtol=1e-3), found.params, params)
    assert found.history[-1]["loss"] < found.history[0]["loss"]


# When it ends -------------------------------------------------------------------------------------


def valley(params, batch):
    """Lowest where `w` is −0.3, which is after three steps of `slide`."""
    return ((params["w"] + 0.3) ** 2).sum()


@pytest.mark.parametrize("restore", [True, False])
def test_early_stopping_gives_back_the_best(restore):
    rule = early_stopping(patience=2, restore_best=restore)
    stopped = slide(epochs=20, eval_data=ONES, eval_fn=valley, until=rule)
    assert (stopped.step, stopped.finished) == (5, False)
    assert stopped.stopped_because.startswith("eval_loss has not improved")
    close(stopped.params["w"], [-0.3] * 2 if restore else [-0.5] * 2)
    assert bits(stopped.eval_params) == bits(stopped.params)
    assert int(stopped.state.count) == (3 if restore else 5)
    close(slide(epochs=7, start=stopped).params["w"], [-0.7] * 2)  # from the last, not from the best


def test_the_best_is_kept_in_checkpoints(tmp_path):
    rule = early_stopping(patience=2)
    options = {"epochs": 20, "eval_data": ONES, "eval_fn": valley, "checkpoint": tmp_path}
    slide(until=[rule, lambda history: len(history) == 4], **options)
    stopped = slide(until=rule, **options)
    assert stopped.step == 5
    close(stopped.params["w"], [-0.3] * 2)


@pytest.mark.parametrize(
    ("rule", "step", "why"),
    [
        (target("eval_loss", 0.03), 2, "the target was 0.03"),
        (plateau("eval_loss", window=2), 4, "is on a plateau"),
        (lambda history: len(history) >= 6, 6, "<lambda>"),
        (lambda history: "enough" if history[-1]["step"] == 3 else None, 3, "enough"),
        ([target("loss", -1), max_seconds(0)], 1, "time budget of 0 s"),
    ],
)
def test_rules_of_the_history_end_it(rule, step, why):
    stopped = slide(epochs=20, eval_data=ONES, eval_fn=valley, until=rule)
    assert stopped.step == step
    assert why in stopped.stopped_because


def test_a_time_budget_ends_it_after_the_chunk():
    stopped = slide(steps=10**6, max_seconds=0, steps_per_call=1)
    assert (stopped.step, stopped.stopped_because) == (1, "the time budget of 0 s is used up")


def test_going_on_counts_from_the_beginning():
    assert slide(epochs=3, start=slide(epochs=3)).step == 3
    assert len(slide(epochs=3, start=slide(epochs=2)).history) == 3


@pytest.mark.parametrize(("every", "steps"), [("epoch", [2, 4, 5]), (3, [3, 5]), (1, [1, 2, 3, 4, 5])])
def test_evaluation_comes_when_asked_and_at_the_end(every, steps):
    found = slide(data=np.ones((8, 1), np.float32), steps=5, eval_data=ONES, eval_every=every)
    assert [row["step"] for row in found.history if "eval_loss" in row] == steps


# Callbacks, loggers, one-word flags -----------------------------------------------------------------


class Log:
    def __init__(self, fails=False):
        self.rows, self.fails, self.calls = [], fails, []

    def start(self, config):
        self.calls.append(("start", config["step"], config["total"]))

    def log(self, row, step):
        self.rows.append((step, row))
        if self.fails:
            raise OSError("disk full")

    def close(self):
        self.calls.append(("close",))


def test_callbacks_and_loggers_see_every_record():
    log, moments, rows = Log(), [], []
    found = slide(epochs=3, loggers=[log, lambda row, step: rows.append(step)], callbacks=moments.append)
    assert [step for step, _ in log.rows] == rows == [m.step for m in moments] == [1, 2, 3]
    assert [row for _, row in log.rows] == list(found.history) == [m.row for m in moments]
    assert log.calls == [("start", 0, 3), ("close",)]
    assert [len(m.history) for m in moments] == [1, 2, 3]


def test_a_callback_sees_the_parameters_of_its_step():
    seen = []
    slide(epochs=3, callbacks=lambda m: seen.append(float(m.params["w"][0])))
    close(seen, [-0.1, -0.2, -0.3])


def test_what_fails_is_reported_once_and_switched_off():
    calls, log, good = [], Log(fails=True), Log()

    def broken(moment):
        calls.append(moment.step)
        raise ValueError("no window")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = slide(epochs=4, callbacks=[broken], loggers=[log, good])
    messages = sorted(str(w.message) for w in caught)
    assert len(messages) == 2
    assert "callback 'broken' failed with ValueError: no window" in messages[0]
    assert "logger 'Log' failed with OSError: disk full" in messages[1]
    assert (calls, len(log.rows), len(good.rows), found.step) == ([1], 1, 4, 4)


def test_a_fast_dev_run_takes_one_step_and_writes_nothing(tmp_path):
    found = slide(fast_dev_run=True, epochs=50, eval_data=ONES, checkpoint=tmp_path / "run")
    assert (found.step, found.finished) == (1, True)
    assert "eval_loss" in found.history[0]
    assert not (tmp_path / "run").exists()
    assert slide(fast_dev_run=True).step == 1


@pytest.mark.parametrize("stream", [False, True])
def test_overfitting_uses_the_first_batches_alone(stream):
    x = np.arange(10, dtype=np.float32)
    data = [x[i : i + 4] for i in (0, 4, 8)] if stream else x

    def mean(params, batch):
        return params["w"].sum() * 0 + batch.mean(), {"largest": Largest(batch.max())}

    for count, largest in ((1, 3), (2, 7), (3, 9)):
        row = run(mean, W, data=data, batch_size=4, overfit=count, epochs=1, eval_data=x + 100).history[-1]
        assert (row["step"], row["largest"], row["eval_largest"]) == (count, largest, largest)


def test_a_validation_split_holds_examples_out():
    x = 2.0 ** np.arange(10, dtype=np.float32)

    def total(params, batch):
        return params["w"].sum() * 0 + batch.mean()

    rows = [run(total, W, data=x, batch_size=10, validation_split=0.3, key=k, epochs=1).history[0] for k in (0, 0, 1)]
    parts = [(round(row["loss"] * 7), round(row["eval_loss"] * 3)) for row in rows]
    assert sum(parts[0]) == 1023
    assert parts[0] == parts[1] != parts[2]
    assert bin(parts[0][1]).count("1") == 3


def test_a_plain_loss_has_no_model():
    with pytest.raises(TypeError, match=r"'descend'.*Flax model.*expected"):
        slide(steps=1).model()
