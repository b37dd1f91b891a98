"""What training prints: an epoch table with progress, and a verdict."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, TextIO

Row = dict[str, Any]

BAR = 20  # characters


class EpochTable:
    """Prints a line per epoch; in a terminal also one line of progress, which is rewritten.

    Args:
        epochs: how many will come.
        measure: the test's measure beside the loss, "accuracy" or "perplexity".
        compile_seconds: shown with the progress.
        stream: where to print; None: standard output.
    """

    def __init__(self, epochs: int, measure: str, compile_seconds: float, stream: TextIO | None = None):
        self.epochs = epochs
        self.stream = sys.stdout if stream is None else stream
        self.live = self.stream.isatty()
        self.seconds = 0.0
        self.columns: list[tuple[str, str, Callable[[Any], str]]] = [
            ("epoch", "epoch", str),
            ("train loss", "train_loss", "{:.4f}".format),
            ("test loss", "test_loss", "{:.4f}".format),
            (f"test {measure}", f"test_{measure}", formatter(measure)),
            ("learning rate", "learning_rate", lambda x: "-" if x is None else f"{x:.3g}"),
            ("seconds", "seconds", "{:.2f}".format),
        ]
        print(f"compiled in {compile_seconds:.1f} s", file=self.stream)
        print("  ".join(title for title, _, _ in self.columns), file=self.stream, flush=True)
        self._progress(0)

    def add(self, row: Row) -> None:
        """Print the numbers of an epoch."""
        self.seconds += row["seconds"]
        self._clear()
        line = "  ".join(show(row[name]).rjust(len(title)) for title, name, show in self.columns)
        print(line, file=self.stream, flush=True)
        self._progress(row["epoch"])

    def close(self) -> None:
        """Remove the line of progress."""
        self._clear()
        self.live = False

    def _clear(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _progress(self, done: int) -> None:
        if not self.live or done == self.epochs:
            return
        filled = BAR * done // self.epochs
        left = "" if done == 0 else f"  about {self.seconds / done * (self.epochs - done):.0f} s left"
        self.stream.write(f"{'━' * filled}{'─' * (BAR - filled)}  epoch {done + 1} of {self.epochs}{left}")
        self.stream.flush()


def formatter(measure: str) -> Callable[[float], str]:
    """How to show a value of a measure."""
    return "{:.2%}".format if measure == "accuracy" else "{:.3f}".format


def verdict(rows: Sequence[Row], measure: str) -> str:
    """One line: the last and the best test result."""
    name, show = f"test_{measure}", formatter(measure)
    finite = [row for row in rows if math.isfinite(row[name])]
    last = f"test {measure} {show(rows[-1][name])} after epoch {rows[-1]['epoch']}"
    if not finite:
        return last
    best = (max if measure == "accuracy" else min)(finite, key=lambda row: row[name])
    return f"{last}; best {show(best[name])} after epoch {best['epoch']}"


def diverged(rows: Sequence[Row]) -> bool:
    """Whether the last training loss is infinite or NaN."""
    return not math.isfinite(rows[-1]["train_loss"])


def plain(row: Row) -> Row:
    """The row as JSON can hold it: what is not finite becomes None."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}


def indented(tx: Any) -> str:
    """The call that makes a chain, one part a line; a single part stays on its line."""
    calls = [part.call() for part in tx.parts]
    if len(calls) < 2:
        return repr(tx)
    return "chain(\n" + "".join(f"           {call},\n" for call in calls) + "       )"


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> str:
    """Rows of text in columns.

    Args:
        titles: of the columns.
        rows: as many cells each.
        right: which columns end, not begin, in line.
    """
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(cells, widths, right, strict=True)
        ).rstrip()
        for cells in [titles, *rows]
    ]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])
