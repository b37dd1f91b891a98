"""Run the races and write `benchmarks/optimizers/results/`: tables, rows and pictures."""

import argparse
import json
import time
from pathlib import Path

from benchmarks.measure import environment
from benchmarks.optimizers import contestants, protocol, report
from benchmarks.optimizers.workloads import WORKLOADS, Workload

HERE = Path(__file__).parent


def run(workload: Workload, names: list[str], folder: Path) -> str:
    """Race some optimizers on one workload, and write what came of it."""
    results = []
    for name in names:
        begin = time.perf_counter()
        results.append(protocol.race(workload, name, contestants.made(name)))
        print(f"{workload.name}: {name} raced in {time.perf_counter() - begin:.0f} s", flush=True)
    text = report.text(workload, results)
    report.picture(workload, results, folder / f"{workload.name}.png")
    (folder / f"{workload.name}.json").write_text(json.dumps(report.rows(workload, results), indent=1) + "\n")
    return text


def main() -> None:
    """Parse the command line and race."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", help="these alone, on each workload chosen")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    budget = (
        f"{len(protocol.RATES)} rates × {protocol.TUNING_SEEDS} seeds each, then {protocol.RACING_SEEDS} fresh seeds"
    )
    for name in arguments.only:
        everyone = [*contestants.TWELVE, *(contestants.others() if name in contestants.CHEAP else ())]
        text = run(WORKLOADS[name](), arguments.optimizers or everyone, arguments.out)
        (arguments.out / f"{name}.txt").write_text(f"{versions}\n{budget}\n\n{text}\n")
        print(f"\n{text}\n", flush=True)


if __name__ == "__main__":
    main()
