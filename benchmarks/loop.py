"""What `fit` costs beside loops written by hand: ``python -m benchmarks.loop``.

A tiny MLP (4 × Dense(16), batches of 64), where the loop and not the arithmetic is what takes time. Every
row is the median ratio of neighbouring runs, compiled before and taken in turns, with the quartiles, and the
ratio of the two fastest runs: other work on the machine disturbs both little. "Per step" rows are slopes, the
seconds of a long run less those of a short one. It is an error if anything compiles while the
clock runs. Options: ``--quick`` (fewer runs), ``--only SECTION``, ``--out FILE`` for the JSON.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks.measure import environment, interleaved, ratio, table
from jopt.train.fit import fit
from jopt.train.loggers import JSONL
from jopt.train.stopping import early_stopping

WIDTH, LAYERS, BATCH = 16, 4, 64
LONG, SHORT = 1000, 22
"""Steps of an epoch: where epochs hardly count, and of a data set as small as the digits."""

Run = Callable[[], Any]
Row = dict[str, Any]

# The task ----------------------------------------------------------------------------------------


def start() -> Any:
    """Parameters, the same in every call."""
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return [{"kernel": jax.random.normal(k, (WIDTH, WIDTH)) / 4, "bias": jnp.zeros(WIDTH)} for k in keys]


def forward(params: Any, x: jax.Array) -> jax.Array:
    """An MLP with ReLU."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
    return x @ params[-1]["kernel"] + params[-1]["bias"]


def loss(params: Any, batch: Any) -> jax.Array:
    """Mean squared error."""
    x, y = batch
    return jnp.mean((forward(params, x) - y) ** 2)


def loss_with_metric(params: Any, batch: Any) -> Any:
    """The same, and a metric."""
    error = forward(params, batch[0]) - batch[1]
    return jnp.mean(error**2), {"mae": jnp.mean(jnp.abs(error))}


