"""The checkpoints of a run: `Checkpointer` says where and how many, its session keeps them."""

import contextlib
import dataclasses
import errno
import math
import operator
import os
import platform
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from jopt.train.checkpoint import checkpoint
from jopt.train.checkpoint.errors import CheckpointError, DamagedCheckpointError
from jopt.train.checkpoint.storage import LockHeldError, Storage, make_directory

NAME = re.compile(r"step_(\d{9,18})\.jopt")
TEMPORARY = re.compile(r"step_\d{9,18}\.jopt\.[0-9a-f]{8}\.tmp")
LOCK = "lock"


class Restored(NamedTuple):
    """What a session loads.

    Attributes:
        tree: with the structure of `like`.
        meta: as it was saved.
        step: from the name of the file.
    """

    tree: Any
    meta: Any
    step: int


@dataclasses.dataclass(frozen=True)
class Checkpointer:
    """Where, when, and how many checkpoints a run keeps; `fit(checkpoint=...)` takes it.

    One file per step, ``step_000001234.jopt``, each readable with `jopt.load`.

    Args:
        directory: the folder of one run; made if it is missing.
        every: "epoch", or a number of optimizer steps.
        keep: how many of the newest to keep, at least 1.
        best: also keep the best: the name of a metric, of which less is better, or
            ``(name, "min")`` or ``(name, "max")``.
        storage: the file system; tests replace it.

    Raises:
        ValueError, TypeError: an argument outside its domain.
    """

    directory: str | os.PathLike[str]
    every: str | int = "epoch"
    keep: int = 2
    best: str | tuple[str, str] | None = None
    storage: Storage = dataclasses.field(default=Storage(), repr=False)

    def __post_init__(self):
        object.__setattr__(self, "directory", os.fspath(self.directory))
        if self.every != "epoch" and (not isinstance(self.every, int) or self.every < 1):
            raise ValueError(
                f"Checkpointer: every={self.every!r} was given, 'epoch' or a number of steps from 1 was expected. "
                f"Pass for example every=1000."
            )
        if not isinstance(self.keep, int) or self.keep < 1:
            raise ValueError(
                f"Checkpointer: keep={self.keep!r} was given, a whole number from 1 was expected. Pass for example 2."
            )
        if isinstance(self.best, str):
            object.__setattr__(self, "best", (self.best, "min"))
        match self.best:
            case None | [str(), "min" | "max"]:
                return
        raise ValueError(
            f"Checkpointer: best={self.best!r} was given, the name of a metric or (name, 'min' or 'max') was expected. "
            f"Pass for example best=('eval_accuracy', 'max')."
        )

    def open(self) -> "Session":
        """Lock the folder for one run; close the session, or use it in a `with`.

        Raises:
            CheckpointError: another run holds it, or it is no folder.
        """
        return Session(self)


