"""The kinds of output that progress is shown on; each knows only how to show, not what or when."""

import html
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from jopt.train.status import Status, bar, clipped, line, numbers, pace, place
from jopt.train.tables import cell, ends, html_table, text_table, title

QUIET = 10.0  # least seconds between two lines of a log, unless an epoch ends
HEARTBEAT = 60.0  # most seconds that a log is silent: some machines stop jobs that say nothing

_ASCII = str.maketrans({"━": "=", "─": "-", "…": "..."})


class Screen(Protocol):
    """What an output can show."""

    def start(self, status: Status) -> None:
        """A run begins, and compiles."""

    def status(self, status: Status) -> None:
        """Where the run is; replaces the last status."""

    def row(self, row: Mapping[str, Any], columns: Sequence[str], status: Status) -> None:
        """The numbers of a record, which stay."""

    def note(self, text: str) -> None:
        """A line, which stays."""

    def close(self, verdict: str) -> None:
        """The last line, or ""; the status goes."""


class Terminal:
    """One line that is rewritten, and above it a table that grows."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._live = ""
        self._columns: tuple[str, ...] = ()

    def start(self, status: Status) -> None:
        self._live = "compiling…"
        self._write("")

    def status(self, status: Status) -> None:
        self._live = _live_line(status)
        self._write("")

    def row(self, row: Mapping[str, Any], columns: Sequence[str], status: Status) -> None:
        columns = fitting(columns, _width())
        if columns != self._columns:
            self._columns = columns
            heading = _padded(columns, map(title, columns))
            self._write(f"{heading}\n{'─' * len(heading)}\n")
        self._live = _live_line(status)
        self._write(_padded(columns, (cell(name, row.get(name)) for name in columns)).rstrip() + "\n")

    def note(self, text: str) -> None:
        self._write(text + "\n")

    def close(self, verdict: str) -> None:
        self._live = ""
        self._write(verdict + "\n" if verdict else "")

    def _write(self, lines: str) -> None:
        # Where the cursor stands behind the last column, a terminal may wrap: hence one column less.
        _write(self._stream, f"\r\x1b[K{lines}{clipped(self._live, _width() - 1)}")


class Lines:
    """A line a record, for files, pipes and build machines; at most one in 10 s within an epoch."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream = stream
        self._clock = clock
        self._last = -math.inf
        self._withheld = ""

    def start(self, status: Status) -> None:
        self._last = self._clock()

    def status(self, status: Status) -> None:
        if self._clock() - self._last >= HEARTBEAT:
            self._print("  ".join(filter(None, [place(status), numbers(status.values), pace(status)])))

    def row(self, row: Mapping[str, Any], columns: Sequence[str], status: Status) -> None:
        shown = {name: row[name] for name in columns if name in row}
        text = "  ".join(filter(None, [place(status), numbers(shown), pace(status)]))
        ends_epoch = status.epoch > 0 and abs(status.epoch - round(status.epoch)) < 1e-6
        if ends_epoch or status.step == status.total or self._clock() - self._last >= QUIET:
            self._print(text)
        else:
            self._withheld = text

    def note(self, text: str) -> None:
        _write(self._stream, text + "\n")

    def close(self, verdict: str) -> None:
        if self._withheld:
            self._print(self._withheld)
        if verdict:
            self.note(verdict)

    def _print(self, text: str) -> None:
        self._last, self._withheld = self._clock(), ""
        self.note(text)


