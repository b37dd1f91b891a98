"""The refresh of matrix rules: all at first, then each once in so many updates, and evenly over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt.control import run_some

EVERY = 4
PARAMS = {f"a{i}": jnp.full((2, 3), 1.0 + i) for i in range(5)} | {f"b{i}": jnp.ones((4, 3)) for i in range(4)}


def count_slots(p):
    return {"refreshed": jnp.zeros((), p.dtype), "sum": jnp.zeros_like(p)}


def plain_step(g, s, p, *, rate):
    return g * rate + s["sum"], s


def count_refresh(s, p, *, weight, every):
    return {"refreshed": s["refreshed"] + 1, "sum": s["sum"] + weight * p}


def counting(rate=1.0, weight=0.5, every=EVERY):
    return jopt.rule(
        "counting",
        plain_step,
        slots=count_slots,
        refresh=count_refresh,
        every="every",
        hyper={"rate": rate, "weight": weight},
        static={"every": every},
        reads="matrix",
    )


def refreshed(tx, steps, params=PARAMS):
    """How often each matrix was refreshed, after every update."""
    state, rows = tx.init(params), []
    for _ in range(steps):
        _, state = tx.update(params, state, params)
        rows.append([float(x) for x in state.slots["counting"]["refreshed"].values()])
    return np.asarray(rows)


def test_all_are_refreshed_at_first_and_then_each_once_in_its_turn():
    rows = np.diff(refreshed(counting(), 1 + 3 * EVERY), axis=0, prepend=0)
    np.testing.assert_array_equal(rows[0], 1)
    for start in range(1, len(rows) - EVERY + 1):
        np.testing.assert_array_equal(rows[start : start + EVERY].sum(axis=0), 1)
    assert set(rows[1:].sum(axis=1)) == {2, 3}  # 9 matrices over 4 updates


def test_an_interval_of_one_refreshes_all_each_time_and_a_long_one_rarely():
    np.testing.assert_array_equal(refreshed(counting(every=1), 3)[-1], 3)
    assert np.diff(refreshed(counting(every=100), 101).sum(axis=1)).max() == 1


def test_the_refresh_reads_numbers_and_parameters():
    tx = counting(weight=0.5)
    _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    for name, x in state.slots["counting"]["sum"].items():
        np.testing.assert_array_equal(x, 0.5 * PARAMS[name])


def test_derivatives_cross_a_refresh():
    def loss(weight):
        tx = counting(weight=weight)
        _, state = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
        return jnp.sum(tx.update(PARAMS, state, PARAMS)[0]["a1"])

    assert jax.grad(loss)(0.5) == 12.0
    assert jax.jvp(loss, (0.5,), (1.0,))[1] == 12.0


def test_some_turns_run_in_a_batch_too():
    def runs(start, stop):
        return run_some(lambda i, x, y: x.at[i].add(y), 4, start, stop, jnp.zeros(4), jnp.ones(()))

    starts, stops = jnp.asarray([0, 1, 3]), jnp.asarray([0, 3, 4])
    np.testing.assert_array_equal(jax.vmap(runs)(starts, stops), [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("wrong", [{"every": None}, {"refresh": None}, {"reads": "array"}])
def test_a_refresh_needs_its_interval_and_a_matrix(wrong):
    given = {"refresh": count_refresh, "every": "every", "reads": "matrix"} | wrong
    with pytest.raises(ValueError, match="both or neither was expected, of a rule that reads a matrix"):
        jopt.rule("counting", plain_step, hyper={"rate": 1.0}, static={"every": 2}, **given)


def test_a_refresh_of_other_slots_is_an_error():
    def wrong(s, p, *, every):
        return {"sum": s["sum"]}

    tx = jopt.rule(
        "counting",
        lambda g, s, p: (g, s),
        slots=count_slots,
        refresh=wrong,
        every="every",
        static={"every": 2},
        reads="matrix",
    )
    with pytest.raises(TypeError, match="counting: its refresh returned the slots"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
