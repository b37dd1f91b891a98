"""One regression test for each trap that the design names; the test's name is the trap."""

import collections
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jopt

P = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)}
G = {"w": np.full((3, 2), 0.5, np.float32), "b": np.array([1.0, -2.0], np.float32)}


def first_update(tx, grads=G, params=P, **extra):
    return tx.update(grads, tx.init(params), params, **extra)[0]


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), **tolerance), got, expected)


# Configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float32(0.5), np.asarray(0.5), jnp.asarray(0.5), jnp.asarray(0.5, jnp.bfloat16)])
def test_unhashable_numbers_become_python_numbers(number):
    tx = jopt.adam(number, b1=number)
    assert hash(tx) == hash(jopt.adam(0.5, b1=0.5))
    assert tx == jopt.adam(0.5, b1=0.5)


def test_unhashable_static_values_are_refused_and_hashable_ones_kept():
    with pytest.raises(TypeError, match=r"axis=\[0\] does not hash.*Pass a tuple"):
        jopt.rule("mine", lambda g, s, p, *, axis: (g, s), static={"axis": [0]})
    assert jopt.adaptive_grad_clip(0.1, axis=[0, 1]) == jopt.adaptive_grad_clip(0.1, axis=(0, 1))


def test_name_clashes_of_instances_get_numbers():
    tx = jopt.chain(*[jopt.scale(i) for i in (2.0, 3.0, 4.0)])
    read = {name: float(x) for name, x in jopt.hyperparams(tx.init(P)).items()}
    assert read == {"scale/step_size": 2.0, "scale_2/step_size": 3.0, "scale_3/step_size": 4.0}
    assert_close(first_update(tx), jax.tree.map(lambda g: g * 24, G))


def test_name_clashes_with_the_engine_are_refused():
    def step(g, s, p, *, t, rate):
        return g, s

    with pytest.raises(TypeError, match=r"names \['t'\].*Rename them"):
        jopt.rule("mine", step, hyper={"t": 1.0, "rate": 1.0})
    with pytest.raises(TypeError, match=r"names \['rate'\].*either hyper or static"):
        jopt.rule("mine", step, hyper={"rate": 1.0}, static={"rate": 1})
    with pytest.raises(ValueError, match=r"'a/b'.*without a slash"):
        jopt.rule("a/b", step, hyper={"rate": 1.0})


def ask_update(grads, own, params, *, value_fn):
    return {path: g * value_fn(params) for path, g in grads.items()}, own


def test_callable_extras_run_unwrapped_and_unknown_ones_do_not_matter():
    tx = jopt.whole(jopt.Whole("asks", ask_update))
    assert_close(first_update(tx, value_fn=lambda p: jnp.asarray(2.0)), jax.tree.map(lambda g: 2 * g, G))
    assert tx.plan.compiled == {}
    plain = jopt.sgd(1.0)
    plain.update(G, plain.init(P), P, value_fn=lambda p: 0.0, text="ignored", value=None)
    assert "update" in plain.plan.compiled  # an extra that nothing reads does not cost the compiled call


# The cache ----------------------------------------------------------------------------------------


class Big:
    """Stands for a data set that a closure captures."""


LEAKY = {
    "schedule": lambda big: jopt.sgd(lambda count: 0.1 if big else 0.2),
    "predicate": lambda big: jopt.masked(jopt.adam(0.1), where=lambda leaf: big is not None),
    "mask": lambda big: jopt.masked(jopt.adam(0.1), lambda params: jax.tree.map(lambda _: big is not None, params)),
    "rule": lambda big: jopt.rule("mine", lambda g, s, p: (g if big else -g, s)),
    "foreign": lambda big: jopt.chain(optax.stateless(lambda u, p: u if big else p)),
    "wrapped": lambda big: jopt.accumulate(jopt.sgd(lambda count: 0.1 if big else 0.2), 2),
}


