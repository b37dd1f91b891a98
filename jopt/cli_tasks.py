"""The tasks of `jopt train`: a data set, a model, and settings that work."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jopt import data

CHARACTERS = 64  # length of the pieces of text that the character models read


class Problem(NamedTuple):
    """What is learned.

    Attributes:
        model: a linen module that gives logits.
        train, test: (inputs, integer labels), first axis examples.
    """

    model: Any
    train: tuple[Any, Any]
    test: tuple[Any, Any]


class Task(NamedTuple):
    """One task with its default settings.

    Attributes:
        title: one line for people.
        problem: makes the model and loads the data.
        measure: what the test reports beside the loss: "accuracy" or "perplexity".
        learning_rate: for adamw under a warmed-up cosine, the default chain.
        epochs, batch_size: of a default run.
        target: test accuracy that the default run reaches; 0 where there is none.
        augment: for `--augment`, (key, batch) → batch; None where it has none.
    """

    title: str
    problem: Callable[[], Problem]
    measure: str
    learning_rate: float
    epochs: int
    batch_size: int
    target: float
    augment: Callable[..., Any] | None = None


def _digits_mlp() -> Problem:
    from jopt.models import MLP

    split = data.digits()
    return Problem(MLP((256, 128), 10, activation="gelu", dropout=0.3, batch_norm=True), split[:2], split[2:4])


def _images() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Digits with a channel."""
    split = data.digits()
    return (split.train_x[..., None], split.train_y), (split.test_x[..., None], split.test_y)


def _digits_cnn() -> Problem:
    from jopt.models import CNN

    return Problem(CNN((32, 64), 10, dense=(64,), pool=(1,), dropout=0.25), *_images())


def _digits_resnet() -> Problem:
    from jopt.models import ResNet

    return Problem(ResNet((16, 32), 10, attention=True, dropout=0.2), *_images())


def _digits_rnn() -> Problem:
    from jopt.models import RNN

    split = data.digits()
    return Problem(RNN((64,), 10, cell="gru", dropout=0.1), split[:2], split[2:4])


def _text() -> tuple[int, tuple[Any, Any], tuple[Any, Any]]:
    """Number of symbols, and pieces of text to train and to test on."""
    text = data.english_text()
    return len(text.vocabulary), data.windows(text.train, CHARACTERS), data.windows(text.test, CHARACTERS)


def _text_rnn() -> Problem:
    from jopt.models import RNN

    symbols, train, test = _text()
    return Problem(RNN((128,), symbols, cell="lstm", per_step=True, vocabulary=symbols), train, test)


def _text_transformer() -> Problem:
    from jopt.models import Transformer

    symbols, train, test = _text()
    return Problem(Transformer(64, symbols, per_step=True, vocabulary=symbols), train, test)


MOVED = data.augment(data.Shift(1))  # images shifted by up to a pixel each way

TASKS: dict[str, Task] = {
    "digits-mlp": Task("MLP: digits as 64 numbers", _digits_mlp, "accuracy", 3e-3, 40, 32, 0.97),
    "digits-cnn": Task("CNN: digits as images", _digits_cnn, "accuracy", 3e-3, 20, 32, 0.98, MOVED),
    "digits-resnet": Task("ResNet with self-attention", _digits_resnet, "accuracy", 1e-2, 60, 64, 0.985, MOVED),
    "digits-rnn": Task("GRU: digits row by row", _digits_rnn, "accuracy", 5e-3, 30, 32, 0.95),
    "text-rnn": Task("LSTM: English text by character", _text_rnn, "perplexity", 5e-3, 10, 32, 0.0),
    "text-transformer": Task("Transformer: text by character", _text_transformer, "perplexity", 3e-3, 10, 32, 0.0),
}
