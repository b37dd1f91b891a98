"""What an update costs, against optax in the same process: ``python -m benchmarks.update_cost``.

Every row is a ratio jopt / optax (below 1 is better) of medians of interleaved runs, with the
quartiles of the paired ratios, or a count. Options: ``--quick`` (fewer runs), ``--only SECTION``,
``--out FILE`` for the JSON.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jopt
from benchmarks.measure import environment, equations, interleaved, ratio, table

Make = Callable[[Any], Any]


def mlp() -> dict[str, Any]:
    """An MLP 784-256-256-10."""
    sizes = (784, 256, 256, 10)
    return {f"dense_{i}": {"kernel": (a, b), "bias": (b,)} for i, (a, b) in enumerate(itertools.pairwise(sizes))}


def transformer(d: int = 448, layers: int = 12, vocabulary: int = 10_000) -> dict[str, Any]:
    """150 leaves, 38M parameters."""
    block = {
        "attention": dict.fromkeys("qkvo", (d, d)),
        "norm_1": {"scale": (d,), "bias": (d,)},
        "norm_2": {"scale": (d,), "bias": (d,)},
        "mlp": {"up": {"kernel": (d, 4 * d), "bias": (4 * d,)}, "down": {"kernel": (4 * d, d), "bias": (d,)}},
    }
    return {
        "embed": (vocabulary, d),
        "position": (128, d),
        **{f"block_{i}": block for i in range(layers)},
        "norm": {"scale": (d,), "bias": (d,)},
        "head": {"kernel": (d, vocabulary), "bias": (vocabulary,)},
    }


TREES: dict[str, Callable[[], Any]] = {
    "mlp": mlp,
    "transformer38M": transformer,
    "small1000": lambda: {f"leaf_{i}": (8, 8) if i % 2 else (8,) for i in range(1000)},
    "one16M": lambda: {"kernel": (4096, 4096)},
}

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: m.sgd(1e-3),
    "adam": lambda m: m.adam(1e-3),
    "adamw": lambda m: m.adamw(1e-3),
    "clip+adamw": lambda m: m.chain(m.clip_by_global_norm(1.0), m.adamw(1e-3)),
}


def build(tree: str, scale: float = 0.02) -> Any:
    """Arrays of the shapes of a tree, the same in every call."""
    shapes, treedef = jax.tree.flatten(TREES[tree](), is_leaf=lambda x: isinstance(x, tuple))
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return jax.tree.unflatten(treedef, [scale * jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)])


def plain_step(tx: Any) -> Callable[..., Any]:
    """Update and apply through the plain protocol."""

    def step(params, state, grads):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def fused_step(tx: Any) -> Callable[..., Any]:
    """Update and apply in one."""

    def step(params, state, grads):
        return jopt.apply_gradients(tx, grads, state, params)

    return step


class Stepper:
    """A donated, compiled step with the parameters and state it carries."""

    def __init__(self, step: Callable[..., Any], tx: Any, tree: str):
        self.grads, self.params = build(tree), build(tree)
        self.state = jax.jit(tx.init)(self.params)
        # Arguments in the order of the results, so that each donated buffer meets its successor.
        lowered = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads)
        self.compiled = lowered.compile()
        self.temporary = self.compiled.memory_analysis().temp_size_in_bytes

    def __call__(self) -> Any:
        self.params, self.state = self.compiled(self.params, self.state, self.grads)
        return self.params


def compare(
    section: str, tree: str, what: str, runs: dict[str, Callable[[], Any]], n: int, **more: Any
) -> dict[str, Any]:
    """One row: ours against the baseline."""
    return {"section": section, "tree": tree, "what": what} | ratio(interleaved(runs, n), "jopt", "optax") | more


def graph_size(tree: str, quick: bool) -> list[dict[str, Any]]:
    """Equations of one update, per leaf."""
    rows = []
    params = build(tree)
    leaves = len(jax.tree.leaves(params))
    for name in ("adamw", "clip+adamw"):
        counts = {}
        for module in (jopt, optax):
            tx = OPTIMIZERS[name](module)
            counts[module] = equations(jax.make_jaxpr(tx.update)(params, tx.init(params), params).jaxpr) / leaves
        rows.append(
            {"section": "graph", "tree": tree, "n": 1, "ratio": counts[jopt] / counts[optax]}
            | {"what": f"{name}: {counts[jopt]:.2f} equations a leaf against {counts[optax]:.2f}"}
            | {"ours": counts[jopt], "baseline": counts[optax]}
        )
    return rows


def trace_and_compile(tree: str, quick: bool) -> list[dict[str, Any]]:
    """Seconds to trace and lower, and to compile, from nothing."""
    params, name = build(tree), "clip+adamw"
    states = {m: OPTIMIZERS[name](m).init(params) for m in (jopt, optax)}

    def lower(module):
        jax.clear_caches()  # a new process, as far as tracing is concerned
        step = plain_step(OPTIMIZERS[name](module))
        return jax.jit(step).lower(params, states[module], params)

    n = 3 if quick else 7
    seconds: dict[str, dict[str, list[float]]] = {"trace+lower": {}, "compile": {}}
    for turn in range(n + 1):
        for module in (jopt, optax) if turn % 2 else (optax, jopt):
            start = time.perf_counter()
            lowered = lower(module)
            middle = time.perf_counter()
            lowered.compile()
            end = time.perf_counter()
            if turn:  # the first warms up
                seconds["trace+lower"].setdefault(module.__name__, []).append(middle - start)
                seconds["compile"].setdefault(module.__name__, []).append(end - middle)
    return [
        {"section": section, "tree": tree, "what": name} | ratio(found, "jopt", "optax")
        for section, found in seconds.items()
    ]


def eager(tree: str, quick: bool) -> list[dict[str, Any]]:
    """An update outside jit against the same jitted."""
    params, rows, n = build(tree), [], 5 if quick else 15
    seconds = {}
    for module in (jopt, optax):
        tx = OPTIMIZERS["adamw"](module)
        state, jitted = tx.init(params), jax.jit(tx.update)
        runs = {
            "eager": lambda tx=tx, state=state: tx.update(params, state, params),
            "jitted": lambda jitted=jitted, state=state: jitted(params, state, params),
        }
        seconds[module] = interleaved(runs, n)
        rows.append(
            {"section": "eager", "tree": tree, "what": f"{module.__name__}: eager / its own jitted"}
            | ratio(seconds[module], "eager", "jitted")
        )
    return rows


def jitted_step(tree: str, quick: bool) -> list[dict[str, Any]]:
    """A donated training step's optimizer part."""
    rows, n = [], 8 if quick else (40 if tree in ("mlp", "small1000") else 15)
    for name, make in OPTIMIZERS.items():
        ours = Stepper(plain_step(make(jopt)), make(jopt), tree)
        theirs = Stepper(plain_step(make(optax)), make(optax), tree)
        temporary = {"temp_ours": ours.temporary, "temp_baseline": theirs.temporary}
        rows.append(compare("step", tree, name, {"jopt": ours, "optax": theirs}, n, **temporary))
        del ours
        fused = Stepper(fused_step(make(jopt)), make(jopt), tree)
        temporary["temp_ours"] = fused.temporary
        rows.append(compare("step", tree, f"{name}, apply_gradients", {"jopt": fused, "optax": theirs}, n, **temporary))
    for module in (jopt, optax):
        clipped = Stepper(plain_step(OPTIMIZERS["clip+adamw"](module)), OPTIMIZERS["clip+adamw"](module), tree)
        bare = Stepper(plain_step(OPTIMIZERS["adamw"](module)), OPTIMIZERS["adamw"](module), tree)
        rows.append(
            {"section": "step", "tree": tree, "what": f"{module.__name__}: clip+adamw / adamw"}
            | ratio(interleaved({"clip": clipped, "bare": bare}, n), "clip", "bare")
        )
    return rows


