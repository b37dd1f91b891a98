"""The loop around the compiled chunks: records, stops, checkpoints, signals."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.state import eval_params, hyperparams
from jopt.train import metrics
from jopt.train.batches import ArrayFeed, Work
from jopt.train.cache import cached
from jopt.train.evaluate import measure
from jopt.train.fragile import Fragile
from jopt.train.history import History
from jopt.train.objective import Objective
from jopt.train.program import Layout, Recipe, compiled, operands
from jopt.train.progress import Progress
from jopt.train.signals import Requests
from jopt.train.step import Carry, Optimizer, bad_name, gradient
from jopt.train.stopping import reason
from jopt.train.streams import StreamFeed
from jopt.wrap.finite import NONE
from jopt.wrap.monitor import monitored

CHUNK_SECONDS = 0.2
"""Aim for the time of one call: progress then moves five times a second."""
MOST_STEPS = 2**20
FINISHED = "all steps are done"


class Moment(NamedTuple):
    """What a callback sees after a record; its arrays are valid until it returns.

    Attributes:
        step, epoch: done.
        row: of the history, the newest.
        history: so far.
        params, state, model_state: as they are now.
    """

    step: int
    epoch: float
    row: dict[str, Any]
    history: History
    params: Any
    state: Any
    model_state: Any


class Snapshot(NamedTuple):
    """Parameters with what belongs to them, at the best record so far."""

    params: Any
    state: Any
    model_state: Any


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run does; nothing in it changes.

    Attributes:
        objective, optimizer, numbers: what is minimised, by what.
        key: of the steps.
        total: optimizer steps at the end; None where only `epochs` is known.
        epochs: at the end; None where only `total` is known.
        alarm: skipped steps in a row that end the run; None: no guard.
        accumulates: whether a step may have several micro-batches.
        base_size, power: of the scaled learning rate.
        eval_every, log_every: in steps; None: every epoch, and never.
        reset: the model state that every epoch starts with; None: it goes on.
        seconds: time budget, infinite without one.
        steps_per_call: None: as many as take about `CHUNK_SECONDS`.
        until: rules of the history.
        callbacks, loggers: to call after each record.
    """

    objective: Objective
    optimizer: Optimizer
    numbers: Any
    key: Any
    total: int | None
    epochs: int | None
    alarm: int | None
    accumulates: bool
    base_size: int | None
    power: float
    eval_every: int | None
    log_every: int | None
    reset: Any
    seconds: float
    steps_per_call: int | None
    until: tuple[Callable[[History], Any], ...]
    callbacks: tuple[Fragile, ...]
    loggers: tuple[Any, ...]


@dataclasses.dataclass
class Pace:
    """How many steps fit into a call.

    Attributes:
        steps: of the next call.
        fixed: whether the user chose them.
    """

    steps: int = 1
    fixed: bool = False

    def learn(self, steps: int, seconds: float) -> None:
        """Take in how long a call took; grow at most 16-fold, so that one odd call does no harm."""
        if not self.fixed:
            fitting = steps * CHUNK_SECONDS / max(seconds, 1e-6)
            self.steps = int(np.clip(fitting, 1, min(max(self.steps, steps) * 16, MOST_STEPS)))


