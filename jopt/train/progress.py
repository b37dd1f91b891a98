"""What a run shows while it trains: in a terminal, a notebook, a log, or through a bar such as tqdm's."""

import functools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from jopt.train.fragile import Fragile
from jopt.train.screens import Bar, Lines, Notebook, Screen, Terminal
from jopt.train.status import Speed, Status
from jopt.train.tables import columns_of

REDRAW = 0.1  # least seconds between two states of a display

Clock = Callable[[], float]


class Progress:
    """Keeps the time of a run and shows it; a screen that fails is reported once and never stops training.

    Args:
        screen: where to show; None shows nothing.
        clock: seconds that never run backwards.
    """

    def __init__(self, screen: Screen | None, clock: Clock = time.monotonic):
        self._clock = clock
        self._show = _silent if screen is None else Fragile("the progress display", functools.partial(_call, screen))
        self._status = Status(0)
        self._speed: Speed | None = None
        self._drawn = -math.inf
        self._names: dict[str, None] = {}  # of the table's columns, an ordered set

    def start(self, total: int | None, step: int, epochs: float | None, title: str = "") -> None:
        """Begin to show a run.

        Args:
            total: optimizer steps at the end; None if unknown.
            step: done already, by the run that this one resumes.
            epochs: at the end; None if unknown.
            title: the first line, or "".
        """
        self._status = Status(step, total, epochs=epochs)
        self._speed = None
        if title:
            self._show("note", title)
        self._show("start", self._status)

    def compiled(self, seconds: float) -> None:
        """Say how long the compilation took; the speed is measured from the next update on."""
        self._speed = None
        self._show("note", f"compiled in {seconds:.1f} s")
        self._show("status", self._status)

    def update(self, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Show where the run is; may be called as often as is convenient."""
        now = self._clock()
        self._speed = Speed(step, now) if self._speed is None else self._speed.at(step, now)
        self._status = self._status._replace(step=step, epoch=epoch, values=values, rate=self._speed.rate)
        if now - self._drawn >= REDRAW or step == self._status.total:
            self._drawn = now
            self._show("status", self._status)

    def record(self, row: Mapping[str, Any], table_columns: Sequence[str]) -> None:
        """Show the numbers of a record, which stay.

        Args:
            row: of the history.
            table_columns: names to show, as far as there is room, beside those of the rows before.
        """
        now = self._status
        values = {name: row.get(name, value) for name, value in now.values.items()}
        self._status = now._replace(step=row.get("step", now.step), epoch=row.get("epoch", now.epoch), values=values)
        self._names |= dict.fromkeys(table_columns)
        self._show("row", row, columns_of([self._names]), self._status)

    def note(self, text: str) -> None:
        """Show a line that does not break the display."""
        self._show("note", text)

    def close(self, verdict: str = "") -> None:
        """End with a last line, or ""; whatever is called later shows nothing."""
        self._show("close", verdict)
        self._show = _silent


def make_progress(kind: Any = True, stream: TextIO | None = None, clock: Clock = time.monotonic) -> Progress:
    """The display of a run.

    Args:
        kind: True finds out what the output is, "terminal", "notebook" or "lines" says it; False and
            None show nothing; an object with `update` and `set_postfix`, such as tqdm's, is used and
            closed at the end.
        stream: where a terminal or lines go; None: standard output.
        clock: seconds that never run backwards.

    Raises:
        TypeError: `kind` is none of these.
    """
    stream = sys.stdout if stream is None else stream
    if kind is True:
        kind = "notebook" if _in_notebook() else "terminal" if _is_terminal(stream) else "lines"
    return Progress(_screen(kind, stream, clock), clock)


def _screen(kind: Any, stream: Any, clock: Clock) -> Screen | None:
    if kind is None or kind is False:
        return None
    named = kind if isinstance(kind, str) else ""  # tqdm's == fails on strings
    if named == "terminal":
        return Terminal(stream)
    if named == "lines":
        return Lines(stream, clock)
    if named == "notebook":
        return Notebook()
    if hasattr(kind, "update") and hasattr(kind, "set_postfix"):
        return Bar(kind)
    raise TypeError(
        f"fit: progress={kind!r} was given, True, False, 'terminal', 'notebook', 'lines', or a bar with update and "
        f"set_postfix was expected. Pass True to let the output decide."
    )


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")  # whoever runs in it has loaded it
    shell = type(ipython.get_ipython()) if ipython is not None else object
    return shell.__name__ == "ZMQInteractiveShell" or shell.__module__.startswith("google.colab")


def _is_terminal(stream: Any) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):  # no stream at all, or one that is closed
        return False


def _call(screen: Screen, method: str, *args: Any) -> None:
    getattr(screen, method)(*args)


def _silent(method: str, *args: Any) -> None:
    pass
