"""What low-precision state saves, by measurement, and what it costs in loss.

`bytes`: resident bytes of parameters, gradient and state of a small Transformer, and what XLA needs
beside them for a donated step. `loss`: a character model trained in several recipes from the same seeds,
and the paired differences of its test loss.
"""

import argparse
import functools
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks.measure import environment
from jopt.models import Transformer

WINDOW, BATCH = 32, 16


def in_state(mu: str, nu: str, rate: Any) -> Any:
    """AdamW with its moments stored."""
    return jopt.store(jopt.adamw(rate), {"mu": mu, "nu": nu})


# Bytes -------------------------------------------------------------------------------------------


def recipes(rate: Any) -> dict[str, tuple[Any, Any]]:
    """Name to optimizer and dtype of the parameters."""
    return {
        "adamw": (jopt.adamw(rate), jnp.float32),
        "adamw_8bit": (jopt.adamw_8bit(rate), jnp.float32),
        "adamw, bfloat16_sr": (in_state("bfloat16_sr", "bfloat16_sr", rate), jnp.float32),
        "adamw, float8": (in_state("float8_e4m3", "float8_e5m2", rate), jnp.float32),
        "lion": (jopt.lion(rate), jnp.float32),
        "lion_8bit": (jopt.lion_8bit(rate), jnp.float32),
        "adamw_bf16": (jopt.adamw_bf16(rate), jnp.bfloat16),
        "adamw_8bit, round_stochastically": (
            jopt.chain(jopt.adamw_8bit(rate), jopt.round_stochastically()),
            jnp.bfloat16,
        ),
    }


def bytes_rows() -> list[str]:
    """A line for each recipe."""
    model = Transformer(512, 96, layers=2, heads=8, causal=True, per_step=True, vocabulary=96)
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    size = sum(p.size for p in jax.tree.leaves(params))
    lines = [
        f"{size:,} parameters of a Transformer; bytes a parameter",
        f"{'recipe':34}  params  gradient  state  in all  temporary",
    ]
    for name, (tx, dtype) in recipes(1e-3).items():
        p = jax.tree.map(lambda x, dtype=dtype: jnp.ones(x.shape, dtype), params)
        state = tx.init(p)
        step = jax.jit(
            lambda g, s, p, tx=tx: jopt.apply_gradients(tx, g, s, p)[::-1],
            donate_argnums=(1, 2),
        )
        temporary = step.lower(p, state, p).compile().memory_analysis().temp_size_in_bytes / size
        weights, kept = (sum(x.nbytes for x in jax.tree.leaves(tree)) / size for tree in (p, state))
        total = 2 * weights + kept
        lines.append(f"{name:34}  {weights:6.2f}  {weights:8.2f}  {kept:5.3f}  {total:6.3f}  {temporary:9.2f}")
    return lines


# Loss --------------------------------------------------------------------------------------------


@functools.cache
def character_model() -> Any:
    return Transformer(
        32,
        128,
        layers=1,
        heads=4,
        ratio=2.0,
        causal=True,
        per_step=True,
        vocabulary=128,
        tied=False,
    )


def cross_entropy(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    """Nats a character."""
    logits = character_model().apply(params, x).astype(jnp.float32)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[..., None], axis=-1))


def train(make: Any, dtype: Any, ids: jax.Array, test: Any, steps: int, seed: jax.Array) -> jax.Array:
    """The test loss after training from a seed."""
    tx = make(jopt.schedules.warmup_cosine_decay_schedule(0.0, 5e-3, steps // 10, steps))
    start, batches = jax.random.split(jax.random.key(seed))
    params = character_model().init(start, jnp.zeros((1, WINDOW), jnp.int32))
    params = jax.tree.map(lambda p: p.astype(dtype), params)

    def step(carry, key):
        params, state = carry
        places = jax.random.randint(key, (BATCH, 1), 0, ids.shape[0] - WINDOW - 1) + jnp.arange(WINDOW + 1)
        piece = ids[places]
        grads = jax.grad(cross_entropy)(params, piece[:, :-1], piece[:, 1:])
        return jopt.apply_gradients(tx, grads, state, params), None

    (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(batches, steps))
    return cross_entropy(params, *test)


VARIANTS: dict[str, tuple[Any, Any]] = {
    "adamw": (jopt.adamw, jnp.float32),
    "adamw_8bit": (jopt.adamw_8bit, jnp.float32),
    "adamw, int8_sr": (functools.partial(in_state, "int8_sr", "uint8_sr"), jnp.float32),
    "adamw, bfloat16_sr": (functools.partial(in_state, "bfloat16_sr", "bfloat16_sr"), jnp.float32),
    "adamw, float8": (functools.partial(in_state, "float8_e4m3", "float8_e5m2"), jnp.float32),
    "adamw, bf16 parameters": (jopt.adamw, jnp.bfloat16),
    "adamw_bf16": (jopt.adamw_bf16, jnp.bfloat16),
}


def loss_rows(seeds: int, steps: int, only: list[str] | None) -> list[str]:
    """A line for each variant."""
    text = jopt.data.english_text()
    ids = jnp.asarray(text.train, jnp.int32) % 128
    x, y = jopt.data.windows(np.asarray(text.test) % 128, WINDOW)
    test = jnp.asarray(x[:512]), jnp.asarray(y[:512])
    base: np.ndarray | None = None
    lines = [
        f"character Transformer on the Python language reference, {steps} steps, {seeds} seeds; test loss in nats",
        f"{'variant':34}    loss  difference of the mean (± standard error)  largest  seconds",
    ]
    for name, (make, dtype) in VARIANTS.items():
        if only and name not in only:
            continue
        start = time.perf_counter()
        run = jax.jit(jax.vmap(functools.partial(train, make, dtype, ids, test, steps)))
        losses = np.asarray(run(jnp.arange(seeds)), np.float64)
        base = losses if base is None else base
        apart = (losses - base) / base
        error = apart.std(ddof=1) / np.sqrt(seeds)
        seconds = time.perf_counter() - start
        lines.append(
            f"{name:34}  {losses.mean():6.4f}  {apart.mean():+10.3%} ± {error:.3%}{'':20}  {np.abs(apart).max():7.2%}"
            f"  {seconds:7.0f}"
        )
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--only", nargs="*", help="variants of the loss section")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    environment_line = ", ".join(f"{name} {value}" for name, value in environment().items())
    sections = [[environment_line], bytes_rows(), loss_rows(arguments.seeds, arguments.steps, arguments.only)]
    report = "\n\n".join("\n".join(section) for section in sections)
    print(report)
    if arguments.out is not None:
        arguments.out.write_text(report + "\n")
