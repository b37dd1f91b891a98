"""What Muon costs against optax's in the same process: ``python -m benchmarks.matrix``.

A row is a ratio jopt / optax (below 1 is better) of medians of interleaved runs, with the quartiles of
the paired ratios, n, and the 50th and 99th percentile of each side's times. Steps are jitted, donated and
carry their parameters and state. Options: ``--quick`` (fewer runs), ``--only SECTION``, ``--out FILE``.

Sections: `step` (update and apply), `compile` (trace, lower and compile, from fresh caches), `orthogonality`
(how far the update is from orthogonal, beside what it costs).
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import jopt
from benchmarks.measure import environment, interleaved, ratio, table

Shapes = dict[str, tuple[int, ...]]


def block(d: int, layers: int) -> Shapes:
    """A transformer's: query, key, value and out, up and down, two norms and their biases."""
    shapes: Shapes = {}
    for i in range(layers):
        shapes |= {f"block_{i}/{name}": (d, d) for name in ("query", "key", "value", "out")}
        shapes |= {f"block_{i}/up": (d, 4 * d), f"block_{i}/down": (4 * d, d)}
        shapes |= {f"block_{i}/{name}": (d,) for name in ("norm_1", "norm_2", "bias_2")} | {
            f"block_{i}/bias_1": (4 * d,)
        }
    return shapes


def four_shapes(n: int, d: int) -> Shapes:
    """n matrices of 4 shapes, two of them transposes, and as many vectors."""
    sides = ((d, d), (d, 4 * d), (4 * d, d), (d, 2 * d))
    return {f"matrix_{i}": sides[i % 4] for i in range(n)} | {f"bias_{i}": (sides[i % 4][1],) for i in range(n)}


TREES: dict[str, Callable[[], Shapes]] = {
    "transformer, d = 128": lambda: block(128, 6),
    "transformer, d = 256": lambda: block(256, 6),
    "transformer, d = 448": lambda: block(448, 2),
    "24 of 4 shapes, d = 256": lambda: four_shapes(24, 256),
    "100 of 4 shapes, d = 64": lambda: four_shapes(100, 64),
    "36 square, d = 256": lambda: {f"matrix_{i}": (256, 256) for i in range(36)},
}


def arrays(shapes: Shapes, seed: int) -> dict[str, jax.Array]:
    """Normal random numbers of these shapes."""
    source = np.random.default_rng(seed)
    return {name: jnp.asarray(0.02 * source.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


class Stepper:
    """A compiled step that carries its parameters and state."""

    def __init__(self, tx: Any, shapes: Shapes):
        def step(params, state, grads):
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.grads, self.params = arrays(shapes, 0), arrays(shapes, 1)
        self.state = jax.jit(tx.init)(self.params)
        self.compiled = jax.jit(step, donate_argnums=(0, 1)).lower(self.params, self.state, self.grads).compile()

    def __call__(self) -> Any:
        self.params, self.state = self.compiled(self.params, self.state, self.grads)
        return self.params


def compare(section: str, tree: str, seconds: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """One row."""
    row = {"section": section, "tree": tree} | ratio(seconds, "jopt", "optax")
    for name, side in (("jopt", "ours"), ("optax", "baseline")):
        row |= {f"{side}_p99": 1e3 * float(np.quantile(seconds[name], 0.99))}
    return row | more


def steps(quick: bool) -> list[dict[str, Any]]:
    """A step of update and apply."""
    rows = []
    for tree, shapes in TREES.items():
        runs = {"jopt": Stepper(jopt.muon(0.02), shapes()), "optax": Stepper(optax.contrib.muon(0.02), shapes())}
        rows.append(compare("step", tree, interleaved(runs, 5 if quick else 15)))
    return rows


def compiling(quick: bool) -> list[dict[str, Any]]:
    """Trace, lower and compile the update, of a library that has compiled nothing of it yet."""
    rows = []
    for tree in ("100 of 4 shapes, d = 64", "transformer, d = 256"):
        found = {name: shape for name, shape in TREES[tree]().items() if len(shape) == 2}
        shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in found.items()}

        def build(make, shapes=shapes):
            jax.clear_caches()
            tx = make(0.02)
            state = jax.eval_shape(tx.init, shapes)
            start = time.perf_counter()
            jax.jit(tx.update).lower(shapes, state, shapes).compile()
            return time.perf_counter() - start

        seconds: dict[str, list[float]] = {"jopt": [], "optax": []}
        for _ in range(2 if quick else 5):
            seconds["jopt"].append(build(jopt.muon))
            seconds["optax"].append(build(optax.contrib.muon))
        rows.append(compare("compile", f"{tree}, matrices alone", seconds))
    return rows


def orthogonality(quick: bool) -> list[dict[str, Any]]:
    """Sets of coefficients and scalings: what a step costs and how far its result is from orthogonal."""
    rows, shapes = [], {f"matrix_{i}": (256, 512) for i in range(8)}
    for options in (
        {},
        {"ns_coeffs": "dion"},
        {"ns_coeffs": "polar_express"},
        {"preconditioning": "schatten"},
        {"preconditioning": "aol"},
    ):
        ours = jopt.scale_by_muon(**options)
        g = arrays(shapes, 0)
        u, _ = ours.update(g, ours.init(g))
        error = float(jopt.orthogonality_error(u["matrix_0"]))
        runs = {"jopt": Stepper(ours, shapes), "optax": Stepper(jopt.scale_by_muon(), shapes)}
        named = ", ".join(map(str, options.values())) or "standard"
        row = compare("orthogonality", named, interleaved(runs, 3 if quick else 9), error=error)
        rows.append(row)
    return rows


SECTIONS: dict[str, Callable[[bool], list[dict[str, Any]]]] = {
    "step": steps,
    "compile": compiling,
    "orthogonality": orthogonality,
}

COLUMNS = {
    "section": "section",
    "tree": "tree",
    "ratio": "jopt/optax",
    "low": "q25",
    "high": "q75",
    "n": "n",
    "ours_ms": "ours p50 ms",
    "ours_p99": "p99",
    "baseline_ms": "optax p50 ms",
    "baseline_p99": "p99",
}


def main() -> None:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    parser.add_argument("--only", choices=SECTIONS, action="append", help="one section (repeatable)")
    parser.add_argument("--out", help="write the rows as JSON")
    arguments = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in environment().items()))
    rows: list[dict[str, Any]] = []
    for name in arguments.only or SECTIONS:
        found = SECTIONS[name](arguments.quick)
        rows += found
        against = {"error": "‖XXᵀ−I‖/√m"} if name == "orthogonality" else {}
        columns = COLUMNS | against
        if against:  # the baseline is our own "standard"
            columns |= {"ratio": "of standard", "baseline_ms": "standard p50 ms"}
        print(f"\n{table(found, columns)}", flush=True)
        if arguments.out:
            with open(arguments.out, "w") as file:
                json.dump({"environment": environment(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
