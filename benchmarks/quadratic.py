"""DeepOBS's noisy quadratic of 100 dimensions, whose optimum is known: how many epochs each optimizer needs.

f(θ) = mean over data of ½ (θ − x)ᵀ Q (θ − x), the TensorFlow variant: 90 eigenvalues from U(0, 1), 10 from
U(30, 60), start at θ = 1, 1000 points from N(0, 0.6²), batches of 128 (7 an epoch, the rest dropped), shuffled once.
Everything is pure and runs under `vmap` over seeds and rates.

    python -m benchmarks.quadratic [--out FILE]
"""

import argparse
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks.measure import environment, table

DIMENSIONS, POINTS, BATCH, STEPS_PER_EPOCH = 100, 1000, 128, 7
TARGET = 87.7032  # DeepOBS's convergence performance
OPTIMUM = 87.0460  # the test loss at the mean of the training points, which is the best one can find
HERE = pathlib.Path(__file__).parent


class Quadratic(NamedTuple):
    """The problem.

    Args:
        q: Q, (100, 100).
        train: 1000 points.
        test: 896 points.
    """

    q: np.ndarray
    train: np.ndarray
    test: np.ndarray


def _rotation(source: np.random.RandomState) -> np.ndarray:
    """A random rotation by the recursion of Diaconis and Shahshahani."""
    angle = 2 * np.pi * source.uniform()
    found = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for d in range(2, DIMENSIONS):
        v = source.normal(size=(d + 1, 1))
        v /= np.linalg.norm(v)
        e = np.concatenate([[[1.0]], np.zeros((d, 1))])
        x = (e - v) / np.linalg.norm(e - v)
        block = np.block([[np.ones((1, 1)), np.zeros((1, d))], [np.zeros((d, 1)), found]])
        found = block - 2 * x @ (x.T @ block)
    return -found


@functools.cache
def problem() -> Quadratic:
    """The problem of the published runs, drawn as they drew it."""
    source = np.random.RandomState(42)  # one stream: eigenvalues first, then the rotation
    eigenvalues = np.concatenate([source.uniform(0.0, 1.0, 90), source.uniform(30.0, 60.0, 10)])
    rotation = _rotation(source)
    data = [np.random.RandomState(seed).normal(0.0, 0.6, (POINTS, DIMENSIONS)).astype(np.float32) for seed in (42, 43)]
    return Quadratic(rotation.T @ np.diag(eigenvalues) @ rotation, data[0], data[1][: STEPS_PER_EPOCH * BATCH])


def loss(theta: Any, points: Any, q: Any) -> Any:
    """The mean over points of ½ (θ − x)ᵀ Q (θ − x)."""
    away = theta[None, :] - points
    return jnp.mean(jnp.sum((away @ q) * away, axis=1)) / 2


class Moments(NamedTuple):
    """What the mean loss over points depends on: f(θ) = ½ (θ − mean)ᵀ Q (θ − mean) + least."""

    mean: np.ndarray
    least: float


@functools.cache
def moments() -> Moments:
    """Of the test points, in float64."""
    q, _, test = problem()
    test = test.astype(np.float64)
    away = test - test.mean(axis=0)
    return Moments(test.mean(axis=0), float(np.einsum("ni,ij,nj->", away, q, away) / (2 * len(test))))


def test_loss(theta: Any) -> Any:
    """The loss over the test points, which the published curves show, without passing over them."""
    mean, least = moments()
    away = theta - jnp.asarray(mean, theta.dtype)
    return away @ jnp.asarray(problem().q, theta.dtype) @ away / 2 + least


