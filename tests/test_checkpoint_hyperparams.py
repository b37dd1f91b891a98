"""Hyper-parameters at load, three-way: the script then, the script now, the live value in the state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

import jopt
from jopt.train.checkpoint import CheckpointError, load, save

PARAMS = {"w": jnp.array([1.0, 2.0])}
GRADS = {"w": jnp.array([1.0, 1.0])}
RATE = "scale_by_learning_rate/learning_rate"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.jopt"


def rate_used(tx, state):
    """The learning rate of the next update of SGD."""
    updates, _ = tx.update(GRADS, state, PARAMS)
    return -updates["w"][0]


def f32(x):
    return np.float32(x)


# then, by hand (None: not), now, hyperparams=  ->  the rate used next, whether a line is printed; None: an error
TABLE = [
    (0.1, None, 0.1, None, 0.1, False),
    (0.1, None, 0.2, None, 0.2, True),
    (0.1, 0.3, 0.1, None, 0.3, False),
    (0.1, 0.3, 0.2, None, None, False),
    (0.1, 0.2, 0.2, None, 0.2, False),
    (0.1, 0.1, 0.2, None, 0.2, True),
    (0.1, None, 0.1, "state", 0.1, False),
    (0.1, None, 0.2, "state", 0.1, False),
    (0.1, 0.3, 0.1, "state", 0.3, False),
    (0.1, 0.3, 0.2, "state", 0.3, False),
    (0.1, None, 0.1, "transform", 0.1, False),
    (0.1, None, 0.2, "transform", 0.2, True),
    (0.1, 0.3, 0.1, "transform", 0.1, True),
    (0.1, 0.3, 0.2, "transform", 0.2, True),
    (0.1, None, np.float32(0.1), None, 0.1, False),
    (0.1, None, 0.1 + 1e-12, None, 0.1, False),  # the same in float32
]


@pytest.mark.parametrize(("then", "by_hand", "now", "choice", "expected", "printed"), TABLE)
def test_the_table(path, capsys, then, by_hand, now, choice, expected, printed):
    state = jopt.sgd(then).init(PARAMS)
    _, state = jopt.sgd(then).update(GRADS, state, PARAMS)
    if by_hand is not None:
        state = jopt.set_hyperparams(state, learning_rate=by_hand)
    save(path, {"opt": state})
    tx = jopt.sgd(now)
    like = {"opt": tx.init(PARAMS)}
    if expected is None:
        with pytest.raises(CheckpointError) as caught:
            load(path, like, hyperparams=choice)
        for part in (RATE, str(then), str(by_hand), str(now), 'hyperparams="transform"', '"state"'):
            assert part in str(caught.value)
        return
    loaded = load(path, like, hyperparams=choice)["opt"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == printed
    if printed:
        assert f"{RATE}: {f32(then if by_hand is None else by_hand)!s} -> {f32(now)!s}" in lines[0]
    assert rate_used(tx, loaded) == f32(expected)
    assert loaded.hyper[RATE] == f32(expected)
    assert loaded.count == 1
    # A second resume by the same script finds nothing new.
    save(path, {"opt": loaded})
    again = load(path, like)["opt"]
    assert capsys.readouterr().out == ""
    assert rate_used(tx, again) == f32(expected)


def test_several_changes_are_one_line_and_several_conflicts_one_error(path, capsys):
    state = jopt.adamw(0.1, b1=0.8).init(PARAMS)
    save(path, state)
    tx = jopt.adamw(0.2, b1=0.9)
    load(path, tx.init(PARAMS))
    (line,) = capsys.readouterr().out.splitlines()
    assert "scale_by_adam/b1: 0.8 -> 0.9" in line
    assert f"{RATE}: 0.1 -> 0.2" in line
    save(path, jopt.set_hyperparams(state, learning_rate=0.3, b1=0.7))
    with pytest.raises(CheckpointError) as caught:
        load(path, tx.init(PARAMS))
    assert "scale_by_adam/b1" in str(caught.value)
    assert RATE in str(caught.value)
    assert capsys.readouterr().out == ""


def test_each_lane_of_a_sweep_counts_for_itself(path, capsys):
    def batch(*rates):
        return jax.vmap(lambda rate: jopt.sgd(rate).init(PARAMS))(jnp.array(rates))

    old = batch(0.1, 0.1, 0.1)
    by_hand = jax.vmap(lambda s, x: jopt.set_hyperparams(s, learning_rate=x))(old, jnp.array([0.1, 0.3, 0.2]))
    save(path, by_hand)
    loaded = load(path, batch(0.2, 0.1, 0.2))
    np.testing.assert_array_equal(loaded.hyper[RATE], np.array([0.2, 0.3, 0.2], np.float32))
    np.testing.assert_array_equal(loaded.base[RATE], np.array([0.2, 0.1, 0.2], np.float32))
    assert "[0.1, 0.3, 0.2] -> [0.2, 0.3, 0.2]" in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=RATE):
        load(path, batch(0.1, 0.4, 0.1))


def inside_a_wrapper(rate):
    tx = jopt.accumulate(jopt.sgd(rate), every=2)
    return tx.init(PARAMS), lambda state: jopt.hyperparams(state)["learning_rate"]


def inside_a_foreign_chain(rate):
    tx = optax.chain(optax.clip(1.0), jopt.sgd(rate))
    return tx.init(PARAMS), lambda state: jopt.hyperparams(state)["learning_rate"]


def inside_a_train_state(rate):
    state = TrainState.create(apply_fn=None, params=PARAMS, tx=jopt.sgd(rate))
    return state, lambda s: s.opt_state.hyper[RATE]


def inside_an_nnx_optimizer(rate):
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    state = nnx.state(nnx.Optimizer(model, jopt.sgd(rate), wrt=nnx.Param))
    return state, lambda s: s["opt_state"]["hyper"][RATE][...]


WHERE = (inside_a_wrapper, inside_a_foreign_chain, inside_a_train_state, inside_an_nnx_optimizer)


@pytest.mark.parametrize("make", WHERE, ids=lambda f: f.__name__)
def test_states_are_found_anywhere(path, capsys, make):
    state, _ = make(0.1)
    save(path, {"deep": [state]})
    like, read = make(0.2)
    loaded = load(path, {"deep": [like]})["deep"][0]
    assert read(loaded) == f32(0.2)
    assert "learning_rate: 0.1 -> 0.2" in capsys.readouterr().out
    assert read(load(path, {"deep": [like]}, hyperparams="state")["deep"][0]) == f32(0.1)
    assert jax.tree.structure(loaded) == jax.tree.structure(like)


def test_two_optimizers_are_told_apart(path, capsys):
    def make(a, b):
        return {"g": jopt.sgd(a).init(PARAMS), "d": jopt.sgd(b).init(PARAMS)}

    save(path, make(0.1, 0.1))
    loaded = load(path, make(0.1, 0.2))
    assert (loaded["g"].hyper[RATE], loaded["d"].hyper[RATE]) == (f32(0.1), f32(0.2))
    assert f"d/{RATE}: 0.1 -> 0.2" in capsys.readouterr().out


def test_with_shapes_only_the_state_stands(path):
    state = jopt.set_hyperparams(jopt.sgd(0.1).init(PARAMS), learning_rate=0.3)
    save(path, state)
    loaded = load(path, jax.eval_shape(jopt.sgd(0.2).init, PARAMS))
    assert loaded.hyper[RATE] == f32(0.3)
    assert loaded.base[RATE] == f32(0.1)


# Schedules ---------------------------------------------------------------------------------------

COSINE = jopt.schedules.cosine_decay_schedule(0.1, 100)
LINEAR = jopt.schedules.linear_schedule(0.1, 0.0, 50)


def after(tx, n):
    state = tx.init(PARAMS)
    for _ in range(n):
        _, state = tx.update(GRADS, state, PARAMS)
    return state


def test_a_changed_schedule_prints_one_line_and_continues_at_the_count(path, capsys):
    old, new = jopt.sgd(COSINE), jopt.sgd(LINEAR)
    save(path, after(old, 5), tx=old)
    loaded = load(path, new.init(PARAMS), tx=new)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"{RATE}: {COSINE!r} -> {LINEAR!r}" in line
    assert loaded.count == 5
    np.testing.assert_allclose(rate_used(new, loaded), LINEAR(5), rtol=1e-6)


def test_an_equal_schedule_prints_nothing(path, capsys):
    old = jopt.accumulate(jopt.sgd(COSINE), every=2)
    again = jopt.accumulate(jopt.sgd(jopt.schedules.cosine_decay_schedule(0.1, 100)), every=2)
    save(path, old.init(PARAMS), tx=old)
    load(path, again.init(PARAMS), tx=again)
    assert capsys.readouterr().out == ""
    other = jopt.accumulate(jopt.sgd(LINEAR), every=2)
    load(path, other.init(PARAMS), tx=other)
    assert f"accumulate/{RATE}" in capsys.readouterr().out


def test_lambdas_are_equal_in_the_next_process(path, capsys):
    def make():
        return jopt.sgd(lambda t: 0.1 / (1.0 + t))

    save(path, make().init(PARAMS), tx=make())
    load(path, make().init(PARAMS), tx=make())
    assert capsys.readouterr().out == ""


def test_a_number_can_become_a_schedule(path, capsys):
    old, new = jopt.sgd(0.3), jopt.sgd(LINEAR)
    save(path, after(old, 5))
    loaded = load(path, new.init(PARAMS))
    assert f"{RATE}: 0.3 -> a schedule" in capsys.readouterr().out
    np.testing.assert_allclose(rate_used(new, loaded), LINEAR(5), rtol=1e-6)
    with pytest.raises(CheckpointError, match="a schedule in the script"):
        load(path, new.init(PARAMS), hyperparams="state")
    save(path, jopt.set_hyperparams(after(old, 5), learning_rate=0.4))
    with pytest.raises(CheckpointError, match="a schedule in the script"):
        load(path, new.init(PARAMS))
    load(path, new.init(PARAMS), hyperparams="transform")


def test_a_schedule_can_become_a_number(path, capsys):
    old, new = jopt.sgd(LINEAR), jopt.sgd(0.3)
    save(path, after(old, 5))
    loaded = load(path, new.init(PARAMS))
    assert f"{RATE}: a schedule -> 0.3" in capsys.readouterr().out
    assert rate_used(new, loaded) == f32(0.3)
    held = load(path, new.init(PARAMS), hyperparams="state")
    np.testing.assert_allclose(rate_used(new, held), LINEAR(4), rtol=1e-6)


def test_the_manifest_holds_the_configuration(path):
    import json
    import zipfile

    tx = jopt.accumulate(jopt.adamw(COSINE, b1=0.8), every=4)
    save(path, tx.init(PARAMS), tx=tx)
    said = json.loads(zipfile.ZipFile(path).read("manifest.json"))["configuration"]
    assert said["transform"] == repr(tx)
    assert said["numbers"]["accumulate/scale_by_adam/b1"] == 0.8
    assert said["numbers"]["accumulate/every"] == 4
    assert said["schedules"] == {f"accumulate/{RATE}": repr(COSINE)}


def test_tx_must_be_a_transform(path):
    with pytest.raises(TypeError, match="save"):
        save(path, {}, tx=3)
    foreign = optax.sgd(0.1)
    save(path, foreign.init(PARAMS), tx=foreign)
    load(path, foreign.init(PARAMS), tx=foreign)
