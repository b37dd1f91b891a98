"""ResNet and Transformer, and what they are made of: strided convolution, normalisation, attention."""

import pytest

pytest.importorskip("flax")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jopt
from jopt.models import CNN, MLP, ResNet, Transformer
from jopt.models.attention import Attention, attend, rotate
from jopt.models.convolution import convolve
from jopt.models.normalization import EPSILON, MEMORY, Norm

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
ROWS = jax.random.normal(jax.random.key(2), (3, 6, 8))
SYMBOLS = jax.random.randint(jax.random.key(3), (3, 6), 0, 11)
ORDER = np.array([3, 0, 5, 1, 4, 2])


def random_params(model, x, *args, deviation=0.3):
    """Variables away from their start, where the branches that begin at zero say something; no compilation."""
    numbers = np.random.default_rng(0)

    def draw(path, leaf):
        start = 1.0 if path[-1].key in ("scale", "var") else 0.0
        spread = deviation if path[0].key == "params" else 0.0
        return jnp.asarray(start + spread * numbers.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(lambda x: model.init(KEY, x, *args), x))


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def narrow(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree)


# ---- Convolution.


@pytest.mark.parametrize(
    ("kernel", "stride"), [((3, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 1), (2, 2)), ((2, 4), (3, 1)), ((3, 5), (2, 3))]
)
def test_a_strided_convolution_and_its_gradients_are_those_of_lax(kernel, stride):
    x, w = IMAGES[:2, :7], jax.random.normal(KEY, (*kernel, 3, 4))
    geometry = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}

    def loss(function):
        return lambda x, w: jnp.sin(function(x, w, stride, "SAME", **geometry)).sum()

    ours = jax.jit(jax.value_and_grad(loss(convolve), argnums=(0, 1)))(x, w)
    expected = jax.jit(jax.value_and_grad(loss(jax.lax.conv_general_dilated), argnums=(0, 1)))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


def test_on_cpu_no_convolution_is_left_in_a_scanned_training_step():
    """There its gradient would run some fifty times slower."""
    model = ResNet((4, 8), 2, norm="none")
    params = jax.eval_shape(model.init, KEY, IMAGES)["params"]

    def train(params):
        def step(params, _):
            grads = jax.grad(lambda p: (model.apply({"params": p}, IMAGES) ** 2).sum())(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), None

        return jax.lax.scan(step, params, length=3)[0]

    lowered = jax.jit(train).lower(params).as_text()
    assert "stablehlo.dot_general" in lowered
    assert "stablehlo.convolution" not in lowered


# ---- Normalisation.


@pytest.mark.parametrize(
    ("kind", "shape", "axes"),
    [("batch", (4, 8, 8, 16), (0, 1, 2)), ("group", (4, 64, 2, 8), (1, 3)), ("layer", (4, 8, 8, 16), (3,))],
)
def test_norm_leaves_mean_0_and_variance_1_then_scales(kind, shape, axes):
    x = 3 * jax.random.normal(KEY, (4, 8, 8, 16)) + jnp.arange(16.0).reshape(1, 1, 1, 16)
    model = Norm(kind, train=True)
    variables = random_params(model, x)
    grouped = np.asarray(x, np.float64).reshape(shape)
    normal = (grouped - grouped.mean(axes, keepdims=True)) / np.sqrt(grouped.var(axes, keepdims=True) + EPSILON)
    scale, bias = (np.asarray(variables["params"][name]) for name in ("scale", "bias"))
    expected = normal.reshape(x.shape) * scale + bias
    y, _ = model.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_evaluates_with_the_running_statistics():
    x = 3 * ROWS + 1
    variables = Norm("batch").init(KEY, x)
    _, moved = Norm("batch", train=True).apply(variables, x, mutable=["batch_stats"])
    mean, var = moved["batch_stats"]["mean"], moved["batch_stats"]["var"]
    np.testing.assert_allclose(mean, (1 - MEMORY) * x.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(var, MEMORY + (1 - MEMORY) * x.var((0, 1)), rtol=1e-5)
    y = Norm("batch").apply({**variables, **moved}, x)
    expected = (np.asarray(x) - np.asarray(mean)) / np.sqrt(np.asarray(var) + EPSILON)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_init_in_training_mode_leaves_the_running_statistics_alone():
    variables = Norm("batch", train=True).init(KEY, 3 * ROWS + 1)
    assert (variables["batch_stats"]["mean"] == 0).all()


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_norm_computes_in_float32_for_half_precision(kind):
    x = (300 + ROWS).astype(jnp.float16)  # the sum of squares overflows float16
    model = Norm(kind, train=True)
    variables = model.init(KEY, x)
    y, _ = model.apply(variables, x, mutable=["batch_stats"])
    expected, _ = model.apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=2e-3)


