"""How even the time of a step is when dear work is done in turns: p50 and p99 of single steps.

python -m benchmarks.refresh [--steps N] [--out FILE]
"""

import argparse
import os
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks.measure import environment, table

HERE = pathlib.Path(__file__).parent
WIDTHS = ((128, 64),) * 20  # two for each of ten updates

OPTIMIZERS = {
    "adamw": jopt.adamw(1e-3),
    "soap, in turns": jopt.soap(1e-3),
    "soap, every step": jopt.soap(1e-3, precondition_frequency=1),
    "shampoo, in turns": jopt.shampoo(1e-3),
    "shampoo, every step": jopt.shampoo(1e-3, precondition_frequency=1),
    "kron, probability 0.1": jopt.kron(1e-3, preconditioner_update_probability=0.1),
}


def seconds_of_steps(tx: jopt.Transform, steps: int) -> list[float]:
    """Wall time of each step after the first, donated and compiled."""
    source = np.random.default_rng(0)
    params = {f"w{i}": jnp.asarray(source.normal(size=shape), jnp.float32) for i, shape in enumerate(WIDTHS)}
    grads = {n: jnp.asarray(source.normal(size=p.shape), jnp.float32) for n, p in params.items()}
    state = tx.init(params)
    step = jax.jit(lambda g, s, p: jopt.apply_gradients(tx, g, s, p), donate_argnums=(1, 2))
    params, state = jax.block_until_ready(step(grads, state, params))
    found = []
    for _ in range(steps):
        start = time.perf_counter()
        params, state = jax.block_until_ready(step(grads, state, params))
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default=str(HERE / "refresh.txt"))
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name, tx in OPTIMIZERS.items():
        low, middle, high = 1e3 * np.quantile(seconds_of_steps(tx, given.steps), [0.05, 0.5, 0.99])
        rows.append({"optimizer": name, "p05": low, "p50": middle, "p99": high, "ratio": high / middle})
    columns = {"optimizer": "optimizer", "p05": "p05 ms", "p50": "p50 ms", "p99": "p99 ms", "ratio": "p99 / p50"}
    heading = f"{len(WIDTHS)} matrices of {WIDTHS[0]}, {given.steps} steps; a new basis or root once in 10 updates\n"
    heading += f"load averages {os.getloadavg()}: other jobs on the machine show in the higher quantiles\n"
    text = f"{heading}{' '.join(f'{k} {v}' for k, v in environment().items())}\n\n{table(rows, columns)}\n"
    print(text)
    pathlib.Path(given.out).write_text(text)


if __name__ == "__main__":
    main()
