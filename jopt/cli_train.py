"""`jopt train`: from settings to a chain, a table and files."""

import ast
import dataclasses
import inspect
import json
import platform
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

import jopt
from jopt import optimizers, schedules
from jopt.cli_tasks import TASKS, Problem, Task
from jopt.train import plots, report, stopping
from jopt.train.batches import count_examples
from jopt.train.checkpoint import CheckpointError
from jopt.train.fit import Fit, NonFiniteError
from jopt.train.loggers import JSONL, TensorBoard
from jopt.train.losses import linen_loss
from jopt.train.tables import cell
from jopt.transform import Transform, make_transform

FILES = ("config.json", "history.jsonl", "curves.png", "test.json", "lr_find.png")
CHECKPOINTS = "checkpoints"
VALIDATION = 0.1  # share held out for early stopping
KERNELS = "**/kernel"
ASK_MORE = {  # than a rate and the loss
    "adahessian": "a second loss (obj_fn=)",
    "dpsgd": "the gradient of every example",
    "sophia": "a second loss (obj_fn=)",
}
CROSS_ENTROPY = "softmax_cross_entropy_with_integer_labels"


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
    batch_schedule: str | None
    seed: int
    augment: bool
    early_stop: int | None
    validation: float
    precision: str | None
    tensorboard: str | None


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
    if arguments.optimizer in ASK_MORE:
        raise UsageError(
            f"--optimizer {arguments.optimizer} was given, which asks for {ASK_MORE[arguments.optimizer]}; one that "
            f"needs a learning rate and the loss alone was expected. Write a training loop of your own for it."
        )
    if arguments.learning_rate is not None and arguments.lr_find:
        raise UsageError(
            f"--learning-rate {arguments.learning_rate:g} and --lr-find were both given, one was expected. Drop one."
        )
    if arguments.learning_rate is None and arguments.optimizer != "adamw" and not arguments.lr_find:
        raise UsageError(
            f"--optimizer {arguments.optimizer} was given without --learning-rate; only for adamw a rate is known. "
            f"Add for example --learning-rate 0.01, or --lr-find."
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
        batch_schedule=arguments.batch_schedule,
        seed=arguments.seed,
        augment=arguments.augment,
        early_stop=arguments.early_stop,
        validation=_validation(arguments.validation, arguments.early_stop),
        precision=arguments.precision,
        tensorboard=arguments.tensorboard,
    )


def _validation(share: float | None, early_stop: int | None) -> float:
    """The share held out: what stops or chooses must not be the test set."""
    if share is None:
        return 0.0 if early_stop is None else VALIDATION
    if share == 0 and early_stop is not None:
        raise UsageError(
            "--validation 0 was given with --early-stop, a share of the training examples was expected: the test set "
            "must not decide. Write for example --validation 0.1."
        )
    return share


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
    rate = rate_of(settings, steps)
    try:
        tx = factory(rate, **keywords)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    if settings.weight_decay is not None and not own_decay:
        tx = _decoupled(tx, settings.weight_decay, rate)
        note = (
            f"weight decay {settings.weight_decay:g} is decoupled and of kernels only, as {settings.optimizer} "
            f"takes none: multiplied by the learning rate"
        )
    return (tx if settings.clip is None else jopt.chain(jopt.clip_by_global_norm(settings.clip), tx)), note