def test_norm_none_has_no_parameters():
    y, variables = Norm("none").init_with_output(KEY, ROWS)
    assert variables == {}
    np.testing.assert_array_equal(y, ROWS)


# ---- Attention.


@pytest.mark.parametrize("causal", [False, True])
def test_attend_is_its_formula(causal):
    q, k, v = (np.asarray(jax.random.normal(jax.random.key(i), (2, 3, 6, 4)), np.float64) for i in range(3))
    agreement = q @ np.swapaxes(k, -1, -2) / np.sqrt(4)
    if causal:
        agreement[..., ~np.tri(6, dtype=bool)] = -np.inf
    weights = np.exp(agreement - agreement.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    ours = attend(*(jnp.asarray(a, jnp.float32) for a in (q, k, v)), causal)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_attention_with_one_head_is_attend_between_its_kernels():
    model = Attention(heads=1)
    variables = random_params(model, ROWS)
    kernel = {name: entry["kernel"] for name, entry in variables["params"].items()}
    q, k, v = ((ROWS @ kernel[name])[:, None] for name in ("query", "key", "value"))
    expected = attend(q, k, v)[:, 0] @ kernel["out"] + variables["params"]["out"]["bias"].reshape(1, 1, -1)
    np.testing.assert_allclose(model.apply(variables, ROWS), expected, rtol=1e-4, atol=1e-4)


def test_heads_do_not_mix_before_the_last_kernel():
    model = Attention(heads=2)
    params = random_params(model, ROWS)["params"]
    params["out"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    before = model.apply({"params": params}, ROWS)
    params["key"] = {"kernel": params["key"]["kernel"].at[:, 4:].add(1.0)}  # of the second head
    after = model.apply({"params": params}, ROWS)
    np.testing.assert_array_equal(before[..., :4], after[..., :4])
    assert not np.allclose(before[..., 4:], after[..., 4:])


@pytest.mark.parametrize("causal", [False, True])
def test_attention_without_positions_follows_a_permutation_only_if_it_is_not_causal(causal):
    model = Attention(heads=2, causal=causal)
    variables = random_params(model, ROWS)
    ours, expected = model.apply(variables, ROWS[:, ORDER]), model.apply(variables, ROWS)[:, ORDER]
    assert np.allclose(ours, expected, atol=1e-4) is not causal


def test_rotation_keeps_lengths_and_makes_agreement_depend_on_the_distance_alone():
    q, k = (jnp.broadcast_to(jax.random.normal(jax.random.key(i), (8,)), (1, 1, 9, 8)) for i in (4, 5))
    turned = rotate(q)
    np.testing.assert_array_equal(turned[0, 0, 0], q[0, 0, 0])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(q, axis=-1), rtol=1e-5)
    agreement = np.asarray(turned @ rotate(k).swapaxes(-1, -2))[0, 0]
    for distance in range(-8, 9):
        np.testing.assert_allclose(np.diagonal(agreement, distance), agreement.diagonal(distance)[0], rtol=1e-4)
    assert np.ptp(agreement[0]) > 0.1


def test_rotary_attention_knows_the_order_and_no_place():
    model = Attention(heads=2, causal=True, rotary=True)
    variables = random_params(model, ROWS)
    y = model.apply(variables, ROWS)
    assert not np.allclose(model.apply(variables, ROWS[:, ORDER]), y[:, ORDER], atol=1e-2)
    same = jnp.broadcast_to(ROWS[:, :1], ROWS.shape)  # what is the same everywhere stays so
    z = model.apply(variables, same)
    np.testing.assert_allclose(z, jnp.broadcast_to(z[:, :1], z.shape), atol=1e-4)


# ---- ResNet.


def test_a_resnet_has_the_parameters_of_its_drawing():
    first = 9 * 3 * 16
    blocks = (2 * 9 * 16 * 16 + 4 * 16) + (9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 2 * 16 + 2 * 32)
    attention = 4 * 32 * 32 + 32 + 2 * 32 + 16 * 32  # kernels, bias, norm, 4 × 4 positions
    last = 2 * 32 + 32 * 10 + 10
    plain, attentive = (ResNet((16, 32), 10, attention=on) for on in (False, True))
    assert size(jax.eval_shape(plain.init, KEY, IMAGES)["params"]) == first + blocks + last
    assert size(jax.eval_shape(attentive.init, KEY, IMAGES)["params"]) == first + blocks + attention + last


@pytest.mark.parametrize(
    ("attention", "pixels"),
    [(False, {}), (True, {1: 16}), ((0,), {0: 64}), ((-1, 0), {0: 64, 1: 16}), ((), {})],
)
def test_attention_sits_where_it_was_asked_for(attention, pixels):
    variables = jax.eval_shape(ResNet((4, 8), 2, attention=attention).init, KEY, IMAGES)
    found = {stage: variables["params"].get(f"stage_{stage}_attention_positions") for stage in (0, 1)}
    assert {stage: p["embedding"].shape[0] for stage, p in found.items() if p is not None} == pixels


def test_a_resnet_starts_as_its_shortcuts():
    deep, shallow = ResNet((8,), 3, blocks=3, attention=True), ResNet((8,), 3, blocks=1)
    variables = jax.jit(deep.init)(KEY, IMAGES)
    first = {
        collection: {name: v for name, v in tree.items() if "block_1" not in name and "block_2" not in name}
        for collection, tree in variables.items()
    }
    np.testing.assert_allclose(deep.apply(variables, IMAGES), shallow.apply(first, IMAGES), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_a_resnet_learns_with_every_norm(norm):
    model = ResNet((8,), 3, norm=norm, activation="prelu")
    variables = model.init(KEY, IMAGES)
    assert ("batch_stats" in variables) == (norm == "batch")
    statistics = {name: tree for name, tree in variables.items() if name != "params"}
    tx, labels = jopt.adam(0.02), jnp.array([0, 1, 2, 0])

    def loss(params):
        logits, _ = model.apply({"params": params, **statistics}, IMAGES, train=True, mutable=list(statistics))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        return jopt.apply_gradients(tx, grads, state, params), value

    params = variables["params"]
    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=20))((params, tx.init(params)))
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(("positions", "invariant"), [("none", True), ("learned", False)])
def test_pixels_are_a_set_to_attention_unless_their_positions_are_learned(positions, invariant):
    model = ResNet((8,), 5, kernel=1, norm="layer", attention=True, heads=2, positions=positions)
    x = IMAGES[:, :3, :2]
    variables = random_params(model, x)
    permuted = x.reshape(4, 6, 3)[:, ORDER].reshape(x.shape)
    y, z = model.apply(variables, x), model.apply(variables, permuted)
    assert np.allclose(y, z, rtol=1e-4, atol=1e-4) is invariant


