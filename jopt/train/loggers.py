"""Where a run writes its numbers: JSON lines, CSV, TensorBoard, or an object of the user's.

A logger is any object with ``log(values, step)``, or a plain function ``(values, step)``. It may also
have

    start(config)      before training; config["step"] is where the run stands, above 0 if it is resumed
    close()            at the end
    log_arrays(params, state, step)         after `log`, where wants_arrays(step), if defined, agrees
    wants_gradients    if true, log_arrays also gets gradients=, of one batch, in the tree of the parameters

docs/recipes_loggers.md shows MLflow and Weights & Biases.
"""

import csv
import functools
import io
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax.numpy as jnp
import numpy as np

from jopt.paths import flatten
from jopt.scalars import integer, raw
from jopt.train.fragile import Fragile, name_of

Values = Mapping[str, Any]


class Logger:
    """A user's logger as `fit` calls it: it has every method, and one that fails is reported once and left alone.

    Args:
        target: an object with `log`, or a function.
    """

    def __init__(self, target: Any):
        self.target = target
        log = getattr(target, "log", target)
        # One switch for all methods. Closing is tried even so, for the rows that were written.
        self._call = Fragile(f"the logger {name_of(target)!r}", lambda call, *args, **kw: call(*args, **kw))
        self._close = Fragile(f"closing the logger {name_of(target)!r}", getattr(target, "close", _nothing))
        self._log = functools.partial(self._call, log)
        self._step = 0

    def start(self, config: Values) -> None:
        """Begin a run, or go on with one."""
        self._call(getattr(self.target, "start", _nothing), config)

    def log(self, values: Values, step: int) -> None:
        """Write a row."""
        self._step = step
        self._log(dict(values), step)

    @property
    def wants_arrays(self) -> bool:
        """Whether `log_arrays` should follow the row that was just logged."""
        if not hasattr(self.target, "log_arrays") or self._call.failed is not None:
            return False
        return not hasattr(self.target, "wants_arrays") or bool(self._call(self.target.wants_arrays, self._step))

    @property
    def wants_gradients(self) -> bool:
        """Whether `log_arrays` takes gradients."""
        return bool(getattr(self.target, "wants_gradients", False))

    def log_arrays(self, params: Any, state: Any, step: int, gradients: Any = None) -> None:
        """Write what the arrays look like."""
        given = {"gradients": gradients} if self.wants_gradients else {}
        self._call(self.target.log_arrays, params, state, step, **given)

    def close(self) -> None:
        """End a run."""
        self._close()


def as_logger(target: Any) -> Logger:
    """The logger that `fit` calls, of a user's object or function.

    Raises:
        TypeError: it is neither an object with `log` nor a function.
    """
    if isinstance(target, Logger):
        return target
    if isinstance(target, type):
        raise TypeError(
            f"fit: loggers: the class {target.__name__} was given, an object was expected. "
            f"Make one: {target.__name__}(...)."
        )
    if not callable(getattr(target, "log", target)):
        raise TypeError(
            f"fit: loggers: {target!r} was given, an object with log(values, step) or a function (values, step) was "
            f"expected. For a file pass JSONL({str(target)!r}) or CSV({str(target)!r})."
        )
    return Logger(target)


# Files -------------------------------------------------------------------------------------------