def loss_with_key(params: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The same, and one bit of randomness, or the key would not be made."""
    return loss(params, batch) + 1e-9 * jax.random.key_data(key)[0].astype(jnp.float32)


@functools.cache
def data(steps: int) -> tuple[jax.Array, jax.Array]:
    """Examples for an epoch of so many steps."""
    x = jax.random.normal(jax.random.key(1), (steps * BATCH, WIDTH))
    return x, jnp.sin(x)


def fitting(steps: int, epochs: int, tx: Any, of: Any = loss, **options: Any) -> Run:
    """A run of `fit`."""
    options = {"progress": False} | options
    return lambda: fit(of, start(), tx, data(steps), epochs=epochs, batch_size=BATCH, **options).params


# Loops by hand -----------------------------------------------------------------------------------


def bare(steps: int, epochs: int, tx: Any, guarded: bool) -> Run:
    """One compiled, donated loop an epoch that does what `fit` does: gather, gradient, guard, update, mean loss."""

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(carry: Any, x: jax.Array, y: jax.Array, order: jax.Array, count: Any) -> Any:
        def body(i: Any, carry: Any) -> Any:
            params, state, mean, skipped = carry
            chosen = jax.lax.dynamic_slice_in_dim(order, i * BATCH, BATCH)
            batch = tuple(a.at[chosen].get(mode="promise_in_bounds") for a in (x, y))
            value, grads = jax.value_and_grad(loss)(params, batch)

            def work(inner: Any) -> Any:
                return jopt.apply_gradients(tx, grads, inner[1], inner[0])

            inner = (params, state)
            if guarded:
                finite = [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]
                fine = functools.reduce(jnp.logical_and, finite, jnp.isfinite(value))
                skipped = skipped + (1 - fine.astype(jnp.int32))
                _, inner = jax.lax.while_loop(lambda c: c[0], lambda c: (c[0] & False, work(c[1])), (fine, inner))
            else:
                inner = work(inner)
            return (*inner, mean + (value - mean) / (i + 1), skipped)

        return jax.lax.fori_loop(0, count, body, carry)

    def run() -> Any:
        x, y = data(steps)
        params = start()
        random = np.random.default_rng(0)
        carry = (params, tx.init(params), jnp.zeros(()), jnp.zeros((), jnp.int32))
        for _ in range(epochs):
            order = jnp.asarray(random.permutation(len(x)).astype(np.int32))
            carry = epoch(carry, x, y, order, np.int32(steps))
            float(carry[2])
        return carry[0]

    return run


def python_loop(steps: int, epochs: int, tx: Any) -> Run:
    """One donated, compiled call a step, over batches that lie on the device."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        return *jopt.apply_gradients(tx, grads, state, params), value

    x, y = data(steps)
    batches = [jax.device_put((x[i : i + BATCH], y[i : i + BATCH])) for i in range(0, len(x), BATCH)]

    def run() -> Any:
        params = start()
        state = tx.init(params)
        for _ in range(epochs):
            for batch in batches:
                params, state, _ = step(params, state, batch)
        return params

    return run


def nnx_pair(steps: int, epochs: int, tx: Any) -> tuple[Run, Run]:
    """`fit` of an nnx model, and the loop of its documentation."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(LAYERS)])

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers[:-1]:
                x = nnx.relu(layer(x))
            return self.layers[-1](x)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        value, grads = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)
        return value

    x, y = data(steps)
    batches = [jax.device_put((x[i : i + BATCH], y[i : i + BATCH])) for i in range(0, len(x), BATCH)]

    def by_hand() -> Any:
        model = Net(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(epochs):
            for batch in batches:
                step(model, optimizer, *batch)
        return nnx.state(model, nnx.Param)

    def fitted() -> Any:
        options = {"epochs": epochs, "batch_size": BATCH, "progress": False, "max_nonfinite": None}
        return fit(Net(nnx.Rngs(0)), None, tx, (x, y), loss="squared_error", **options).params

    return fitted, by_hand


def keras_run(steps: int, epochs: int, steps_per_execution: int) -> Run | None:
    """Keras on its JAX backend; None where it is not installed."""
    os.environ.setdefault("KERAS_BACKEND", "jax")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import keras
    except ImportError:
        return None
    x, y = map(np.asarray, data(steps))
    activations = ["relu"] * (LAYERS - 1) + [None]
    model = keras.Sequential([keras.layers.Dense(WIDTH, activation=a) for a in activations])
    optimizer = keras.optimizers.Adam(1e-3)
    model.compile(optimizer=optimizer, loss="mse", steps_per_execution=steps_per_execution)

    def run() -> Any:
        model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
        return [variable.value for variable in model.trainable_variables]

    return run


# Timing ------------------------------------------------------------------------------------------

COMPILED: list[str] = []


def _listen(event: str, duration: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
        COMPILED.append(event)


def timed(runs: dict[str, Run], n: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of `n` runs of each, in turns.

    Raises:
        RuntimeError: something was compiled after the runs that warm up.
    """
    interleaved(runs, 0, warmup)
    COMPILED.clear()
    seconds = interleaved(runs, n, 0)
    if COMPILED:
        raise RuntimeError(f"{list(runs)} compiled {len(COMPILED)} programs while the clock ran, none was expected.")
    return seconds


# Sections ----------------------------------------------------------------------------------------


def adam() -> Any:
    """The optimizer of all rows."""
    return jopt.adam(1e-3)


def row(what: str, seconds: dict[str, list[float]], ours: str, baseline: str, steps: int, **more: Any) -> Row:
    """One comparison of whole runs of so many steps."""
    found = ratio(seconds, ours, baseline)
    found["ratio"] = float(np.median(np.divide(seconds[ours], seconds[baseline])))
    found["best"] = min(seconds[ours]) / min(seconds[baseline])
    per_step = {f"{side}_us": 1e3 * found[f"{side}_ms"] / steps for side in ("ours", "baseline")}
    return {"what": what} | found | per_step | more


def slope(what: str, seconds: dict[str, list[float]], steps: int) -> Row:
    """The same per further step, from runs of two lengths that differ by so many steps."""
    sides = {
        side: [long - short for long, short in zip(seconds[f"{side} long"], seconds[side], strict=True)]
        for side in ("fit", "loop")
    }
    best = [min(seconds[f"{side} long"]) - min(seconds[side]) for side in ("fit", "loop")]
    return row(what, sides, "fit", "loop", steps) | {"best": best[0] / best[1]}


def against_bare(quick: bool) -> list[Row]:
    """`fit` beside a bare compiled loop that does the same work; target 1.05."""
    rows = []
    for steps, epochs in ((LONG, 2 if quick else 5), (SHORT, 50 if quick else 200)):
        for guarded in (True, False):
            tx = jopt.monitor(adam()) if guarded else adam()
            limit = {} if guarded else {"max_nonfinite": None}
            runs = {
                "fit": fitting(steps, epochs, tx, **limit),
                "loop": bare(steps, epochs, tx, guarded),
                "fit long": fitting(steps, 3 * epochs, tx, **limit),
                "loop long": bare(steps, 3 * epochs, tx, guarded),
            }
            seconds = timed(runs, 5 if quick else 21)
            with_ = "guard, monitor" if guarded else "no guard, no monitor"
            what = f"fit ÷ bare compiled loop, {with_}; epochs of {steps} steps"
            total = steps * epochs
            rows.append(row(f"{what}, {3 * total} in all", seconds, "fit long", "loop long", 3 * total))
            rows.append(slope(f"{what}, per step", seconds, 2 * total))
    return rows


def against_others(quick: bool) -> list[Row]:
    """`fit` beside loops that come back to Python at every step; target 0.35 for the first."""
    rows, tx, n = [], adam(), 5 if quick else 9
    for steps, epochs in ((LONG, 1 if quick else 5), (SHORT, 20 if quick else 100)):
        total, size = steps * epochs, f"; epochs of {steps} steps, {steps * epochs} in all"
        ours = fitting(steps, epochs, tx, max_nonfinite=None)
        seconds = timed({"fit": ours, "loop": python_loop(steps, epochs, tx)}, n)
        rows.append(row(f"fit ÷ donated jitted Python loop{size}", seconds, "fit", "loop", total))
        fitted, by_hand = nnx_pair(steps, epochs, tx)
        seconds = timed({"fit": fitted, "loop": by_hand}, n)
        rows.append(row(f"fit (nnx) ÷ nnx.jit loop{size}", seconds, "fit", "loop", total))
        for at_once in (1, 100):
            keras = keras_run(steps, epochs, at_once)
            what = f"fit ÷ Keras (JAX), steps_per_execution={at_once}{size}"
            if keras is None:
                rows.append({"what": f"{what}: Keras is not installed"})
                continue
            seconds = timed({"fit": ours, "loop": keras}, 3 if quick else 7, warmup=1)
            rows.append(row(what, seconds, "fit", "loop", total))
    return rows


def sunk(run: Run) -> Run:
    """The run with its output thrown away."""

    def silent() -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return run()

    return silent


def costs(quick: bool) -> list[Row]:
    """Every default and every option by itself: `fit` with it ÷ the same `fit` without."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for steps, epochs in ((LONG, 2 if quick else 5), (SHORT, 50 if quick else 200)):
            variants = _variants(steps, epochs, Path(folder))
            for name, baseline in PAIRS.items():
                runs = {each: variants[each] for each in (name, baseline)}  # side by side, as the machine's pace drifts
                seconds = timed(runs, 5 if quick else 11)
                found = row(f"{name}; epochs of {steps} steps", seconds, name, baseline, steps * epochs)
                found["epoch_us"] = 1e3 * (found["ours_ms"] - found["baseline_ms"]) / epochs
                rows.append(found)
    return rows


PAIRS = {
    "guard": "without guard",
    "shuffle": "without shuffle",
    "a metric": "plain",
    "a key": "plain",
    "monitor(tx)": "plain",
    "progress, lines": "plain",
    "progress, terminal": "plain",
    "a row every 100 steps": "plain",
    "evaluation, 1000 examples": "plain",
    "early stopping, restore_best": "evaluation, 1000 examples",
    "JSONL logger": "plain",
    "checkpoint every epoch": "plain",
}
"""Variant → the one it is compared with; "plain" is fit's defaults without a display."""


def _variants(steps: int, epochs: int, folder: Path) -> dict[str, Run]:
    number = itertools.count()

    def run(of: Any = loss, tx: Any = None, **options: Any) -> Run:
        return fitting(steps, epochs, adam() if tx is None else tx, of, **options)

    def checkpointed() -> Any:
        return run(checkpoint=folder / f"checkpoints_{steps}_{next(number)}")()

    def logged() -> Any:
        return run(loggers=JSONL(folder / f"log_{steps}_{next(number)}.jsonl"))()

    x, y = data(LONG)
    held = (x[:1000], y[:1000])
    patient = early_stopping("eval_loss", patience=10**9, restore_best=True)
    return {
        "plain": run(),
        "guard": run(),
        "without guard": run(max_nonfinite=None),
        "shuffle": run(),
        "without shuffle": run(shuffle=False),
        "a metric": run(loss_with_metric),
        "a key": run(loss_with_key),
        "monitor(tx)": run(tx=jopt.monitor(adam())),
        "progress, lines": sunk(run(progress="lines")),
        "progress, terminal": sunk(run(progress="terminal")),
        "a row every 100 steps": run(log_every=100),
        "evaluation, 1000 examples": run(eval_data=held),
        "early stopping, restore_best": run(eval_data=held, until=patient),
        "JSONL logger": logged,
        "checkpoint every epoch": checkpointed,
    }


SECTIONS: dict[str, Callable[[bool], list[Row]]] = {
    "bare": against_bare,
    "others": against_others,
    "costs": costs,
}

COLUMNS = {
    "what": "what",
    "ratio": "ratio",
    "low": "q25",
    "high": "q75",
    "best": "best",
    "n": "n",
    "ours_ms": "fit ms",
    "baseline_ms": "other ms",
    "ours_us": "fit µs/step",
    "baseline_us": "other µs/step",
    "epoch_us": "more µs/epoch",
}


def load() -> float:
    """Processes that wanted to run in the last minute: above the number of cores, figures are of a busy machine."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def main() -> None:
    """Run the sections and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="one section (repeatable)")
    parser.add_argument("--out", help="write the rows as JSON")
    arguments = parser.parse_args()
    about = environment() | {"load average before": f"{load():.1f}"}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    rows: list[Row] = []
    for name in arguments.only or SECTIONS:
        found = SECTIONS[name](arguments.quick)
        rows += [{"section": name} | each for each in found]
        columns = {key: heading for key, heading in COLUMNS.items() if any(key in each for each in found)}
        print(f"\n{name}: {SECTIONS[name].__doc__}\n{table(found, columns)}")
        print(f"load average {load():.1f}", flush=True)
        if arguments.out:
            with open(arguments.out, "w") as file:
                json.dump({"environment": about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    jax.monitoring.register_event_duration_secs_listener(_listen)
    jnp.zeros(())  # start the backend before the first clock
    main()
