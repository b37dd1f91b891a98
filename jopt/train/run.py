"""Train a model for some epochs: pure functions, one compiled scan an epoch."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jopt.apply import apply_gradients
from jopt.state import eval_params, hyperparams

Row = dict[str, Any]


class Problem(NamedTuple):
    """What is trained: pure functions and the data.

    Attributes:
        init: key → (params, statistics); statistics are what a model updates itself, such as batch norm's.
        loss: (params, statistics, batch, key) → (loss, statistics), in training.
        evaluate: (params, statistics, batch) → {name: number}, with at least "loss".
        train: arrays whose first axis is the examples; `test` likewise.
    """

    init: Callable[..., Any]
    loss: Callable[..., Any]
    evaluate: Callable[..., Any]
    train: Any
    test: Any


class Progress(NamedTuple):
    """What training carries from epoch to epoch."""

    params: Any
    statistics: Any
    optimizer: Any


class Program(NamedTuple):
    """A compiled epoch with its start.

    Attributes:
        epoch: (progress, key, train, test) → (progress, numbers).
        start: the progress before the first epoch.
        steps: updates in an epoch.
        seconds: time it took to compile.
    """

    epoch: Callable[..., Any]
    start: Progress
    steps: int
    seconds: float


def classification(model: Any, train: Any, test: Any, measure: str = "accuracy") -> Problem:
    """The problem of predicting integer labels with a Flax linen model, by cross-entropy.

    Args:
        model: a module called as `model(x, train=...)` that gives logits, labels' shape plus one axis.
        train: (inputs, labels), first axis examples.
        test: the same for evaluation.
        measure: "accuracy", or "perplexity", the exponential of the loss.
    """

    def init(key: jax.Array) -> tuple[Any, Any]:
        variables = model.init(key, jnp.asarray(train[0][:1]))
        return variables["params"], {name: value for name, value in variables.items() if name != "params"}

    def loss(params: Any, statistics: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        x, y = batch
        variables = {"params": params, **statistics}
        rngs = {"dropout": key}
        logits, statistics = model.apply(variables, x, train=True, rngs=rngs, mutable=list(statistics))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), statistics

    def evaluate(params: Any, statistics: Any, batch: Any) -> dict[str, jax.Array]:
        x, y = batch
        logits = model.apply({"params": params, **statistics}, x)
        mean = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
        return {"loss": mean, measure: jnp.exp(mean) if measure == "perplexity" else (logits.argmax(-1) == y).mean()}

    return Problem(init, loss, evaluate, train, test)


def steps_per_epoch(problem: Problem, batch_size: int) -> int:
    """Number of whole batches in the training part; what is left over waits for the next shuffle.

    Raises:
        ValueError: `batch_size` is not in 1 to the number of examples.
    """
    examples = len(jax.tree.leaves(problem.train)[0])
    if not 1 <= batch_size <= examples:
        raise ValueError(
            f"batch_size={batch_size!r} was given for {examples} training examples, a whole number from 1 to "
            f"{examples} was expected. Choose a smaller batch."
        )
    return examples // batch_size


def compile_epoch(tx: Any, problem: Problem, batch_size: int, seed: int) -> Program:
    """Initialise a model and its optimizer, and compile one epoch of training and the evaluation after it.

    An epoch shuffles the examples by key, on the device, and scans over the batches. Examples that do
    not fill a last batch are left out of this epoch.

    Args:
        tx: a jopt or optax transform.
        problem: what to train.
        batch_size: examples in an update.
        seed: start of the parameters.
    """
    steps = steps_per_epoch(problem, batch_size)

    def epoch(progress: Progress, key: jax.Array, train: Any, test: Any) -> tuple[Progress, Row]:
        shuffle, dropout = jax.random.split(key)
        examples = len(jax.tree.leaves(train)[0])
        order = jax.random.permutation(shuffle, examples)[: steps * batch_size].reshape(steps, batch_size)

        def step(progress: Progress, now: Any) -> tuple[Progress, jax.Array]:
            chosen, key = now
            batch = jax.tree.map(lambda a: a[chosen], train)
            differentiate = jax.value_and_grad(problem.loss, has_aux=True)
            (loss, statistics), grads = differentiate(progress.params, progress.statistics, batch, key)
            params, state = apply_gradients(tx, grads, progress.optimizer, progress.params)
            return Progress(params, statistics, state), loss

        progress, losses = jax.lax.scan(step, progress, (order, jax.random.split(dropout, steps)))
        best = eval_params(progress.optimizer, progress.params)
        tested = problem.evaluate(best, progress.statistics, test)
        return progress, {"train_loss": losses.mean(), **{f"test_{name}": value for name, value in tested.items()}}

    begin = time.perf_counter()
    params, statistics = jax.jit(problem.init)(jax.random.key(seed))
    start = Progress(params, statistics, tx.init(params))
    compiled = jax.jit(epoch).lower(start, jax.random.key(seed), problem.train, problem.test).compile()
    return Program(compiled, start, steps, time.perf_counter() - begin)


def epochs(program: Program, problem: Problem, count: int, seed: int) -> Iterator[tuple[Row, Progress]]:
    """Run epochs; after each, yield its numbers and the progress.

    The numbers: `epoch` (from 1), `train_loss` (mean over the batches), `test_...`, `learning_rate` (last
    used; of the first part by name if several have one; None if none has), `seconds`. The stream of
    batches depends on `seed` alone. It ends early when the training loss is not finite.
    """
    progress = program.start
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), count)
    train, test = jax.device_put((problem.train, problem.test))
    for i in range(count):
        begin = time.perf_counter()
        progress, numbers = jax.block_until_ready(program.epoch(progress, keys[i], train, test))
        row: Row = {
            "epoch": i + 1,
            "train_loss": None,
            "test_loss": None,
        }  # the order people read; a jit sorts its outputs
        row |= {name: float(value) for name, value in numbers.items()}
        row |= {"learning_rate": _learning_rate(progress.optimizer), "seconds": time.perf_counter() - begin}
        yield row, progress
        if not math.isfinite(row["train_loss"]):
            return


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within the block the first Ctrl-C only makes the yielded function return True; a second one interrupts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only there a handler may be set
        yield asked.is_set
        return

    def first(signum: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, first)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def parameters(params: Any) -> int:
    """Number of scalars in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def nbytes(state: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _learning_rate(state: Any) -> float | None:
    live = hyperparams(state)
    names = sorted(name for name in live if name.endswith("/learning_rate"))
    return float(live[names[0]]) if names else None