class Notebook:
    """One display below the cell, which is updated: HTML, and text for where that is not shown."""

    def __init__(self) -> None:
        self._notes: list[str] = []
        self._rows: list[Mapping[str, Any]] = []
        self._columns: Sequence[str] = ()
        self._status: Status | None = None
        self._verdict: str | None = None
        self._handle: Any = None

    def start(self, status: Status) -> None:
        self._draw()

    def status(self, status: Status) -> None:
        self._status = status
        self._draw()

    def row(self, row: Mapping[str, Any], columns: Sequence[str], status: Status) -> None:
        self._rows.append(row)
        self._columns, self._status = columns, status
        self._draw()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._draw()

    def close(self, verdict: str) -> None:
        self._verdict = verdict
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        bundle = {"text/html": self._html(), "text/plain": self._text()}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)

    def _html(self) -> str:
        parts = [f'<div style="opacity:0.75">{html.escape(note)}</div>' for note in self._notes]
        if self._rows:
            parts.append(html_table(self._columns, ends(self._rows)))
        if self._verdict is None:
            parts.append(_html_status(self._status))
        elif self._verdict:
            parts.append(f'<div style="margin-top:6px"><b>{html.escape(self._verdict)}</b></div>')
        return f'<div style="font-family:sans-serif;font-size:13px;line-height:1.6">{"".join(parts)}</div>'

    def _text(self) -> str:
        table = text_table(self._columns, ends(self._rows)) if self._rows else ""
        live = "compiling…" if self._status is None else line(self._status)
        last = live if self._verdict is None else self._verdict
        return "\n".join(text for text in [*self._notes, table, last] if text)


class Bar:
    """A bar of the user's with the interface of tqdm; it is closed at the end."""

    def __init__(self, bar: Any):
        self._bar = bar
        self._step = 0

    def start(self, status: Status) -> None:
        self._step = status.step
        if getattr(self._bar, "total", 0) is None and hasattr(self._bar, "reset"):
            self._bar.reset(total=status.total)
        if hasattr(self._bar, "initial"):  # so that a resumed run's speed leaves out what was done before
            self._bar.initial = self._bar.n = status.step

    def status(self, status: Status) -> None:
        values = {"lr" if name == "learning_rate" else title(name): cell(name, x) for name, x in status.values.items()}
        self._bar.set_postfix({name: x for name, x in values.items() if "/" not in name})
        self._bar.update(status.step - self._step)
        self._step = status.step

    def row(self, row: Mapping[str, Any], columns: Sequence[str], status: Status) -> None:
        skipped = ("epoch", "step", "seconds")
        self.status(
            status._replace(values={name: row[name] for name in columns if name in row and name not in skipped})
        )

    def note(self, text: str) -> None:
        getattr(self._bar, "write", print)(text)

    def close(self, verdict: str) -> None:
        if hasattr(self._bar, "close"):
            self._bar.close()
        if verdict:
            self.note(verdict)


def fitting(columns: Sequence[str], width: int) -> tuple[str, ...]:
    """The columns of a table that fit beside each other; what matters least is left out first."""
    kept = list(columns)
    for name in ["seconds", "step", "learning_rate", *reversed(columns)]:
        if len(kept) <= 2 or len(_padded(kept, map(title, kept))) < width:
            break
        if name in kept:
            kept.remove(name)
    return tuple(kept)


def _padded(columns: Sequence[str], texts: Iterable[str]) -> str:
    # Widths are set before the numbers are known: a loss takes 6 characters, a percentage 7.
    return "  ".join(text.rjust(max(len(title(name)), 7)) for name, text in zip(columns, texts, strict=True))


def _live_line(status: Status) -> str:
    share = "" if status.share is None else f"{bar(status.share)} {status.share:4.0%}  "
    return share + line(status)


def _html_status(status: Status | None) -> str:
    if status is None:
        return "<div>compiling…</div>"
    filled = ""
    if status.share is not None:
        filled = (
            '<div style="background:#8884;border-radius:4px;height:8px;width:320px;margin:6px 0">'
            f'<div style="background:#0072B2;border-radius:4px;height:8px;width:{status.share:.1%}"></div></div>'
        )
    return f"{filled}<div>{html.escape(line(status))}</div>"


def _width() -> int:
    return shutil.get_terminal_size().columns


def _write(stream: TextIO, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
    stream.write(text)
    stream.flush()
