"""The table of a race, and its pictures."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import table
from benchmarks.optimizers.contestants import BASELINE
from benchmarks.optimizers.protocol import RATES, Result, p_value
from benchmarks.optimizers.workloads import Workload
from jopt.train.plots import COLOURS, INK, PALE, STYLE

COLUMNS = {
    "optimizer": "optimizer",
    "rate": "rate",
    "near": "rates near the best",
    "final": "final loss",
    "spread": "quartiles",
    "steps": "steps to target",
    "reached": "reached",
    "seconds": "seconds",
    "cost": f"cost of an update / {BASELINE}",
    "state": "state bytes/param",
    "p": f"p against {BASELINE}",
    "verdict": "",
}


def rows(workload: Workload, results: Sequence[Result], costs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each optimizer, the fastest to the target first."""
    baseline = next((r for r in results if r.optimizer == BASELINE), None)
    return [_row(workload, r, baseline, costs.get(r.optimizer)) for r in sorted(results, key=_order)]


def _order(result: Result) -> tuple[float, float]:
    return float(np.median(result.steps)), float(np.median(result.curves[:, -1]))


def _row(workload: Workload, result: Result, baseline: Result | None, cost: Mapping[str, Any] | None) -> dict[str, Any]:
    final = result.curves[:, -1]
    low, high = np.quantile(final, [0.25, 0.75], method="nearest")
    median = float(np.median(result.steps))
    found = {
        "optimizer": result.optimizer,
        "rate": f"{result.rate:.2g}",
        "near": f"{result.near:.0%}",
        "final": f"{np.median(final):.4g}",
        "spread": f"{low:.4g} to {high:.4g}",
        "steps": "not reached" if math.isinf(median) else f"{median:.0f}",
        "reached": f"{np.isfinite(result.steps).sum()}/{len(result.steps)}",
        "seconds": "" if math.isinf(median) or not cost else f"{median * cost['ours_ms'] / 1e3 / workload.steps:.3f}",
        "cost": f"{cost['ratio']:.2f}" if cost else "",
        "state": f"{result.state_bytes:.1f}",
        "p": "",
        "verdict": "",
    }
    if baseline is not None and result is not baseline:
        p = p_value(result.steps, baseline.steps)
        better = _order(result) < _order(baseline)
        found["p"] = f"{p:.4f}" if p >= 1e-4 else "<0.0001"
        found["verdict"] = ("wins" if better else "loses") if p < 0.01 else "no difference shown"
    return found


def text(workload: Workload, results: Sequence[Result], costs: Mapping[str, Any]) -> str:
    """The table with its heading; `costs` are the rows of `benchmarks.measure.ratio` by optimizer."""
    heading = (
        f"{workload.title}: {workload.unit} after {workload.steps} updates, target {workload.target:g}, "
        f"measured every {workload.every}"
    )
    return f"{heading}\n\n{table(rows(workload, results, costs), COLUMNS)}"


def picture(workload: Workload, results: Sequence[Result], path: Path) -> None:
    """Median curves with quartiles on the left, sensitivity to the rate on the right."""
    import matplotlib
    from matplotlib.figure import Figure

    best = sorted(results, key=_order)
    shown = best[:6] + [r for r in best[6:] if r.optimizer == BASELINE]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13, 5.6), layout="constrained")
        curves, rates = figure.subplots(1, 2)
        colours = iter(COLOURS)
        for result in shown:
            colour = INK if result.optimizer == BASELINE else next(colours)
            _curve(curves, workload, result, colour)
            rates.plot(RATES, _drawable(workload, np.asarray(result.tuned)), color=colour, marker="o", markersize=4)
        target = workload.target - workload.least
        curves.axhline(target, color=PALE, linewidth=1, linestyle="--")
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        curves.annotate("target", (0, target), color=PALE, ha="left", va="center", fontsize=10, bbox=behind)
        finite = np.concatenate([_drawable(workload, r.curves).ravel() for r in shown])
        low = min(np.nanquantile(finite, 0.01), target)
        top = np.median([_drawable(workload, r.curves[:, 0]) for r in shown])
        for axes in (curves, rates):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_tick)
            axes.yaxis.set_minor_formatter(_tick)
            axes.set_ylim(low / 1.1, top * 1.1)
            axes.set_ylabel(f"{workload.unit} above {workload.least:.2f}" if workload.least else workload.unit)
        curves.set_xlabel("updates")
        curves.set_title("Median and quartiles of 10 fresh seeds")
        rates.set_xscale("log")
        rates.set_xlabel("learning rate")
        rates.set_title("Final loss at each rate, median of 5 seeds")
        curves.legend(loc="upper right", frameon=False)
        figure.suptitle(workload.title, x=0.01, ha="left", fontsize=16, fontweight="bold", color=INK)
        figure.savefig(path, dpi=110)


def _tick(value: float, position: Any) -> str:
    """A label at 1, 2, 3 and 5 of each decade."""
    return f"{value:g}" if f"{value:e}"[0] in "1235" and f"{value:.0e}"[0] == f"{value:e}"[0] else ""


def _curve(axes: Any, workload: Workload, result: Result, colour: str) -> None:
    steps = np.arange(result.curves.shape[1]) * workload.every
    quantiles = (np.quantile(result.curves, q, axis=0, method="nearest") for q in (0.25, 0.5, 0.75))
    low, middle, high = (_drawable(workload, x) for x in quantiles)
    axes.plot(steps, middle, color=colour, label=f"{result.optimizer}, rate {result.rate:.2g}")
    axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)


def _drawable(workload: Workload, x: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(x), x, np.nan) - workload.least