class Session:
    """The checkpoints of one run, while it holds the lock of their folder; made by `Checkpointer.open`."""

    def __init__(self, config: Checkpointer):
        self.config = config
        self._files, self._directory = config.storage, os.fspath(config.directory)
        self._metrics: dict[int, Mapping[str, Any]] = {}  # of the sound checkpoints
        self._warned: set[int | None] = set()
        self._lock = self._open()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder to others."""
        if self._lock is not None:
            self._files.close(self._lock)
            self._lock = None

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, oldest first; by name, never by time."""
        return sorted(int(found[1]) for found in map(NAME.fullmatch, self._files.listdir(self._directory)) if found)

    def latest(self, like: Any, *, tx: Any = None, hyperparams: str | None = None) -> Restored | None:
        """The newest checkpoint that is sound; damaged ones are renamed to ``.corrupt`` with a warning.

        Args:
            like, tx, hyperparams: as for `jopt.load`; `like` may also be a function of the checkpoint's `meta`.

        Returns:
            None if there is none.

        Raises:
            CheckpointError: a sound checkpoint does not fit `like`, or cannot be opened.
        """
        return self._first_sound(reversed(self.steps()), like, tx, hyperparams)

    def best(self, like: Any, *, tx: Any = None, hyperparams: str | None = None) -> Restored | None:
        """The checkpoint with the best metric, as `latest` loads it; None if none has the metric."""
        if self.config.best is None:
            raise ValueError(
                f"best: {self.config!r} has no best=; the name of a metric was expected. "
                f"Make it with Checkpointer(..., best='eval_loss')."
            )
        return self._first_sound(self._ranked(), like, tx, hyperparams)

    def save(
        self, step: int, tree: Any, meta: Any = None, *, tx: Any = None, metrics: Mapping[str, Any] | None = None
    ) -> bool:
        """Save a checkpoint, then delete those that are no longer kept.

        A fault of the storage (full, read-only, gone) is a warning, once for each kind, and no
        error: the older checkpoints are still there, and training goes on.

        Args:
            step: finished optimizer steps; names the file.
            tree, meta, tx: as for `jopt.save`.
            metrics: by name, among which `best=` chooses; what is no number is left out.

        Returns:
            Whether the checkpoint is on the disk, so that even a power loss cannot take it.

        Raises:
            CheckpointError: the tree or `meta` holds something a checkpoint cannot.
        """
        step, metrics = operator.index(step), _numbers(metrics or {})
        if step < 0:
            raise ValueError(f"save: step={step} was given, a number of finished steps was expected. Pass 0 or more.")
        try:
            checkpoint.write_checkpoint(self._files, self._path(step), tree, meta=meta, tx=tx, metrics=metrics)
            self._metrics[step] = metrics
        except OSError as error:
            self._warn(error, f"the checkpoint of step {step} is not saved; the run goes on")
            return False
        try:
            self._prune(step)
        except OSError as error:
            self._warn(error, "old checkpoints are not deleted")
        return True

    # Opening -------------------------------------------------------------------------------------

    def _open(self) -> Any:
        call = f"Checkpointer({self._directory!r}).open()"
        try:
            make_directory(self._files, self._directory)
            names = self._files.listdir(self._directory)
        except OSError as error:
            raise CheckpointError(
                f"{call}: {error.strerror or error}; a folder to write into was expected. Choose another."
            ) from error
        try:
            lock = self._files.lock(os.path.join(self._directory, LOCK), f"process {os.getpid()} on {platform.node()}")
        except LockHeldError as error:
            raise CheckpointError(
                f"{call}: {error or 'another process'} is using this folder; a folder of one run was expected. "
                f"End that run, or choose another folder."
            ) from None
        except OSError as error:
            self._warn(error, "the folder cannot be locked; let no other run use it")
            return None
        for name in filter(TEMPORARY.fullmatch, names):  # of a run that was killed
            with contextlib.suppress(OSError):
                self._files.unlink(os.path.join(self._directory, name))
        return lock

    def _path(self, step: int) -> str:
        return os.path.join(self._directory, f"step_{step:09d}.jopt")

    def _warn(self, error: OSError, consequence: str) -> None:
        if error.errno not in self._warned:
            self._warned.add(error.errno)
            kind = errno.errorcode.get(error.errno or 0, "OSError")
            warnings.warn(f"checkpoints in {self._directory!r}: {kind}: {error}; {consequence}.", stacklevel=3)

    # Loading -------------------------------------------------------------------------------------

    def _first_sound(self, steps: Iterable[int], like: Any, tx: Any, hyperparams: str | None) -> Restored | None:
        for step in steps:
            path = self._path(step)
            try:
                loaded = checkpoint.read_checkpoint(self._files, path, like, tx=tx, hyperparams=hyperparams)
            except DamagedCheckpointError as error:
                self._set_aside(path, error)
                continue
            return Restored(loaded.tree, loaded.meta, step)
        return None

    def _set_aside(self, path: str, why: DamagedCheckpointError) -> None:
        names = set(self._files.listdir(self._directory))
        free = f"{path}.corrupt"
        while os.path.basename(free) in names:
            free += "_"
        try:
            self._files.replace(path, free)
            now = f"It is renamed to {os.path.basename(free)!r}"
        except OSError as error:
            now = f"It cannot be renamed ({error})"
        warnings.warn(f"{why} {now}; the checkpoint before it is used, if there is one.", stacklevel=4)

    # Keeping -------------------------------------------------------------------------------------

    def _prune(self, newest: int) -> None:
        """Delete what is not kept. A file that is not sound neither counts nor goes: `latest` sets it aside."""
        sound = [step for step in self.steps() if self._is_sound(step)]
        kept = {newest, *sound[-self.config.keep :], *self._ranked()[:1]}
        for step in sound:
            if step not in kept:
                self._files.unlink(self._path(step))
                del self._metrics[step]

    def _is_sound(self, step: int) -> bool:
        if step not in self._metrics:
            try:
                metrics = checkpoint.read_summary(self._files, self._path(step)).metrics
            except CheckpointError:
                return False
            self._metrics[step] = metrics if isinstance(metrics, dict) else {}
        return True

    def _ranked(self) -> list[int]:
        """The sound steps that have the metric, the best first, the earlier of two equal ones first."""
        if self.config.best is None:
            return []
        name, mode = self.config.best
        values = {step: self._metrics[step].get(name) for step in self.steps() if self._is_sound(step)}
        sign = 1.0 if mode == "min" else -1.0
        # Only finite values: NaN is never the best, and neither is an infinity that a broken metric gave.
        ranked = [(sign * x, step) for step, x in values.items() if isinstance(x, float) and math.isfinite(x)]
        return [step for _, step in sorted(ranked)]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(value)
    return found
