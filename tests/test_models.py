"""The models: shapes, the size of their first weights, training switches, and both ways of Flax."""

import subprocess
import sys

import pytest

pytest.importorskip("flax")

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from flax.training.train_state import TrainState

import jopt
from jopt.models import ACTIVATIONS, CELLS, CNN, MLP, RNN, ResNet, Transformer, matching_initializer
from jopt.models.activations import LEAKY_SLOPE, PRELU_SLOPE

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
ROWS = IMAGES[..., 0]
SYMBOLS = jnp.arange(12).reshape(2, 6)


def init(model, x):
    return model.init(KEY, x)  # not under jit: op by op, most of it is compiled once for all tests


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("model", "x", "shape"),
    [
        (MLP((16, 8), 10), ROWS, (4, 10)),
        (CNN((4, 8), 10, dense=(16,)), IMAGES, (4, 10)),
        *[(RNN((6,), 10, cell=cell), ROWS, (4, 10)) for cell in CELLS],
        (RNN((8,), 12, per_step=True, vocabulary=12), SYMBOLS, (2, 6, 12)),
        (ResNet((4, 8), 10, blocks=(1, 2), attention=True), IMAGES, (4, 10)),
        (Transformer(8, 10), ROWS, (4, 10)),
        (Transformer(8, 12, per_step=True, vocabulary=12, tied=True), SYMBOLS, (2, 6, 12)),
    ],
    ids=lambda v: getattr(v, "cell", type(v).__name__),
)
def test_logits_have_the_shape_of_the_labels_plus_one_axis(model, x, shape, activation):
    # Traced only: 63 compilations would take a minute, and the values are the business of other tests.
    y, variables = jax.eval_shape(model.clone(activation=activation).init_with_output, KEY, x)
    assert y.shape == shape
    assert y.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_what_its_name_says(activation):
    x = jnp.linspace(-3, 3, 7)
    expected = {
        "relu": lambda x: np.maximum(x, 0),
        "leaky_relu": lambda x: np.where(x > 0, x, LEAKY_SLOPE * x),
        "prelu": lambda x: np.where(x > 0, x, PRELU_SLOPE * x),
        "elu": lambda x: np.where(x > 0, x, np.exp(x) - 1),
        "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "sigmoid": lambda x: sigmoid(x),
        "tanh": np.tanh,
    }[activation]
    model = MLP((1,), 1, activation=activation, kernel_init=nn.initializers.ones)
    y, _ = model.init_with_output(KEY, x[:, None])
    np.testing.assert_allclose(y[:, 0], expected(np.asarray(x)), rtol=1e-5, atol=1e-6)


def expected_deviation(activation, n_in, n_out):
    if activation in ("sigmoid", "tanh"):
        return np.sqrt(2 / (n_in + n_out))
    slope = {"leaky_relu": LEAKY_SLOPE, "prelu": PRELU_SLOPE}.get(activation, 0.0)
    return np.sqrt(2 / ((1 + slope**2) * n_in))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_first_weights_have_the_deviation_of_the_formula(activation):
    mlp = init(MLP((600,), 10, activation=activation), jnp.ones((1, 400)))["params"]
    assert np.std(mlp["hidden_0"]["kernel"]) == pytest.approx(expected_deviation(activation, 400, 600), rel=0.01)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_fans_of_a_window_and_of_a_gate_are_their_own(activation):
    cnn = init(CNN((32, 48), 10, activation=activation), IMAGES)["params"]
    expected = expected_deviation(activation, 9 * 32, 9 * 48)
    assert np.std(cnn["conv_1"]["kernel"]) == pytest.approx(expected, rel=0.02)
    gru = init(RNN((24,), 10, cell="gru", activation=activation), jnp.ones((1, 2, 1500)))["params"]
    reset, update, new = np.split(np.asarray(gru["input_0"]["kernel"]), 3, axis=1)
    assert np.std(new) == pytest.approx(expected_deviation(activation, 1500, 24), rel=0.02)
    assert np.std([reset, update]) == pytest.approx(expected_deviation("sigmoid", 1500, 24), rel=0.02)


