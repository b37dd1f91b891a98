"""Every kind of transform inside linen's `TrainState` and `nnx.Optimizer` does what the plain loop does."""

import functools

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jopt
from jopt import schedules

STEPS = 4
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(16, 3)).astype(np.float32)

TRANSFORMS = {
    "sgd": lambda: jopt.sgd(0.1, momentum=0.9),
    "adamw": lambda: jopt.adamw(schedules.cosine_decay_schedule(1e-2, 10)),
    "lion": lambda: jopt.lion(1e-3),
    "lamb": lambda: jopt.lamb(1e-2, weight_decay=0.1),
    "muon": lambda: jopt.muon(1e-2),
    "partition": lambda: jopt.partition(
        [("**/bias", jopt.sgd(0.1)), ("gain", jopt.freeze()), (jopt.everything_else, jopt.adamw(1e-2))]
    ),
    "masked": lambda: jopt.chain(jopt.masked(jopt.trace(0.9), where="**/kernel"), jopt.scale(-0.05)),
    "freeze": lambda: jopt.chain(jopt.adam(1e-2), jopt.freeze(where="first/bias")),
    "accumulate": lambda: jopt.accumulate(jopt.adamw(1e-2), every=2),
    "ema": lambda: jopt.ema(jopt.adamw(1e-2), 0.9),
    "skip_nonfinite": lambda: jopt.skip_nonfinite(jopt.adamw(1e-2)),
    "monitor": lambda: jopt.monitor(jopt.chain(jopt.clip_by_global_norm(0.5), jopt.adamw(1e-2))),
    "foreign": lambda: jopt.chain(optax.trace(0.9), jopt.scale_by_adam(), jopt.scale_by_learning_rate(1e-2)),
    "inside optax": lambda: optax.chain(optax.clip_by_global_norm(0.5), jopt.adamw(1e-2)),
}
every_transform = pytest.mark.parametrize("name", TRANSFORMS)


PARAMS = {
    "first": {
        "kernel": np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32),
        "bias": np.zeros(3, np.float32),
    },
    "gain": np.ones(4, np.float32),
}


def start():
    return jax.tree.map(jnp.array, PARAMS)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones, (4,))
        return jnp.tanh(nn.Dense(3, name="first")(x * jnp.broadcast_to(gain, x.shape)))


class Nnx(nnx.Module):
    def __init__(self):
        self.first = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
        self.gain = nnx.Param(jnp.ones((4,)))
        state = nnx.state(self)
        nnx.replace_by_pure_dict(state, start())
        nnx.update(self, state)

    def __call__(self, x):
        return jnp.tanh(self.first(x * jnp.broadcast_to(self.gain[...], x.shape)))


def squared_error(prediction):
    return jnp.mean((prediction - Y) ** 2)


linen_gradient = jax.grad(lambda params: squared_error(Linen().apply({"params": params}, X)))


def nnx_gradient(model):
    return nnx.grad(lambda model: squared_error(model(X)))(model)


@functools.cache
def plain_loop(name):
    """The reference: init, update and optax's addition, nothing of Flax."""
    tx = TRANSFORMS[name]()

    def loss(params):
        x = X * jnp.broadcast_to(params["gain"], X.shape)
        return squared_error(jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None]))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = start()
    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
    return params


def pure(tree):
    """The arrays of a tree of nnx nodes, keyed by path."""
    return jopt.paths.flatten(nnx.to_pure_dict(tree))[0]


def assert_close(got, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=2e-5, atol=1e-6), got, expected
    )


@nnx.jit
def nnx_step(model, optimizer):
    optimizer.update(model, nnx_gradient(model))


def run_nnx(tx):
    model = Nnx()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(STEPS):
        nnx_step(model, optimizer)
    return model, optimizer


def train_state(tx):
    return TrainState.create(apply_fn=None, params=start(), tx=tx)


# The plain loop ----------------------------------------------------------------------------------


@every_transform
def test_a_train_state_equals_the_plain_loop(name):
    @jax.jit
    def step(state):
        return state.apply_gradients(grads=linen_gradient(state.params))

    state = train_state(TRANSFORMS[name]())
    for _ in range(STEPS):
        state = step(state)
    assert_close(state.params, plain_loop(name))
    assert int(state.step) == STEPS


@every_transform
def test_an_nnx_optimizer_equals_the_plain_loop(name):
    model, optimizer = run_nnx(TRANSFORMS[name]())
    assert_close(pure(nnx.state(model)), jopt.paths.flatten(plain_loop(name))[0])
    assert int(optimizer.step[...]) == STEPS


