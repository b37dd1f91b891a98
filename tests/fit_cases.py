"""What the tests of `fit` share: tiny data, one loss of every kind, a dozen optimizers, and bits to compare."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jopt
from jopt.models import CNN, MLP, RNN
from jopt.train.losses import linen_loss, nnx_loss

EXAMPLES, SIDE, CLASSES = 52, 6, 3
BATCH = 8  # seven steps an epoch, the last of them with four examples

_random = np.random.default_rng(0)
IMAGES = _random.normal(size=(EXAMPLES, SIDE, SIDE)).astype(np.float32)
LABELS = np.argmax(IMAGES.mean(1)[:, :CLASSES], 1).astype(np.int32)
LOSS = "softmax_cross_entropy_with_integer_labels"


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        loss: a loss function or an adapter.
        params: to start from; None where the adapter has its own.
        inputs: of all examples.
    """

    loss: Callable[..., Any]
    params: Any
    inputs: np.ndarray

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels."""
        return self.inputs, LABELS


def plain_params(width: int = 5) -> dict[str, Any]:
    """Parameters of `plain_loss`."""
    random = np.random.default_rng(1)
    return {
        "in": {"kernel": random.normal(size=(SIDE * SIDE, width)).astype(np.float32) / 6, "bias": np.zeros(width, "f")},
        "out": {"kernel": random.normal(size=(width, CLASSES)).astype(np.float32), "bias": np.zeros(CLASSES, "f")},
    }


def logits(params, x):
    h = jnp.tanh(x.reshape(len(x), -1) @ params["in"]["kernel"] + params["in"]["bias"][None])
    return h @ params["out"]["kernel"] + params["out"]["bias"][None]


def plain_loss(params, batch):
    x, y = batch
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def noisy_loss(params, batch, key):
    """`plain_loss` of inputs with noise, and a metric."""
    x, y = batch
    z = logits(params, x + 0.2 * jax.random.uniform(key, x.shape, x.dtype))
    right = (z.argmax(-1) == y).astype(jnp.float32).mean()
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), {"accuracy": right}


@functools.cache
def nnx_model() -> Any:
    """A module with batch statistics and random streams."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(SIDE * SIDE, 5, use_bias=False, rngs=rngs)
            self.norm = nnx.BatchNorm(5, momentum=0.9, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, rngs=rngs)
            self.out = nnx.Linear(5, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.out(self.dropout(nnx.relu(self.norm(self.hidden(x.reshape(len(x), -1))))))

    return Net(nnx.Rngs(0))


@functools.cache
def case(name: str) -> Case:
    """ "plain", "linen" with batch norm and dropout, "nnx" with both, "cnn", "gru"."""
    if name == "plain":
        return Case(noisy_loss, plain_params(), IMAGES)
    if name == "linen":
        return Case(linen_loss(MLP((5,), CLASSES, dropout=0.1, batch_norm=True), LOSS), None, IMAGES)
    if name == "nnx":
        return Case(nnx_loss(nnx_model(), LOSS, metrics=("accuracy",)), None, IMAGES)
    if name == "cnn":
        return Case(linen_loss(CNN((3,), CLASSES), LOSS), None, IMAGES[..., None])
    return Case(linen_loss(RNN((4,), CLASSES), LOSS), None, IMAGES)


CASES = ("plain", "linen", "nnx", "cnn", "gru")

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: jopt.sgd(0.1),
    "nesterov": lambda: jopt.nesterov(0.05),
    "adam": lambda: jopt.adam(0.01),
    "adamw_scheduled": lambda: jopt.adamw(jopt.schedules.cosine_decay_schedule(0.02, 14)),
    "nadam": lambda: jopt.nadam(0.01),
    "lion": lambda: jopt.lion(0.003),
    "rmsprop": lambda: jopt.rmsprop(0.01, centered=True, momentum=0.9),
    "adagrad": lambda: jopt.adagrad(0.1),
    "lamb": lambda: jopt.lamb(0.01),
    "muon": lambda: jopt.muon(0.02),
    "averaged": lambda: jopt.ema(jopt.chain(jopt.clip_by_global_norm(0.5), jopt.monitor(jopt.adam(0.01))), 0.9),
    "plateau": lambda: jopt.chain(optax.sgd(0.05, momentum=0.9), jopt.reduce_on_plateau(patience=1)),
}


@functools.cache
def transform(name: str) -> Any:
    """One of `OPTIMIZERS`, always the same object: a foreign transform compares by identity."""
    return OPTIMIZERS[name]()


def bits(tree: Any) -> list[bytes]:
    """The content of all arrays; two trees are equal to the last bit if this is."""
    return [_words(x).tobytes() for x in jax.tree.leaves(tree)]


def _words(x: Any) -> np.ndarray:
    typed = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if typed else x)


def close(a: Any, b: Any, rtol: float = 1e-5) -> None:
    """Fail unless two arrays are equal but for rounding."""
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=rtol, atol=1e-7)


def outcome(fit: Any) -> tuple[Any, ...]:
    """All of a result that must not depend on how it came about."""
    rows = [{name: x for name, x in row.items() if name != "seconds"} for row in fit.history.to_rows()]
    return bits((fit.params, fit.state, fit.model_state, fit.eval_params)), rows, fit.step, fit.epoch, fit.skipped
