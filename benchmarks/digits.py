"""ResNet with self-attention on digits, end to end, over seeds: `python -m benchmarks.digits`.

Each seed: a range test, one cycle up to its rate, shifted images, early stopping on a tenth of the training
images with the best parameters restored, and then one look at the 360 test images.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.measure import environment
from jopt.cli import main

WORDS = "train --task digits-resnet --lr-find --schedule one-cycle --augment --clip 1 --early-stop 20"


def run(seeds: int) -> list[dict[str, float]]:
    """Test accuracy and seconds of each seed."""
    found = []
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            status = main([*WORDS.split(), "--seed", str(seed), "--out", folder])
            seconds = time.perf_counter() - begin
            if status != 0:
                raise RuntimeError(f"jopt {WORDS} --seed {seed} ended with status {status}")
            measured = json.loads((Path(folder) / "test.json").read_text())
            rate = json.loads((Path(folder) / "config.json").read_text())["settings"]["learning_rate"]
        found.append({"seed": seed, "accuracy": measured["accuracy"], "learning_rate": rate, "seconds": seconds})
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = run(arguments.seeds)
    lines = [
        ", ".join(f"{name} {value}" for name, value in environment().items()),
        f"jopt {WORDS}",
        "",
        "seed  test accuracy  rate found  seconds",
    ]
    lines += [f"{r['seed']:4}  {r['accuracy']:13.2%}  {r['learning_rate']:10.2g}  {r['seconds']:7.0f}" for r in rows]
    lines.append(f"median {statistics.median(r['accuracy'] for r in rows):.2%}, target 98.5%")
    print("\n" + "\n".join(lines))
    if arguments.out is not None:
        arguments.out.write_text("\n".join(lines) + "\n")