@pytest.mark.parametrize("name", ["adamw", "muon", "accumulate"])
def test_a_train_state_outside_jit_equals_the_plain_loop(name):
    gradient = jax.jit(linen_gradient)
    state = train_state(TRANSFORMS[name]())
    for _ in range(STEPS):
        state = state.apply_gradients(grads=gradient(state.params))
    assert_close(state.params, plain_loop(name))


def test_a_recreated_transform_does_not_retrace_a_train_state():
    traces = []

    @jax.jit
    def step(state):
        traces.append(1)
        return state.apply_gradients(grads=linen_gradient(state.params))

    state = step(train_state(jopt.adamw(1e-2)))
    state = step(state)
    # Two, because `step` starts as the Python integer 0, whose type is weak, and is an array from then on.
    assert len(traces) <= 2
    settled = len(traces)
    for _ in range(3):
        state = step(state.replace(tx=jopt.adamw(1e-2)))
    assert len(traces) == settled


def test_an_nnx_optimizer_traces_once():
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx_gradient(model))

    for _ in range(3):  # a re-run notebook cell makes model and optimizer anew
        model = Nnx()
        optimizer = nnx.Optimizer(model, jopt.adamw(1e-2), wrt=nnx.Param)
        step(model, optimizer)
        step(model, optimizer)
    assert len(traces) == 1


# What only Flax does -----------------------------------------------------------------------------


class Spy:
    """Records the paths that `init` and `update` are shown."""

    def __init__(self):
        self.seen = []

    def init(self, params):
        self.seen.append(list(jopt.paths.flatten(params)[0]))
        return ()

    def update(self, grads, state, params=None, **extra):
        self.seen += [list(jopt.paths.flatten(grads)[0]), list(jopt.paths.flatten(params)[0])]
        return grads, state


def test_nnx_shows_init_and_update_other_trees_but_the_same_paths():
    spy = Spy()
    model = Nnx()
    optimizer = nnx.Optimizer(model, spy, wrt=nnx.Param)
    optimizer.update(model, nnx_gradient(model))
    at_init, of_grads, of_params = map(set, spy.seen)
    assert at_init == of_grads == of_params == {"first/kernel", "first/bias", "gain"}


@pytest.mark.skipif(not hasattr(nnx, "List"), reason="flax 0.11 keeps layers in plain lists")
def test_layers_of_a_list_keep_their_own_state_beyond_ten():
    class Deep(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(12)])

    model = Deep(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, jopt.sgd(1.0, momentum=0.9), wrt=nnx.Param)

    def loss(model):  # the gradient of layer i is i everywhere
        return sum((jnp.sum(layer.kernel[...]) * float(i) for i, layer in enumerate(model.layers)), start=jnp.zeros(()))

    optimizer.update(model, nnx.grad(loss)(model))
    kept = optimizer.opt_state.slots["trace"]["trace"]
    for i in range(12):
        np.testing.assert_array_equal(np.asarray(kept[f"layers/{i}/kernel"][...]), np.full((3, 3), i, np.float32))


def test_frozen_parameters_have_no_entry_in_either_flax_state():
    tx = jopt.partition([("first/bias", jopt.freeze()), (jopt.everything_else, jopt.adam(1e-2))])
    of_linen = train_state(tx).opt_state
    of_nnx = nnx.Optimizer(Nnx(), tx, wrt=nnx.Param).opt_state
    for state in (of_linen, of_nnx):
        (slots,) = state.slots.values()
        assert set(slots["mu"]) == {"first/kernel", "gain"}


def test_hyperparameters_are_read_and_set_in_a_train_state():
    gradient = jax.jit(linen_gradient)
    state = train_state(jopt.accumulate(jopt.adamw(1e-2), every=1))
    state = state.apply_gradients(grads=gradient(state.params))
    assert float(jopt.hyperparams(state.opt_state)["learning_rate"]) == pytest.approx(1e-2)

    state = state.replace(opt_state=jopt.set_hyperparams(state.opt_state, learning_rate=0.0))
    after = state.apply_gradients(grads=gradient(state.params))
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


def test_hyperparameters_are_read_and_set_in_an_nnx_optimizer():
    model = Nnx()
    optimizer = nnx.Optimizer(model, jopt.adamw(1e-2), wrt=nnx.Param)
    nnx_step(model, optimizer)
    assert float(jopt.hyperparams(optimizer.opt_state)["learning_rate"][...]) == pytest.approx(1e-2)

    before = jax.tree.map(np.asarray, pure(nnx.state(model)))
    optimizer.opt_state = jopt.set_hyperparams(optimizer.opt_state, learning_rate=0.0)
    nnx_step(model, optimizer)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, pure(nnx.state(model))), before)
    optimizer.opt_state = jopt.set_hyperparams(optimizer.opt_state, learning_rate=0.1)
    nnx_step(model, optimizer)
    assert not np.array_equal(np.asarray(model.gain[...]), before["gain"])


