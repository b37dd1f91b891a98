"""`jopt train`: from settings to a chain, a table and files."""

import ast
import dataclasses
import inspect
import json
import platform
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import jopt
from jopt import optimizers, schedules
from jopt.cli_tasks import TASKS, Task
from jopt.train import plots, report, run
from jopt.transform import Transform, make_transform

FILES = ("config.json", "history.jsonl", "curves.png")
KERNELS = "**/kernel"


class UsageError(Exception):
    """Arguments that cannot work; the message is for the person at the terminal."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that decides a run, with no defaults left open."""

    task: str
    optimizer: str
    learning_rate: float
    schedule: str
    warmup: float
    set: tuple[str, ...]
    clip: float | None
    weight_decay: float | None
    epochs: int
    batch_size: int
    seed: int


class Shape(NamedTuple):
    """A schedule by its short name: its peak is the learning rate, its length the run.

    Attributes:
        title: a few words.
        warmup: share of the run that rises unless told otherwise.
        make: (peak, steps, rising steps) → schedule.
        rises: whether `make` sees to the rise; otherwise one is put in front.
    """

    title: str
    warmup: float
    make: Callable[[float, int, int], Any]
    rises: bool = True


def _stable_then_decay(peak: float, steps: int, rise: int) -> Any:
    fall = (steps - rise) // 4
    return schedules.warmup_stable_decay_schedule(peak, rise, steps - rise - fall, fall)