def _decoupled(tx: Transform, weight_decay: float, rate: Any) -> Transform:
    parts = tx.parts
    places = [i for i, part in enumerate(parts) if part.call().startswith("scale_by_learning_rate(")]
    if not places:  # the rate is inside a rule: the decay that it would have scaled is added to the step

        def scaled(count):
            return -weight_decay * (rate(count) if callable(rate) else rate)

        return jopt.chain(tx, jopt.add_decayed_weights(scaled, where=KERNELS))
    decay = jopt.add_decayed_weights(weight_decay, where=KERNELS)
    return jopt.chain(make_transform(parts[: places[0]]), decay, make_transform(parts[places[0] :]))


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
        flags = [f"--{name.replace('_', '-')}" for name, value in settings.items() if value is True]
        given = {name: value for name, value in settings.items() if value is not None and not isinstance(value, bool)}
        return words + flags + [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
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
    out = None if arguments.out is None else _folder(arguments.out, arguments.overwrite, arguments.resume)
    for flag in ("resume", "checkpoint"):
        if getattr(arguments, flag) and out is None:
            raise UsageError(f"--{flag} was given without --out, the folder of the run was expected. Add --out DIR.")
    try:
        problem = task.problem()
        _check_batch(settings, problem)
        if arguments.lr_find:
            settings = dataclasses.replace(settings, learning_rate=_found_rate(settings, task, problem, out))
        loss_fn = _loss_of(task, problem, settings)
        _, note = chain_of(settings, 1)
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    _print_header(settings, task, problem, note)
    if out is not None:
        _write_config(out, settings)
    try:
        result = _fit(loss_fn, problem, settings, out, checkpoint=arguments.checkpoint or arguments.resume)
    except NonFiniteError as error:
        _finish(error.fit, problem, settings, task, out)
        print(f"{error}\nTry a lower --learning-rate, or --clip 1.", file=sys.stderr)
        return 1
    except (ValueError, TypeError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    _finish(result, problem, settings, task, out)
    return 0


def _check_batch(settings: Settings, problem: Problem) -> None:
    examples = round(count_examples(problem.train) * (1 - settings.validation))
    if settings.batch_size > examples:
        raise UsageError(
            f"--batch-size {settings.batch_size} was given for {examples} training examples, a whole number from 1 to "
            f"{examples} was expected. Choose a smaller batch."
        )


def _loss_of(task: Task, problem: Problem, settings: Settings) -> Any:
    augment = task.augment if settings.augment else None
    if settings.augment and augment is None:
        able = [name for name, task in TASKS.items() if task.augment is not None]
        raise UsageError(
            f"--augment was given for {settings.task}, which has no augmentation; one of {', '.join(able)} was "
            f"expected. Drop it."
        )
    return linen_loss(problem.model, CROSS_ENTROPY, metrics=(task.measure,), augment=augment)


def _found_rate(settings: Settings, task: Task, problem: Problem, out: Path | None) -> float:
    """The rate that the range test suggests, with the whole chain around it."""
    constant = dataclasses.replace(settings, schedule="constant", warmup=0.0)

    def at(rate: Any) -> Any:
        return chain_of(dataclasses.replace(constant, learning_rate=rate), 1)[0]

    loss_fn = _loss_of(task, problem, settings)
    size = min(settings.batch_size, count_examples(problem.train))
    found = jopt.lr_find(loss_fn, None, at, problem.train, batch_size=size, key=settings.seed)
    print(found)
    if out is not None:
        figure, _ = found.plot()
        figure.savefig(out / "lr_find.png", dpi=150)
    return float(found)


def _fit(loss_fn: Any, problem: Problem, settings: Settings, out: Path | None, checkpoint: bool) -> Fit:
    loggers: list[Any] = [] if out is None else [JSONL(out / "history.jsonl")]
    if settings.tensorboard is not None:
        loggers.append(TensorBoard(settings.tensorboard))
    until = ()
    if settings.early_stop is not None:
        until = stopping.early_stopping("eval_loss", patience=settings.early_stop)
    return jopt.fit(
        loss_fn,
        None,
        lambda steps: chain_of(settings, steps)[0],
        problem.train,
        epochs=settings.epochs,
        batch_size=batch_size_of(settings, count_examples(problem.train)),
        key=settings.seed,
        eval_data=None if settings.validation else problem.test,
        validation_split=settings.validation or None,
        last_batch="drop",
        until=until,
        loggers=loggers,
        precision=settings.precision,
        checkpoint=out / CHECKPOINTS if out is not None and checkpoint else None,
    )


def batch_size_of(settings: Settings, examples: int) -> Any:
    """The number of examples of a step: a number, or one that grows evenly over the run.

    Raises:
        UsageError: `--batch-schedule` is not FIRST:LAST.
    """
    if settings.batch_schedule is None:
        return settings.batch_size
    words = settings.batch_schedule.split(":")
    if len(words) != 2 or not all(word.isdigit() and int(word) > 0 for word in words):
        raise UsageError(
            f"--batch-schedule {settings.batch_schedule} was given, FIRST:LAST examples were expected. "
            f"Write for example 32:128."
        )
    first, last = map(int, words)
    steps = max(1, settings.epochs * examples * 2 // (first + last))
    return lambda step: first + (last - first) * min(step / steps, 1.0)


def _finish(result: Fit, problem: Problem, settings: Settings, task: Task, out: Path | None) -> None:
    """The verdict on the test set, which nothing before has chosen by, and the files."""
    measured = jopt.evaluate(result.loss_fn, result.eval_params, problem.test, model_state=result.model_state)
    best = ", parameters of the best record" if settings.early_stop is not None else ""
    print(f"test {task.measure} {cell(task.measure, measured[task.measure])}, loss {measured['loss']:.4f}{best}")
    if out is None:
        return
    (out / "test.json").write_text(json.dumps(measured) + "\n")
    if result.history:
        figure, _ = result.history.plot()
        figure.suptitle(f"{settings.task}, {settings.optimizer}", x=0.01, ha="left", fontsize=15, fontweight="bold")
        figure.savefig(out / "curves.png", dpi=150)
    print(f"wrote {', '.join(str(out / name) for name in FILES if (out / name).exists())}")


def _folder(out: Path, overwrite: bool, resume: bool) -> Path:
    plots.require()
    held = [name for name in (*FILES, CHECKPOINTS) if (out / name).exists()]
    if held and not overwrite and not resume:
        raise UsageError(
            f"--out {out} was given, which holds another run ({', '.join(held)}); a new or empty folder was expected. "
            f"Choose another, go on with --resume, or add --overwrite."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in held if overwrite else ():
            shutil.rmtree(out / name) if name == CHECKPOINTS else (out / name).unlink()
    except OSError as error:
        raise UsageError(f"--out {out}: the folder cannot be written ({error.strerror}). Choose another.") from error
    return out


def _write_config(out: Path, settings: Settings) -> None:
    versions = {"jopt": jopt.__version__, "jax": jax.__version__, "optax": optax.__version__}
    config = {
        "settings": dataclasses.asdict(settings),
        "versions": versions | {"python": platform.python_version()},
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _print_header(settings: Settings, task: Task, problem: Problem, note: str) -> None:
    loss_fn = linen_loss(problem.model, CROSS_ENTROPY)
    params, _ = jax.eval_shape(lambda: loss_fn.init(jax.random.key(0), problem.train))
    sizes = [count_examples(part) for part in (problem.train, problem.test)]
    print(f"task   {settings.task} ({task.title}), {report.parameters(params):,} parameters")
    steps = max(1, round(sizes[0] * (1 - settings.validation)) // settings.batch_size)
    print(
        f"data   {sizes[0]:,} training and {sizes[1]:,} test examples, {steps} steps of {settings.batch_size} an epoch"
    )
    if settings.validation:
        print(f"       {settings.validation:.0%} of the training examples are held out for validation")
    print("chain  " + report.indented(chain_of(settings, steps * settings.epochs)[0]))
    if note:
        print(f"note   {note}")
    print(flush=True)