class _Rows(ABC):
    """A file of rows that a killed run leaves readable and a resumed run continues without duplicates.

    A row goes out in one write, and is then flushed. When the file is opened, a last line that was
    not finished is dropped, and so are the rows after the step that a run is resumed from. Logging a
    step anew replaces it and what came after it. A file is rewritten under another name first, so
    that at every moment there is a whole one.
    """

    begins: str  # what every file of the format begins with

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self._file: TextIO | None = None
        self._last = -1

    def start(self, config: Values) -> None:
        """Begin the file, or go on with it after ``config["step"]`` where that is above 0."""
        step = int(config.get("step", 0))
        self._open(step if step > 0 else -1)

    def log(self, values: Values, step: int) -> None:
        """Write a row."""
        if self._file is None:
            self._open(None)
        if step <= self._last:
            self._open(step - 1)
        row = {"step": int(step), **{name: _plain(x) for name, x in values.items() if name != "step"}}
        line = self._line(row)
        if line is None:
            self._rewrite([*self._read(), row])
        elif self._file is not None:
            self._file.write(line)
            self._file.flush()
        self._last = int(step)

    def close(self) -> None:
        """Close the file; `log` opens it again."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def _open(self, last: int | None) -> None:
        """Open the file with its rows up to a step, or with all of them."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [row for row in self._read() if last is None or int(row["step"]) <= last]
        self._rewrite(rows)
        self._last = int(rows[-1]["step"]) if rows else -1

    def _read(self) -> list[Values]:
        """The rows of finished lines.

        Raises:
            ValueError: the file is none of ours, and must not be changed.
        """
        data = self.path.read_bytes() if self.path.exists() else b""
        begins = self.begins.encode()
        try:
            if data[: len(begins)] != begins[: len(data)]:
                raise ValueError
            return list(self._parse(data[: data.rfind(b"\n") + 1].decode()))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{type(self).__name__}({str(self.path)!r}): a file that this logger did not write was given, one of "
                f"its own or a new name was expected. Choose another name; the file is left as it is."
            ) from None

    def _rewrite(self, rows: Sequence[Values]) -> None:
        self.close()
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with beside.open("w", encoding="utf-8", newline="") as file:
            file.write(self._render(rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    @abstractmethod
    def _parse(self, text: str) -> Iterator[Values]:
        """The rows of a file that ends with a line's end."""

    @abstractmethod
    def _render(self, rows: Sequence[Values]) -> str:
        """The whole file."""

    @abstractmethod
    def _line(self, row: Values) -> str | None:
        """What a row adds to the file; None where the file has to be written anew."""


class JSONL(_Rows):
    """Write rows as lines of JSON: ``{"step": 10, "loss": 0.25}``.

    Numbers that are not finite are null, as JSON has none. For pandas: ``read_json(path, lines=True)``.

    Args:
        path: of the file; its folder is made. A resumed run goes on with it, a new run begins it anew.
    """

    begins = '{"step": '

    def _parse(self, text: str) -> Iterator[Values]:
        for line in text.split("\n")[:-1]:
            row = json.loads(line)
            yield row | {"step": int(row["step"])}

    def _render(self, rows: Sequence[Values]) -> str:
        return "".join(map(self._line, rows))

    def _line(self, row: Values) -> str:
        return json.dumps({name: _finite(x) for name, x in row.items()}) + "\n"


class CSV(_Rows):
    """Write rows as comma-separated values under a header.

    A name that appears later becomes a further column, for which the file is rewritten; what a row
    lacks is an empty cell. For pandas: ``read_csv(path)``.

    Args:
        path: of the file; its folder is made. A resumed run goes on with it, a new run begins it anew.
    """

    begins = "step"

    def __init__(self, path: str | os.PathLike[str]):
        super().__init__(path)
        self._columns: list[str] = []

    def _parse(self, text: str) -> Iterator[Values]:
        lines = csv.reader(io.StringIO(text, newline=""))
        columns = next(lines, [])
        for cells in lines:
            row = dict(zip(columns, cells, strict=True))
            int(row["step"])
            yield {name: x for name, x in row.items() if x != ""}

    def _render(self, rows: Sequence[Values]) -> str:
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        return _csv([self._columns, *map(self._cells, rows)]) if rows else ""

    def _line(self, row: Values) -> str | None:
        return _csv([self._cells(row)]) if row.keys() <= set(self._columns) else None

    def _cells(self, row: Values) -> list[Any]:
        return [row.get(name, "") for name in self._columns]


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """What a text file holds of a value: a Python number, or text on one line."""
    if value is None or isinstance(value, int | float):
        return value
    array = np.asarray(value)
    if array.ndim == 0 and array.dtype.kind in "biu":
        return int(array)
    if array.ndim == 0 and array.dtype.kind in "fV":  # V: the narrow floats of ml_dtypes
        return float(array)
    return " ".join(str(value).split())


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# TensorBoard -------------------------------------------------------------------------------------


class TensorBoard:
    """Write event files for TensorBoard: scalars, the configuration, and histograms. Needs tensorboardX.

    A resumed run hides what was written after the step it goes on from; a new run, all that is in the folder.

    Args:
        logdir: folder of the run; its neighbours are shown beside it.
        histograms_every: steps between histograms of each parameter, at the records; None: none.
        gradients: also histograms of the gradients of one batch, which `fit` computes for them alone.
        metrics: names that the table of hyper-parameters shows beside the configuration.

    Raises:
        ImportError: tensorboardX is missing.
        ValueError: `histograms_every` is below 1.
    """

    def __init__(
        self,
        logdir: str | os.PathLike[str],
        histograms_every: int | None = None,
        gradients: bool = False,
        metrics: Sequence[str] = ("loss", "eval_loss"),
    ):
        self._tensorboardx = _tensorboardx()
        self.logdir = Path(logdir)
        if histograms_every is not None:
            histograms_every = int(raw(integer(histograms_every, "TensorBoard", "histograms_every", at_least=1)))
        self.histograms_every = histograms_every
        self.wants_gradients = bool(gradients)
        self.metrics = tuple(metrics)
        self._writer: Any = None
        self._next = 0

    def start(self, config: Values) -> None:
        """Open an event file and write the configuration: numbers, flags and texts."""
        self.close()
        step = int(config.get("step", 0))
        self._next = step
        self._open(step + 1 if step > 0 else 0)
        known = {name: x for name, x in config.items() if name != "step" and isinstance(x, bool | int | float | str)}
        if known:
            from tensorboardX.summary import hparams

            for summary in hparams(known, dict.fromkeys(self.metrics, 0.0)):
                self._writer.file_writer.add_summary(summary)

    def log(self, values: Values, step: int) -> None:
        """Write scalars."""
        from tensorboardX.summary import Summary

        # One event a row. add_scalar would also print a line for every value that is not finite.
        scalars = [Summary.Value(tag=name, simple_value=float(x)) for name, x in values.items() if name != "step"]
        self._open(None).file_writer.add_summary(Summary(value=scalars), step)

    def wants_arrays(self, step: int) -> bool:
        """Whether histograms are due."""
        return self.histograms_every is not None and step >= self._next

    def log_arrays(self, params: Any, state: Any, step: int, gradients: Any = None) -> None:
        """Write histograms of the finite values of each array, under its path."""
        writer = self._open(None)
        for group, tree in (("params", params), ("gradients", gradients)):
            for path, leaf in flatten(tree)[0].items():
                values = _finite_values(leaf)
                if values.size:
                    writer.add_histogram(f"{group}/{path}", values, step)
        self._next = step + (self.histograms_every or 0)

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _open(self, purge_step: int | None) -> Any:
        if self._writer is None:
            # Names of files are unique by the second only; a second run within it would overwrite the first.
            suffix = f".{os.getpid()}.{time.time_ns()}"
            self._writer = self._tensorboardx.SummaryWriter(
                str(self.logdir), purge_step=purge_step, flush_secs=2, filename_suffix=suffix
            )
        return self._writer


def _tensorboardx() -> Any:
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "TensorBoard: tensorboardX is not installed; it writes the event files. "
            'Install it with: pip install "jopt[tb]"'
        ) from error
    return tensorboardX


def _finite_values(leaf: Any) -> np.ndarray:
    """The finite values of a leaf, float64[n], of a complex one the moduli; none of a leaf of another kind."""
    if leaf is None or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
        return np.empty(0)
    array = np.asarray(leaf)
    values = np.abs(array) if np.iscomplexobj(array) else array
    values = values.astype(np.float64).ravel()
    return values[np.isfinite(values)]


def _nothing(*args: Any) -> None:
    pass
