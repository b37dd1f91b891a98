"""States of optax go on in jopt: ten steps there, ten more in both, and the parameters are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

import jopt

STEPS = 20
SHAPES = {"kernel": (5, 3), "bias": (5,), "gain": ()}
PARAMS, GRADS, LOSSES = oracles.record(SHAPES, STEPS, seed=5)
FALL = optax.exponential_decay(0.05, 5, 0.5)
LABELS = {"kernel": "a", "bias": "b", "gain": "a"}
MASK = {"kernel": True, "bias": False, "gain": True}


def both(call):
    """The same call of both libraries."""
    return call(jopt), call(optax)


def contrib(name):
    return lambda library: getattr(library if library is jopt else optax.contrib, name)


SAME = {
    "sgd": lambda m: m.sgd(0.1),
    "momentum": lambda m: m.sgd(0.1, 0.9),
    "adam": lambda m: m.adam(0.05),
    "adamw_scheduled": lambda m: m.adamw(FALL, weight_decay=0.1, mask=MASK),
    "nadam": lambda m: m.nadam(0.05),
    "amsgrad": lambda m: m.amsgrad(0.05),
    "adamax": lambda m: m.adamax(0.05),
    "adagrad": lambda m: m.adagrad(0.1),
    "adadelta": lambda m: m.adadelta(1.0),
    "rmsprop": lambda m: m.rmsprop(0.01, momentum=0.9),
    "rmsprop_centered": lambda m: m.rmsprop(FALL, centered=True, bias_correction=True, eps_in_sqrt=False, eps=1e-3),
    "lion": lambda m: m.lion(0.01),
    "lamb": lambda m: m.lamb(0.01, weight_decay=0.1),
    "lars": lambda m: m.lars(0.5, 0.1, MASK),
    "chain": lambda m: m.chain(m.clip_by_global_norm(1.0), m.adamw(FALL), m.trace(0.5)),
    "nested": lambda m: m.chain(m.chain(m.trace(0.9), m.scale(0.5)), m.masked(m.scale_by_adam(), MASK), m.scale(-0.1)),
    "partition": lambda m: m.partition({"a": m.adamw(FALL), "b": m.sgd(0.1, 0.9)}, LABELS),
    "named_chain": lambda m: m.named_chain(("first", m.scale_by_adam()), ("last", m.scale(-0.1))),
    "selective": lambda m: m.selective_transform(m.adam(0.05), freeze_mask=MASK),
    "multi_steps": lambda m: m.MultiSteps(m.adam(FALL), 4),
    "apply_if_finite": lambda m: m.apply_if_finite(m.adam(FALL), 3),
    "conditionally_mask": lambda m: m.conditionally_mask(m.adam(FALL), lambda step: step % 3 != 0),
    "inject": lambda m: m.inject_hyperparams(m.adamw)(0.05, b1=0.8, weight_decay=0.01),
    "inject_scheduled": lambda m: m.inject_hyperparams(m.sgd)(FALL, momentum=0.8),
    "plateau": lambda m: m.chain(m.adam(0.05), contrib("reduce_on_plateau")(m)(patience=2)),
    "muon": lambda m: contrib("muon")(m)(0.05),
    "schedule_free_sgd": lambda m: contrib("schedule_free_sgd")(m)(0.05),
    "schedule_free_adamw": lambda m: contrib("schedule_free_adamw")(m)(0.05, 6),
    "sam": lambda m: contrib("sam")(m)(
        m.sgd(0.05, 0.9), m.chain(contrib("normalize")(m)(), m.sgd(0.1)), 3, reset_state=False
    ),
}


def train(tx, params, state, start, stop, value=False):
    step = jax.jit(optax.with_extra_args_support(tx).update)
    for t in range(start, stop):
        g = {name: jnp.asarray(x[t], jnp.float32) for name, x in GRADS.items()}
        u, state = step(g, state, params, **({"value": jnp.float32(abs(LOSSES[t]))} if value else {}))
        params = {name: p + u[name] for name, p in params.items()}
    return params, state


def fresh():
    return {name: jnp.asarray(x, jnp.float32) for name, x in PARAMS.items()}


def optax_run(tx, start=0, stop=10, params=None, state=None, value=False):
    params = fresh() if params is None else params
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return train(tx, params, tx.init(params) if state is None else state, start, stop, value)


def assert_goes_on(ours, theirs, value=False):
    params, state = optax_run(theirs, value=value)
    read = jopt.from_optax(ours, state, params)
    assert jax.tree.map(jnp.shape, read) == jax.tree.map(jnp.shape, ours.init(params))
    assert jax.tree.map(jnp.result_type, read) == jax.tree.map(jnp.result_type, ours.init(params))
    got, _ = train(ours, params, read, 10, STEPS, value)
    wanted, _ = optax_run(theirs, 10, STEPS, params, state, value)
    for name in got:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, atol=2e-6, err_msg=name)
        assert np.any(got[name] != params[name]) or name in ("kernel", "gain")


@pytest.mark.parametrize("name", SAME)
def test_ten_steps_in_optax_and_ten_more_in_both_agree(name):
    assert_goes_on(*both(SAME[name]), value=name == "plateau")


PAIRS = {
    "accumulate": (jopt.accumulate(jopt.adam(FALL), 4), optax.MultiSteps(optax.adam(FALL), 4)),
    "skip_nonfinite": (jopt.skip_nonfinite(jopt.adam(FALL)), optax.apply_if_finite(optax.adam(FALL), 9)),
    "cases": (
        jopt.partition([("a", "kernel|gain", jopt.adamw(FALL)), ("b", "bias", jopt.sgd(0.1, 0.9))]),
        optax.partition({"a": optax.adamw(FALL), "b": optax.sgd(0.1, 0.9)}, LABELS),
    ),
    "ema": (jopt.chain(jopt.scale_by_ema(0.9), jopt.scale(-0.1)), optax.chain(optax.ema(0.9), optax.scale(-0.1))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_has_another_name_here_goes_on_too(name):
    assert_goes_on(*PAIRS[name])


def test_lookahead_takes_the_pair_and_goes_on_with_the_fast_ones():
    theirs, ours = optax.lookahead(optax.adam(0.05), 4, 0.5), jopt.lookahead(jopt.adam(0.05), 4, 0.5)
    pair = optax.LookaheadParams.init_synced(fresh())
    state = theirs.init(pair)

    def step(pair, state, t):
        g = {name: jnp.asarray(x[t], jnp.float32) for name, x in GRADS.items()}
        with jax.numpy_dtype_promotion("standard"):
            u, state = theirs.update(g, state, pair)
        return optax.apply_updates(pair, u), state

    for t in range(10):
        pair, state = step(pair, state, t)
    read = jopt.from_optax(ours, state, pair)
    params, read = train(ours, pair.fast, read, 10, STEPS)
    for t in range(10, STEPS):
        pair, state = step(pair, state, t)
    averaged = jopt.eval_params(read, params)
    for name in params:
        np.testing.assert_allclose(params[name], pair.fast[name], rtol=2e-5)
        np.testing.assert_allclose(averaged[name], pair.slow[name], rtol=2e-5)


SEARCHES = {
    "lbfgs": lambda m: m.lbfgs(memory_size=4),
    "backtracking": lambda m: m.chain(m.sgd(1.0), m.scale_by_backtracking_linesearch(15)),
    "backtracking_with_gradient": lambda m: m.chain(
        m.sgd(1.0), m.scale_by_backtracking_linesearch(15, store_grad=True)
    ),
    "zoom": lambda m: m.chain(m.sgd(1.0), m.scale_by_zoom_linesearch(15)),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_line_searches_go_on(name):
    ours, theirs = both(SEARCHES[name])

    def fn(params):
        return sum(jnp.sum((i + 1.0) * (p - 0.5) ** 2 + p**4) for i, p in enumerate(params.values()))

    def search(tx, params, state, steps):
        @jax.jit
        def step(params, state):
            value, grad = jax.value_and_grad(fn)(params)
            u, state = tx.update(grad, state, params, value=value, grad=grad, value_fn=fn)
            return optax.apply_updates(params, u), state

        for _ in range(steps):
            params, state = step(params, state)
        return params, state

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, state = search(theirs, fresh(), theirs.init(fresh()), 3)
        wanted, _ = search(theirs, params, state, 2)
    read = jopt.from_optax(ours, state, params)
    searched = next(kept for kept in read.scalars.values() if "num_linesearch_steps" in kept)
    assert int(searched["num_linesearch_steps"]) == int(state[-1].info.num_linesearch_steps)
    got, _ = search(ours, params, read, 2)
    for name in got:
        np.testing.assert_allclose(got[name], wanted[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_muon_with_embeddings_is_read_where_all_matrices_go_to_muon():
    params = {"embedding": jnp.ones((4, 3)), "kernel": jnp.ones((3, 3)), "bias": jnp.ones(3)}
    theirs = optax.contrib.muon(0.1)
    state = theirs.init(params)
    with pytest.raises(jopt.OptaxStateError, match=r"\['embedding'\] on one side only.*where=jopt.ndim\(2\)"):
        jopt.from_optax(jopt.muon(0.1), state, params)
    read = jopt.from_optax(jopt.muon(0.1, where=jopt.ndim(2)), state, params)
    assert set(read.slots["muon/scale_by_muon"]["mu"]) == {"embedding", "kernel"}


def test_numbers_set_in_optax_are_set_here():
    theirs, ours = optax.inject_hyperparams(optax.adamw)(0.05), jopt.adamw(0.05)
    params, state = optax_run(theirs)
    state.hyperparams["learning_rate"] = jnp.float32(0.01)
    read = jopt.from_optax(ours, state, params)
    assert float(jopt.hyperparams(read)["learning_rate"]) == np.float32(0.01)
    _, read = train(ours, params, read, 10, 12)
    assert float(jopt.hyperparams(read)["learning_rate"]) == np.float32(0.01)


def test_the_count_can_be_given_where_no_part_knows_it():
    params, state = optax_run(optax.sgd(0.1, 0.9))
    assert int(jopt.from_optax(jopt.sgd(FALL, 0.9), state, params).count) == 0
    assert int(jopt.from_optax(jopt.sgd(FALL, 0.9), state, params, count=10).count) == 10


def test_the_state_shares_no_buffer_with_that_of_optax():
    params, state = optax_run(optax.adam(0.1))
    read = jopt.from_optax(jopt.adam(0.1), state, params)
    jax.tree.map(lambda x: x.delete(), state)
    train(jopt.adam(0.1), params, read, 10, 11)


WRONG = {
    "another class": (jopt.lion(0.1), optax.adam(0.1), r"scale_by_lion.*ScaleByAdamState.*'mu', 'nu'.*\['mu'\]"),
    "too little": (jopt.chain(jopt.trace(0.9), jopt.adam(0.1)), optax.adam(0.1), r"trace.*ScaleByAdamState"),
    "too much": (jopt.sgd(0.1), optax.adam(0.1), r"ScaleByAdamState is left over"),
    "ends": (jopt.adam(0.1), optax.sgd(0.1), r"ends before scale_by_adam"),
    "unknown": (jopt.adam(0.1), optax.contrib.dowg(), r"for scale_by_adam.*DoWGState"),
    "noise": (jopt.add_noise(0.1, 0.5), optax.add_noise(0.1, 0.5, 0), r"add_noise.*AddNoiseState"),
    "no partition": (jopt.partition({"a": jopt.adam(0.1), "b": jopt.sgd(0.1)}, LABELS), optax.adam(0.1), "Partition"),
    "masks": (jopt.adam(0.1), optax.masked(optax.adam(0.1), MASK), r"scale_by_adam/mu has \['bias'\]"),
    "lookahead": (jopt.lookahead(jopt.sgd(0.1), 2, 0.5), None, "LookaheadParams"),
    "not a state": (jopt.adam(0.1), "array", "holds a"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_state_without_counterpart_is_an_error_that_names_it(name):
    ours, theirs, words = WRONG[name]
    params = fresh()
    if theirs is None:
        state = optax.LookaheadState(optax.sgd(0.1).init(params), jnp.zeros((), jnp.int32))
    else:
        state = jnp.ones(3) if theirs == "array" else theirs.init(params)
    with pytest.raises(jopt.OptaxStateError, match=words):
        jopt.from_optax(ours, state, params)


def test_another_shape_is_an_error_that_names_the_leaf():
    params = fresh()
    state = optax.adam(0.1).init(params | {"kernel": jnp.ones((2, 2))})
    with pytest.raises(jopt.OptaxStateError, match=r"scale_by_adam/mu of 'kernel'.*\[2, 2\].*\[5, 3\]"):
        jopt.from_optax(jopt.adam(0.1), state, params)


def test_two_clocks_are_an_error():
    tx = functools.reduce(optax.chain, [optax.scale_by_adam(), optax.scale_by_adam(), optax.scale(-0.1)])
    params = fresh()
    first, second, last = optax.chain(optax.scale_by_adam(), optax.scale_by_adam(), optax.scale(-0.1)).init(params)
    assert len(tx.init(params)) == 2
    state = (first._replace(count=jnp.int32(3)), second, last)
    ours = jopt.chain(jopt.scale_by_adam(), jopt.scale_by_adam(), jopt.scale(-0.1))
    with pytest.raises(jopt.OptaxStateError, match=r"clocks.*\[0, 3\]"):
        jopt.from_optax(ours, state, params)
    assert int(jopt.from_optax(ours, state, params, count=3).count) == 3


@pytest.mark.parametrize(
    ("order", "swapped"),
    [((0, 2, 1), "state and params"), ((1, 0, 2), "tx and state"), ((2, 1, 0), "tx and params")],
)
def test_swapped_arguments_are_named_without_their_arrays(order, swapped):
    params = {"w": jnp.arange(3.0)}
    right = (jopt.adam(0.1), optax.adam(0.1).init(params), params)
    with pytest.raises(TypeError, match=f"from_optax: {swapped} are swapped.*Call from_optax") as raised:
        jopt.from_optax(*(right[i] for i in order))
    assert "Array" not in str(raised.value)
