"""What races found, as JSON: one file of races and one of seconds for each workload."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.optimizers.protocol import Result

DIGITS = 5


def read_races(folder: Path, workload: str) -> dict[str, Result]:
    """The races of one workload by optimizer, empty where there was none."""
    rows = _read(folder / f"{workload}.json")
    return {
        name: Result(
            name,
            workload,
            row["rate"],
            tuple(map(_number, row["tuned"])),
            np.array([[_number(x) for x in curve] for curve in row["curves"]]),
            np.array([_number(x) for x in row["steps"]]),
            row["state_bytes"],
        )
        for name, row in rows.items()
    }


def write_races(folder: Path, workload: str, results: dict[str, Result]) -> None:
    """Replace the races of one workload."""
    rows = {
        name: {
            "rate": r.rate,
            "tuned": [_short(x) for x in r.tuned],
            "curves": [[_short(x) for x in curve] for curve in r.curves],
            "steps": [_short(x) for x in r.steps],
            "state_bytes": r.state_bytes,
        }
        for name, r in results.items()
    }
    _write(folder / f"{workload}.json", rows)


def read_seconds(folder: Path, workload: str) -> dict[str, dict[str, Any]]:
    """What a run costs by optimizer, as `benchmarks.measure.ratio` gives it."""
    return _read(folder / f"{workload}_seconds.json")


def write_seconds(folder: Path, workload: str, costs: dict[str, dict[str, Any]]) -> None:
    """Replace the seconds of one workload."""
    _write(folder / f"{workload}_seconds.json", costs)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write(path: Path, rows: dict[str, Any]) -> None:
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    path.write_text(f"{{\n{lines}\n}}\n")


def _short(x: float) -> float | None:
    """Few digits, and null where it is not finite: JSON has no infinity."""
    return float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None


def _number(x: float | None) -> float:
    return math.inf if x is None else x