def test_the_output_layer_is_xavier_for_every_activation():
    params = init(MLP((500,), 300, activation="relu"), jnp.ones((1, 8)))["params"]
    assert np.std(params["output"]["kernel"]) == pytest.approx(np.sqrt(2 / 800), rel=0.01)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP((4,), 2), ROWS),
        (CNN((4,), 2, dense=(4,)), IMAGES),
        (RNN((4,), 2, cell="lstm"), ROWS),
        (ResNet((4, 8), 2, attention=True), IMAGES),
        (Transformer(8, 2, layers=1), ROWS),
    ],
)
def test_kernel_init_replaces_every_initialiser_of_a_kernel(model, x):
    params = init(model.clone(kernel_init=nn.initializers.constant(0.125)), x)["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        assert path[-1].key != "kernel" or (leaf == 0.125).all(), path


def test_recurrent_kernels_are_orthogonal_gate_by_gate():
    params = init(RNN((6,), 2, cell="lstm"), ROWS)["params"]
    for gate in np.split(np.asarray(params["recurrent_0"]["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(6), atol=1e-5)


def test_the_forget_gate_of_an_lstm_starts_open():
    params = init(RNN((3,), 2, cell="lstm"), ROWS)["params"]
    np.testing.assert_array_equal(params["input_0"]["bias"], [0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0])


def test_prelu_learns_its_slope_layer_by_layer():
    model = MLP((8, 8), 2, activation="prelu")
    params = init(model, ROWS)["params"]
    assert float(params["slope_0"]) == float(params["slope_1"]) == PRELU_SLOPE
    grads = jax.grad(lambda p: (model.apply({"params": p}, ROWS) ** 2).sum())(params)
    assert grads["slope_0"] != 0
    assert grads["slope_1"] != 0
    assert "slope_0" not in init(MLP((8,), 2), ROWS)["params"]


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP((64,), 3, dropout=0.5), ROWS),
        (CNN((4,), 3, dropout=0.5), IMAGES),
        (RNN((64,), 3, dropout=0.5), ROWS),
        (ResNet((16,), 3, dropout=0.5, norm="group"), IMAGES),
        (Transformer(16, 3, dropout=0.5), ROWS),
    ],
)
def test_dropout_works_in_training_only(model, x):
    variables = init(model, x)
    evaluated = [model.apply(variables, x) for _ in range(2)]
    trained = [model.apply(variables, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2)]
    np.testing.assert_array_equal(*evaluated)
    np.testing.assert_array_equal(trained[0], trained[1])
    assert not np.allclose(trained[0], trained[2])
    assert not np.allclose(trained[0], evaluated[0])


@pytest.mark.parametrize(
    ("model", "x"), [(MLP((8,), 3, batch_norm=True), ROWS), (CNN((8,), 3, batch_norm=True), IMAGES)]
)
def test_batch_norm_keeps_running_statistics(model, x):
    variables = init(model, x)
    y, new = model.apply(variables, 3 * x + 1, train=True, mutable=["batch_stats"])
    before, after = variables["batch_stats"]["norm_0"], new["batch_stats"]["norm_0"]
    assert not np.allclose(before["mean"], after["mean"])
    assert not np.allclose(before["var"], after["var"])
    assert not np.allclose(y, model.apply(variables, 3 * x + 1))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_cell(cell, x, w, b, u):
    """The last state of a recurrent layer, in float64, one textbook equation a line."""
    n = u.shape[0]
    h, c = np.zeros((len(x), n)), np.zeros((len(x), n))
    for x_t in np.swapaxes(x, 0, 1):
        a, r = x_t @ w + b, h @ u
        if cell == "simple":
            h = np.tanh(a + r)
        elif cell == "gru":
            reset, z = sigmoid(a[:, :n] + r[:, :n]), sigmoid(a[:, n : 2 * n] + r[:, n : 2 * n])
            h = (1 - z) * np.tanh(a[:, 2 * n :] + reset * r[:, 2 * n :]) + z * h
        else:
            i, f, o = (sigmoid((a + r)[:, k * n : (k + 1) * n]) for k in range(3))
            c = f * c + i * np.tanh((a + r)[:, 3 * n :])
            h = o * np.tanh(c)
    return h


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_is_its_textbook_equations(cell):
    model = RNN((5,), 3, cell=cell)
    params = jax.tree.map(lambda p: p + 0.1, init(model, ROWS)["params"])
    w, b = params["input_0"]["kernel"], params["input_0"]["bias"]
    state = numpy_cell(cell, *(np.asarray(a, np.float64) for a in (ROWS, w, b, params["recurrent_0"]["kernel"])))
    expected = state @ np.asarray(params["output"]["kernel"], np.float64) + np.asarray(params["output"]["bias"])
    np.testing.assert_allclose(model.apply({"params": params}, ROWS), expected, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_the_output_at_the_last_step_is_the_output_of_the_last_state(cell):
    last, every = (RNN((5,), 3, cell=cell, per_step=per_step) for per_step in (False, True))
    variables = init(last, ROWS)
    np.testing.assert_allclose(every.apply(variables, ROWS)[:, -1], last.apply(variables, ROWS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
def test_the_convolution_is_that_of_flax(kernel):
    model = CNN((6,), 2, kernel=kernel, pool=())
    params = init(model, IMAGES)["params"]
    native = nn.Conv(6, (kernel, kernel)).apply({"params": params["conv_0"]}, IMAGES)
    expected = nn.relu(native).reshape(4, -1) @ params["output"]["kernel"]
    np.testing.assert_allclose(model.apply({"params": params}, IMAGES), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MLP((4,), 2, activation="swash").init(KEY, ROWS), ["MLP", "'swash'", "leaky_relu", "Pass"]),
        (lambda: CNN((4,), 2, activation="swash").init(KEY, IMAGES), ["CNN", "'swash'", "leaky_relu", "Pass"]),
        (lambda: RNN((4,), 2, activation="swash").init(KEY, ROWS), ["RNN", "'swash'", "leaky_relu", "Pass"]),
        (lambda: RNN((4,), 2, cell="grue").init(KEY, ROWS), ["RNN", "'grue'", "simple, gru, lstm", "Pass"]),
        (lambda: matching_initializer("swash"), ["matching_initializer", "'swash'", "relu", "Pass"]),
        (lambda: CNN((4,), 2).init(KEY, ROWS), ["CNN", "(4, 8, 8)", "channels", "[..., None]"]),
        (lambda: RNN((4,), 2).init(KEY, SYMBOLS), ["RNN", "(2, 6)", "(batch, time, channels)", "vocabulary="]),
        (lambda: RNN((4,), 2, vocabulary=9).init(KEY, ROWS), ["RNN", "vocabulary=9", "integers", "Drop"]),
        (lambda: ResNet((4,), 2, activation="swash").init(KEY, IMAGES), ["ResNet", "'swash'", "leaky_relu", "Pass"]),
        (lambda: ResNet((4,), 2, norm="bach").init(KEY, IMAGES), ["ResNet", "'bach'", "batch, group", "Pass"]),
        (lambda: ResNet((4,), 2, positions="here").init(KEY, IMAGES), ["ResNet", "'here'", "learned, none", "Pass"]),
        (lambda: ResNet((4,), 2).init(KEY, ROWS), ["ResNet", "(4, 8, 8)", "channels", "[..., None]"]),
        (lambda: ResNet((4, 8), 2, blocks=(1,)).init(KEY, IMAGES), ["ResNet", "blocks=(1,)", "2 stages", "Pass"]),
        (lambda: ResNet((4,), 2, blocks=0).init(KEY, IMAGES), ["ResNet", "blocks=0", "from 1 up", "Pass"]),
        (
            lambda: ResNet((4,), 2, attention=(1,)).init(KEY, IMAGES),
            ["ResNet", "attention=(1,)", "from -1 to 0", "Pass"],
        ),
        (lambda: ResNet((6,), 2, attention=True).init(KEY, IMAGES), ["ResNet", "heads=4", "6 channels", "Pass"]),
        (lambda: Transformer(8, 2, activation="swash").init(KEY, ROWS), ["Transformer", "'swash'", "gelu", "Pass"]),
        (lambda: Transformer(8, 2, positions="here").init(KEY, ROWS), ["Transformer", "'here'", "rotary", "Pass"]),
        (lambda: Transformer(8, 2, heads=3).init(KEY, ROWS), ["Transformer", "heads=3", "8 channels", "Pass"]),
        (lambda: Transformer(8, 2, heads=8).init(KEY, ROWS), ["Transformer", "heads=8", "even", "heads=4"]),
        (lambda: Transformer(8, 2).init(KEY, SYMBOLS), ["Transformer", "(2, 6)", "(batch, time, channels)"]),
        (lambda: Transformer(8, 2, vocabulary=9).init(KEY, ROWS), ["Transformer", "vocabulary=9", "integers", "Drop"]),
        (
            lambda: Transformer(8, 2, vocabulary=9, tied=True).init(KEY, SYMBOLS),
            ["Transformer", "vocabulary=9", "outputs=2", "tied=False"],
        ),
        (
            lambda: Transformer(8, 2, positions="learned", length=7).init(KEY, ROWS),
            ["Transformer", "8 steps", "length=7", "rotary"],
        ),
    ],
)
def test_wrong_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert [word for word in words if word not in str(caught.value)] == []


def losses_fall(losses):
    return losses[-1] < 0.5 * losses[0]


def test_a_model_trains_in_a_linen_train_state():
    model = MLP((16,), 3)
    labels = jnp.array([0, 1, 2, 0])
    state = TrainState.create(apply_fn=model.apply, params=init(model, ROWS)["params"], tx=jopt.adam(0.05))

    def loss(params):
        logits = state.apply_fn({"params": params}, ROWS)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = jax.jit(lambda s: (s.apply_gradients(grads=jax.grad(loss)(s.params)), loss(s.params)))
    losses = []
    for _ in range(10):
        state, value = step(state)
        losses.append(float(value))
    assert losses_fall(losses)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP((16,), 3, activation="prelu", dropout=0.1, batch_norm=True), ROWS),
        (CNN((4,), 3, dense=(8,)), IMAGES),
        (RNN((8,), 3, cell="gru"), ROWS),
        (ResNet((8,), 3, attention=True), IMAGES),
        (Transformer(8, 3, layers=1), ROWS),
    ],
)
def test_a_model_trains_in_nnx(model, x):
    labels = jnp.array([0, 1, 2, 0])
    bridged = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0, dropout=1)).lazy_init(x)
    optimizer = nnx.Optimizer(bridged, jopt.adam(0.05), wrt=nnx.Param)

    def loss(bridged):
        logits = bridged(x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @nnx.jit
    def step(bridged, optimizer):
        value, grads = nnx.value_and_grad(loss)(bridged)
        optimizer.update(bridged, grads)
        return value

    losses = [float(step(bridged, optimizer)) for _ in range(10)]
    assert losses_fall(losses)


def test_without_flax_the_import_says_what_to_install():
    program = (
        "import sys, jopt\n"
        "assert 'flax' not in sys.modules, 'import jopt loads flax'\n"
        "sys.modules['flax'] = None\n"
        "try:\n    import jopt.models\n"
        "except ImportError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'pip install "jopt[flax]"' in done.stdout