@pytest.mark.parametrize("closure", LEAKY)
def test_the_cache_keeps_no_object_of_a_closure_alive(closure):
    big = Big()
    alive = weakref.ref(big)
    tx = LEAKY[closure](big)
    state = tx.init(P)
    tx.update(G, state, P)
    jopt.apply_gradients(tx, G, state, P)
    jax.jit(tx.update)(G, state, P)
    del tx, state, big
    for _ in range(3):  # a compiled function that dies frees its trace, whose closures die in turn
        if alive() is not None:
            gc.collect()
    assert alive() is None


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: jopt.accumulate(tx, 2), jopt.skip_nonfinite])
def test_traced_numbers_leak_from_no_cache(wrap):
    def run(rate):
        tx = wrap(jopt.chain(jopt.clip_by_global_norm(rate), jopt.adamw(rate, weight_decay=rate)))
        return first_update(tx)["w"]

    with jax.checking_leaks():
        for rate in (0.1, 0.2):
            jax.jit(run)(rate)
        jax.jit(jax.vmap(run))(jnp.array([0.1, 0.2]))
        jax.jit(jax.grad(lambda rate: jnp.sum(run(rate))))(0.1)


# Buffers and types -------------------------------------------------------------------------------

DONATED = {
    "adam": lambda: jopt.adam(0.1),
    "ema": lambda: jopt.ema(jopt.adam(0.1)),
    "two averages": lambda: jopt.chain(jopt.ema(jopt.sgd(0.1)), jopt.average_params(0.5)),
    "accumulated average": lambda: jopt.accumulate(jopt.ema(jopt.adam(0.1)), 2),
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", DONATED)
def test_aliased_slots_would_break_donation(name, jitted):
    tx = DONATED[name]()
    params = jax.tree.map(jnp.array, P)
    state = (jax.jit(tx.init) if jitted else tx.init)(params)
    leaves = [x for x in jax.tree.leaves((params, state)) if x.size]
    assert len({x.unsafe_buffer_pointer() for x in leaves}) == len(leaves)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        return jopt.apply_gradients(tx, G, state, params)

    for _ in range(2):
        params, state = step(params, state)


def test_state_shares_no_memory_with_numpy_parameters():
    memory = np.ones(64 * 64 + 16, np.float32)
    start = -memory.ctypes.data % 64 // 4  # aligned to 64 bytes, JAX takes an array without copying it
    weights = memory[start : start + 64 * 64].reshape(64, 64)
    state = jopt.ema(jopt.sgd(0.1)).init({"w": weights})
    weights[...] = 5.0
    assert float(state.slots["average_params"]["averaged"]["w"][0, 0]) == 1.0


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("params", [P, {"w": 1.0}, {"w": jnp.ones(2, jnp.bfloat16), "c": jnp.ones(2, jnp.complex64)}])
def test_weak_types_never_enter_the_state(params):
    tx = jopt.skip_nonfinite(jopt.ema(jopt.monitor(jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adamw(0.1)))))
    state = tx.init(params)
    assert not any(x.weak_type for x in jax.tree.leaves(state))
    _, after = tx.update(params, state, params)
    assert types(after) == types(state)
    _, traced = jax.jit(tx.update)(params, state, params)
    assert types(traced) == types(state)


def test_scalars_in_bfloat16_would_freeze_the_second_moment():
    params = {"w": jnp.zeros(4, jnp.bfloat16)}
    tx = jopt.adam(0.1, b2=0.999)
    update, state = jax.jit(tx.update), tx.init(params)
    for size in [1.0] * 20 + [0.01] * 200:
        _, state = update({"w": jnp.full(4, size, jnp.bfloat16)}, state, params)
    nu = state.slots["scale_by_adam"]["nu"]["w"]
    assert nu.dtype == jnp.float32
    expected = (1 - 0.999**20) * 0.999**200
    np.testing.assert_allclose(nu, expected, rtol=1e-2)


@pytest.mark.parametrize("make", [lambda: jopt.adamw(0.1), lambda: jopt.accumulate(jopt.lamb(0.1), 1)])
@pytest.mark.parametrize(("of_params", "of_grads"), [("float32", "float64"), ("float64", "float32"), ("c8", "c16")])
def test_gradients_wider_or_narrower_than_their_parameters(make, of_params, of_grads, x64):
    params, grads = {"w": np.ones((2, 2), of_params)}, {"w": np.full((2, 2), 0.5, of_grads)}
    tx = make()
    state = tx.init(params)
    updates, after = tx.update(grads, state, params)
    assert updates["w"].dtype == of_params
    assert types(after) == types(state)
    same, _ = tx.update({"w": grads["w"].astype(of_params)}, state, params)
    np.testing.assert_array_equal(updates["w"], same["w"])


