"""Where a run goes on from: another `Fit`, or a checkpoint."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train.checkpoint import Checkpointer, CheckpointError
from jopt.train.history import History
from jopt.train.loop import Loop, Snapshot, copy


class Resumable(NamedTuple):
    """The part of a run that its result does not show.

    Attributes:
        carry: the last one, which is not the best.
        best: the best so far, if a rule keeps it.
        key: of the steps.
        position: of the data.
    """

    carry: Any
    best: Snapshot | None
    key: Any
    position: dict[str, Any]


class Saving(NamedTuple):
    """A folder of checkpoints that this run holds open.

    Attributes:
        opened: the folder.
        every: "epoch" or a number of steps.
    """

    opened: Any
    every: Any

    def write(self, loop: Loop) -> bool:
        """Write what `load` reads; whether it is safely on the disk."""
        meta = {
            "history": _layout(loop.history),
            "position": loop.feed.position(),
            "seconds": loop.seconds,
            "steps_per_call": loop.pace.steps,
            "fingerprint": loop.fingerprint(),
            "best": loop.best is not None,
        }
        metrics = loop.history[-1] if loop.history else None
        tree = _tree(loop, loop.best) | {"history": _columns(loop.history)}
        return self.opened.save(loop.step, tree, meta, tx=loop.tx, metrics=metrics)


@contextlib.contextmanager
def session(checkpoint: Any) -> Iterator[Saving | None]:
    """The opened checkpoints of a folder or `Checkpointer`, locked for this run; None without one."""
    if checkpoint is None:
        yield None
        return
    checkpointer = Checkpointer(checkpoint) if isinstance(checkpoint, str | os.PathLike) else checkpoint
    if not isinstance(checkpointer, Checkpointer):
        raise TypeError(
            f"fit: checkpoint={checkpoint!r} was given, a folder or a Checkpointer was expected. "
            f"Pass for example checkpoint='runs/first'."
        )
    with checkpointer.open() as opened:
        yield Saving(opened, checkpointer.every)


def go_on(loop: Loop, fit: Any) -> None:
    """Set a loop where another run ended, in memory."""
    last = fit.resumable
    loop.carry, loop.best = copy((last.carry, last.best if loop.keeps_best else None))
    loop.history, loop.seconds_before = fit.history, fit.seconds
    _settle(loop, last.position, last.key, fit.steps_per_call)


def _tree(loop: Loop, best: Snapshot | None) -> dict[str, Any]:
    """All arrays of a run, by name."""
    tree = {"carry": loop.carry._asdict(), "key": loop.job.key}
    return tree if best is None else tree | {"best": best._asdict()}


# Rows are arrays in the file: as JSON, those of a long run would make a manifest that no reader should trust.


def _layout(history: History) -> dict[str, Any]:
    """What is needed beside the arrays to have the rows back."""
    whole = [name for name in history.names if all(isinstance(x, int) for x in history.values(name))]
    return {"rows": len(history), "names": list(history.names), "whole": whole}


def _columns(history: History) -> dict[str, np.ndarray]:
    """All rows as float64[rows, names], and which of the numbers there are."""
    rows, names = list(history), history.names
    held = np.array([[name in row for name in names] for row in rows], bool).reshape(len(rows), len(names))
    values = np.array([[row.get(name, 0.0) for name in names] for row in rows], np.float64)
    return {"values": values.reshape(held.shape), "held": held}


def _history(layout: dict[str, Any], columns: dict[str, np.ndarray]) -> History:
    """The inverse of `_layout` and `_columns`."""
    names, whole = layout["names"], set(layout["whole"])
    return History(
        {name: int(x) if name in whole else float(x) for name, x, has in zip(names, row, held, strict=True) if has}
        for row, held in zip(columns["values"], columns["held"], strict=True)
    )


def _like(loop: Loop, meta: dict[str, Any]) -> dict[str, Any]:
    """The tree of a checkpoint with this `meta`."""
    carry = loop.carry
    tree = _tree(loop, Snapshot(carry.params, carry.state, carry.model_state) if meta["best"] else None)
    shape = (meta["history"]["rows"], len(meta["history"]["names"]))
    return tree | {"history": {"values": np.zeros(shape), "held": np.zeros(shape, bool)}}


def load(loop: Loop, resume: str | bool, hyperparams: str | None) -> None:
    """Set a loop where the newest valid checkpoint was written, as `resume` of `fit` says.

    Raises:
        CheckpointError: it is of another run, or there is none, or there must be none.
        ValueError: `resume` is not "auto", True or False.
    """
    if resume not in ("auto", True, False):
        raise ValueError(f"fit: resume={resume!r} was given, 'auto', True or False was expected. Use 'auto'.")
    opened = loop.checkpoints.opened
    folder = opened.config.directory
    if resume is False:
        if opened.steps():
            raise CheckpointError(
                f"fit: resume=False was given, but {folder} has checkpoints of steps {opened.steps()}; an "
                f"empty folder was expected. Choose another folder, or go on with resume='auto'."
            )
        return
    found = opened.latest(lambda meta: _like(loop, meta), tx=loop.tx, hyperparams=hyperparams)
    if found is None:
        if resume is True:
            raise CheckpointError(
                f"fit: resume=True was given, but {folder} has no valid checkpoint; one was expected. "
                f"Mend the path, or begin with resume='auto'."
            )
        return
    tree, meta, step = found
    _check_data(loop, meta)
    loop.carry = type(loop.carry)(**tree["carry"])
    loop.best = Snapshot(**tree["best"]) if meta["best"] and loop.keeps_best else None
    loop.history, loop.seconds_before = _history(meta["history"], tree["history"]), meta["seconds"]
    loop.saved_at = step
    _settle(loop, meta["position"], tree["key"], meta["steps_per_call"])
    loop.progress.note(f"resumed at step {step} from {folder}")


def _check_data(loop: Loop, meta: dict[str, Any]) -> None:
    now, then = loop.fingerprint(), meta["fingerprint"]
    if now is not None and then is not None and now != then:
        raise CheckpointError(
            f"fit: the data have the fingerprint {now[:12]}, those of the run to resume {then[:12]}; the same data "
            f"were expected. Pass the data of that run, or begin in another folder."
        )


def _settle(loop: Loop, position: dict[str, Any], key: Any, steps_per_call: int) -> None:
    guard = loop.carry.guard
    if loop.job.alarm is not None and int(guard.consecutive) >= loop.job.alarm:
        # The run ended by its alarm; whoever resumes it has mended something and gets a new count.
        loop.carry = loop.carry._replace(guard=guard._replace(consecutive=jnp.zeros_like(guard.consecutive)))
    loop.step = int(loop.carry.step)
    loop.bad = tuple(map(int, jax.device_get(loop.carry.guard)))  # type: ignore[assignment]
    loop.feed.restore(position)
    loop.job = dataclasses.replace(loop.job, key=key)
    if not loop.pace.fixed:
        loop.pace.steps = steps_per_call