def test_images_of_odd_sides_pass():
    y = jax.eval_shape(lambda x: ResNet((4, 4, 8), 2, attention=True).init_with_output(KEY, x)[0], IMAGES[:, :7, :5])
    assert y.shape == (4, 2)


# ---- Transformer.


def test_a_transformer_has_the_parameters_of_its_drawing():
    block = 4 * 16 * 16 + 16 + (16 * 64 + 64) + (64 * 16 + 16) + 2 * 2 * 16
    common = 11 * 16 + 2 * block + 2 * 16
    model = Transformer(16, 11, vocabulary=11)
    sizes = {
        "plain": common + 16 * 11 + 11,
        "tied": common,
        "learned": common + 16 * 11 + 11 + 256 * 16,
    }
    others = {"plain": {}, "tied": {"tied": True}, "learned": {"positions": "learned"}}
    assert {
        n: size(jax.eval_shape(model.clone(**kw).init, KEY, SYMBOLS)["params"]) for n, kw in others.items()
    } == sizes


@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
def test_nothing_leaks_from_the_future(positions):
    model = Transformer(8, 11, heads=2, vocabulary=11, per_step=True, positions=positions)
    variables = random_params(model, SYMBOLS)
    before = model.apply(variables, SYMBOLS)
    after = model.apply(variables, SYMBOLS.at[:, 4].add(1) % 11)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (np.abs(before - after)[:, 4:].max(axis=(0, 2)) > 1e-3).all()