SCHEDULES: dict[str, Shape] = {
    "constant": Shape("one rate", 0.0, lambda peak, steps, rise: peak, False),
    "linear": Shape("down to 0", 0.0, lambda peak, steps, rise: schedules.linear_schedule(peak, 0.0, steps), False),
    "cosine": Shape("down to 0", 0.0, lambda peak, steps, rise: schedules.cosine_decay_schedule(peak, steps), False),
    "warmup-cosine": Shape(
        "up, then down to 0",
        0.1,
        lambda peak, steps, rise: schedules.warmup_cosine_decay_schedule(0.0, peak, rise, steps),
    ),
    "one-cycle": Shape(
        "up from a 25th, then down to almost 0",
        0.3,
        lambda peak, steps, rise: schedules.cosine_onecycle_schedule(steps, peak, pct_start=rise / steps),
    ),
    "exponential": Shape(
        "down to a 100th", 0.0, lambda peak, steps, rise: schedules.exponential_decay(peak, steps, 0.01), False
    ),
    "step": Shape(
        "a 10th after each third",
        0.0,
        lambda peak, steps, rise: schedules.step_decay_schedule(peak, -(-steps // 3), 0.1),
        False,
    ),
    "inverse-sqrt": Shape(
        "up, then 1/√step", 0.1, lambda peak, steps, rise: schedules.inverse_sqrt_schedule(peak, rise)
    ),
    "wsd": Shape("up, stable, down to 0 at the end", 0.1, _stable_then_decay),
}


def settings_of(arguments: Namespace) -> Settings:
    """Fill in what the task decides.

    Raises:
        UsageError: no task, or no learning rate for an optimizer other than adamw.
    """
    if arguments.task is None:
        raise UsageError(
            f"no --task was given, one of {', '.join(TASKS)} was expected. Add for example --task digits-mlp."
        )
    task = TASKS[arguments.task]
    if arguments.optimizer not in optimizers.__all__:
        raise UsageError(
            f"--optimizer {arguments.optimizer} was given, one of {', '.join(optimizers.__all__)} was expected. "
            f"See `jopt list` for what they are."
        )
    if arguments.learning_rate is None and arguments.optimizer != "adamw":
        raise UsageError(
            f"--optimizer {arguments.optimizer} was given without --learning-rate; only for adamw a rate is known. "
            f"Add for example --learning-rate 0.01."
        )
    return Settings(
        task=arguments.task,
        optimizer=arguments.optimizer,
        learning_rate=task.learning_rate if arguments.learning_rate is None else arguments.learning_rate,
        schedule=arguments.schedule,
        warmup=SCHEDULES[arguments.schedule].warmup if arguments.warmup is None else arguments.warmup,
        set=tuple(arguments.set),
        clip=arguments.clip,
        weight_decay=arguments.weight_decay,
        epochs=task.epochs if arguments.epochs is None else arguments.epochs,
        batch_size=task.batch_size if arguments.batch_size is None else arguments.batch_size,
        seed=arguments.seed,
    )


def rate_of(settings: Settings, steps: int) -> Any:
    """The learning rate over a run of `steps` updates: a number or a schedule."""
    shape = SCHEDULES[settings.schedule]
    rise = round(settings.warmup * steps)
    if shape.rises or rise == 0:
        return shape.make(settings.learning_rate, steps, rise)
    after = shape.make(settings.learning_rate, max(steps - rise, 1), 0)
    return schedules.warmup(after if callable(after) else schedules.constant_schedule(after), rise)


def chain_of(settings: Settings, steps: int) -> tuple[Transform, str]:
    """The chain for a run of `steps` updates, and a line on where the weight decay went.

    Raises:
        UsageError: an argument that the optimizer does not take.
    """
    factory = getattr(optimizers, settings.optimizer)
    keywords = keywords_of(settings.optimizer, settings.set)
    own_decay = "weight_decay" in inspect.signature(factory).parameters
    note = ""
    if settings.weight_decay is not None and own_decay:
        if "weight_decay" in keywords:
            raise UsageError("--weight-decay and --set weight_decay= were both given, one was expected. Drop one.")
        keywords["weight_decay"] = settings.weight_decay
        note = f"weight decay {settings.weight_decay:g} is {settings.optimizer}'s own argument"
    try:
        tx = factory(rate_of(settings, steps), **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if settings.weight_decay is not None and not own_decay:
        tx = _decoupled(tx, settings.weight_decay)
        note = (
            f"weight decay {settings.weight_decay:g} is decoupled and of kernels only, as {settings.optimizer} "
            f"takes none: added in front of the learning rate"
        )
    return (tx if settings.clip is None else jopt.chain(jopt.clip_by_global_norm(settings.clip), tx)), note


def _decoupled(tx: Transform, weight_decay: float) -> Transform:
    parts = tx.parts
    (rate,) = (i for i, part in enumerate(parts) if part.call().startswith("scale_by_learning_rate("))
    decay = jopt.add_decayed_weights(weight_decay, where=KERNELS)
    return jopt.chain(make_transform(parts[:rate]), decay, make_transform(parts[rate:]))


def keywords_of(optimizer: str, words: tuple[str, ...]) -> dict[str, Any]:
    """The keyword arguments that `--set name=value` words stand for, typed as in Python.

    Raises:
        UsageError: a word without `=`, an unknown name, or a value of the wrong type.
    """
    signature = inspect.signature(getattr(optimizers, optimizer)).parameters
    # Masks are trees, which cannot be written in a word; `where=` says the same by pattern.
    known = {n: p for n, p in signature.items() if n != "learning_rate" and not n.endswith("mask")}
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            raise UsageError(
                f"--set {word} was given, NAME=VALUE with an argument of {optimizer} was expected: "
                f"{', '.join(f'{n}={p.default}' for n, p in known.items()) or 'it has none'}. "
                + ("Use --learning-rate." if name == "learning_rate" else "Choose one of these names.")
            )
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a word such as bfloat16 or a pattern
        default = known[name].default
        if isinstance(default, bool | int) and type(value) is not type(default):
            expected = "True or False" if isinstance(default, bool) else "a whole number"
            raise UsageError(f"--set {word} was given, {expected} was expected. Write for example {name}={default}.")
        found[name] = value
    return found


def words_of_config(path: Path) -> list[str]:
    """The command-line words that repeat the run of a `config.json`.

    Raises:
        UsageError: the file cannot be read, or is not such a file.
    """
    try:
        settings = json.loads(path.read_text())["settings"]
        known = {field.name for field in dataclasses.fields(Settings)}
        if not set(settings) <= known:
            raise KeyError(f"unknown settings {sorted(set(settings) - known)}")
        words = [f"--set={word}" for word in settings.pop("set", ())]
        return words + [f"--{k.replace('_', '-')}={v}" for k, v in settings.items() if v is not None]
    except OSError as error:
        raise UsageError(f"--config {path}: the file cannot be read ({error.strerror}). Check the path.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--config {path}: the content is not that of a config.json of `jopt train` ({error}). "
            f"Pass the file that a run with --out wrote."
        ) from error


def train(arguments: Namespace) -> int:
    """Train as the command line says; returns the exit status."""
    settings = settings_of(arguments)
    task = TASKS[settings.task]
    out = None if arguments.out is None else _folder(arguments.out, arguments.overwrite)
    try:
        problem = task.problem()
        steps = run.steps_per_epoch(problem, settings.batch_size)
        tx, note = chain_of(settings, steps * settings.epochs)
        shapes, _ = jax.eval_shape(problem.init, jax.random.key(0))
        jax.eval_shape(tx.init, shapes)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    _print_header(settings, task, problem, tx, note, run.parameters(shapes), steps)
    if out is not None:
        _write_config(out, settings, tx)
    program = run.compile_epoch(tx, problem, settings.batch_size, settings.seed)
    rows = _train(program, problem, settings, task, out)
    return _finish(rows, settings, task, out)


def _train(program: run.Program, problem: run.Problem, settings: Settings, task: Task, out: Path | None) -> list:
    rows: list[run.Row] = []
    history = None if out is None else (out / "history.jsonl").open("w")
    table = report.EpochTable(settings.epochs, task.measure, program.seconds)
    with run.interruptible() as interrupted:
        for row, _ in run.epochs(program, problem, settings.epochs, settings.seed):
            rows.append(row)
            table.add(row)
            if history is not None:
                history.write(json.dumps(report.plain(row)) + "\n")
                history.flush()
            if interrupted():
                table.close()
                print(f"stopped by Ctrl-C after epoch {row['epoch']} of {settings.epochs}")
                break
    table.close()
    if history is not None:
        history.close()
    return rows


def _finish(rows: list[run.Row], settings: Settings, task: Task, out: Path | None) -> int:
    print(report.verdict(rows, task.measure))
    if out is not None:
        plots.curves(rows, task.measure, f"{settings.task}, {settings.optimizer}", out / "curves.png")
        print(f"wrote {', '.join(str(out / name) for name in FILES)}")
    if report.diverged(rows):
        print("the loss is no longer finite: try a lower --learning-rate, or --clip 1", file=sys.stderr)
        return 1
    return 0


def _folder(out: Path, overwrite: bool) -> Path:
    plots.require()
    held = [name for name in FILES if (out / name).exists()]
    if held and not overwrite:
        raise UsageError(
            f"--out {out} was given, which holds another run ({', '.join(held)}); a new or empty folder was expected. "
            f"Choose another, or add --overwrite."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in held:
            (out / name).unlink()
    except OSError as error:
        raise UsageError(f"--out {out}: the folder cannot be written ({error.strerror}). Choose another.") from error
    return out


def _write_config(out: Path, settings: Settings, tx: Transform) -> None:
    versions = {"jopt": jopt.__version__, "jax": jax.__version__, "optax": optax.__version__}
    config = {
        "settings": dataclasses.asdict(settings),
        "chain": repr(tx),
        "versions": versions | {"python": platform.python_version()},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _print_header(
    settings: Settings, task: Task, problem: run.Problem, tx: Transform, note: str, parameters: int, steps: int
) -> None:
    sizes = [len(jax.tree.leaves(part)[0]) for part in (problem.train, problem.test)]
    print(f"task   {settings.task} ({task.title}), {parameters:,} parameters")
    print(
        f"data   {sizes[0]:,} training and {sizes[1]:,} test examples, {steps} steps of {settings.batch_size} an epoch"
    )
    print("chain  " + report.indented(tx))
    if note:
        print(f"note   {note}")
    print(flush=True)
