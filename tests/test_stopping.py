"""Stopping rules are pure functions of the history, compared by configuration."""

import math
import pickle

import numpy as np
import pytest

from jopt.train.history import History
from jopt.train.stopping import early_stopping, max_seconds, plateau, reason, target

NAN = math.nan


def evaluated(*losses, name="eval_loss"):
    """A history with a training record before each evaluation."""
    rows = []
    for i, loss in enumerate(losses):
        rows.append({"step": 2 * i + 1, "epoch": i + 0.5, "seconds": i + 0.5, "loss": 1.0})
        rows.append({"step": 2 * i + 2, "epoch": i + 1, "seconds": i + 1.0, "loss": 1.0, name: loss})
    return History(rows)


def stops_after(rule, values, name="eval_loss"):
    """How many evaluations a rule lets pass; None if it never stops."""
    history = History()
    for row in evaluated(*values, name=name):
        history = history.add(row)
        if rule(history) is not None:
            return sum(name in r for r in history)
    return None


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "expected"),
    [
        ([3, 2, 1, 0.5], 2, 0.0, None),
        ([3, 2, 2, 2], 2, 0.0, 4),  # equal is no improvement
        ([3, 2, 2.5, 1.9, 2, 2], 2, 0.0, 6),  # an improvement starts the count anew
        ([3, 2, 2.5, 1.9, 2], 1, 0.0, 3),
        ([3, 2.95, 2.9, 2.85, 2.8], 2, 0.1, 3),
        ([3, 2.95, 2.85, 2.8, 2.75], 2, 0.1, 5),  # small steps add up against the same best
        ([3, NAN, NAN, 2], 2, 0.0, 3),
        ([NAN, NAN], 2, 0.0, 2),
        ([3, -math.inf, 2.5], 3, 0.0, None),  # an infinity is not an improvement
    ],
)
def test_patience_counts_records_that_have_the_metric(losses, patience, min_delta, expected):
    assert stops_after(early_stopping(patience=patience, min_delta=min_delta), losses) == expected


def test_early_stopping_says_why():
    assert early_stopping(patience=2)(evaluated(3, 2, 2.5, 2.5)) == "eval_loss has not improved on 2.0000 for 2 records"
    assert early_stopping(patience=1)(evaluated(NAN)) == "eval_loss was not finite in the last 1 record"
    accuracy = early_stopping("eval_accuracy", patience=1)
    assert (
        accuracy(evaluated(0.5, 0.4, name="eval_accuracy")) == "eval_accuracy has not improved on 50.00% for 1 record"
    )


def test_more_is_better_for_an_accuracy():
    rule = early_stopping("eval_accuracy", patience=2)
    assert rule.mode == "max"
    assert stops_after(rule, [0.1, 0.5, 0.9, 0.8, 0.9], "eval_accuracy") == 5
    assert stops_after(early_stopping("eval_grip", patience=2, mode="max"), [1, 2, 1, 1], "eval_grip") == 4


def test_the_best_record_is_the_best_value_whatever_min_delta():
    rule = early_stopping(min_delta=1.0)
    history = evaluated(3, 2.5, NAN, 2.4, 2.6)
    assert rule.restore_best
    assert history[rule.best_index(history)]["eval_loss"] == 2.4
    assert rule.best_index(evaluated()) is None
    assert rule.best_index(evaluated(NAN)) is None


@pytest.mark.parametrize("make", [early_stopping, plateau, lambda m, **kw: target(m, 1.0, **kw)])
def test_an_ambiguous_metric_asks_for_a_mode(make):
    with pytest.raises(ValueError, match=r"metric='grip' was given with mode='auto'.*Say mode='min' or mode='max'"):
        make("grip")
    with pytest.raises(ValueError, match="mode='lowest' was given"):
        make("eval_loss", mode="lowest")
    assert make("grip", mode="min").mode == "min"


@pytest.mark.parametrize("make", [early_stopping, plateau, lambda m, **kw: target(m, 1.0, **kw)])
def test_an_absent_metric_is_an_error_only_once_its_kind_was_recorded(make):
    rule = make("eval_error")
    assert rule(History()) is None
    assert rule(evaluated(1.0)[:1]) is None  # training came first
    with pytest.raises(KeyError, match=r"metric='eval_error' was given, one of .*'eval_loss'.* was expected"):
        rule(evaluated(1.0))
    with pytest.raises(KeyError, match="metric='error' was given"):
        make("error")(evaluated(1.0)[:1])
    assert make("error")(History([{"step": 0, "epoch": 0, "seconds": 0.0, "eval_loss": 1.0}])) is None


