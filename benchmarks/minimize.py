"""`jopt.minimize` beside SciPy's L-BFGS-B on the Rosenbrock function: ``python -m benchmarks.minimize``.

100 dimensions, float64, on the CPU, memory of 10 in both. SciPy runs with its default tolerances (it stops on the
relative decrease first), jopt until no entry of the gradient exceeds 1e-5, which is later. SciPy is given the
gradient twice: by hand in NumPy, and as a jitted JAX function; its faster variant counts. ``starts`` are 64 points
drawn uniformly from [-2, 2]¹⁰⁰: one call of jopt, 64 calls of SciPy. Runs are interleaved in one process, compiled
before; compile time is apart. Options: ``--quick`` (fewer runs), ``--out FILE`` for the JSON.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy
import scipy.optimize

import jopt
from benchmarks.measure import environment, interleaved, ratio, table

DIMENSIONS, STARTS, TOL = 100, 64, 1e-5
GLOBAL = 1e-3  # below this the value belongs to the minimum at 1; the other one has 3.99


def rosenbrock(x: jax.Array) -> jax.Array:
    """The chained Rosenbrock function."""
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def by_hand(x: np.ndarray) -> tuple[float, np.ndarray]:
    """Its value and gradient in NumPy."""
    a, b = x[1:] - x[:-1] ** 2, 1 - x[:-1]
    g = np.zeros_like(x)
    g[:-1] = -400 * x[:-1] * a - 2 * b
    g[1:] += 200 * a
    return 100 * (a @ a) + b @ b, g


def one_thread() -> Any:
    """BLAS on one thread, by the package that scikit-learn brings."""
    return controller().limit(limits=1)


@functools.cache
def controller() -> Any:
    """Of the BLAS libraries in the process; looking for them takes longer than a run."""
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()


@functools.cache
def jitted() -> Any:
    """Its value and gradient in JAX, for SciPy."""
    compiled = jax.jit(jax.value_and_grad(rosenbrock))

    def call(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, g = compiled(x)
        return float(value), np.asarray(g)

    return call


def scipys(fn: Any, x: np.ndarray) -> Any:
    """One run of SciPy, with one thread for its BLAS: several only wait for each other on vectors so short."""
    with one_thread():
        return scipy.optimize.minimize(fn, x, jac=True, method="L-BFGS-B", options={"maxcor": 10})


def jopts(x: Any, method: str = "lbfgs", **options: Any) -> Any:
    """One call of jopt, finished."""
    return jax.block_until_ready(jopt.minimize(rosenbrock, x, method, tol=TOL, max_steps=3000, **options))


def single(n: int) -> list[dict[str, Any]]:
    """One start, the usual one."""
    x = np.tile([-1.2, 1.0], DIMENSIONS // 2)
    begun = time.perf_counter()
    jopts(x)
    compiling = time.perf_counter() - begun
    methods = ("lbfgs", "bfgs", "ssbfgs", "ssbroyden")
    runs: dict[str, Any] = {f"jopt {method}": functools.partial(jopts, x, method) for method in methods}
    runs |= {"scipy numpy": lambda: scipys(by_hand, x), "scipy jax": lambda: scipys(jitted(), x)}
    seconds = interleaved(runs, n)
    faster = min(("scipy numpy", "scipy jax"), key=lambda name: float(np.median(seconds[name])))
    rows = []
    for name, run in runs.items():
        result, ours = run(), name.startswith("jopt")
        rows.append(
            {
                "section": "single",
                "run": name,
                "baseline": faster,
                **ratio(seconds, name, faster),
                "loss": float(result.value if ours else result.fun),
                "steps": int(result.steps if ours else result.nit),
                "evaluations": int(result.evaluations if ours else result.nfev),
                "compile_s": compiling if name == "jopt lbfgs" else None,
            }
        )
    return rows


def starts(n: int) -> list[dict[str, Any]]:
    """Many starts in one call, and as many calls of SciPy."""
    x = np.random.default_rng(0).uniform(-2, 2, (STARTS, DIMENSIONS))
    many = jax.jit(jax.vmap(lambda x: jopt.minimize(rosenbrock, x, tol=TOL, max_steps=3000)))
    runs: dict[str, Any] = {
        "jopt starts=True": lambda: jopts(x, starts=True),
        "jopt under vmap": lambda: jax.block_until_ready(many(x)),
        "scipy numpy": lambda: [scipys(by_hand, start) for start in x],
        "scipy jax": lambda: [scipys(jitted(), start) for start in x],
    }
    seconds = interleaved(runs, n, warmup=1)
    faster = min(("scipy numpy", "scipy jax"), key=lambda name: float(np.median(seconds[name])))
    rows = []
    for name, run in runs.items():
        result = run()
        values = np.asarray(result.value) if name.startswith("jopt") else np.asarray([r.fun for r in result])
        rows.append(
            {
                "section": f"{STARTS} starts",
                "run": name,
                "baseline": faster,
                **ratio(seconds, name, faster),
                "loss": float(np.median(values)),
                "global": int(np.sum(values < GLOBAL)),
            }
        )
    return rows


def main() -> None:
    """Measure, print, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    rows = single(5 if options.quick else 31) + starts(1 if options.quick else 7)
    found = environment() | {"numpy": np.__version__, "scipy": scipy.__version__}
    print(*(f"{name} {value}" for name, value in found.items()), sep=", ")
    for row in rows:
        row["loss"], row["shown_loss"] = row["loss"], f"{row['loss']:.1e}"
    columns = {"section": "section", "run": "run", "baseline": "baseline", "ratio": "ratio", "low": "25 %"}
    columns |= {"high": "75 %", "n": "n", "ours_ms": "ms", "baseline_ms": "baseline ms", "shown_loss": "loss"}
    columns |= {"steps": "steps", "evaluations": "calls", "global": "global", "compile_s": "compile s"}
    print(table(rows, columns))
    if options.out:
        options.out.write_text(json.dumps({"environment": found, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
