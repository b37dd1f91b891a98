"""`jopt demo`: composed chains on three digit tasks, then a run with the whole toolkit; a table and a picture."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jopt
from jopt import schedules
from jopt.cli_tasks import TASKS
from jopt.cli_train import CROSS_ENTROPY
from jopt.train import plots, report
from jopt.train.batches import count_examples
from jopt.train.history import History
from jopt.train.losses import linen_loss

Chain = Callable[[int], Any]  # number of steps → transform
KERNELS = "**/kernel"
TOOLKIT = "digits-resnet"
TITLE = "Optimizers composed from jopt, on handwritten digits"
SUBTITLE = "In a column every chain has the same first parameters and the same batches; vertical axes are logarithmic"


class Result(NamedTuple):
    """One chain on one task."""

    task: str
    label: str
    history: History
    seconds: float
    parameters: int
    state_bytes: int
    accuracy: float  # on the test images, at the end


def _one_cycle(peak: float, steps: int) -> Any:
    return schedules.cosine_onecycle_schedule(steps, peak)


def _warmup_cosine(peak: float, steps: int) -> Any:
    return schedules.warmup_cosine_decay_schedule(0.0, peak, steps // 10, steps)


def _stable_then_decay(peak: float, steps: int) -> Any:
    rise, stable = steps // 10, steps // 2
    return schedules.warmup_stable_decay_schedule(peak, rise, stable, steps - rise - stable)


def nesterov_cosine(steps: int) -> Any:
    """Nesterov's momentum on clipped gradients, the rate falling as a cosine."""
    rate = schedules.cosine_decay_schedule(0.03, steps)
    return jopt.chain(jopt.clip_by_global_norm(1.0), jopt.nesterov(rate))


def momentum_one_cycle(steps: int) -> Any:
    """Momentum with L2 regularisation of the kernels, in one cycle of the rate."""
    return jopt.chain(jopt.add_decayed_weights(1e-3, where=KERNELS), jopt.momentum(_one_cycle(0.05, steps)))


def clipped_adamw(steps: int) -> Any:
    """AdamW that decays kernels only, on clipped gradients."""
    adamw = jopt.adamw(_warmup_cosine(3e-3, steps), weight_decay=0.01, where=KERNELS)
    return jopt.chain(jopt.clip_by_global_norm(1.0), adamw)


def clipped_nadamw(steps: int) -> Any:
    """AdamW with Nesterov's momentum, warmed up."""
    nadamw = jopt.nadamw(_warmup_cosine(5e-3, steps), weight_decay=0.01, where=KERNELS)
    return jopt.chain(jopt.clip_by_global_norm(1.0), nadamw)


def averaged_lion(steps: int) -> Any:
    """Lion; the test uses an average of its parameters."""
    return jopt.ema(jopt.lion(_stable_then_decay(5e-4, steps), weight_decay=0.1, where=KERNELS), decay=0.98)


def muon_and_adamw(steps: int) -> Any:
    """Muon for the hidden matrices, AdamW for the output layer, biases and norms."""
    muon = jopt.chain(jopt.scale_by_muon(), jopt.scale_by_learning_rate(_warmup_cosine(0.01, steps)))
    return jopt.partition(
        [
            ("muon", jopt.ndim(2) & ~jopt.path("output/*"), muon),
            ("adamw", jopt.everything_else, jopt.adamw(_warmup_cosine(3e-3, steps))),
        ]
    )


CHAINS: dict[str, Mapping[str, Chain]] = {
    "digits-mlp": {
        "clip + nesterov, cosine": nesterov_cosine,
        "clip + adamw (kernels decay)": clipped_adamw,
        "ema of lion, wsd": averaged_lion,
        "partition: muon | adamw": muon_and_adamw,
    },
    "digits-cnn": {
        "L2 + momentum, one-cycle": momentum_one_cycle,
        "clip + adamw (kernels decay)": clipped_adamw,
        "ema of lion, wsd": averaged_lion,
    },
    "digits-rnn": {
        "clip + nadamw, warm-up": clipped_nadamw,
        "clip + nesterov, cosine": nesterov_cosine,
        "ema of lion, wsd": averaged_lion,
        "partition: muon | adamw": muon_and_adamw,
    },
}