def test_target():
    assert target("eval_loss", 0.5)(evaluated(0.4, 0.6)) is None  # the last one decides
    assert target("eval_loss", 0.5)(evaluated(0.6, 0.5)) == "eval_loss reached 0.5000, the target was 0.5000"
    assert target("eval_accuracy", 0.97)(evaluated(0.9, 0.98, name="eval_accuracy")) == (
        "eval_accuracy reached 98.00%, the target was 97.00%"
    )
    assert target("eval_accuracy", 0.97)(evaluated(NAN, name="eval_accuracy")) is None
    assert target("eval_loss", 0.5)(evaluated(NAN)) is None


def test_max_seconds_reads_the_clock_of_the_history():
    assert max_seconds(2)(evaluated(1, 1)) == "the time budget of 2 s is used up"
    assert max_seconds(2.5)(evaluated(1, 1)) is None
    assert max_seconds(0)(History()) is None
    assert max_seconds(7).seconds == 7.0


@pytest.mark.parametrize(
    ("losses", "window", "min_delta", "stops"),
    [
        ([5, 4, 3, 2], 4, 0.0, False),
        ([1, 1, 1], 4, 0.0, False),  # the window is not full
        ([1, 1, 1, 1], 4, 0.0, True),
        ([1, 2, 3, 4], 4, 0.0, True),  # worse is no gain
        ([9, 9, 5, 4, 3, 2], 4, 2.9, False),  # the line gains 3 over the last four
        ([9, 9, 5, 4, 3, 2], 4, 3.1, True),
        ([4, 3, 4, 3, 4, 3], 6, 1.0, True),  # noise hides no plateau
        ([5, NAN, 3, 2], 4, 0.0, False),
        ([5, NAN, NAN, math.inf], 4, 0.0, True),
    ],
)
def test_plateau_is_a_flat_trend(losses, window, min_delta, stops):
    assert (plateau(window=window, min_delta=min_delta)(evaluated(*losses)) is not None) == stops


def test_plateau_of_an_accuracy_looks_upwards():
    rule = plateau("eval_accuracy", 3, 0.1)
    assert rule(evaluated(0.1, 0.2, 0.3, name="eval_accuracy")) is None
    assert rule(evaluated(0.5, 0.52, 0.54, name="eval_accuracy")) == (
        "eval_accuracy is on a plateau: its trend over the last 3 records gained 0.04"
    )


RULES = [early_stopping(patience=3), target("loss", 1), max_seconds(9), plateau("loss", 4, 0.1)]


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_rules_compare_print_and_pickle_by_configuration(rule):
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(pickle.loads(pickle.dumps(rule))) == hash(rule)
    assert eval(repr(rule)) == rule
    assert sum(rule == other for other in RULES) == 1


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_rule_gives_the_same_answer_twice(rule):
    history = History([{"step": i, "seconds": i, "loss": 1.0, "eval_loss": 1.0} for i in range(9)])
    assert rule(history) == rule(history)
    assert rule(history) is not None or rule == max_seconds(9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: early_stopping(patience=0),
        lambda: early_stopping(patience=1.5),
        lambda: early_stopping(min_delta=-1),
        lambda: early_stopping(min_delta=NAN),
        lambda: target("loss", NAN),
        lambda: max_seconds(-1),
        lambda: plateau(window=1),
        lambda: plateau(min_delta=-0.1),
    ],
)
def test_numbers_outside_their_domain_are_errors(make):
    with pytest.raises(ValueError, match=r"was given, .* was expected"):
        make()


def enough(history):
    return len(history) > 1


def test_user_functions_may_answer_in_several_ways():
    history = evaluated(1.0)
    assert reason(enough, history) == "enough"
    assert reason(enough, history[:1]) is None
    assert reason(lambda h: "bored", history) == "bored"
    assert reason(lambda h: None, history) is None
    assert reason(lambda h: np.bool_(False), history) is None
    assert reason(lambda h: h.column("loss")[-1] > 0, history) == "<lambda>"
    assert reason(early_stopping(), history) is None
    with pytest.raises(TypeError, match=r"enough_numbers\(history\): 3 was returned"):
        reason(enough_numbers, history)


def enough_numbers(history):
    return 3