# Finite in, finite out ---------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("size", [0.0, 1e-4, 300.0, 6e4])
def test_a_narrow_gradient_gives_no_nan_and_no_zero(size, dtype):
    params = {"w": jnp.ones(4, dtype)}
    tx = jopt.chain(jopt.clip_by_global_norm(1.0), jopt.adam(0.1))
    update = np.asarray(first_update(tx, {"w": jnp.full(4, size, dtype)}, params)["w"], np.float32)
    np.testing.assert_allclose(update, 0.0 if size == 0 else -0.1, rtol=1e-2)


def test_a_huge_gradient_does_not_freeze_a_parameter():
    tx = jopt.adam(0.1, b2=0.9)
    params, state = {"w": jnp.zeros(2)}, tx.init({"w": jnp.zeros(2)})
    params, state = jopt.apply_gradients(tx, {"w": jnp.array([1e25, 1.0])}, state, params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))
    for _ in range(900):
        params, state = jopt.apply_gradients(tx, {"w": jnp.ones(2)}, state, params)
    before = np.asarray(params["w"])
    params, state = jopt.apply_gradients(tx, {"w": jnp.ones(2)}, state, params)
    assert float(before[0] - params["w"][0]) > 0.01


@pytest.mark.parametrize("size", [1e-30, 1e17, 1e25, 3e38])
def test_a_clip_whose_norm_overflows_or_vanishes_is_right(size):
    grads, tx = {"w": np.full(4, size, np.float32)}, jopt.clip_by_global_norm(2.0 if size > 1 else 1e-30)
    clipped = np.asarray(tx.update(grads, tx.init(grads))[0]["w"])
    np.testing.assert_allclose(clipped, 1.0 if size > 1 else 5e-31, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_infinity_and_nan_pass_through_for_guards_to_see(bad):
    grads = {"w": np.array([bad, 1.0], np.float32), "b": np.ones(1, np.float32)}
    tx = jopt.chain(jopt.clip_by_global_norm(1.0), jopt.scale(1.0))
    updates, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_array_equal(np.asarray(updates["w"]), grads["w"])
    np.testing.assert_array_equal(np.asarray(updates["b"]), grads["b"])


# Leaves that are not trained ---------------------------------------------------------------------


def test_integers_keys_and_float0_pass_through_without_state():
    params = {"w": jnp.ones(2), "n": jnp.arange(3), "flag": jnp.array(True), "key": jax.random.key(0), "none": None}
    grads = {"w": jnp.ones(2), "n": np.zeros(3, jax.dtypes.float0), "flag": jnp.array(False), "key": None, "none": None}
    tx = jopt.adam(0.1)
    state = tx.init(params)
    assert {path for flat in state.slots["scale_by_adam"].values() for path in flat} == {"w"}
    updates, _ = tx.update(grads, state, params)
    assert updates["n"].dtype == jax.dtypes.float0
    for new in (jopt.apply_updates(params, updates), jopt.apply_gradients(tx, grads, state, params)[0]):
        assert new["none"] is None
        np.testing.assert_array_equal(new["n"], params["n"])
        assert bool(new["flag"])
        assert new["key"] == params["key"]
        np.testing.assert_allclose(new["w"], 0.9, rtol=1e-6)


# Paths -------------------------------------------------------------------------------------------


@jax.tree_util.register_pytree_with_keys_class
class Box:
    """A node as nnx has it: its content is an attribute called value."""

    def __init__(self, value):
        self.value = value

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("value"), self.value)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_an_attribute_value_is_dropped_and_a_key_of_that_name_is_not():
    tree = {"a": Box(np.ones(2)), "b": {"value": np.ones(2)}, "c": Box({"value": np.ones(2)}), "d": {"value": Box(1.0)}}
    assert list(jopt.paths.flatten(tree)[0]) == ["a", "b/value", "c/value/value", "d/value"]
    # init sees boxes, update bare arrays
    tx = jopt.sgd(0.1, momentum=0.9)
    state = tx.init({"a": Box(np.ones(2, np.float32))})
    tx.update({"a": np.ones(2, np.float32)}, state, {"a": np.ones(2, np.float32)})