def run(tx: jopt.Transform, seed: Any, epochs: int = 100) -> jax.Array:
    """The test loss at the start and after each epoch, (epochs + 1,).

    Args:
        tx: the optimizer, over one vector.
        seed: of the shuffle, an integer that may be traced.
        epochs: how many.
    """
    q, train = jnp.asarray(problem().q, jnp.float32), jnp.asarray(problem().train)

    def step(carry, points):
        theta, state = carry
        grads = jax.grad(loss)(theta, points, q)
        return jopt.apply_gradients(tx, grads, state, theta), None

    # Shuffled once: every epoch has the same batches, as the published runs had. With a new order in each epoch
    # momentum ends at 88.65 in the mean, with one for all at 87.06; published is 87.045.
    order = jax.random.permutation(jax.random.key(seed), POINTS)[: STEPS_PER_EPOCH * BATCH]
    batches = train[order].reshape(STEPS_PER_EPOCH, BATCH, DIMENSIONS)

    def epoch(carry, _):
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, test_loss(carry[0])

    start = jnp.ones(DIMENSIONS)
    _, losses = jax.lax.scan(epoch, (start, tx.init(start)), length=epochs)
    return jnp.concatenate([test_loss(start)[None], losses])


def epochs_to(losses: Any, target: float = TARGET) -> np.ndarray:
    """The first epoch at whose end the loss is at or below the target; infinite where it never is.

    Args:
        losses: (..., epochs + 1), as `run` gives.
        target: the loss.
    """
    reached = np.asarray(losses) <= target
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1), np.inf)


def runs(make: Callable[..., jopt.Transform], *numbers: Any, seeds: int = 10, epochs: int = 100) -> np.ndarray:
    """The losses of `run` for each seed: (seeds, epochs + 1)."""
    together = jax.jit(jax.vmap(lambda seed, *x: run(make(*x), seed, epochs), in_axes=(0, *(None for _ in numbers))))
    return np.asarray(together(jnp.arange(seeds), *map(jnp.float32, numbers)))


def newton_like(learning_rate: Any, eps: Any, b2: float = 1.0) -> jopt.Transform:
    """Full-matrix Adagrad with momentum: one-sided Shampoo of the vector; `eps` is the knob beside the rate."""
    return jopt.shampoo(
        learning_rate,
        b2=b2,
        eps=eps,
        grafting="none",
        one_sided=True,
        precondition_frequency=1,
        axes="any",
    )


def newton_like_decaying(learning_rate: Any, eps: Any) -> jopt.Transform:
    """The same, with decaying second moments."""
    return newton_like(learning_rate, eps, b2=0.95)


# name, factory, numbers, epochs to run
CHAINS: Sequence[tuple[str, Callable[..., jopt.Transform], tuple[float, ...], int]] = (
    ("shampoo one-sided, rate 1, eps 3e-4", newton_like, (1.0, 3e-4), 30),
    ("the same, b2 0.95, rate 0.3, eps 1e-3", newton_like_decaying, (0.3, 1e-3), 30),
    ("adam, rate 0.0398", jopt.adam, (0.0398,), 100),
    ("gd, rate 0.0158", jopt.sgd, (0.0158,), 100),
    ("momentum 0.99, rate 0.00251", jopt.momentum, (0.00251, 0.99), 100),
)
PUBLISHED = {"adam": "39-41", "gd": "39-66", "momentum": "68-73"}


def rows() -> list[dict[str, Any]]:
    """Epochs to the target of each chain over 10 seeds, and the excess loss at the end."""
    found = []
    for name, make, numbers, epochs in CHAINS:
        losses = runs(make, *numbers, epochs=epochs)
        reached = np.sort(epochs_to(losses))
        found.append(
            {
                "chain": name,
                "median": float(np.median(reached)),
                "all": " ".join(f"{x:g}" for x in reached),
                "published": PUBLISHED.get(name.split(",")[0].split()[0]),
                "epochs": epochs,
                "excess": float(np.median(losses[:, -1])) - OPTIMUM,
            }
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=str(HERE / "quadratic.txt"))
    columns = {
        "chain": "chain",
        "published": "published",
        "all": f"epochs to {TARGET}, 10 seeds",
        "median": "median",
        "epochs": "epochs run",
        "excess": f"excess over {OPTIMUM}",
    }
    out = parser.parse_args().out
    text = f"{' '.join(f'{k} {v}' for k, v in environment().items())}\n\n{table(rows(), columns)}\n"
    print(text)
    pathlib.Path(out).write_text(text)


if __name__ == "__main__":
    main()