def demo(out: Path | None, quick: bool = False) -> int:
    """Train all chains on all tasks, print one table, save one picture; 1 if a target is missed.

    Args:
        out: folder of the picture, `demo.png`; None saves none.
        quick: a tenth of the epochs, and no targets.
    """
    if out is not None:
        plots.require()
        out.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    results = [
        result for task, chains in CHAINS.items() for result in compare(task, chains, epochs_of(task, quick), seed=0)
    ]
    results.append(toolkit(TOOLKIT, epochs_of(TOOLKIT, quick), seed=0))
    print("\n" + results_table(results, judged=not quick))
    missed = [r for r in results if r.accuracy < TASKS[r.task].target]
    print(f"\n{len(results)} runs in {time.perf_counter() - begin:.0f} s", end="")
    print("" if quick else f", {len(results) - len(missed)} of them reach their target")
    if out is not None:
        panels = [
            plots.Panel(TASKS[task].title, {r.label: r.history for r in results if r.task == task}, TASKS[task].target)
            for task in CHAINS
        ]
        plots.comparison(panels, TITLE, SUBTITLE, out / "demo.png")
        print(f"wrote {out / 'demo.png'}")
    return int(bool(missed) and not quick)


def epochs_of(task: str, quick: bool) -> int:
    """Epochs of a task in the demo."""
    return max(1, TASKS[task].epochs // 10) if quick else TASKS[task].epochs


def compare(task: str, chains: Mapping[str, Chain], epochs: int, seed: int) -> list[Result]:
    """Train one model once with each chain, from the same start on the same batches."""
    problem, size = TASKS[task].problem(), TASKS[task].batch_size
    loss_fn = linen_loss(problem.model, CROSS_ENTROPY, metrics=("accuracy",))
    print(
        f"\n{task}: {TASKS[task].title}, {epochs} epochs of {count_examples(problem.train) // size} steps", flush=True
    )
    results = []
    for label, chain in chains.items():
        fit = jopt.fit(
            loss_fn,
            None,
            chain,
            problem.train,
            epochs=epochs,
            batch_size=size,
            key=seed,
            eval_data=problem.test,
            last_batch="drop",
            progress=False,
        )
        sizes = report.parameters(fit.params), report.nbytes(fit.state)
        results.append(Result(task, label, fit.history, fit.seconds, *sizes, fit.history[-1]["eval_accuracy"]))
        print(f"  {label.ljust(30)} {results[-1].accuracy:.2%}  {fit.seconds:.1f} s", flush=True)
    return results


def toolkit(task: str, epochs: int, seed: int) -> Result:
    """Train with all that `fit` has: a rate found by test, augmentation, early stopping, checkpoints.

    A tenth of the training images decides when to stop; the accuracy is of the test images, looked at once.
    """
    of, problem = TASKS[task], TASKS[task].problem()
    print(f"\n{task}: {of.title}, at most {epochs} epochs; range test, one cycle, augmentation, early stopping")
    loss_fn = linen_loss(problem.model, CROSS_ENTROPY, metrics=("accuracy",), augment=of.augment)
    found = jopt.lr_find(loss_fn, None, jopt.adamw, problem.train, batch_size=of.batch_size, key=seed)
    with tempfile.TemporaryDirectory() as folder:
        fit = jopt.fit(
            loss_fn,
            None,
            lambda steps: jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(_one_cycle(float(found), steps))),
            problem.train,
            epochs=epochs,
            batch_size=of.batch_size,
            key=seed,
            validation_split=0.1,
            last_batch="drop",
            until=jopt.stopping.early_stopping("eval_loss", patience=20),
            checkpoint=folder,
            progress=False,
        )
    tested = jopt.evaluate(loss_fn, fit.eval_params, problem.test, model_state=fit.model_state)
    label = f"clip + adamw, rate {float(found):.2g} found"
    print(f"  {label.ljust(30)} {tested['accuracy']:.2%}  {fit.seconds:.1f} s; {fit.stopped_because}", flush=True)
    sizes = report.parameters(fit.params), report.nbytes(fit.state)
    return Result(task, label, fit.history, fit.seconds, *sizes, tested["accuracy"])


def results_table(results: list[Result], judged: bool) -> str:
    """The closing table; `judged` adds the target of each task and PASS or FAIL."""
    titles = ["task", "chain", "test accuracy", "train loss", "seconds", "parameters", "state bytes"]
    rows = [
        [
            r.task,
            r.label,
            f"{r.accuracy:.2%}",
            f"{r.history[-1]['loss']:.4f}",
            f"{r.seconds:.1f}",
            f"{r.parameters:,}",
            f"{r.state_bytes:,}",
        ]
        for r in results
    ]
    if judged:
        titles.append("target")
        for row, r in zip(rows, results, strict=True):
            target = TASKS[r.task].target
            row.append(f"{target:.1%} {'PASS' if r.accuracy >= target else 'FAIL'}")
    return report.table(titles, rows, [False, False] + [True] * (len(titles) - 2))
