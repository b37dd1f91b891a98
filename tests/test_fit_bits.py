"""The result of `fit` has the same bits however its steps are grouped, donated, stopped and resumed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_cases import BATCH, CASES, LABELS, OPTIMIZERS, bits, case, outcome, plain_loss, plain_params, transform

import jopt
from jopt.train import loop, program
from jopt.train.fit import fit

STEPS = 12  # two epochs of six


def train(name, optimizer, **options):
    what = case(name)
    options = {"epochs": 2, "batch_size": BATCH, "last_batch": "drop", "log_every": 3, "progress": False} | options
    return fit(what.loss, what.params, transform(optimizer), what.data, **options)


def stop_at(step):
    return lambda history: history[-1]["step"] >= step


PLAIN = ("plain", "adamw_scheduled")
FAST = [PLAIN, ("plain", "muon"), ("linen", "lamb"), ("nnx", "averaged"), ("cnn", "lion"), ("gru", "plateau")]


def marked(fast, cases=CASES):
    """All pairs of a model and an optimizer; those that are not fast are marked slow."""
    return [
        pytest.param(
            (name, optimizer), id=f"{name}-{optimizer}", marks=() if (name, optimizer) in fast else pytest.mark.slow
        )
        for name in cases
        for optimizer in OPTIMIZERS
    ]


@pytest.fixture(scope="module", params=marked(FAST))
def whole(request):
    """A case and the outcome of training it at once; of this scope, so that one compilation serves all tests of it."""
    return *request.param, outcome(train(*request.param, steps_per_call=7))


@pytest.mark.parametrize("steps", [1, 2, "auto", 10**6])
def test_any_number_of_steps_a_call_gives_the_same_bits(whole, steps):
    name, optimizer, expected = whole
    assert outcome(train(name, optimizer, steps_per_call=steps)) == expected


@pytest.mark.parametrize("stop", [3, 9])
def test_a_run_that_goes_on_in_memory_has_the_same_bits(whole, stop):
    name, optimizer, expected = whole
    stopped = train(name, optimizer, until=stop_at(stop), steps_per_call=2)
    assert (stopped.step, stopped.finished) == (stop, False)
    assert outcome(train(name, optimizer, start=stopped)) == expected


def test_a_run_that_goes_on_from_a_checkpoint_has_the_same_bits(whole, tmp_path):
    name, optimizer, expected = whole
    assert train(name, optimizer, until=stop_at(9), checkpoint=tmp_path).step == 9
    assert outcome(train(name, optimizer, checkpoint=tmp_path)) == expected


@pytest.mark.parametrize("whole", marked([("linen", "lamb")]), indirect=True)
def test_without_donation_the_bits_are_the_same(whole, monkeypatch):
    name, optimizer, expected = whole
    kept = functools.cache(lambda recipe: jax.jit(program._chunk_of(recipe)))
    monkeypatch.setattr(loop, "compiled", kept)
    assert outcome(train(name, optimizer)) == expected
    assert kept.cache_info().currsize == 1


def test_a_stop_within_an_epoch_and_ragged_batches_change_no_bits():
    options = {"epochs": 3, "last_batch": "keep", "log_every": None}
    whole = train(*PLAIN, **options)
    assert whole.step == 21
    for stop in (1, 6, 7, 8, 20):
        some = train(*PLAIN, **(options | {"epochs": None, "steps": stop}))
        more = train(*PLAIN, **options, start=some, steps_per_call=4)
        assert bits((more.params, more.state)) == bits((whole.params, whole.state)), stop


def test_stopping_at_every_step_and_going_on_changes_no_bits():
    whole = train(*PLAIN)
    now = None
    for step in range(1, STEPS + 1):
        now = train(*PLAIN, epochs=None, steps=step, start=now)
    assert bits((now.params, now.state)) == bits((whole.params, whole.state))


def test_accumulation_and_growing_batches_resume_bit_equal():
    options = {"batch_size": lambda step: 8 + 2 * step, "micro_batch_size": 4, "epochs": 3, "log_every": 2}
    whole = train(*PLAIN, **options, steps_per_call=1)
    assert outcome(train(*PLAIN, **options)) == outcome(whole)
    stopped = train(*PLAIN, **options, until=stop_at(6))
    assert stopped.step == 6 < whole.step
    assert outcome(train(*PLAIN, **options, start=stopped)) == outcome(whole)


@pytest.mark.parametrize("precision", ["f16", pytest.param("bf16", marks=pytest.mark.slow)])
def test_narrow_precisions_have_the_same_bits(precision, tmp_path):
    options = {"precision": precision, "max_nonfinite": 2}
    whole = outcome(train(*PLAIN, **options, steps_per_call=1))
    assert outcome(train(*PLAIN, **options)) == whole
    train(*PLAIN, **options, until=stop_at(3), checkpoint=tmp_path)
    assert outcome(train(*PLAIN, **options, checkpoint=tmp_path)) == whole


def test_streams_have_the_same_bits(tmp_path):
    x, tx = case("plain").inputs, transform("nesterov")
    parts = [(x[i : i + 8], LABELS[i : i + 8]) for i in range(0, 52, 8)]  # the last one has four examples

    def run(**options):
        options = {"epochs": 2, "log_every": 1, "progress": False} | options
        return fit(plain_loss, plain_params(), tx, lambda epoch: parts[epoch:] + parts[:epoch], **options)

    whole = outcome(run(steps_per_call=1))
    for steps in (2, 3, "auto", 100):
        assert outcome(run(steps_per_call=steps)) == whole, steps
    for stop in (2, 6, 7, 8):
        assert outcome(run(start=run(until=stop_at(stop)))) == whole, stop
    run(until=stop_at(9), checkpoint=tmp_path)
    assert outcome(run(checkpoint=tmp_path)) == whole


# A separate step ---------------------------------------------------------------------------------


def in_order(key, examples):
    return jnp.arange(examples)


@functools.cache
def by_hand(name, optimizer, steps):
    """(params, state, model_state) after `steps` of value_and_grad and apply_gradients in one jitted step."""
    what, tx = case(name), transform(optimizer)
    stateful = hasattr(what.loss, "init")
    params, model_state = what.params, None
    if stateful:  # as fit initialises them
        sample = jax.tree.map(lambda a: jnp.asarray(a[:1]), what.data)
        params, model_state = what.loss.init(jax.random.fold_in(jax.random.key(0), 2), sample)
    params = jax.tree.map(jnp.asarray, params)

    def loss_of(params, model_state, batch, key):
        if stateful:
            loss, (model_state, _) = what.loss(params, model_state, batch, key)
            return loss, model_state
        return what.loss(params, batch, key)[0], None

    @jax.jit
    def step(params, state, model_state, batch, key):
        (loss, model_state), grads = jax.value_and_grad(loss_of, has_aux=True)(params, model_state, batch, key)
        params, state = jopt.apply_gradients(tx, grads, state, params, value=loss)
        return params, state, model_state

    state, key = tx.init(params), jax.random.fold_in(jax.random.key(0), 1)
    for i in range(steps):
        batch = jax.tree.map(lambda a, i=i: jnp.asarray(a[i * BATCH : (i + 1) * BATCH]), what.data)
        params, state, model_state = step(params, state, model_state, batch, jax.random.fold_in(key, i))
    return params, state, model_state


@pytest.mark.parametrize("pair", marked([PLAIN, ("gru", "plateau")], ["plain", "linen", "gru"]))
@pytest.mark.parametrize("guard", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_a_separate_jitted_step_gives_the_same_bits(pair, guard):
    expected = by_hand(*pair, 6)
    found = train(*pair, epochs=1, shuffle=in_order, max_nonfinite=guard)
    assert found.step == 6
    assert bits((found.params, found.state, found.model_state)) == bits(expected)


@pytest.mark.parametrize("pair", marked([("cnn", "lion")], ["cnn", "nnx"]))
@pytest.mark.parametrize("guard", [5, pytest.param(None, marks=pytest.mark.slow)])
def test_other_models_are_close_to_a_separate_jitted_step(pair, guard):
    expected = by_hand(*pair, 1)
    found = train(*pair, epochs=None, steps=1, shuffle=in_order, max_nonfinite=guard)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected[0]), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_without_a_guard_the_bits_are_the_same():
    assert outcome(train(*PLAIN, max_nonfinite=None)) == outcome(train(*PLAIN))


def test_the_history_has_the_losses_of_the_steps():
    """Checked against a plain loop, so that equal runs are not equal nonsense."""
    gradient = jax.jit(jax.value_and_grad(plain_loss))
    params, tx = jax.tree.map(jnp.asarray, plain_params()), optax.sgd(0.1)
    data, state, losses = (case("plain").inputs, LABELS), tx.init(plain_params()), []
    for i in range(6):
        batch = jax.tree.map(lambda a, i=i: a[i * BATCH : (i + 1) * BATCH], data)
        loss, grads = gradient(params, batch)
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))
    options = {"epochs": 1, "batch_size": BATCH, "last_batch": "drop", "shuffle": False, "progress": False}
    found = fit(plain_loss, plain_params(), tx, data, log_every=2, **options)
    pairs = [np.mean(losses[i : i + 2]) for i in (0, 2, 4)]
    np.testing.assert_allclose(found.history.column("loss"), pairs, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found.params, params)
