"""Averages and look-ahead: what `eval_params` gives at every nesting, and what optax cannot do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
from zoo.averages import ascent

import jopt

SHAPES = {"w": (4, 3), "b": (3,)}
PARAMS, GRADS, _ = oracles.record({"kernel": (4, 3), "bias": (3,)}, 12, seed=11)
P = {name: jnp.asarray(x, jnp.float32) for name, x in PARAMS.items()}
G = [{name: jnp.asarray(x[t], jnp.float32) for name, x in GRADS.items()} for t in range(12)]


def run(tx, params=P, grads=G):
    state = tx.init(params)
    step = jax.jit(lambda g, state, params: jopt.apply_gradients(tx, g, state, params))
    for g in grads:
        params, state = step(g, state, params)
    return params, state


def assert_close(got, wanted, rtol=1e-5):
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=1e-6, err_msg=name)


AVERAGING = {
    "schedule_free": lambda: jopt.schedule_free_sgd(0.1),
    "gpa": lambda: jopt.gpa(jopt.sgd(0.1), 0.9),
    "lookahead": lambda: jopt.lookahead(jopt.sgd(0.1), 5, 0.5),
    "swa": lambda: jopt.swa(jopt.sgd(0.1), 2, 3),
    "lawa": lambda: jopt.lawa(jopt.sgd(0.1), 3, 2),
    "sam": lambda: jopt.sam(jopt.sgd(0.1), ascent(0.5), 5),
    "ema": lambda: jopt.ema(jopt.sgd(0.1), 0.5),
}

NESTED = {
    "chain": lambda tx: jopt.chain(jopt.clip(100.0), tx, jopt.identity()),
    "masked": lambda tx: jopt.masked(tx, where=jopt.everything_else),
    "partition": lambda tx: jopt.partition([("a", "kernel", tx), ("b", "bias", tx)]),
    "labels": lambda tx: jopt.partition({"a": tx, "b": tx}, {"kernel": "a", "bias": "b"}),
    "named_chain": lambda tx: jopt.named_chain(("only", tx)),
    "accumulate": lambda tx: jopt.accumulate(tx, 1),
    "MultiSteps": lambda tx: jopt.MultiSteps(tx, 1),
    "skip_nonfinite": jopt.skip_nonfinite,
    "apply_if_finite": lambda tx: jopt.apply_if_finite(tx, 3),
    "conditionally_mask": lambda tx: jopt.conditionally_mask(tx, lambda step: step >= 0),
    "monitor": jopt.monitor,
    "deep": lambda tx: jopt.monitor(jopt.accumulate(jopt.skip_nonfinite(jopt.chain(tx)), 1)),
    "optax.chain": lambda tx: optax.chain(optax.identity(), tx),
}


def pairs():
    """Schedule-Free everywhere, the others where most is nested; the rest in the slow tier."""
    for averaging in AVERAGING:
        for nesting in NESTED:
            quick = averaging == "schedule_free" or nesting == "deep"
            yield pytest.param(averaging, nesting, marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("averaging", "nesting"), list(pairs()))
def test_evaluation_is_the_same_at_every_nesting(averaging, nesting):
    if (averaging, nesting) in [("sam", "partition"), ("sam", "labels")]:
        pytest.skip("the norm of a group is another norm")
    plain_params, plain = run(AVERAGING[averaging]())
    wanted = jopt.eval_params(plain, plain_params)
    assert any(np.any(np.abs(wanted[name] - plain_params[name]) > 1e-6) for name in wanted)
    params, state = run(NESTED[nesting](AVERAGING[averaging]()))
    assert_close(params, plain_params)
    assert_close(jopt.eval_params(state, params), wanted)


def test_two_averages_of_one_parameter_are_an_error_and_of_two_are_not():
    tx = jopt.lookahead(jopt.schedule_free_sgd(0.1), 2, 0.5)
    with pytest.raises(jopt.StateMismatchError, match=r"lookahead.*schedule_free.*one was expected"):
        jopt.eval_params(tx.init(P), P)
    two = jopt.partition([("a", "kernel", jopt.schedule_free_sgd(0.1)), ("b", "bias", jopt.ema(jopt.sgd(0.1), 0.5))])
    params, state = run(two)
    averaged = jopt.eval_params(state, params)
    p, alone = run(AVERAGING["schedule_free"]())
    np.testing.assert_allclose(averaged["kernel"], jopt.eval_params(alone, p)["kernel"], rtol=1e-5)
    p, alone = run(AVERAGING["ema"]())
    np.testing.assert_allclose(averaged["bias"], jopt.eval_params(alone, p)["bias"], rtol=1e-5)


@pytest.mark.parametrize("state", [None, (), jopt.adam(0.1), optax.adam(0.1), optax.adam(0.1).init(P), P])
def test_what_holds_no_state_of_jopt_has_no_averages(state):
    with pytest.raises(jopt.StateMismatchError, match=r"eval_params: .* no jopt state in it.* not the transform"):
        jopt.eval_params(state, P)


def test_a_state_in_place_of_the_parameters_is_an_error():
    state = jopt.ema(jopt.sgd(0.1)).init(P)
    for swapped in ((P, state), (state, (state,))):
        with pytest.raises(jopt.StateMismatchError, match=r"eval_params: .* state and params are swapped"):
            jopt.eval_params(*swapped)


def test_an_average_that_optax_keeps_is_refused_and_what_averages_nothing_is_not():
    theirs = optax.contrib.schedule_free(optax.sgd(0.1), 0.1)
    for tx in (theirs, jopt.chain(theirs, jopt.scale(1.0)), optax.chain(optax.identity(), jopt.chain(theirs))):
        with pytest.raises(jopt.StateMismatchError, match=r"ScheduleFreeState of optax.*Use jopt\.schedule_free"):
            jopt.eval_params(tx.init(P), P)
    pair = optax.LookaheadParams.init_synced(P)
    with pytest.raises(jopt.StateMismatchError, match=r"LookaheadState of optax.*Use jopt\.lookahead"):
        jopt.eval_params(jopt.chain(optax.lookahead(optax.sgd(0.1), 5, 0.5)).init(pair), pair)
    tx = jopt.chain(optax.ema(0.9), jopt.sgd(0.1))
    assert_close(jopt.eval_params(tx.init(P), P), P)


# Schedule-Free -----------------------------------------------------------------------------------


def test_without_interpolation_it_is_the_base_with_polyaks_average():
    """b1 = 0: y is z, the gradient is taken at the iterate, and x is the mean of all iterates."""
    params, state = run(jopt.schedule_free_sgd(0.1, b1=0.0))
    iterates, p = [], P
    for g in G:
        p = {name: p[name] - 0.1 * g[name] for name in p}
        iterates.append(p)
    assert_close(params, p)
    mean = {name: np.mean([x[name] for x in iterates], axis=0) for name in p}
    assert_close(jopt.eval_params(state, params), mean)
    theirs = optax.contrib.schedule_free_sgd(0.1, b1=0.0)
    with jax.numpy_dtype_promotion("standard"):
        lost = optax.contrib.schedule_free_eval_params(theirs.init(P), P)
    assert not any(np.all(np.isfinite(x)) for x in lost.values())


def test_sixteen_bit_parameters_do_not_spoil_the_average():
    """Steps far below the spacing of bfloat16 add up in z and x."""
    narrow = {name: x.astype(jnp.bfloat16) for name, x in P.items()}
    wide = {name: x.astype(jnp.float32) for name, x in narrow.items()}
    grads = [{name: jnp.full_like(x, 1e-3) for name, x in wide.items()}] * 40
    tx = jopt.schedule_free_sgd(0.1)
    _, state = run(tx, narrow, [{n: g.astype(jnp.bfloat16) for n, g in one.items()} for one in grads])
    params, expected = run(tx, wide, grads)
    kept = state.slots["schedule_free"]["averaged"]
    assert_close(kept, jopt.eval_params(expected, params), rtol=1e-4)
    assert any(np.any(kept[name] != wide[name]) for name in kept)


def test_the_dtype_of_z_can_be_chosen():
    state = jopt.schedule_free_adamw(0.1, state_dtype="bfloat16").init(P)
    assert state.slots["schedule_free"]["z"]["kernel"].dtype == jnp.bfloat16
    assert state.slots["schedule_free"]["averaged"]["kernel"].dtype == jnp.float32


def test_one_learning_rate_is_set_for_base_and_weights():
    state = jopt.schedule_free_adamw(0.1).init(P)
    state = jopt.set_hyperparams(state, learning_rate=0.02)
    _, state = jopt.schedule_free_adamw(0.1).update(G[0], state, P)
    assert float(state.scalars["schedule_free"]["max_lr"]) == np.float32(0.02)


def test_a_base_without_one_learning_rate_is_an_error():
    with pytest.raises(ValueError, match="base has 0 learning rates"):
        jopt.schedule_free(jopt.scale(-0.1), None)


def test_schedule_free_eval_params_asks_for_its_state():
    params, state = run(jopt.chain(jopt.clip(1.0), jopt.schedule_free_sgd(0.1)))
    assert_close(jopt.schedule_free_eval_params(state, params), jopt.eval_params(state, params))
    with pytest.raises(jopt.StateMismatchError, match="without a schedule_free"):
        jopt.schedule_free_eval_params(jopt.adam(0.1).init(P), P)
    with pytest.raises(jopt.StateMismatchError, match="of type tuple"):
        jopt.schedule_free_eval_params((), P)


# The others ----------------------------------------------------------------------------------------


def test_lawa_is_the_mean_of_the_last_checkpoints():
    seen, p = [], P
    for g in G:
        p = {name: p[name] - 0.1 * g[name] for name in p}
        seen.append(p)
    params, state = run(jopt.lawa(jopt.sgd(0.1), 3, 2))
    mean = {name: np.mean([seen[i][name] for i in (7, 9, 11)], axis=0) for name in p}
    assert_close(jopt.eval_params(state, params), mean)
    params, state = run(jopt.lawa(jopt.sgd(0.1), 3, 2), grads=G[:1])
    assert_close(jopt.eval_params(state, params), P)
    params, state = run(jopt.lawa(jopt.sgd(0.1), 3, 2), grads=G[:4])
    few = {name: (seen[1][name] + 2 * seen[3][name]) / 3 for name in p}
    assert_close(jopt.eval_params(state, params), few)


def test_lookahead_refuses_the_pair_of_optax():
    pair = optax.LookaheadParams.init_synced({"w": jnp.ones(2)})
    with pytest.raises(TypeError, match=r"LookaheadParams.*Pass its \.fast.*eval_params"):
        jopt.lookahead(jopt.sgd(0.1), 5, 0.5).init(pair)


def test_lookahead_forgets_the_state_of_the_fast_optimizer_but_not_numbers_set_by_hand():
    tx = jopt.lookahead(jopt.adam(0.1), 3, 0.5, reset_state=True)
    state = jopt.set_hyperparams(tx.init(P), learning_rate=0.02)
    params = P
    for g in G[:3]:
        params, state = jopt.apply_gradients(tx, g, state, params)
    inner = state.inner["lookahead"]
    assert int(inner.count) == 0
    assert not np.any(inner.slots["scale_by_adam"]["mu"]["kernel"])
    assert float(jopt.hyperparams(state)["learning_rate"]) == np.float32(0.02)


def test_opaque_sam_is_transparent_sam_with_all_gradients_in_one_call():
    def loss(params):
        return sum(jnp.sum(jnp.sin(p) + p**2) for p in params.values())

    grad = jax.grad(loss)
    transparent, opaque = (jopt.sam(jopt.sgd(0.1, 0.9), ascent(0.3), 3, opaque_mode=mode) for mode in (False, True))
    p, state = P, transparent.init(P)
    for _ in range(9):
        p, state = jopt.apply_gradients(transparent, grad(p), state, p)
    q, other = P, opaque.init(P)
    for _ in range(3):
        q, other = jopt.apply_gradients(opaque, grad(q), other, q, grad_fn=lambda params, i: grad(params))
    assert_close(q, p)
    with jax.numpy_dtype_promotion("standard"):
        theirs = optax.contrib.sam(
            optax.sgd(0.1, 0.9), optax.chain(optax.contrib.normalize(), optax.sgd(0.3)), 3, opaque_mode=True
        )
        r, last = P, theirs.init(P)
        for _ in range(3):
            u, last = theirs.update(grad(r), last, r, grad_fn=lambda params, i: grad(params))
            r = optax.apply_updates(r, u)
    assert_close(q, r)


def test_the_gradient_function_sees_the_whole_tree():
    """Masked, and beside a leaf that is not trained, it is given the tree that the user has."""
    params = P | {"steps": jnp.arange(2)}

    def grads_of(tree, i):
        assert tree["steps"].dtype == jnp.int32
        assert tree["bias"].shape == (3,)
        return jax.tree.map(lambda p: p / 2 if p.dtype == jnp.float32 else None, tree)

    tx = jopt.skip_nonfinite(jopt.masked(jopt.sam(jopt.sgd(0.1), ascent(), opaque_mode=True), where="kernel"))
    grads = G[0] | {"steps": np.zeros(2, jax.dtypes.float0)}
    u, _ = tx.update(grads, tx.init(params), params, grad_fn=grads_of)
    np.testing.assert_array_equal(u["bias"], G[0]["bias"])
    assert np.any(u["kernel"])
    with pytest.raises(jopt.TreeMismatchError, match=r"grad_fn.*'kernel'"):
        tx.update(grads, tx.init(params), params, grad_fn=lambda tree, i: {})


def test_sam_with_one_gradient_a_step_is_the_optimizer():
    assert_close(run(jopt.sam(jopt.adam(0.1), ascent(), 1))[0], run(jopt.adam(0.1))[0])


def test_adaptive_sharpness_does_not_see_a_rescaling_of_the_weights():
    """Kwon et al. 2021: scaling weights by c and gradients by 1/c scales the ascent by c."""
    tx, c = jopt.scale_by_adaptive_sharpness(0.0), 8.0
    u, _ = tx.update(G[0], tx.init(P), P)
    scaled = {name: c * p for name, p in P.items()}
    v, _ = tx.update({name: g / c for name, g in G[0].items()}, tx.init(scaled), scaled)
    assert_close(v, {name: c * x for name, x in u.items()})


# optax's wrappers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2])
def test_apply_if_finite_gives_up_when_optax_does(limit):
    ours, theirs = jopt.apply_if_finite(jopt.trace(0.5), limit), optax.apply_if_finite(optax.trace(0.5), limit)
    state, other = ours.init(P), theirs.init(P)
    for t in range(8):
        g = {name: jnp.where(t in (1, 2, 3, 4), jnp.nan, x) for name, x in G[t].items()}
        u, state = ours.update(g, state, P)
        v, other = theirs.update(g, other, P)
        assert_close(u, v)
        kept = state.inner["apply_if_finite"]
        for name in ("notfinite_count", "last_finite", "total_notfinite"):
            assert getattr(kept, name) == getattr(other, name)


def test_multi_steps_knows_whether_it_has_stepped_and_reports_what_it_left_out():
    tx = jopt.MultiSteps(jopt.sgd(0.1), 2, should_skip_update_fn=jopt.skip_not_finite)
    state, seen = tx.init(P), []
    for t in range(5):
        bad = {name: x * jnp.where(t == 1, jnp.inf, 1.0) for name, x in G[t].items()}
        _, state = tx.update(bad, state, P)
        kept = state.inner["MultiSteps"]
        seen.append((bool(tx.has_updated(state)), bool(kept.skip_state["should_skip"])))
    assert seen == [(False, False), (False, True), (True, False), (False, False), (True, False)]
    assert tx.gradient_transformation() == tx
    assert isinstance(tx, jopt.Transform)


def test_measures_are_read_by_their_names():
    norm = optax.tree.norm
    tx = jopt.chain(
        jopt.snapshot("before", norm),
        jopt.scale(0.5),
        jopt.monitor({"after": norm, "mean": jopt.measure_with_ema(norm, 0.9)}),
    )
    state = tx.init(P)
    assert set(jopt.monitored(state)) == {"before", "after", "mean"}
    _, state = tx.update(G[0], state, P)
    found = jopt.monitored(state)
    np.testing.assert_allclose(found["before"], 2 * found["after"], rtol=1e-6)
    np.testing.assert_allclose(found["mean"], found["after"], rtol=1e-6)
    np.testing.assert_allclose(optax.tree.get(state, "before"), found["before"])
    with pytest.raises(TypeError, match="a function of the updates was expected"):
        jopt.monitor({"a": 3})


def test_inject_hyperparams_returns_what_the_factory_makes():
    assert jopt.inject_hyperparams(jopt.adamw, static_args="mu_dtype")(0.1, b1=0.8) == jopt.adamw(0.1, b1=0.8)
    with pytest.raises(TypeError, match="a jopt transform was expected"):
        jopt.inject_hyperparams(optax.adam)(0.1)
    with pytest.raises(ValueError, match="static_args names"):
        jopt.inject_hyperparams(jopt.adam, static_args=("nothing",))
    with pytest.raises(TypeError, match="hyperparam_dtype"):
        jopt.inject_hyperparams(jopt.adam, hyperparam_dtype=jnp.float32)


def test_labels_name_the_groups():
    tx = jopt.partition({"a": jopt.adam(0.1), "b": jopt.sgd(0.1)}, {"kernel": "a", "bias": "b"})
    assert set(jopt.hyperparams(tx.init(P))) >= {"a/scale_by_adam/b1", "b/scale_by_learning_rate/learning_rate"}
    assert eval(repr(tx), vars(jopt)) == tx
    with pytest.raises(ValueError, match=r"labels \['c'\] have no transform"):
        jopt.partition({"a": jopt.adam(0.1)}, {"kernel": "a", "bias": "c"})
    with pytest.raises(TypeError, match="a dict of transforms with labels"):
        jopt.partition({"a": jopt.adam(0.1)})
    with pytest.raises(jopt.TreeMismatchError, match=r"labels says nothing of 'bias'"):
        jopt.partition({"a": jopt.adam(0.1)}, {"kernel": "a"}).init(P)


def test_names_of_a_chain_are_names_of_its_numbers():
    tx = jopt.named_chain(("first", jopt.scale(2.0)), ("second", jopt.scale(3.0)))
    assert set(jopt.hyperparams(tx.init(P))) == {"first/scale/step_size", "second/scale/step_size"}
    with pytest.raises(ValueError, match="different names"):
        jopt.named_chain(("a", jopt.scale(2.0)), ("a", jopt.scale(3.0)))
