"""The history: a sequence of rows that does not change, reads well, and survives JSON and pickle."""

import json
import math
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from jopt.train.history import History
from jopt.train.tables import cell, columns_of, direction


def row(step, **values):
    return {"step": step, "epoch": step / 10, "seconds": 0.5 * step, **values}


HISTORY = History(
    [
        row(5, loss=2.0, accuracy=0.25, learning_rate=1e-3),
        row(10, loss=1.0, accuracy=0.5, learning_rate=5e-4, eval_loss=math.nan, eval_accuracy=0.4),
        row(15, loss=0.5, accuracy=0.75, learning_rate=2e-4),
        row(20, loss=math.inf, accuracy=0.75, learning_rate=1e-4, eval_loss=0.6, eval_accuracy=0.7),
    ]
)


def test_it_is_a_sequence_of_rows():
    assert len(HISTORY) == 4
    assert HISTORY[1]["step"] == 10
    assert HISTORY[-1]["eval_loss"] == 0.6
    assert [r["step"] for r in HISTORY] == [5, 10, 15, 20]
    assert HISTORY[1:3] == History([HISTORY[1], HISTORY[2]])
    assert not History()


def test_nothing_changes_it():
    first = HISTORY[0]
    first["loss"] = -1.0
    next(iter(HISTORY))["loss"] = -1.0
    assert HISTORY[0]["loss"] == 2.0
    assert HISTORY.add(row(25, loss=0.1)) != HISTORY
    assert len(HISTORY) == 4


def test_a_given_row_is_copied():
    mine = row(1, loss=1.0)
    history = History().add(mine)
    mine["loss"] = 2.0
    assert history[0]["loss"] == 1.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (jnp.float32(0.25), 0.25),
        (jnp.asarray(2.0, jnp.bfloat16), 2.0),
        (jnp.int32(4), 4),
        (True, 1),
        (np.float64(0.5), 0.5),
    ],
)
def test_scalars_become_python_numbers(value, expected):
    found = History().add({"x": value})[0]["x"]
    assert found == expected
    assert type(found) in (int, float)


@pytest.mark.parametrize("value", [np.ones(2), "high", None, 1j, [1.0]])
def test_what_is_no_number_is_an_error_that_names_it(value):
    with pytest.raises(TypeError, match=r"History: grip=.*a real scalar was expected"):
        History([{"grip": value}])


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="the name 3 in a row"):
        History([{3: 1.0}])


def test_columns_have_nan_where_a_row_lacks_them():
    np.testing.assert_array_equal(HISTORY.column("eval_loss"), [np.nan, np.nan, np.nan, 0.6])
    assert HISTORY.column("step").dtype == np.float64
    assert HISTORY.values("eval_accuracy") == [0.4, 0.7]
    table = HISTORY.to_dict()
    assert list(table) == list(HISTORY.names)
    assert {column.shape for column in table.values()} == {(4,)}
    assert History().to_dict() == {}
    assert History().column("loss").shape == (0,)


def test_an_unknown_column_is_an_error_that_lists_the_names():
    with pytest.raises(KeyError, match=r"'acuracy' was given, one of 'step', .*'accuracy'"):
        HISTORY.column("acuracy")


def test_best_takes_the_direction_from_the_name():
    assert HISTORY.best()["step"] == 20  # NaN is never best
    assert HISTORY.best("loss")["step"] == 15
    assert HISTORY.best("accuracy")["step"] == 15  # the first of equals
    assert HISTORY.best("accuracy", mode="min")["step"] == 5
    with pytest.raises(KeyError, match="best: 'reward'"):
        HISTORY.best("reward", mode="max")
    with pytest.raises(ValueError, match="no finite value in 2 rows"):
        HISTORY[:2].best("eval_loss")
    with pytest.raises(ValueError, match="Say mode='min' or mode='max'"):
        HISTORY.add({"grip": 1.0}).best("grip")
    with pytest.raises(ValueError, match="mode='least' was given"):
        HISTORY.best("loss", mode="least")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eval_loss", "min"),
        ("Val Loss", "min"),
        ("perplexity", "min"),
        ("error", "min"),
        ("eval_top-1/Accuracy", "max"),
        ("f1", "max"),
        ("accuracy_loss", None),
        ("grip", None),
        ("glossy", None),
    ],
)
def test_direction_of_a_metric(name, expected):
    assert direction(name) == expected


def test_rows_survive_strict_json():
    text = json.dumps(HISTORY.to_rows(), allow_nan=False)
    assert History.from_rows(json.loads(text)) == HISTORY
    restored = History.from_rows(json.loads(text))
    assert math.isnan(restored[1]["eval_loss"])
    assert restored[3]["loss"] == math.inf
    assert type(restored[0]["step"]) is int