def test_a_slash_in_a_key_is_escaped_and_no_two_paths_run_together():
    tree = {"a/b": 1.0, "a": {"b": 2.0}, "a~1b": 3.0}
    flat, layout = jopt.paths.flatten(tree)
    assert flat == {"a~1b": 1.0, "a/b": 2.0, "a~01b": 3.0}
    assert layout.unflatten(flat) == tree


def test_two_leaves_with_one_path_are_an_error_that_names_both():
    params = collections.OrderedDict([(1, np.ones(2, np.float32)), ("1", np.ones(2, np.float32))])
    with pytest.raises(jopt.TreeMismatchError, match=r"\[1\] and \['1'\] both have the path '1'"):
        jopt.adam(0.1).init(params)


def test_a_bare_array_has_the_empty_path():
    tx = jopt.adam(0.1)
    state = tx.init(jnp.ones(3))
    assert set(state.slots["scale_by_adam"]["mu"]) == {""}
    assert tx.update(jnp.ones(3), state, jnp.ones(3))[0].shape == (3,)


def test_leaves_are_taken_by_path_and_not_by_order():
    """Twelve layers sort as 0, 1, 10, 11, 2, ... when a checkpoint makes their indices strings."""
    layers = {i: np.full(2, i, np.float32) for i in range(12)}
    strings = {str(i): x for i, x in layers.items()}
    tx = jopt.sgd(1.0, momentum=0.5)
    state = tx.init(layers)
    _, state = tx.update(layers, state, layers)
    updates, _ = tx.update(strings, state, strings)
    for i in range(12):
        np.testing.assert_allclose(updates[str(i)], -1.5 * i)


# Random rules ------------------------------------------------------------------------------------


def noise(params, seed=0, steps=1, tx=None):
    tx = jopt.add_noise(1.0, 0.0, seed) if tx is None else tx
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return updates, state


def test_equal_noise_for_leaves_of_one_shape_would_be_a_bug():
    params = {f"layer_{i}": jnp.zeros(8) for i in range(4)}
    updates, _ = noise(params)
    assert len({float(x[0]) for x in updates.values()}) == 4
    later, _ = noise(params, steps=2)
    assert not np.array_equal(later["layer_0"], updates["layer_0"])


def test_noise_stays_when_leaves_are_added_or_a_run_is_resumed():
    params = {"a": jnp.zeros(8), "b": jnp.zeros(8)}
    third, _ = noise(params, steps=3)
    more, _ = noise(params | {"0 first": jnp.zeros(8), "c": jnp.zeros(3)}, steps=3)
    np.testing.assert_array_equal(more["a"], third["a"])
    tx = jopt.add_noise(1.0, 0.0, 0)
    _, state = noise(params, steps=2, tx=tx)
    words = jax.random.key_data(state.scalars["add_noise"]["key"])
    state.scalars["add_noise"]["key"] = jax.random.wrap_key_data(np.asarray(words))  # through a checkpoint
    resumed, _ = tx.update(params, jax.tree.map(jnp.asarray, state), params)
    np.testing.assert_array_equal(resumed["a"], third["a"])


@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_typed_and_raw_keys_are_one_configuration(implementation):
    key = jax.random.key(3, impl=implementation)
    tx = jopt.add_noise(1.0, 0.0, key)
    assert tx == jopt.add_noise(1.0, 0.0, jax.random.key_data(key))
    assert hash(tx) == hash(jopt.add_noise(1.0, 0.0, jax.random.key_data(key)))
    assert np.isfinite(noise(P, tx=tx)[0]["w"]).all()


def test_a_random_rule_without_a_key_is_an_error_at_construction():
    def step(g, s, p, *, key):
        return g, s

    with pytest.raises(TypeError, match=r"mine: key=None was given.*Pass key=0"):
        jopt.rule("mine", step)
    assert jopt.rule("mine", step, key=0).init(P)


# Loops, clocks, meshes ----------------------------------------------------------------------------


def refresh_step(g, s, p, *, count):
    fresh = jax.lax.cond(count % 10 == 0, lambda: jnp.linalg.norm(g), lambda: s["size"])
    return g, {"size": fresh}


