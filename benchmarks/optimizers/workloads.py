"""Problems that need no download and a few seconds on a CPU, as pure functions.

Each is a loss over batches, a loss to report, and a target that was fixed before any race.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import quadratic
from jopt import data
from jopt.models import CNN, MLP, Transformer


@dataclasses.dataclass(frozen=True)
class Workload:
    """One problem.

    Args:
        name: in the table.
        title: a few words.
        init: ``key -> params``.
        batches: ``key -> batch indices`` of every step, (steps, batch size).
        loss: ``(params, indices) -> scalar`` that is trained on.
        measure: ``params -> scalar`` that is reported.
        steps: how many updates a run has; a multiple of `every`.
        every: updates between two measurements.
        target: the measure to reach.
        unit: what the measure is.
        least: the least measure there is, which pictures show the distance from.
    """

    name: str
    title: str
    init: Callable[[Any], Any]
    batches: Callable[[Any], Any]
    loss: Callable[[Any, Any], Any]
    measure: Callable[[Any], Any]
    steps: int
    every: int
    target: float
    unit: str
    least: float = 0.0


def shuffled(key: jax.Array, examples: int, size: int, steps: int) -> jax.Array:
    """Indices of `steps` batches: epochs in another order each, the ragged last batch dropped."""
    per_epoch = examples // size
    epochs = -(-steps // per_epoch)
    orders = jax.vmap(lambda k: jax.random.permutation(k, examples))(jax.random.split(key, epochs))
    return orders[:, : per_epoch * size].reshape(epochs * per_epoch, size)[:steps]


def supervised(name: str, title: str, model: Any, x: Any, y: Any, x_test: Any, y_test: Any, criterion: Any, **settings):
    """A Flax model on arrays: mean criterion in training, and on the test arrays to report."""
    x, y, x_test, y_test = map(jnp.asarray, (x, y, x_test, y_test))
    size = settings.pop("size")

    def loss(params, indices):
        return jnp.mean(criterion(model.apply({"params": params}, x[indices]), y[indices]))

    def measure(params):
        return jnp.mean(criterion(model.apply({"params": params}, x_test), y_test))

    return Workload(
        name,
        title,
        init=lambda key: model.init(key, x[:1])["params"],
        batches=lambda key: shuffled(key, len(x), size, settings["steps"]),
        loss=loss,
        measure=measure,
        **settings,
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Nats of each label."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Squared distance of each example."""
    return jnp.sum((outputs - targets.reshape(outputs.shape)) ** 2, axis=-1)


@functools.cache
def digits_mlp() -> Workload:
    """An MLP 64-64-32-10 on digits."""
    d = data.digits()
    return supervised(
        "digits_mlp",
        "digits, MLP 64-64-32-10",
        MLP((64, 32), 10),
        *(d.train_x, d.train_y, d.test_x, d.test_y),
        cross_entropy,
        size=128,
        steps=200,
        every=5,
        target=0.15,
        unit="test cross-entropy",
    )


@functools.cache
def digits_cnn() -> Workload:
    """A small CNN on digits."""
    d = data.digits()
    return supervised(
        "digits_cnn",
        "digits, CNN 8-16 and 32 units",
        CNN((8, 16), 10, (32,), pool=(0, 1)),
        *(d.train_x[..., None], d.train_y, d.test_x[..., None], d.test_y),
        cross_entropy,
        size=64,
        steps=120,
        every=5,
        target=0.2,
        unit="test cross-entropy",
    )


@functools.cache
def autoencoder() -> Workload:
    """A deep autoencoder of digits through 6 numbers."""
    d = data.digits()
    flat, flat_test = d.train_x.reshape(-1, 64), d.test_x.reshape(-1, 64)
    return supervised(
        "autoencoder",
        "digits, autoencoder 64-48-24-6-24-48-64",
        MLP((48, 24, 6, 24, 48), 64, activation="tanh"),
        *(flat, flat, flat_test, flat_test),
        squared_error,
        size=128,
        steps=300,
        every=10,
        target=12.0,
        unit="test squared error",
    )


@functools.cache
def characters() -> Workload:
    """A Transformer of two layers that predicts the next character of English text."""
    text = data.english_text()
    x, y = data.windows(text.train, 32)
    x_test, y_test = data.windows(text.test[: 32 * 64 + 1], 32)
    size = len(text.vocabulary)
    model = Transformer(32, size, layers=2, heads=2, causal=True, per_step=True, vocabulary=size)
    return supervised(
        "characters",
        "next character, Transformer of width 32",
        model,
        *(x, y, x_test, y_test),
        cross_entropy,
        size=16,
        steps=200,
        every=10,
        target=2.4,
        unit="test nats per character",
    )


@functools.cache
def quadratic_deep() -> Workload:
    """DeepOBS' noisy quadratic in 100 dimensions, whose answer is known."""
    steps = 100 * quadratic.STEPS_PER_EPOCH
    q, points = jnp.asarray(quadratic.problem().q, jnp.float32), jnp.asarray(quadratic.problem().train)
    return Workload(
        "quadratic_deep",
        "DeepOBS, quadratic in 100 dimensions",
        init=lambda key: {"theta": jnp.ones(quadratic.DIMENSIONS)},
        batches=lambda key: shuffled(key, quadratic.POINTS, quadratic.BATCH, steps),
        loss=lambda params, indices: quadratic.loss(params["theta"], points[indices], q),
        measure=lambda params: quadratic.test_loss(params["theta"]),
        steps=steps,
        every=quadratic.STEPS_PER_EPOCH,
        target=quadratic.TARGET,
        unit="test loss",
        least=float(quadratic.test_loss(jnp.asarray(quadratic.problem().test.mean(axis=0), jnp.float32))),
    )


WORKLOADS = {f.__name__: f for f in (quadratic_deep, digits_mlp, digits_cnn, autoencoder, characters)}


def parameters(workload: Workload) -> int:
    """How many numbers are trained."""
    shapes = jax.eval_shape(workload.init, jax.random.key(0))
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