def accumulation(tree: str, quick: bool) -> list[dict[str, Any]]:
    """Mean micro-step of accumulating 8 gradients."""
    every, n = 8, 2 if quick else 5
    ours, theirs = jopt.accumulate(jopt.adamw(1e-3), every), optax.MultiSteps(optax.adamw(1e-3), every)
    baseline = Stepper(plain_step(theirs.gradient_transformation()), theirs.gradient_transformation(), tree)
    rows = []
    for what, step in (("plain protocol", plain_step), ("apply_gradients", fused_step)):
        stepper = Stepper(step(ours), ours, tree)

        def window(stepper):
            for _ in range(every):
                result = jax.block_until_ready(stepper())
            return result

        runs = {"jopt": lambda s=stepper: window(s), "optax": lambda: window(baseline)}
        temporary = {"temp_ours": stepper.temporary, "temp_baseline": baseline.temporary}
        row = compare("accumulate", tree, f"every 8 (8 calls), {what}", runs, n, **temporary)
        rows.append(row)
        del stepper
    return rows


def muon(tree: str, quick: bool) -> list[dict[str, Any]]:
    """36 matrices up to 256 × 1024."""
    shapes = [(256, 256)] * 24 + [(256, 1024)] * 6 + [(1024, 256)] * 6
    TREES["matrices36"] = lambda: {f"m{i}": shape for i, shape in enumerate(shapes)}
    ours, theirs = jopt.muon(0.02), optax.contrib.muon(0.02)
    runs = {
        "jopt": Stepper(plain_step(ours), ours, "matrices36"),
        "optax": Stepper(plain_step(theirs), theirs, "matrices36"),
    }
    temporary = {"temp_ours": runs["jopt"].temporary, "temp_baseline": runs["optax"].temporary}
    return [compare("muon", "matrices36", "step", runs, 4 if quick else 12, **temporary)]


SECTIONS: dict[str, tuple[Callable[[str, bool], list[dict[str, Any]]], tuple[str, ...]]] = {
    "graph": (graph_size, tuple(TREES)),
    "trace": (trace_and_compile, ("mlp", "transformer38M", "small1000")),
    "eager": (eager, ("mlp", "transformer38M", "small1000")),
    "step": (jitted_step, tuple(TREES)),
    "accumulate": (accumulation, ("transformer38M",)),
    "muon": (muon, ("matrices36",)),
}


COLUMNS = {
    "section": "section",
    "tree": "tree",
    "what": "what",
    "ratio": "jopt/optax",
    "low": "q25",
    "high": "q75",
    "n": "n",
    "ours_ms": "ours ms",
    "baseline_ms": "optax ms",
    "temp_ours": "temp B",
    "temp_baseline": "optax temp B",
}


def main() -> None:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="one section (repeatable)")
    parser.add_argument("--tree", action="append", help="one tree (repeatable)")
    parser.add_argument("--out", help="write the rows as JSON")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    rows: list[dict[str, Any]] = []
    for name in arguments.only or SECTIONS:
        run, trees = SECTIONS[name]
        for tree in trees:
            if arguments.tree and tree not in arguments.tree:
                continue
            found = run(tree, arguments.quick)
            rows += found
            print(f"\n{table(found, COLUMNS)}", flush=True)  # as it comes: an interrupted run keeps what it has
            if arguments.out:
                with open(arguments.out, "w") as file:
                    json.dump({"environment": environment(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    jnp.zeros(())  # start the backend before the first clock
    main()
