"""The tasks of `jopt train`: a data set, a model, and settings that work."""

from collections.abc import Callable
from typing import NamedTuple

from jopt.train import data
from jopt.train.run import Problem, classification

CHARACTERS = 64  # length of the pieces of text that the character model reads


class Task(NamedTuple):
    """One task with its default settings.

    Attributes:
        title: one line for people.
        problem: makes the model and loads the data.
        measure: what the test reports beside the loss: "accuracy" or "perplexity".
        learning_rate: for adamw under a warmed-up cosine, the default chain.
        epochs, batch_size: of a default run.
        target: test accuracy that the default run reaches; 0 where there is none.
    """

    title: str
    problem: Callable[[], Problem]
    measure: str
    learning_rate: float
    epochs: int
    batch_size: int
    target: float


def _digits_mlp() -> Problem:
    from jopt.models import MLP

    split = data.digits()
    return classification(MLP((256, 128), 10, activation="gelu", dropout=0.3, batch_norm=True), split[:2], split[2:])


def _digits_cnn() -> Problem:
    from jopt.models import CNN

    split = data.digits()
    model = CNN((32, 64), 10, dense=(64,), pool=(1,), dropout=0.25)
    return classification(model, (split.train_x[..., None], split.train_y), (split.test_x[..., None], split.test_y))


def _digits_rnn() -> Problem:
    from jopt.models import RNN

    split = data.digits()
    return classification(RNN((64,), 10, cell="gru", dropout=0.1), split[:2], split[2:])


def _text_rnn() -> Problem:
    from jopt.models import RNN

    text = data.english_text()
    symbols = len(text.vocabulary)
    model = RNN((128,), symbols, cell="lstm", per_step=True, vocabulary=symbols)
    train, test = data.windows(text.train, CHARACTERS), data.windows(text.test, CHARACTERS)
    return classification(model, train, test, measure="perplexity")


TASKS: dict[str, Task] = {
    "digits-mlp": Task("MLP: digits as 64 numbers", _digits_mlp, "accuracy", 3e-3, 40, 32, 0.97),
    "digits-cnn": Task("CNN: digits as images", _digits_cnn, "accuracy", 3e-3, 20, 32, 0.98),
    "digits-rnn": Task("GRU: digits row by row", _digits_rnn, "accuracy", 5e-3, 30, 32, 0.95),
    "text-rnn": Task("LSTM: English text by character", _text_rnn, "perplexity", 5e-3, 10, 32, 0.0),
}
