"""How training shows its numbers: which columns a table has, how a number is written, text and HTML.

Names come from the user's metrics, so they may hold anything: text keeps printable characters only,
HTML is escaped.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

CLOCK = ("step", "epoch", "seconds")  # every row has them; they measure nothing
MISSING = ""

# The parts of a metric's name that say which direction is good.
_SMALL = {"loss", "losses", "error", "err", "perplexity", "ppl", "nll", "mse", "rmse", "mae", "wer", "cer", "brier"}
_LARGE = {"accuracy", "acc", "top1", "top5", "auc", "auroc", "f1", "precision", "recall", "iou", "r2", "bleu", "psnr"}
_SHARES = {"accuracy", "acc", "top1", "top5", "precision", "recall", "error", "err", "wer", "cer"}


def direction(metric: str) -> str | None:
    """ "min" or "max", whichever is good for a metric of this name; None where the name does not tell."""
    words = _words(metric)
    small, large = bool(words & _SMALL), bool(words & _LARGE)
    return None if small == large else "min" if small else "max"


def measures(row: Mapping[str, Any]) -> list[str]:
    """The names in a row that are losses or metrics: no clock, no hyper-parameter."""
    return [name for name in row if name not in CLOCK and name != "learning_rate" and "/" not in name]


def columns_of(rows: Iterable[Mapping[str, Any]], most: int = 10) -> tuple[str, ...]:
    """The columns of a table of these rows, in the order in which people read.

    Args:
        rows: of a history.
        most: columns; where there are more, metrics are left out, the last first, losses never.
    """
    seen = dict.fromkeys(name for row in rows for name in row)
    measured = measures(seen)
    training = sorted((name for name in measured if not name.startswith("eval_")), key=lambda name: name != "loss")
    evaluated = sorted((name for name in measured if name.startswith("eval_")), key=lambda name: name != "eval_loss")
    frame = [name for name in ("epoch", "step", "learning_rate", "seconds") if name in seen]
    losses = [name for name in ("loss", "eval_loss") if name in seen]
    others = [name for name in evaluated + training if name not in losses]
    kept = {*losses, *others[: max(most - len(frame) - len(losses), 0)]}
    order = ["epoch", "step", *training, *evaluated, "learning_rate", "seconds"]
    return tuple(name for name in order if name in kept or name in frame)


def title(name: str) -> str:
    """The name of a metric as a heading."""
    return printable(name.replace("_", " "))


def printable(text: str) -> str:
    """The text with what could steer a terminal replaced."""
    return "".join(c if c.isprintable() else "?" for c in text)


def cell(name: str, value: Any) -> str:
    """A number as a table shows it, by the name of its column; None is an empty cell.

    Shares between 0 and 1 of an accuracy or an error are percents.
    """
    if value is None:
        return MISSING
    if isinstance(value, int) or not math.isfinite(value):
        return str(value)
    if name == "epoch":
        return f"{value:.0f}" if value == int(value) else f"{value:.2f}"
    if name == "seconds":
        return f"{value:.2f}" if value < 100 else f"{value:.1f}"
    if is_share(name, [value]):
        return f"{value:.2%}"
    if name == "learning_rate" or "/" in name:
        return f"{value:.3g}"
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def is_share(name: str, values: Iterable[float]) -> bool:
    """Whether the values of a metric are shares of one, which read best as percents."""
    return bool(_words(name) & _SHARES) and all(0 <= value <= 1 for value in values)


def ends(rows: Sequence[Any], most: int = 24) -> list[Any]:
    """All rows, or where there are more the first and the last ones with None between."""
    return list(rows) if len(rows) <= most else [*rows[: most // 2], None, *rows[-most // 2 :]]


def text_table(names: Sequence[str], rows: Iterable[Mapping[str, Any] | None]) -> str:
    """Rows below their headings, aligned on the right; None stands for rows left out."""
    cells = [["…" if row is None else cell(name, row.get(name)) for name in names] for row in rows]
    titles = list(map(title, names))
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    lines = [
        "  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [titles, *cells]
    ]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:]])


def html_table(names: Sequence[str], rows: Iterable[Mapping[str, Any] | None]) -> str:
    """The same table as HTML, everything escaped."""
    style = ' style="text-align:right;padding:2px 12px;white-space:nowrap;font-variant-numeric:tabular-nums"'
    head = "".join(f"<th{style}>{html.escape(title(name))}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(f"<td{style}>{'…' if row is None else html.escape(cell(name, row.get(name)))}</td>" for name in names)
        + "</tr>"
        for row in rows
    )
    return (
        f'<table style="border-collapse:collapse"><thead><tr style="border-bottom:1px solid #888">{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _words(metric: str) -> set[str]:
    """The words of a name such as "eval_top-1/F1"."""
    return set("".join(c if c.isalnum() else " " for c in metric.lower()).split())
