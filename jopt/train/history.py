"""What a training run recorded: an immutable sequence of rows of numbers."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from jopt.train.plots import COLOURS, STYLE, pyplot, require
from jopt.train.tables import columns_of, direction, ends, html_table, is_share, measures, printable, text_table, title

Row = dict[str, Any]

_NOT_FINITE = ("nan", "inf", "-inf")  # how JSON, which has no such numbers, keeps them


class History(Sequence[Row]):
    """The rows of a run, one a record; immutable, so that a rule may be given it and keep it.

    A row holds plain Python numbers by name: ``step`` (optimizer steps done), ``epoch`` (epochs done),
    ``seconds`` (since the start of the run), the training ``loss`` and metrics, ``eval_loss`` and further
    ``eval_...``, ``learning_rate``, and ``hyperparams/...``. Rows may differ in what they hold. Index
    and iterate as any sequence; what comes out is a copy. Histories with the same rows are equal.

    Args:
        rows: of numbers or scalar arrays, by name.

    Raises:
        TypeError: a name is not a string, or a value is not a real scalar.
    """

    __slots__ = ("_rows",)

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()):
        self._rows: tuple[Row, ...] = tuple(map(_plain, rows))

    def add(self, row: Mapping[str, Any]) -> "History":
        """This history and one more row."""
        return _of((*self._rows, _plain(row)))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "History": ...
    def __getitem__(self, index: int | slice) -> "Row | History":
        return _of(self._rows[index]) if isinstance(index, slice) else dict(self._rows[index])

    def __iter__(self) -> Iterator[Row]:
        return map(dict, self._rows)

    def __eq__(self, other: object) -> bool:
        # As JSON rows, where a NaN equals a NaN.
        return self.to_rows() == other.to_rows() if isinstance(other, History) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        return _of, (self._rows,)

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a row has, in the order of appearance."""
        return tuple(dict.fromkeys(name for row in self._rows for name in row))

    def column(self, name: str) -> np.ndarray:
        """One number of all rows, float64[rows], NaN where a row lacks it.

        Raises:
            KeyError: no row has it.
        """
        self._check(name, "column")
        return np.array([row.get(name, math.nan) for row in self._rows], np.float64)

    def values(self, name: str) -> list[int | float]:
        """One number of the rows that have it; empty where none does."""
        return [row[name] for row in self._rows if name in row]

    def to_dict(self) -> dict[str, np.ndarray]:
        """All columns by name, float64[rows] each; `pandas.DataFrame` takes it."""
        return {name: self.column(name) for name in self.names}

    def to_rows(self) -> list[Row]:
        """The rows as strict JSON can hold them: numbers that are not finite are the strings nan, inf, -inf."""
        return [{name: x if math.isfinite(x) else str(x) for name, x in row.items()} for row in self._rows]

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]]) -> "History":
        """The history that `to_rows` was called on."""
        return cls({name: float(x) if x in _NOT_FINITE else x for name, x in row.items()} for row in rows)

    def best(self, metric: str = "eval_loss", mode: str = "auto") -> Row:
        """The first row with the best finite value.

        Args:
            metric: a name in the rows.
            mode: "min", "max", or "auto" to take it from the name.

        Raises:
            KeyError: no row has this metric.
            ValueError: none of its values is finite, or "auto" does not know this name.
        """
        self._check(metric, "best")
        index = self.best_index(metric, mode)
        if index is None:
            raise ValueError(
                f"best: metric={metric!r} was given, which has no finite value in {len(self)} rows, at least one was "
                f"expected. Look for the step at which training diverged: print(history)."
            )
        return self[index]

    def best_index(self, metric: str, mode: str = "auto") -> int | None:
        """Where the first of the best finite values is; None without one."""
        sign = 1.0 if mode_of(metric, mode, "best") == "min" else -1.0
        values = ((sign * row[metric], i) for i, row in enumerate(self._rows) if math.isfinite(row.get(metric, np.nan)))
        return min(values, default=(0.0, None))[1]

    def plot(self, ax: Any = None, metrics: Sequence[str] | None = None) -> tuple[Any, Any]:
        """Draw training and evaluation together, a panel for the loss, each metric, and the learning rate.

        Args:
            ax: axes to draw on, as many as panels; one alone gets the loss, or the single metric asked
                for. By default those of a new figure.
            metrics: names of the panels, without ``eval_``; by default all.

        Returns:
            The matplotlib figure, and a list of its axes.
        """
        return _plot(self, ax, metrics)

    def __str__(self) -> str:
        if not self:
            return "no records"
        also = sorted(set(self.names) - set(columns_of(self._rows)))
        return "\n".join(
            [
                text_table(columns_of(self._rows), ends(self._rows)),
                f"{len(self)} record{'s' * (len(self) > 1)}"
                + (f"; also: {', '.join(map(printable, also))}" if also else ""),
            ]
        )

    def __repr__(self) -> str:
        return f"<History of {len(self)} records: {', '.join(map(printable, self.names)) or 'no names'}>"

    def _repr_html_(self) -> str:
        return html_table(columns_of(self._rows), ends(self._rows)) if self else "<p>no records</p>"

    def _check(self, name: str, call: str) -> None:
        if self and all(name not in row for row in self._rows):
            raise KeyError(
                f"{call}: {name!r} was given, one of {', '.join(map(repr, self.names))} was expected. "
                f"Choose a name that is recorded."
            )