def test_it_pickles_and_compares():
    assert pickle.loads(pickle.dumps(HISTORY)) == HISTORY  # NaN and all
    assert HISTORY[:3] != HISTORY
    assert list(HISTORY) != HISTORY


def test_it_prints_as_an_aligned_table():
    lines = str(HISTORY).splitlines()
    assert lines[0].split("  ")[0].strip() == "epoch"
    assert "eval accuracy" in lines[0]
    assert "75.00%" in lines[4]
    assert "nan" in lines[3]
    ends = [i for i in range(len(lines[0])) if lines[0][i : i + 2] == "  " and lines[0][i - 1] != " "]
    for line in lines[2:6]:  # a cell ends where its heading ends
        assert all(line[i : i + 1] in (" ", "") for i in ends)
    assert lines[-1] == "4 records"
    assert str(History()) == "no records"


def test_a_long_history_prints_both_ends():
    history = History([row(i, loss=1.0) for i in range(1000)])
    lines = str(history).splitlines()
    assert len(lines) < 30
    assert "…" in "".join(lines)
    assert lines[-2].split()[1] == "999"
    assert repr(history) == "<History of 1000 records: step, epoch, seconds, loss>"


def test_hyperparameters_are_named_below_the_table():
    assert str(HISTORY.add({"hyperparams/b1": 0.9})).endswith("5 records; also: hyperparams/b1")


def test_many_metrics_leave_the_losses():
    many = {f"m{i}": 1.0 for i in range(30)}
    columns = columns_of([row(1, **many, loss=1.0, eval_loss=1.0, learning_rate=0.1)])
    assert len(columns) == 10
    assert {"epoch", "step", "loss", "eval_loss", "learning_rate", "seconds"} <= set(columns)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("loss", 0.12345, "0.1235"),
        ("loss", 1e-7, "1.000e-07"),
        ("loss", math.nan, "nan"),
        ("accuracy", 0.9731, "97.31%"),
        ("accuracy", 97.31, "97.3100"),
        ("learning_rate", 0.00012345, "0.000123"),
        ("epoch", 2.0, "2"),
        ("epoch", 2.5, "2.50"),
        ("step", 1200, "1200"),
        ("loss", None, ""),
    ],
)
def test_numbers_are_written_by_what_they_are(name, value, shown):
    assert cell(name, value) == shown


HOSTILE = "<img src=x onerror=alert(1)>\x1b[2J $x_{$"


def test_hostile_names_are_escaped():
    history = History([row(1, **{HOSTILE: 1.0})])
    html = history._repr_html_()
    assert "<img" not in html
    assert "&lt;img src=x" in html
    assert "\x1b" not in str(history) + repr(history)


def test_plot_puts_training_and_evaluation_together():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, axes = HISTORY.plot()
    assert [a.get_title(loc="left") for a in axes] == ["Loss", "Accuracy", "Learning rate"]
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["training", "evaluation"]
    training, evaluation = axes[0].lines
    np.testing.assert_array_equal(
        training.get_xydata(), [[0.5, 2.0], [1.0, 1.0], [1.5, 0.5]]
    )  # the infinity is left out
    np.testing.assert_array_equal(evaluation.get_xydata(), [[2.0, 0.6]])
    assert axes[0].get_xlabel() == "epoch"
    assert axes[0].figure is figure
    plt.close(figure)


def test_plot_draws_where_it_is_told():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, ax = plt.subplots()
    same, axes = HISTORY.plot(ax=ax)
    assert (same, axes) == (figure, [ax])
    assert len(ax.lines) == 2
    HISTORY.plot(ax=ax, metrics=["accuracy"])
    with pytest.raises(ValueError, match="1 axes were given for the panels loss, accuracy, 2 were expected"):
        HISTORY.plot(ax=ax, metrics=["loss", "accuracy"])
    with pytest.raises(KeyError, match="plot: 'grip'"):
        HISTORY.plot(metrics=["grip"])
    with pytest.raises(ValueError, match="without a loss or a metric"):
        History().plot()
    plt.close("all")


def test_plot_survives_hostile_names_and_single_rows():
    plt = pytest.importorskip("matplotlib.pyplot")
    figure, _ = History([{HOSTILE: 1.0}]).plot()
    figure.canvas.draw()
    plt.close(figure)


def test_appending_thousands_of_rows_copies_no_row():
    history = History()
    for i in range(2000):
        history = history.add({"step": i, "loss": 1.0})
    assert len(history) == 2000
    assert history._rows[0] is history.add({"step": 1})._rows[0]