class Loop:
    """A run in progress: what changes, and the order in which it does.

    Args:
        job: what to do.
        carry: where the model is.
        feed: where the data are; both at the same step.
        evaluation: a feed to evaluate on, or None.
        progress: a display.
        checkpoints: `resume.Saving`, or None.
        tx: the transform, for the record.
    """

    def __init__(
        self,
        job: Job,
        carry: Carry,
        feed: ArrayFeed | StreamFeed,
        evaluation: ArrayFeed | StreamFeed | None,
        progress: Progress,
        checkpoints: Any,
        tx: Any,
    ):
        self.job, self.carry, self.feed, self.evaluation, self.progress = job, carry, feed, evaluation, progress
        self.checkpoints, self.tx = checkpoints, tx
        every = "epoch" if checkpoints is None else checkpoints.every
        self.save_every: int | None = None if every == "epoch" else every
        self.keeps_best = any(getattr(rule, "restore_best", False) for rule in job.until)
        self.alarmed = False
        self.step = int(carry.step)
        self.history = History()
        self.best: Snapshot | None = None
        self.pace = Pace() if job.steps_per_call is None else Pace(job.steps_per_call, fixed=True)
        self.seconds_before = 0.0
        self.began = time.monotonic()
        self.compile_seconds = 0.0
        self.programs: set[Recipe] = set()
        self.bad: tuple[int, ...] = (0, 0, NONE)  # as in `step.Guard`
        self.saved_at: int | None = None
        self._fingerprint: str | None = None
        # On the host: as arguments of the next chunk they cost nothing, on the device a call for each.
        self._empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), carry.means)
        self._rate: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since the start of the run, what it took before it was resumed included."""
        return self.seconds_before + time.monotonic() - self.began

    def run(self, asked: Requests) -> str:
        """Train until there is a reason to stop, and return it."""
        while True:
            done = self.done()
            if done is not None:
                return done
            work = self.feed.take(self._room())
            if work is None:
                self._next_epoch()
                continue
            self._train(work, asked)
            stop = self._alarm() or self._after()
            stop = stop or asked.reason
            if stop is None and self.seconds >= self.job.seconds:
                stop = f"the time budget of {self.job.seconds:g} s is used up"
            if stop is not None:
                return stop

    def done(self) -> str | None:
        """Why there is nothing left to do, if so."""
        total, epochs = self.job.total, self.job.epochs
        if (total is not None and self.step >= total) or (epochs is not None and self.feed.epoch >= epochs):
            return FINISHED
        return "the data ended" if self.feed.exhausted else None

    def _room(self) -> int:
        """Steps until something else has to happen."""
        room = self.pace.steps
        if self.job.total is not None:
            room = min(room, self.job.total - self.step)
        for every in (self.job.eval_every, self.job.log_every, self.save_every):
            if every is not None:
                room = min(room, every - self.step % every)
        return room

    def _next_epoch(self) -> None:
        if self.job.reset is not None:  # first: a run that is interrupted between them does both when it goes on
            self.carry = self.carry._replace(model_state=copy(self.job.reset))
        self.feed.next_epoch()

    def _train(self, work: Work, asked: Requests) -> None:
        """Run one chunk; no interrupt may come between giving the old buffers away and having the new."""
        job = self.job
        recipe = Recipe(
            job.objective,
            job.optimizer,
            job.alarm,
            Layout(work.kind, work.size, job.accumulates),
            job.base_size,
            job.power,
        )
        program, inputs = compiled(recipe), operands(work)
        begin = time.monotonic()
        asked.hold()
        self.carry = program(self.carry, job.numbers, *inputs, job.key)
        asked.release()
        dispatched = time.monotonic()
        step, guard, means = fetched((self.carry.step, self.carry.guard, self.carry.means))
        self.step, self.bad = int(step), tuple(map(int, guard))
        if self.step != self.feed.step:
            self.feed.settle(self.step)
        if recipe in self.programs:
            self.pace.learn(work.count, time.monotonic() - begin)
        else:
            self.programs.add(recipe)
            self.compile_seconds += dispatched - begin
            if len(self.programs) == 1:
                self.progress.compiled(dispatched - begin)
        self.progress.update(self.step, self.feed.progress(), metrics.read(means) | self._rate)

    def live(self) -> dict[str, float]:
        """The hyper-parameters in use, those that are one number: the learning rate by its short name too."""
        live = fetched(dict(hyperparams(self.carry.state)))
        numbers = {name: float(x) for name, x in live.items() if np.ndim(x) == 0}
        rates = [x for name, x in numbers.items() if name.endswith("learning_rate")]
        return ({"learning_rate": rates[0]} if len(rates) == 1 else {}) | numbers

    def _alarm(self) -> str | None:
        """The account of too many steps in a row that were not finite."""
        skipped, consecutive, place = self.bad
        self.alarmed = self.job.alarm is not None and consecutive >= self.job.alarm
        if not self.alarmed:
            return None
        return (
            f"{consecutive} steps in a row were not finite, the last of them first in "
            f"{bad_name(self.carry.params, place)!r}; {skipped} were skipped in all, up to step {self.step}"
        )

    # After a chunk -------------------------------------------------------------------------------

    def _after(self) -> str | None:
        """Record, save and judge where it is time to; why to stop, if so."""
        ended = self.feed.epoch_done()
        last = self.step == self.job.total
        evaluate = last or (ended if self.job.eval_every is None else self.step % self.job.eval_every == 0)
        log = ended or (self.job.log_every is not None and self.step % self.job.log_every == 0)
        stop = None
        if evaluate or log:
            stop = self.record(evaluate)
        if ended if self.save_every is None else self.step % self.save_every == 0:
            self.checkpoint()
        return stop

    def record(self, evaluate: bool) -> str | None:
        """Add a row to the history, show it to everybody, and ask the rules; why to stop, if so."""
        row = self._row()
        if evaluate and self.evaluation is not None:
            params = eval_params(self.carry.state, self.carry.params)
            measured = measure(self.job.objective, params, self.carry.model_state, self.evaluation)
            row |= {f"eval_{name}": value for name, value in measured.items()}
        row |= {name: value for name, value in self._numbers().items() if name not in row}
        # One statement, so that an interrupt cannot leave a row whose means go on.
        self.history, self.carry = self.history.add(row), self.carry._replace(means=self._empty)
        rules: tuple[Any, ...] = self.job.until
        for rule in rules:
            if getattr(rule, "restore_best", False) and rule.best_index(self.history) == len(self.history) - 1:
                self.best = Snapshot(*copy((self.carry.params, self.carry.state, self.carry.model_state)))
        self._tell(row)
        reasons = [reason(rule, self.history) for rule in rules]
        return next((found for found in reasons if found is not None), None)

    def _row(self) -> dict[str, Any]:
        row = {"step": self.step, "epoch": self.epochs_done(), "seconds": self.seconds}
        row |= metrics.read(fetched(self.carry.means))
        return row | ({"skipped": self.bad[0]} if self.bad[0] else {})

    def epochs_done(self) -> float:
        """Epochs, with the share of the present one."""
        epoch = self.feed.progress()
        return self.feed.epoch + 1 if self.feed.ended else epoch

    def _numbers(self) -> dict[str, float]:
        """Live hyper-parameters and monitored values."""
        seen = {name: float(x) for name, x in fetched(monitored(self.carry.state)).items() if np.ndim(x) == 0}
        live = self.live()
        self._rate = {name: x for name, x in live.items() if name == "learning_rate"}
        named = {f"hyperparams/{name}": x for name, x in live.items() if name != "learning_rate"}
        return self._rate | named | {f"monitor/{name}": x for name, x in seen.items()}

    def _tell(self, row: dict[str, Any]) -> None:
        names = [name for name in row if "/" not in name]
        self.progress.record(row, names)
        carry = self.carry
        for logger in self.job.loggers:
            logger.log(row, self.step)
            if logger.wants_arrays:
                gradients = self._gradients() if logger.wants_gradients else None
                logger.log_arrays(carry.params, carry.state, self.step, gradients=gradients)
        moment = Moment(self.step, row["epoch"], row, self.history, carry.params, carry.state, carry.model_state)
        for callback in self.job.callbacks:
            callback(moment)

    def _gradients(self) -> Any:
        """The gradient on one batch, for loggers that ask."""
        carry, of = self.carry, self.job.objective

        def gradients(params: Any, model_state: Any, batch: Any, key: Any) -> Any:
            return gradient(of, params, model_state, batch, key, None)[2]

        program = cached(of.loss_fn, ("gradients", of), lambda: jax.jit(gradients))
        return program(carry.params, carry.model_state, self.feed.example_batch(), self.job.key)

    def checkpoint(self) -> None:
        """Write a checkpoint, unless there is no folder or this step has one."""
        if self.checkpoints is not None and self.saved_at != self.step and self.checkpoints.write(self):
            self.saved_at = self.step

    def settle(self) -> None:
        """Stand where the carry is, after an interrupt at any place."""
        self.step = int(self.carry.step)
        if self.step != self.feed.step:
            self.feed.settle(self.step)

    def fingerprint(self) -> str | None:
        """A digest of the data, made once."""
        if self._fingerprint is None:
            self._fingerprint = self.feed.fingerprint()
        return self._fingerprint


def fetched(tree: Any) -> Any:
    """The arrays on the host.

    On CPU they lie there: `jax.device_get` would begin a copy of each in the background, at ten times the cost.
    """
    return jax.tree.map(np.asarray, tree) if jax.default_backend() == "cpu" else jax.device_get(tree)


def copy(tree: Any) -> Any:
    """The arrays in buffers of their own, with strong types."""
    return jax.tree.map(_copied, tree)


def _copied(x: Any) -> Any:
    if isinstance(x, jax.Array):
        return jnp.array(x, x.dtype) if getattr(x, "weak_type", False) else x.copy()
    return jnp.array(x, jnp.result_type(x))


def finite_budget(seconds: float | None, until: Sequence[Any]) -> float:
    """The least of all time budgets, infinite without one."""
    return min([math.inf if seconds is None else seconds, *(r.seconds for r in until if hasattr(r, "seconds"))])
