"""Interleaved timing of alternatives in one process, and the environment a figure belongs to."""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def interleaved(runs: dict[str, Callable[[], Any]], n: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of `n` runs of each alternative, taken in turns so that both meet the same machine."""
    for run in runs.values():
        for _ in range(warmup):
            jax.block_until_ready(run())
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(n):
        order = list(runs.items()) if i % 2 == 0 else list(runs.items())[::-1]
        for name, run in order:
            start = time.perf_counter()
            jax.block_until_ready(run())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], ours: str, baseline: str) -> dict[str, Any]:
    """Our median over the baseline's, with the quartiles of the paired ratios and n."""
    pairs = sorted(a / b for a, b in zip(seconds[ours], seconds[baseline], strict=True))
    low, high = np.quantile(pairs, [0.25, 0.75])
    return {
        "ratio": statistics.median(seconds[ours]) / statistics.median(seconds[baseline]),
        "low": float(low),
        "high": float(high),
        "n": len(pairs),
        "ours_ms": 1e3 * statistics.median(seconds[ours]),
        "baseline_ms": 1e3 * statistics.median(seconds[baseline]),
    }


def environment() -> dict[str, str]:
    """Versions and device."""
    import flax
    import jaxlib
    import optax

    import jopt

    device = jax.devices()[0]
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "optax": optax.__version__,
        "flax": flax.__version__,
        "jopt": jopt.__version__,
        "device": device.device_kind if device.platform != "cpu" else f"CPU, {_cores()} cores",
    }


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def equations(jaxpr: Any, seen: set[int] | None = None) -> int:
    """All equations of a jaxpr; an inner jaxpr that is called many times counts once."""
    seen = set() if seen is None else seen
    total = 0
    for equation in jaxpr.eqns:
        total += 1
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns") and id(inner) not in seen:
                seen.add(id(inner))
                total += equations(inner, seen)
    return total


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Rows as aligned text; `columns` maps keys to headings."""
    cells = [list(columns.values())]
    cells += [[_show(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])


def _show(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}" if value < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
