"""Flax models as losses, narrow precisions, `evaluate` and `predict`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fit_cases import CLASSES, IMAGES, LABELS, LOSS, bits, case, close, logits, nnx_model, plain_params

import jopt
from jopt.models import MLP

DATA = (IMAGES, LABELS)
W = {"w": np.zeros(2, np.float32)}
ONES = np.ones((4, 1), np.float32)
BATCHES = np.arange(8, dtype=np.float32).reshape(4, 2) / 8


def squares(params, batch):
    return ((params["w"][None] - batch) ** 2).mean(0).sum()


# Flax models --------------------------------------------------------------------------------------


def test_a_linen_model_is_a_loss_in_one_line():
    model = MLP((5,), CLASSES, dropout=0.2, batch_norm=True)
    options = {"loss": LOSS, "metrics": ("accuracy", "perplexity"), "eval_data": DATA, "eval_batch_size": 11}
    found = jopt.fit(model, None, jopt.adam(0.05), DATA, batch_size=26, epochs=10, progress=False, **options)
    outputs = found.model()(IMAGES)
    close(outputs, model.apply({"params": found.params, **found.model_state}, IMAGES))
    loss = optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS).mean()
    row = found.history[-1]
    close(row["eval_loss"], loss, 1e-4)
    close(row["eval_perplexity"], np.exp(loss), 1e-4)
    close(row["eval_accuracy"], (outputs.argmax(-1) == LABELS).mean())
    assert row["eval_accuracy"] > 0.7 > found.history[0]["eval_accuracy"]
    assert not np.allclose(found.model_state["batch_stats"]["norm_0"]["mean"], 0)
    adapter = jopt.linen_loss(model, LOSS, metrics=("accuracy", "perplexity"))
    close(jopt.predict(adapter, found.params, IMAGES, model_state=found.model_state, batch_size=7), outputs)
    again = jopt.evaluate(adapter, found.params, DATA, model_state=found.model_state, batch_size=11)
    assert again == {name.removeprefix("eval_"): x for name, x in row.items() if name.startswith("eval_")}


def test_parameters_that_are_given_are_used():
    model, weights = case("linen").loss, {"hidden_0": {"kernel": np.zeros((36, 5), np.float32)}}
    fresh, _ = model.init(jax.random.key(5), (IMAGES, LABELS))
    found = jopt.fit(model, fresh | weights, jopt.sgd(0.0), DATA, steps=1, batch_size=26, progress=False)
    assert bits(found.params) == bits(fresh | weights)


def test_an_nnx_model_is_not_touched_and_a_new_one_comes_back():
    from flax import nnx

    model = nnx_model()
    model.train()
    before = bits(nnx.state(model))
    found = jopt.fit(
        model, None, jopt.ema(jopt.adam(0.05), 0.5), DATA, loss=LOSS, batch_size=26, epochs=2, progress=False
    )
    assert bits(nnx.state(model)) == before
    assert not model.dropout.deterministic
    adapter = jopt.nnx_loss(model, LOSS)
    for average, params in ((True, found.eval_params), (False, found.params)):
        new = found.model(average=average)
        new.eval()
        close(new(IMAGES), jopt.predict(adapter, params, IMAGES, model_state=found.model_state), 1e-4)
    assert not np.allclose(new.hidden.kernel[...], model.hidden.kernel[...])
    assert not np.allclose(new.norm.mean[...], 0)


def counting_models(kind):
    """A function that makes equal models of a class that counts how often it is traced, and the count."""
    from flax import linen, nnx

    traces = []

    class Linen(linen.Module):
        widths: list

        @linen.compact
        def __call__(self, x):
            traces.append(1)
            return linen.Dense(self.widths[0])(x.reshape(len(x), -1))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(36, CLASSES, rngs=rngs)

        def __call__(self, x):
            traces.append(1)
            return self.dense(x.reshape(len(x), -1))

    return (lambda: Linen([CLASSES])) if kind == "linen" else (lambda: Nnx(nnx.Rngs(0))), traces


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_model_made_anew_does_not_trace_anew(kind):
    make, traces = counting_models(kind)
    options = {"loss": LOSS, "metrics": ("accuracy",), "batch_size": 26, "epochs": 1, "progress": False}
    runs = []
    for rate in (0.1, 0.1, 0.2):
        found = jopt.fit(make(), None, jopt.sgd(rate), DATA, eval_data=(IMAGES, LABELS), **options)
        runs.append((len(traces), bits(found.params)))
    assert 0 < runs[0][0] == runs[2][0]
    assert runs[0][1] == runs[1][1] != runs[2][1]


def test_inputs_are_augmented_in_training_only():
    def shuffled(key, batch):
        return jax.random.permutation(key, batch[0]), batch[1]

    plain, augmented = (jopt.linen_loss(MLP((4,), CLASSES), LOSS, augment=how) for how in (None, shuffled))
    params, _ = plain.init(jax.random.key(0), DATA)
    assert plain.evaluate(params, {}, DATA)[0] == augmented.evaluate(params, {}, DATA)[0]
    assert plain(params, {}, DATA, jax.random.key(1))[0] != augmented(params, {}, DATA, jax.random.key(1))[0]


def test_examples_without_weight_do_not_count():
    model = jopt.linen_loss(MLP((4,), CLASSES), LOSS, metrics=("accuracy", "perplexity"))
    params, _ = model.init(jax.random.key(0), DATA)
    weights = np.where(np.arange(len(LABELS)) < 20, 2, 0).astype(np.float32)
    few = jopt.evaluate(model, params, (IMAGES[:20], LABELS[:20]), batch_size=8)
    all_ = jopt.evaluate(model, params, (IMAGES, LABELS, weights), batch_size=8)
    assert few.keys() == all_.keys()
    for name in few:
        close(few[name], all_[name])


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", jnp.bfloat16), ("f16", jnp.float16)])
def test_losses_compute_in_the_precision_and_parameters_stay(precision, dtype):
    seen = []

    def loss(params, batch):
        seen.append((params["w"].dtype, batch[0].dtype, batch[1].dtype))
        return ((params["w"][None] - batch[0]) ** 2).mean()

    data = (BATCHES, np.arange(4, dtype=np.int32))
    options = {"batch_size": 4, "epochs": 5, "eval_data": data, "progress": False}
    found = jopt.fit(loss, W, jopt.sgd(0.1), data, precision=precision, **options)
    assert set(seen) == {(jnp.dtype(dtype), jnp.dtype(dtype), jnp.dtype(jnp.int32))}
    assert found.params["w"].dtype == jnp.float32
    assert found.skipped == 0
    close(found.params["w"], BATCHES.mean(0) * (1 - 0.9**5), 2e-2)


def steep(params, batch):
    return (params["w"] * jnp.asarray(100, params["w"].dtype)).mean() + 0 * batch.mean().astype(params["w"].dtype)


def half(loss, steps):
    options = {"precision": "f16", "max_nonfinite": 2, "progress": False}
    return jopt.fit(loss, W, jopt.sgd(1e-3), ONES, steps=steps, **options)


def test_the_scale_of_a_float16_loss_falls_until_nothing_overflows():
    found = half(steep, steps=20)
    assert found.finished
    assert found.skipped == 5  # 50 · 2¹⁵ → 50 · 2¹⁰ < 65504
    close(found.params["w"], [-0.05 * 15] * 2, 1e-3)


def test_a_float16_loss_that_is_never_finite_raises():
    def overflowing(params, batch):
        return steep(params, batch) * jnp.float16(6e4) * jnp.float16(2)

    with pytest.raises(jopt.NonFiniteError, match="2 steps in a row"):
        half(overflowing, steps=50)


# Evaluate, predict ----------------------------------------------------------------------------------


def test_evaluation_does_not_depend_on_the_batch_size():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    for data, size in ((x, 1), (x, 4), (x, 10**6), ([x], 256), (iter([x]), 256), ([x[:4], x[4:8], x[8:]], 256)):
        close(jopt.evaluate(squares, W, data, batch_size=size)["loss"], squares(W, x))


def test_evaluation_with_a_function_of_its_own():
    def loss(params, batch, key):
        raise AssertionError("not in evaluation")

    assert jopt.evaluate(loss, W, ONES, eval_fn=lambda p, b: b.mean())["loss"] == 1
    with pytest.raises(TypeError, match=r"evaluate: the loss 'loss' takes a key.*eval_fn="):
        jopt.evaluate(loss, W, ONES)


def test_predictions_come_in_order():
    params = plain_params()
    for size in (1, 10, 52, 1000):
        close(jopt.predict(logits, params, IMAGES, batch_size=size), logits(params, IMAGES), 1e-3)
    tree = jopt.predict(lambda p, x: {"a": x["i"] + 1, "b": (x["i"],)}, W, {"i": np.arange(7)}, batch_size=3)
    assert tree["a"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert tree["b"][0].tolist() == [0, 1, 2, 3, 4, 5, 6]