def test_without_causality_every_step_sees_the_future():
    model = Transformer(8, 11, heads=2, vocabulary=11, per_step=True, causal=False)
    variables = random_params(model, SYMBOLS)
    change = np.abs(model.apply(variables, SYMBOLS) - model.apply(variables, SYMBOLS.at[:, 5].add(1) % 11))
    assert (change.max(axis=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize(("positions", "invariant"), [("none", True), ("learned", False), ("rotary", False)])
def test_pooled_logits_of_a_set_ignore_its_order(positions, invariant):
    model = Transformer(8, 4, heads=2, causal=False, positions=positions)
    variables = random_params(model, ROWS)
    y, z = model.apply(variables, ROWS), model.apply(variables, ROWS[:, ORDER])
    assert np.allclose(y, z, rtol=1e-4, atol=1e-4) is invariant


def test_pooled_logits_are_those_of_the_mean_step():
    pooled, every = (Transformer(8, 4, per_step=per_step) for per_step in (False, True))
    variables = random_params(pooled, ROWS)
    np.testing.assert_allclose(
        pooled.apply(variables, ROWS), every.apply(variables, ROWS).mean(axis=1), rtol=1e-4, atol=1e-4
    )


def test_tied_logits_are_products_with_the_embedding():
    model = Transformer(8, 11, layers=0, vocabulary=11, tied=True, per_step=True)
    params = model.init(KEY, SYMBOLS)["params"]
    assert sorted(params) == ["embed", "norm"]
    embedding = params["embed"]["embedding"]
    normal = Norm("layer").apply({"params": params["norm"]}, embedding[SYMBOLS])
    np.testing.assert_allclose(model.apply({"params": params}, SYMBOLS), normal @ embedding.T, rtol=1e-5, atol=1e-5)


def test_a_transformer_starts_as_no_layers():
    deep, none = (Transformer(8, 4, layers=layers) for layers in (2, 0))
    variables = deep.init(KEY, ROWS)
    shallow = {"params": {n: v for n, v in variables["params"].items() if not n.startswith("block")}}
    np.testing.assert_array_equal(deep.apply(variables, ROWS), none.apply(shallow, ROWS))


def test_rotary_positions_reach_beyond_the_length_trained_on():
    model = Transformer(8, 11, vocabulary=11, per_step=True)
    variables = random_params(model, SYMBOLS)
    longer = jnp.concatenate([SYMBOLS, SYMBOLS], axis=1)
    np.testing.assert_allclose(
        model.apply(variables, longer)[:, :6], model.apply(variables, SYMBOLS), rtol=1e-4, atol=1e-4
    )


def test_first_weights_of_attention_and_perceptron_have_their_deviation():
    params = Transformer(256, 4, layers=1, heads=8).init(KEY, ROWS)["params"]["block_0"]
    for name in ("query", "key", "value"):
        assert np.std(params["attention"][name]["kernel"]) == pytest.approx(1 / 16, rel=0.02)
    assert np.std(params["hidden"]["kernel"]) == pytest.approx(np.sqrt(2 / 256), rel=0.02)
    assert not params["attention"]["out"]["kernel"].any()
    assert not params["out"]["kernel"].any()


# ---- All.


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (ResNet((4, 8), 3, attention=True), IMAGES),
        (ResNet((4, 8), 3, norm="none"), IMAGES),
        (Transformer(8, 11, vocabulary=11, positions="learned", tied=True), SYMBOLS),
        (Transformer(8, 3), ROWS),
    ],
    ids=["resnet", "resnet-without-norm", "tied", "transformer"],
)
def test_one_glob_finds_all_parameters_of_a_kind(model, x):
    variables = jax.eval_shape(model.init, KEY, x)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert names <= {"kernel", "bias", "scale", "embedding"}
    assert "kernel" in names


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (MLP((8,), 3, batch_norm=True), ROWS),
        (CNN((4,), 3, batch_norm=True), IMAGES),
        (ResNet((8,), 3, attention=True, heads=2), IMAGES),
        (ResNet((8,), 3, norm="group"), IMAGES),
        (Transformer(16, 11, vocabulary=11, positions="learned", tied=True), SYMBOLS),
        (Transformer(16, 3), ROWS),
    ],
    ids=["mlp", "cnn", "resnet", "resnet-group", "tied", "transformer"],
)
def test_half_precision_stays_half_and_near(model, x):
    """Parameters and input in bfloat16, running statistics in float32: what `fit(precision="bf16")` makes of it."""
    variables = random_params(model, x, deviation=0.1)
    half = {**variables, "params": narrow(variables["params"])}
    small = x if x.dtype == jnp.int32 else narrow(x)
    train = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    y, moved = train(half, small)
    expected, _ = train(variables, x)
    assert y.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(moved))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.03 * np.abs(expected).max() + 0.03)


@pytest.mark.slow
def test_a_tiny_transformer_reads_english_better_than_letter_frequencies():
    from jopt.data import english_text, windows

    text = english_text()
    symbols = len(text.vocabulary)
    pieces = windows(text.train, 48)
    order = np.random.default_rng(0).permutation(len(pieces[0]))[: 160 * 32]
    x, y = (jnp.asarray(a[order]).reshape(160, 32, 48) for a in pieces)
    model = Transformer(48, symbols, layers=2, vocabulary=symbols, per_step=True, tied=True)
    tx = jopt.adamw(5e-3)

    def loss(params, batch):
        logits = model.apply({"params": params}, batch[0])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    def step(carry, batch):
        params, state = carry
        return jopt.apply_gradients(tx, jax.grad(loss)(params, batch), state, params), None

    params = model.init(KEY, x[0])["params"]
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, (x, y)))((params, tx.init(params)))
    shares = np.bincount(text.train, minlength=symbols) / len(text.train)
    unigram = -np.log(shares[text.test] + 1e-9).mean()
    test = tuple(jnp.asarray(a[:200]) for a in windows(text.test, 48))
    assert loss(params, test) < 0.75 * unigram