def refresh_slots(p):
    return {"size": jnp.zeros((), p.dtype)}


def test_a_batched_count_would_refresh_at_every_step():
    tx = jopt.rule("refresh", refresh_step, slots=refresh_slots, reads="array")
    state = tx.init(P)
    batched = jax.tree.map(lambda x: jnp.stack([x] * 3), (G, state, P))
    axes = jopt.sweep_axes(state)
    shared = (batched[0], batched[1]._replace(count=state.count), batched[2])
    by_sweep = jax.make_jaxpr(jax.vmap(tx.update, in_axes=(0, axes, 0), out_axes=(0, axes)))(*shared)
    by_all = jax.make_jaxpr(jax.vmap(tx.update))(*batched)
    assert " cond[" in str(by_sweep)
    assert " cond[" not in str(by_all)  # a select: both branches, always


def test_forward_and_reverse_mode_cross_a_loop_that_has_no_reverse():
    tx = jopt.accumulate(jopt.sgd(0.1), 1)

    def loss(x):
        return jnp.sum(jopt.apply_gradients(tx, {"x": x**2}, tx.init({"x": x}), {"x": x})[0]["x"])

    x = jnp.array([1.0, 2.0])
    np.testing.assert_allclose(jax.grad(loss)(x), 1 - 0.2 * x, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(loss, (x,), (jnp.ones(2),))[1], np.sum(1 - 0.2 * x), rtol=1e-6)


def sharded(mesh):
    def place(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return {"w": place(jnp.arange(128.0).reshape(16, 8) / 100, "d", None), "b": place(jnp.ones(8), "d")}


def test_slots_of_matrices_stay_where_they_were_on_an_auto_mesh():
    """Those of NorMuon have a row's shape, which tells the compiler nothing: it gathered them everywhere."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    params = {name: jax.device_put(jnp.ones((16, 8)), NamedSharding(mesh, PartitionSpec(None, "d"))) for name in "ab"}
    tx = jopt.scale_by_normuon()
    state = tx.init(params)
    nu = state.slots["scale_by_normuon"]["nu"]["a"]
    assert nu.sharding.spec == PartitionSpec("d")
    _, after = jax.jit(tx.update)(params, state, params)
    new = after.slots["scale_by_normuon"]["nu"]["a"]
    assert new.sharding.is_equivalent_to(nu.sharding, nu.ndim)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_scalars_of_a_state_lie_on_the_mesh_or_the_second_step_would_compile_again(name, kind):
    """Without `jax.set_mesh`: parameters are placed by hand, and the state follows them."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(kind,))
    tx, params = getattr(jopt, name)(0.1), sharded(mesh)
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        return jopt.apply_gradients(tx, jax.tree.map(jnp.sin, params), state, params)

    state = tx.init(params)
    for kept in state.slots.values():
        for flat in kept.values():
            assert all(x.sharding.is_equivalent_to(params[path].sharding, x.ndim) for path, x in flat.items())
    new, after = step(params, state)
    full = next(full for full in jopt.hyperparams(state) if full.endswith("/learning_rate"))
    step(new, jopt.set_hyperparams(after, **{full: 0.2}))
    assert len(traces) == 1
    host = jax.tree.map(np.asarray, params)
    expected, _ = jopt.apply_gradients(tx, jax.tree.map(np.sin, host), tx.init(host), host)
    assert_close(new, expected, rtol=1e-4, atol=1e-6)


def test_a_norm_inside_shard_map_is_global_only_by_its_axis_name():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    grads = {"w": np.arange(16, dtype=np.float32).reshape(16, 1)}

    def clipped(tx):
        def local(grads):
            return tx.update(grads, tx.init(grads))[0]

        spec = PartitionSpec("d")
        return np.asarray(jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(spec,), out_specs=spec))(grads)["w"])

    whole = jopt.clip_by_global_norm(0.5)
    expected = np.asarray(whole.update(grads, whole.init(grads))[0]["w"])
    np.testing.assert_allclose(clipped(jopt.clip_by_global_norm(0.5, axis_name="d")), expected, rtol=1e-6)
    assert not np.allclose(clipped(whole), expected)  # documented as local