def mode_of(metric: str, mode: str, call: str) -> str:
    """ "min" or "max", where "auto" takes it from the metric's name.

    Raises:
        ValueError: another mode, or a name that does not tell.
    """
    if mode not in ("auto", "min", "max"):
        raise ValueError(
            f"{call}: mode={mode!r} was given, 'min', 'max' or 'auto' was expected. "
            f"Say 'min' where a small {metric} is good."
        )
    found = direction(metric) if mode == "auto" else mode
    if found is None:
        raise ValueError(
            f"{call}: metric={metric!r} was given with mode='auto', a name that tells whether small or large is good "
            f"was expected, as 'eval_loss' or 'accuracy' do. Say mode='min' or mode='max'."
        )
    return found


def _of(rows: tuple[Row, ...]) -> History:
    """A history of rows that are plain already: they are shared, not copied."""
    history = History()
    history._rows = rows
    return history


def _plain(row: Mapping[str, Any]) -> Row:
    return {_name(name): _number(name, value) for name, value in row.items()}


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(
            f"History: the name {name!r} in a row was given, a string was expected. Name every metric by a string."
        )
    return name


def _number(name: str, value: Any) -> int | float:
    if type(value) in (int, float):
        return value
    array = np.asarray(value)
    if array.ndim or array.dtype.kind in "cOSU":  # ml_dtypes' narrow floats are of kind V
        raise TypeError(
            f"History: {name}={value!r} was given, a real scalar was expected. "
            f"Reduce arrays to a number, for example by their mean."
        )
    return int(array) if array.dtype.kind in "biu" else float(array)


# The picture --------------------------------------------------------------------------------------


def _panels(history: History, metrics: Sequence[str] | None, single: bool) -> dict[str, list[str]]:
    """Heading of each panel → the columns it shows."""
    named = {name.removeprefix("eval_"): None for name in ["loss", *measures(dict.fromkeys(history.names))]}
    asked = list(metrics or (["loss"] if single else [*named, "learning_rate"]))
    panels = {name: [full for full in (name, f"eval_{name}") if full in history.names] for name in asked}
    for name, columns in panels.items():
        if metrics is not None and not columns:
            history._check(name, "plot")
    return {name: columns for name, columns in panels.items() if columns}


def _plot(history: History, ax: Any, metrics: Sequence[str] | None) -> tuple[Any, Any]:
    matplotlib = require()
    plt = pyplot()
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(history, metrics, single=ax is not None)
    if not panels:
        raise ValueError(
            "plot: a history without a loss or a metric was given, at least one was expected. Train a step first."
        )
    with matplotlib.rc_context(STYLE):
        if ax is None:
            columns = min(len(panels), 3)
            lines = -(-len(panels) // columns)
            layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
            _, axes = plt.subplots(lines, columns, figsize=(5.4 * columns, 4.2 * lines), layout=layout)
            for empty in np.ravel(axes)[len(panels) :]:
                empty.remove()
            chosen = list(np.ravel(axes)[: len(panels)])
        else:
            chosen = list(np.ravel(ax))
        if len(chosen) != len(panels):
            raise ValueError(
                f"plot: {len(chosen)} axes were given for the panels {', '.join(panels)}, {len(panels)} were expected. "
                f"Choose panels by metrics=, or give one axes a panel."
            )
        for axes, (heading, names) in zip(chosen, panels.items(), strict=True):
            _panel(axes, history, heading, names)
    return chosen[0].figure, chosen


def _panel(axes: Any, history: History, heading: str, names: Sequence[str]) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    clock = next((name for name in ("epoch", "step") if name in history.names), None)
    x = np.arange(len(history)) if clock is None else history.column(clock)
    drawn = np.empty(0)
    for name in names:
        y = history.column(name)
        known = np.isfinite(x) & np.isfinite(y)
        evaluated = name.startswith("eval_")
        # A run stopped after one record has a point, not a line.
        dots = {"marker": "o", "markersize": 4} if known.sum() < 20 else {}
        colour = COLOURS[2] if heading == "learning_rate" else COLOURS[0] if evaluated else COLOURS[1]
        axes.plot(x[known], y[known], color=colour, label="evaluation" if evaluated else "training", **dots)
        drawn = np.concatenate([drawn, y[known]])
    above = title(heading).replace("$", r"\$")  # a dollar would begin a formula
    axes.set_title(above[:1].upper() + above[1:])
    axes.set_xlabel(clock or "record")
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=bool(np.nanmax(x) - np.nanmin(x) >= 3)))
    if len(names) > 1:
        axes.legend(frameon=False)
    if heading == "learning_rate":
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:.3g}")
    elif is_share(heading, drawn):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif len(drawn) and drawn.min() > 0 and drawn.max() > 20 * drawn.min():
        axes.set_yscale("log")
