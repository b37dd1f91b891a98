"""The protocol of the races between optimizers: what is stored comes back, and its numbers are what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from benchmarks.optimizers import contestants, protocol, report, store
from benchmarks.optimizers.workloads import Workload

EASY = Workload(
    "easy",
    "a slope",
    init=lambda key: {"w": jax.random.normal(key, (2, 2))},
    batches=lambda key: jnp.zeros((20, 1), jnp.int32),
    loss=lambda params, indices: jnp.sum(params["w"] ** 2),
    measure=lambda params: jnp.sum(params["w"] ** 2),
    steps=20,
    every=5,
    target=0.01,
    unit="loss",
)


def result(name="adamw", steps=(5.0, 10.0, np.inf)):
    curves = np.array([[3.0, 0.009, 0.001], [2.0, 1.0, 0.01], [2.5, np.inf, np.inf]])
    return protocol.Result(name, "easy", 0.1, (0.5, np.inf, 0.2), curves, np.array(steps), 8.0)


def test_steps_until_the_target_count_from_the_first_measurement():
    curves = np.array([[1.0, 0.5, 0.1], [0.1, 1.0, 1.0], [1.0, 0.9, 0.8]])
    np.testing.assert_array_equal(protocol.steps_to_target(curves, 0.5, 10), [10, 0, np.inf])


def test_races_come_back_from_their_file(tmp_path):
    store.write_races(tmp_path, "easy", {"adamw": result()})
    (found,) = store.read_races(tmp_path, "easy").values()
    for field in ("rate", "tuned", "curves", "steps", "state_bytes"):
        np.testing.assert_array_equal(getattr(found, field), getattr(result(), field))
    assert store.read_races(tmp_path, "another") == {}


def test_p_is_small_where_samples_do_not_meet_and_large_where_they_are_one():
    early, late = np.arange(10.0), 20 + np.arange(10.0)
    never = np.full(10, np.inf)
    assert protocol.p_value(early, late) < 1e-3
    assert protocol.p_value(late, early) < 1e-3
    assert protocol.p_value(early, never) < 1e-3
    assert protocol.p_value(early, early) > 0.9
    assert protocol.p_value(never, never) > 0.9


def test_a_race_takes_the_rate_that_gets_there_first():
    found = protocol.race(EASY, "sgd", jopt.sgd, lanes=25)
    assert found.curves.shape == (protocol.RACING_SEEDS, 5)
    assert found.rate == pytest.approx(0.46, abs=0.01)  # w ← (1 − 2·rate) w is nearly 0 at once
    np.testing.assert_array_equal(found.steps, 5)
    assert found.state_bytes < 10


def test_the_table_says_who_wins_and_who_has_not_got_there():
    table = report.text(
        EASY, [result(), result("lion", (np.inf, np.inf, np.inf))], {"adamw": {"ratio": 1.0, "ours_ms": 2.0}}
    )
    adamw, lion = table.splitlines()[-2:]
    assert "2/3" in adamw
    assert "0.001" in adamw  # 10 of 20 updates, of which all take 2 ms
    assert "not reached" in lion
    assert "0/3" in lion


def test_those_who_race_are_public_and_need_a_rate_alone():
    assert set(contestants.TWELVE) <= set(jopt.optimizers.__all__)
    assert "adahessian" in contestants.others()
    assert {"prodigy", "dpsgd"}.isdisjoint(contestants.others())
    assert contestants.of("characters") == list(contestants.TWELVE)