def test_setting_a_hyperparameter_does_not_retrace_an_nnx_step():
    traces = []

    @nnx.jit
    def step(model, optimizer):
        traces.append(1)
        optimizer.update(model, nnx_gradient(model))

    model = Nnx()
    optimizer = nnx.Optimizer(model, jopt.sgd(0.1), wrt=nnx.Param)
    for rate in (0.1, 0.2, 0.3):
        step(model, optimizer)
        optimizer.opt_state = jopt.set_hyperparams(optimizer.opt_state, learning_rate=rate)
    assert len(traces) == 1


def test_averaged_parameters_of_an_nnx_optimizer_evaluate_in_the_model():
    model, optimizer = run_nnx(jopt.ema(jopt.sgd(0.1), 0.5))
    averaged = jopt.eval_params(optimizer.opt_state, nnx.state(model, nnx.Param))
    evaluated = nnx.merge(nnx.graphdef(model), averaged)
    kept = optimizer.opt_state.slots["average_params"]["averaged"]["first/kernel"][...]
    np.testing.assert_array_equal(np.asarray(evaluated.first.kernel[...]), np.asarray(kept))
    assert not np.array_equal(np.asarray(kept), np.asarray(model.first.kernel[...]))
    assert evaluated(X).shape == Y.shape


def test_the_loss_reaches_a_plateau_through_nnx_and_its_lack_is_named_by_linen():
    tx = jopt.chain(jopt.sgd(0.1), jopt.reduce_on_plateau(patience=1, factor=0.5))
    model = Nnx()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = nnx_gradient(model)
    for _ in range(3):
        optimizer.update(model, grads, value=jnp.ones(()))
    assert float(optimizer.opt_state.scalars["reduce_on_plateau"]["scale"][...]) == 0.25

    with pytest.raises(TypeError, match=r"reduce_on_plateau.*\['value'\].*value=\.\.\..*TrainState"):
        train_state(tx).apply_gradients(grads=start())


# Meshes ------------------------------------------------------------------------------------------


class Sharded(nnx.Module):
    """Parameters that live on the mesh; their gradients need no product, so that any mesh type will do."""

    def __init__(self, mesh):
        def place(x, *spec):
            return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

        rows = jax.random.normal(jax.random.key(0), (8, 16))
        self.kernel = nnx.Param(place(rows, "data", None))
        self.columns = nnx.Param(place(rows * 2, None, "data"))
        self.bias = nnx.Param(place(jnp.ones((16,)), "data"))
        self.gain = nnx.Param(
            place(
                jnp.ones(()),
            )
        )


def sharded_loss(model):
    leaves = (model.kernel, model.columns, model.bias)
    return sum((jnp.sum(jnp.sin(leaf[...])) for leaf in leaves), start=model.gain[...] ** 2)


def run_sharded(tx, mesh, auto_batches):
    """Three steps on a mesh; the arrays they end with, none of which has moved."""
    with jax.set_mesh(mesh):
        model = Sharded(mesh)
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        places = {path: leaf.sharding for path, leaf in pure(nnx.state(model)).items()}
        traces = []

        @nnx.jit
        def step(model, optimizer):
            traces.append(1)
            optimizer.update(model, nnx.grad(sharded_loss)(model))

        for _ in range(3):
            step(model, optimizer)
        assert len(traces) == 1
        trained = pure(nnx.state(model))
        kept = [flat for slots in optimizer.opt_state.slots.values() for flat in slots.values()]
        for flat in [trained] if auto_batches else [trained, *kept]:
            for path, leaf in flat.items():
                assert leaf[...].sharding.is_equivalent_to(places[path], leaf.ndim), path
        return {path: np.asarray(leaf) for path, leaf in trained.items()}


def also_slow(*quick):
    """All names, those not among `quick` marked slow."""
    names = ("sgd", "adamw", "lamb", "muon", "accumulate", "ema", "skip_nonfinite", "monitor")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", also_slow("adamw", "muon", "accumulate", "monitor"))
def test_sharded_parameters_of_nnx_train_and_stay_where_they_are(name, kind):
    # On an Auto mesh a trace knows no shardings, so that matrices which lie differently share a batch,
    # and XLA chooses where its pieces end.
    auto_batches = name == "muon" and kind == AxisType.Auto
    one, eight = (jax.make_mesh((n,), ("data",), axis_types=(kind,), devices=jax.devices()[:n]) for n in (1, 8))
    got = run_sharded(TRANSFORMS[name](), eight, auto_batches)
    assert_close(got, run_sharded(TRANSFORMS[name](), one, auto_batches))
