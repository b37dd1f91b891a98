"""Race, measure seconds, and write `benchmarks/optimizers/results/`: rows, tables and pictures.

Each race is written as soon as it is over, and is not run again while its rows are there.
"""

import argparse
import time
from pathlib import Path

from benchmarks.measure import environment, ratio
from benchmarks.optimizers import contestants, protocol, report, store
from benchmarks.optimizers.workloads import WORKLOADS

STAGES = ("race", "seconds", "report")
ROUNDS = 9


def race(name: str, optimizers: list[str], folder: Path) -> None:
    """Race those optimizers on one workload that have not been raced."""
    workload = WORKLOADS[name]()
    for optimizer in optimizers:
        results = store.read_races(folder, name)
        if optimizer in results:
            continue
        begin = time.perf_counter()
        results[optimizer] = protocol.race(workload, optimizer, contestants.made(optimizer))
        store.write_races(folder, name, results)
        print(f"{name}: {optimizer} raced in {time.perf_counter() - begin:.0f} s", flush=True)


def seconds(name: str, optimizers: list[str], folder: Path) -> None:
    """Measure what a run costs beside the baseline, for those that have raced."""
    workload, raced = WORKLOADS[name](), store.read_races(folder, name)
    runners = [contestants.BASELINE, *(o for o in optimizers if o in raced and o != contestants.BASELINE)]
    found = protocol.seconds_of_runs(
        workload, {o: contestants.made(o) for o in runners}, {o: raced[o].rate for o in runners}, ROUNDS
    )
    costs = store.read_seconds(folder, name) | {o: ratio(found, o, contestants.BASELINE) for o in runners}
    store.write_seconds(folder, name, costs)


def write_report(name: str, folder: Path) -> None:
    """The table and the picture of what is stored."""
    workload, results = WORKLOADS[name](), list(store.read_races(folder, name).values())
    table = report.text(workload, results, store.read_seconds(folder, name))
    versions = ", ".join(f"{name} {value}" for name, value in environment().items())
    (folder / f"{name}.txt").write_text(f"{versions}\n{protocol.BUDGET}\n\n{table}\n")
    report.picture(workload, results, folder / f"{name}.png")
    print(f"\n{table}\n", flush=True)


def main() -> None:
    """Parse the command line and go through the stages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--optimizers", nargs="+", help="these alone, on each workload chosen")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        optimizers = arguments.optimizers or contestants.of(name)
        if "race" in arguments.stages:
            race(name, optimizers, arguments.out)
        if "seconds" in arguments.stages:
            seconds(name, optimizers, arguments.out)
        if "report" in arguments.stages:
            write_report(name, arguments.out)


if __name__ == "__main__":
    main()
