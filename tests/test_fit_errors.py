"""What `fit` says to arguments that cannot work."""

import threading

import jax.numpy as jnp
import numpy as np
import pytest
from fit_cases import IMAGES, LABELS, plain_loss, plain_params

import jopt
from jopt.train.fit import fit

DATA = (IMAGES, LABELS)
ADAM = jopt.adam(0.01)
GOOD = {"loss_fn": plain_loss, "params": plain_params(), "tx": jopt.sgd(0.1), "data": DATA, "epochs": 1}


def four(params, model_state, batch, key):
    return plain_loss(params, batch)


def two_values(params, batch):
    return plain_loss(params, batch), {}, {}


def vector(params, batch):
    return batch[0].mean((1, 2))


def vector_metric(params, batch):
    return plain_loss(params, batch), {"all": batch[0].mean((1, 2))}


def with_key(params, batch, key):
    return plain_loss(params, batch)


def without_state(params, model_state, batch):
    return plain_loss(params, batch)


def other_state(params, model_state, batch):
    return plain_loss(params, batch), ({"n": model_state["n"].astype(jnp.float32)}, {})


N = {"n": np.zeros((), np.int32)}
BAD = {
    "no length": ({"epochs": None}, TypeError, r"epochs=None and steps=None.*exactly one.*epochs=10"),
    "two lengths": ({"steps": 3}, TypeError, r"epochs=1 and steps=3.*exactly one"),
    "no epoch": ({"epochs": 0}, ValueError, r"epochs=0.*at least 1"),
    "half an epoch": ({"epochs": 0.5}, ValueError, r"epochs=0.5.*whole number"),
    "no step": ({"epochs": None, "steps": 0}, ValueError, r"steps=0.*at least 1"),
    "batch size": ({"batch_size": 0}, ValueError, r"batch_size=0.*at least 1.*batch_size=64"),
    "batch range": ({"batch_size": (8, 4)}, ValueError, r"\(8, 4\).*low ≤ high"),
    "batch schedule": ({"batch_size": lambda step: 0}, ValueError, r"gave 0.0 at step 0.*at least 1"),
    "both accumulations": ({"accumulate": 2, "micro_batch_size": 2}, TypeError, r"one of them"),
    "accumulated range": ({"accumulate": 2, "batch_size": (4, 8)}, TypeError, r"micro_batch_size instead"),
    "a schedule of given batches": (
        {"batch_size": (4, 8), "data": [DATA]},
        TypeError,
        r"\(4, 8\).*arrays were expected",
    ),
    "last batch": ({"last_batch": "pad"}, ValueError, r"last_batch='pad'.*'keep', 'drop'"),
    "scaling": ({"scale_learning_rate": "cubic"}, ValueError, r"'cubic'.*'linear', 'sqrt'"),
    "reset": ({"model_state_reset": "step"}, ValueError, r"'step'.*'epoch'"),
    "eval every": ({"eval_every": "step"}, ValueError, r"eval_every='step'.*whole number"),
    "log every": ({"log_every": 0}, ValueError, r"log_every=0"),
    "calls": ({"steps_per_call": 0}, ValueError, r"steps_per_call=0"),
    "nonfinite": ({"max_nonfinite": 0}, ValueError, r"max_nonfinite=0"),
    "precision": ({"precision": "f8"}, ValueError, r"'f8'.*'bf16' or 'f16'"),
    "progress": ({"progress": "fast"}, TypeError, r"progress='fast'.*'terminal'"),
    "share": ({"validation_split": 1.0}, ValueError, r"validation_split=1.0.*\(0, 1\)"),
    "share of few": ({"validation_split": 0.001}, ValueError, r"leaves a part empty"),
    "share and data": ({"validation_split": 0.1, "eval_data": DATA}, ValueError, r"beside eval_data"),
    "unequal data": ({"data": (IMAGES, LABELS[1:])}, ValueError, r"'\[0\]': 52.*'\[1\]': 51.*same number"),
    "empty data": ({"data": (IMAGES[:0], LABELS[:0])}, ValueError, r"at least one"),
    "no params": ({"params": None}, TypeError, r"params=None.*'plain_loss'"),
    "no transform": ({"tx": 0.1}, TypeError, r"0.1 was given, a transform"),
    "uncalled optimizer": ({"tx": jopt.adam}, TypeError, r"tx=adam.*called was expected.*adam\(1e-3\)"),
    "unknown length": ({"tx": lambda n: ADAM, "data": iter([DATA])}, TypeError, r"number of steps, which is not known"),
    "overfit": ({"overfit": 0}, ValueError, r"overfit=0.*at least 1"),
    "eval batch": ({"eval_batch_size": 0, "eval_data": DATA}, ValueError, r"eval_batch_size=0"),
    "no loss": ({"loss_fn": "mse"}, TypeError, r"'mse' is not callable.*linen_loss"),
    "loss and loss": ({"loss": "mse"}, TypeError, r"loss='mse'.*Drop them"),
    "four arguments": ({"loss_fn": four}, TypeError, r"'four' takes.*Pass model_state="),
    "state for two": ({"model_state": N}, TypeError, r"'plain_loss' takes.*Drop model_state="),
    "three results": ({"loss_fn": two_values}, TypeError, r"3 values.*one dictionary"),
    "vector loss": ({"loss_fn": vector}, TypeError, r"float32\[32\].*scalar.*mean over the batch"),
    "vector metric": ({"loss_fn": vector_metric}, TypeError, r"'all' is float32\[32\].*merge and compute"),
    "no state back": ({"loss_fn": without_state, "model_state": N}, TypeError, r"new model state too"),
    "other state": ({"loss_fn": other_state, "model_state": N}, TypeError, r"leaf 'n'.*int32"),
    "no evaluation": ({"loss_fn": with_key, "eval_data": DATA}, TypeError, r"takes a key.*eval_fn\("),
    "checkpoint": ({"checkpoint": 3}, TypeError, r"checkpoint=3.*folder or a Checkpointer"),
    "logger": ({"loggers": "log.csv"}, TypeError, r"'log.csv' was given.*CSV\('log.csv'\)"),
    "rule": ({"until": jopt.stopping.early_stopping()}, TypeError, r"without data to evaluate on.*eval_data="),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_get_an_answer(name):
    changes, kind, message = BAD[name]
    with pytest.raises(kind, match=f"(?s){message}") as caught:
        fit(**(GOOD | {"progress": False} | changes))
    text = str(caught.value)
    assert text.endswith(".")
    assert "expected" in text


def test_nothing_is_left_running_after_an_error():
    before = threading.active_count()
    stream = {"data": [DATA] * 50, "eval_data": [DATA] * 50, "progress": False}
    for changes in ({"tx": 0.1}, {"loss_fn": vector}, {"eval_data": (IMAGES, LABELS[1:])}):
        with pytest.raises((TypeError, ValueError), match="expected"):
            fit(**(GOOD | stream | changes))
    assert threading.active_count() == before
