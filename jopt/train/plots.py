"""Pictures of training runs, with matplotlib's Agg canvas (no window, no global state)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Row = dict[str, Any]

# Okabe and Ito's colours: distinct for every common kind of colour blindness. Yellow is left out, too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
INK, PALE = "#222222", "#6E6E6E"
LEAST_ERROR = 0.002  # no error at all is drawn here, as the axis is logarithmic
STYLE = {
    "font.size": 12,
    "axes.titlesize": 14,
    "axes.labelsize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": PALE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2.2,
    "lines.solid_capstyle": "round",
}


class Panel(NamedTuple):
    """Learning curves of several chains on one task.

    Attributes:
        title: above the panel.
        runs: chain's label → its history.
        target: test accuracy to reach.
    """

    title: str
    runs: Mapping[str, Sequence[Row]]
    target: float


def require() -> Any:
    """The module matplotlib; call it before long work that ends in a picture.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib
        import matplotlib.ticker
    except ImportError as error:
        raise ImportError(
            "jopt.train.plots: matplotlib is not installed; it draws the pictures. "
            'Install it with: pip install "jopt[plot]"'
        ) from error
    return matplotlib


def pyplot() -> Any:
    """The module matplotlib.pyplot with its backend at work.

    A notebook's backend switches interactive mode on when it starts; if it started within an `rc_context`, the
    end of the context would switch it off, and no later figure would show.
    """
    require()
    import matplotlib.pyplot as plt

    plt.draw_if_interactive()  # which starts the backend, and draws nothing without a figure
    return plt


def comparison(panels: Sequence[Panel], title: str, subtitle: str, path: Path) -> None:
    """Save one column a task: training loss above, test error below, a line a chain.

    A chain has one colour in all columns.

    Args:
        panels: the tasks.
        title, subtitle: above the picture.
        path: of the PNG.
    """
    matplotlib = require()
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    labels = list(dict.fromkeys(label for panel in panels for label in panel.runs))
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    with matplotlib.rc_context(STYLE):
        # The rectangle leaves room above for two lines of title.
        layout = ConstrainedLayoutEngine(rect=(0, 0, 1, 0.895), wspace=0.03, hspace=0.03)
        figure = Figure(figsize=(16, 9), layout=layout)
        grid = figure.add_gridspec(2, len(panels))
        below = None
        for column, panel in enumerate(panels):
            above = figure.add_subplot(grid[0, column])
            below = figure.add_subplot(grid[1, column], sharex=above, sharey=below)
            _losses(above, panel, colours)
            _errors(below, panel, colours)
            if column == 0:
                above.set_ylabel("training loss")
                below.set_ylabel("test error")
        figure.text(0.008, 0.985, title, fontsize=22, fontweight="bold", va="top")
        figure.text(0.008, 0.935, subtitle, fontsize=14, color=PALE, va="top")
        figure.savefig(path, dpi=150)


def _losses(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    for label, rows in panel.runs.items():
        x = [row["epoch"] for row in rows]
        axes.plot(x, [row["loss"] for row in rows], color=colours[label], **_dots(x))
    axes.set(title=panel.title, yscale="log")
    axes.tick_params(labelbottom=False)


def _errors(axes: Any, panel: Panel, colours: Mapping[str, str]) -> None:
    for label, rows in panel.runs.items():
        errors = [max(1 - row["eval_accuracy"], LEAST_ERROR) for row in rows]
        name = f"{label}:  {rows[-1]['eval_accuracy']:.1%} right"
        axes.plot([row["epoch"] for row in rows], errors, color=colours[label], label=name, **_dots(rows))
    epochs = max(len(rows) for rows in panel.runs.values())
    steps = 5 if epochs <= 20 else 10
    axes.set(yscale="log", xlabel="epoch", ylim=(LEAST_ERROR, 1.0), xlim=(min(1, epochs - 0.5), epochs + 0.5))
    axes.set_xticks([1, *range(steps, epochs + 1, steps)])
    axes.set_yticks([0.003, 0.01, 0.03, 0.1, 0.3, 1.0], ["0.3%", "1%", "3%", "10%", "30%", "100%"])
    axes.set_yticks([], minor=True)
    axes.axhline(1 - panel.target, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"target: {panel.target:.0%} right",
        (1, 1 - panel.target),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=11,
    )
    axes.legend(frameon=False, fontsize=11.5, loc="upper right", handlelength=1.2, borderaxespad=0.2)


def _dots(x: Sequence[Any]) -> dict[str, Any]:
    # A run stopped after one epoch has a point, not a line.
    return {"marker": "o", "markersize": 4} if len(x) < 20 else {}
