"""Augmentations: what every step keeps, and what each one does."""

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jopt import data

KEY = jax.random.key(7)
RANDOM = np.random.RandomState(0)
GREY = jnp.asarray(RANDOM.uniform(size=(16, 8, 10)), jnp.float32)
COLOUR = jnp.asarray(RANDOM.uniform(size=(16, 8, 10, 3)), jnp.float32)
BYTES = jnp.asarray(RANDOM.randint(0, 256, (16, 8, 10)), jnp.uint8)
KINDS = {"grey": GREY, "colour": COLOUR, "bytes": BYTES, "half": GREY.astype(jnp.bfloat16)}
Y = jnp.asarray(np.arange(16) % 4)

IMAGE_STEPS = (
    data.Shift(2),
    data.Crop(2),
    data.Crop(1, size=(6, 5)),
    data.Flip(),
    data.Rotate(20.0),
    data.Rotate(20.0, fill=0.0),
    data.Noise(3.0),
    data.Cutout(3),
)
LABEL_STEPS = (
    data.Mixup(0.4, classes=4),
    data.Mixup(1.0, classes=4),
    data.Cutmix(1.0, classes=4),
    data.LabelSmoothing(0.2, classes=4),
)
every_image_step = pytest.mark.parametrize("step", IMAGE_STEPS, ids=repr)
every_label_step = pytest.mark.parametrize("step", LABEL_STEPS, ids=repr)
every_step = pytest.mark.parametrize("step", [*IMAGE_STEPS, *LABEL_STEPS], ids=repr)
# Compiling takes nearly all of the time here: three kinds of steps stand for all in the fast tests.
QUICK = (data.Shift(2), data.Cutout(3), data.Cutmix(1.0, classes=4))
some_in_fast_tests = pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=() if s in QUICK else pytest.mark.slow) for s in (*IMAGE_STEPS, *LABEL_STEPS)],
    ids=repr,
)
every_kind = pytest.mark.parametrize("kind", KINDS)


def eager(step, key, x, y=Y):
    """The images that come out of any step."""
    return step(key, (x, y))[0] if step in LABEL_STEPS else step(key, x)


run = jax.jit(eager, static_argnums=0)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@every_step
@every_kind
def test_shape_and_dtype_are_kept(step, kind):
    x = KINDS[kind]
    out = jax.eval_shape(functools.partial(eager, step), KEY, x)
    expected = (16, 6, 5, *x.shape[3:]) if getattr(step, "size", None) == (6, 5) else x.shape
    assert out.shape == expected
    assert out.dtype == x.dtype


@every_step
@pytest.mark.parametrize("kind", ["grey", pytest.param("bytes", marks=pytest.mark.slow)])
def test_values_stay_in_range(step, kind):
    x = KINDS[kind]
    out = np.asarray(run(step, KEY, x), np.float32)
    assert np.isfinite(out).all()
    if isinstance(step, data.Noise):
        return  # it may leave the range of the data; bytes are clipped, see below
    assert out.min() >= 0
    assert out.max() <= float(x.max()) * (1 if kind == "bytes" else 1.0001)


@every_step
def test_a_key_decides_everything(step):
    first, again, other = (run(step, key, GREY) for key in (KEY, KEY, jax.random.key(8)))
    same(first, again)
    if not isinstance(step, data.LabelSmoothing):
        assert not np.array_equal(first, other)


@some_in_fast_tests
def test_jit_is_eager(step):
    np.testing.assert_allclose(run(step, KEY, GREY), eager(step, KEY, GREY), atol=1e-6)


@some_in_fast_tests
def test_vmap_over_batches_is_a_loop(step):
    keys, batches = jax.random.split(KEY, 3), jnp.stack([GREY, GREY[::-1], GREY**2])
    mapped = jax.jit(jax.vmap(functools.partial(eager, step)))(keys, batches)
    for key, batch, out in zip(keys, batches, mapped, strict=True):
        np.testing.assert_allclose(out, run(step, key, batch), atol=1e-6)


@every_image_step
def test_every_example_draws_its_own_numbers(step):
    out = np.asarray(run(step, KEY, jnp.broadcast_to(GREY[:1], GREY.shape)))
    assert len({image.tobytes() for image in out}) > 1


@pytest.mark.slow
@every_image_step
def test_colour_is_three_times_grey(step):
    """Geometry is one for all channels; noise is not."""
    out = run(step, KEY, jnp.stack([GREY] * 3, -1))
    if isinstance(step, data.Noise):
        assert not np.array_equal(out[..., 0], out[..., 1])
        return
    for channel in range(3):
        np.testing.assert_allclose(out[..., channel], run(step, KEY, GREY), atol=1e-6)


IDENTITIES = (
    data.Shift(0),
    data.Crop(0),
    data.Flip(0, 0),
    data.Rotate(0),
    data.Noise(0),
    data.Cutout(0),
)


@pytest.mark.parametrize("step", IDENTITIES, ids=repr)
@every_kind
def test_zero_strength_changes_nothing(step, kind):
    same(step(KEY, KINDS[kind]), KINDS[kind])


@pytest.mark.parametrize("step", [data.Mixup(0, 4), data.Cutmix(0, 4), data.LabelSmoothing(0, 4)], ids=repr)
def test_zero_strength_only_writes_labels_as_one_hot(step):
    x, y = step(KEY, (GREY, Y))
    same(x, GREY)
    same(y, np.eye(4, dtype=np.float32)[Y])


@every_label_step
def test_label_mass_is_one(step):
    _, y = step(KEY, (GREY, Y))
    assert y.shape == (16, 4)
    assert y.dtype == jnp.float32
    assert y.min() >= 0
    np.testing.assert_allclose(y.sum(-1), 1, rtol=1e-6)
    _, soft = step(KEY, (GREY, jax.nn.one_hot(Y, 4, dtype=jnp.float32)))
    same(soft, y)


def test_shift_moves_by_whole_pixels_up_to_the_limit():
    x = jnp.zeros((400, 7, 7)).at[:, 3, 3].set(1.0)
    places = np.argwhere(np.asarray(run(data.Shift(2), KEY, x)))
    assert len(places) == 400, "one pixel each, moved and not smeared"
    moves, counts = np.unique(places[:, 1:] - 3, axis=0, return_counts=True)
    assert [tuple(move) for move in moves] == [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    assert counts.min() > 2  # 16 expected of each


def test_what_comes_in_is_the_edge_or_the_fill():
    x = jnp.broadcast_to(jnp.arange(1.0, 6.0)[None, None], (60, 5, 5))
    edge, filled = run(data.Shift(1), KEY, x), run(data.Shift(1, fill=-7.0), KEY, x)
    assert {tuple(row) for row in np.asarray(edge)[:, 2].tolist()} == {
        (1, 1, 2, 3, 4),
        (1, 2, 3, 4, 5),
        (2, 3, 4, 5, 5),
    }
    rows = {tuple(row) for row in np.asarray(filled)[:, 2].tolist()}
    assert rows == {(-7, 1, 2, 3, 4), (1, 2, 3, 4, 5), (2, 3, 4, 5, -7)}


def test_crop_cuts_windows_at_every_place_and_one_in_the_middle():
    x = jnp.broadcast_to(jnp.arange(30.0).reshape(5, 6)[None], (300, 5, 6))
    crop = data.Crop(size=(4, 4))
    corners = {int(image[0, 0]) for image in np.asarray(run(crop, KEY, x))}
    assert corners == {0, 1, 2, 6, 7, 8}
    same(crop.center(x[:1])[0], np.arange(30.0).reshape(5, 6)[0:4, 1:5])
    same(data.Crop(3).center(GREY), GREY)
    assert data.Crop(size=4) == crop


def test_flip_mirrors_some():
    left, both = data.Flip(horizontal=1, vertical=0), data.Flip(horizontal=1, vertical=1)
    same(left(KEY, COLOUR), COLOUR[:, :, ::-1])
    same(both(KEY, COLOUR), COLOUR[:, ::-1, ::-1])
    x = jnp.broadcast_to(jnp.arange(2.0)[None, None], (1000, 2, 2))
    share = np.mean(np.asarray(data.Flip(0.3)(KEY, x))[:, 0, 0])
    assert share == pytest.approx(0.3, abs=0.05)


def test_rotation_by_a_known_angle_is_interpolation(monkeypatch):
    """A quarter turn is exact; between, a plane stays a plane away from the border."""
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, *rest: jnp.full(shape, jnp.pi / 2, jnp.float32))
    square = GREY[:, :, :8]
    np.testing.assert_allclose(data.Rotate(90.0)(KEY, square), np.rot90(square, 1, (2, 1)), atol=1e-5)
    angle = 0.3
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, *rest: jnp.full(shape, angle, jnp.float32))
    rows, columns = np.mgrid[-10:11, -10:11].astype(np.float32)
    plane = jnp.asarray(2 * rows + 3 * columns)[None]
    turned = 2 * (np.cos(angle) * rows - np.sin(angle) * columns) + 3 * (np.sin(angle) * rows + np.cos(angle) * columns)
    out = data.Rotate(90.0)(KEY, plane)[0]
    np.testing.assert_allclose(out[5:16, 5:16], turned[5:16, 5:16], atol=1e-4)


def test_rotation_stays_within_its_angle_and_goes_both_ways():
    x = jnp.zeros((200, 41, 41)).at[:, 20, 38].set(1.0)  # 18 pixels right of the middle
    out = np.asarray(run(data.Rotate(30.0), KEY, x))
    rows, columns = np.mgrid[:41, :41]
    mass = out.sum((1, 2))
    angles = np.degrees(np.arctan2((out * rows).sum((1, 2)) / mass - 20, (out * columns).sum((1, 2)) / mass - 20))
    assert np.abs(angles).max() < 32
    assert angles.min() < -20
    assert angles.max() > 20


def test_noise_has_its_deviation_and_bytes_are_clipped():
    x = jnp.full((50, 20, 20), 0.5, jnp.float32)
    noise = np.asarray(run(data.Noise(0.2), KEY, x)) - 0.5
    assert noise.std() == pytest.approx(0.2, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    dark = run(data.Noise(20.0), KEY, jnp.zeros((5, 9, 9), jnp.uint8))
    assert 0 < np.asarray(dark).mean() < 20  # without clipping -1 would be 255


def test_cutout_covers_one_square_that_the_border_may_cut():
    out = np.asarray(run(data.Cutout(3, fill=-1.0), KEY, jnp.ones((300, 8, 8, 2))))
    covered = out == -1
    same(covered[..., 0], covered[..., 1])
    high, wide = covered[..., 0].any(2).sum(1), covered[..., 0].any(1).sum(1)
    same(covered[..., 0].sum((1, 2)), high * wide)
    assert (high.min(), high.max(), wide.min(), wide.max()) == (2, 3, 2, 3)
    assert covered[..., 0].any(0).all(), "every pixel can be covered"
    assert set(np.unique(out)) == {-1, 1}


def test_bytes_are_rounded():
    x, y = data.Mixup(1.0, classes=16)(KEY, (BYTES, jnp.arange(16)))
    exact = np.einsum("ij,jhw->ihw", y, np.asarray(BYTES, np.float32))
    np.testing.assert_allclose(x, exact, atol=0.501)
    assert x.dtype == jnp.uint8
    white = jnp.full((4, 8, 8), 255, jnp.uint8)
    same(data.Rotate(30.0)(KEY, white), white)


def test_mixup_mixes_examples_as_it_mixes_labels():
    x, y = data.Mixup(1.0, classes=16)(KEY, (GREY, jnp.arange(16)))
    np.testing.assert_allclose(x, np.einsum("ij,jhw->ihw", y, GREY), atol=1e-6)
    assert len(np.unique(np.round(np.asarray(y).max(1), 5))) <= 2, "one share for the batch"
    same(np.sort(np.asarray(y.sum(0)).round(5)), np.ones(16))  # partners are a permutation


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_share_of_mixup_is_beta(alpha):
    pair = (jnp.arange(2.0)[:, None], jnp.arange(2))
    step = data.Mixup(alpha, classes=2)
    x, _ = jax.jit(jax.vmap(lambda key: step(key, pair)))(jax.random.split(KEY, 4000))
    x = np.asarray(x)[:, 0, 0]
    mixed = x[x > 0]  # half of the batches mix each example with itself
    assert len(mixed) == pytest.approx(2000, abs=150)
    assert mixed.mean() == pytest.approx(0.5, abs=0.03)
    assert mixed.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_mixup_of_targets_of_a_regression():
    x, y = data.Mixup(1.0)(KEY, (jnp.arange(16.0), 3 * jnp.arange(16.0)))
    np.testing.assert_allclose(y, 3 * x, rtol=1e-5)
    assert not np.array_equal(x, jnp.arange(16.0))


def test_cutmix_pastes_a_rectangle_and_labels_say_how_much():
    x = jnp.broadcast_to(jnp.arange(16.0)[:, None, None], (16, 12, 20))
    step = jax.jit(data.Cutmix(1.0, classes=16))
    pasted = 0
    for seed in range(5):
        out, y = map(np.asarray, step(jax.random.key(seed), (x, jnp.arange(16))))
        for i in range(16):
            values, counts = np.unique(out[i], return_counts=True)
            assert set(values) <= {i, *np.flatnonzero(y[i])}
            for value, count in zip(values, counts, strict=True):
                assert y[i, int(value)] == pytest.approx(count / 240, abs=1e-6)
            foreign = out[i] != i
            assert foreign.sum() == foreign.any(0).sum() * foreign.any(1).sum(), "a rectangle"
            pasted += foreign.any()
    assert pasted > 20


def test_label_smoothing_by_hand():
    _, y = data.LabelSmoothing(0.2, classes=4)(KEY, (GREY, Y))
    np.testing.assert_allclose(y[1], [0.05, 0.85, 0.05, 0.05], rtol=1e-6)
    _, soft = data.LabelSmoothing(1.0)(KEY, (GREY, y))
    np.testing.assert_allclose(soft, 0.25, rtol=1e-6)


CHANGE = data.augment(data.Shift(1), data.Cutout(2), data.Mixup(1.0, classes=4), data.LabelSmoothing(0.1, 4))


def test_augment_runs_steps_in_order_with_keys_of_their_own():
    x, y = jax.jit(CHANGE)(KEY, (GREY, Y))
    keys = [jax.random.fold_in(KEY, i) for i in range(4)]
    by_hand = CHANGE.steps[1](keys[1], CHANGE.steps[0](keys[0], GREY))
    by_hand = CHANGE.steps[3](keys[3], CHANGE.steps[2](keys[2], (by_hand, Y)))
    np.testing.assert_allclose(x, by_hand[0], atol=1e-6)
    np.testing.assert_allclose(y, by_hand[1], atol=1e-6)


def test_augment_takes_images_alone_and_leaves_the_rest_of_a_batch():
    change = data.augment(data.Shift(1), data.Flip())
    out = change(KEY, GREY)
    x, y, weights = change(KEY, (GREY, Y, GREY[:, 0, 0]))
    same(x, out)
    same(y, Y)
    same(weights, GREY[:, 0, 0])
    smoothed = data.augment(data.LabelSmoothing(0.1, 4))(KEY, (GREY, Y, weights))
    same(smoothed[2], weights)
    same(data.augment()(KEY, GREY), GREY)


def test_augment_takes_functions_and_other_augmentations():
    change = data.augment(lambda key, x: 1 - x, data.augment(data.Mixup(1.0, 4), data.Flip(1)))
    x, y = jax.jit(change)(KEY, (GREY, Y))
    inner = jax.random.fold_in(KEY, 1)
    mixed, labels = data.Mixup(1.0, 4)(jax.random.fold_in(inner, 0), (1 - GREY, Y))
    np.testing.assert_allclose(x, mixed[:, :, ::-1], atol=1e-6)
    np.testing.assert_allclose(y, labels, atol=1e-6)


def test_augment_runs_compiled_mapped_and_scanned():
    x, y = jax.jit(CHANGE)(KEY, (GREY, Y))
    keys = jnp.stack([KEY, jax.random.key(1)])
    mapped = jax.jit(jax.vmap(CHANGE, (0, None)))(keys, (GREY, Y))
    _, scanned = jax.lax.scan(lambda carry, key: (carry, CHANGE(key, (GREY, Y))), None, keys)
    for several in (mapped, scanned):
        np.testing.assert_allclose(several[0][0], x, atol=1e-6)
        np.testing.assert_allclose(several[1][0], y, atol=1e-6)
        assert not np.array_equal(several[0][0], several[0][1])


def test_gradients_pass_through():
    total, derivative = jax.jit(jax.value_and_grad(lambda x: CHANGE(KEY, (x, Y))[0].sum()))(GREY)
    assert derivative.shape == GREY.shape
    np.testing.assert_allclose(jnp.vdot(derivative, GREY), total, rtol=1e-4)  # the steps are linear


def test_steps_are_compiled_apart():
    """Joined by the compiler, they would compute a pixel again for every reader: ten times slower."""
    change = data.augment(data.Shift(1), data.Rotate(5), data.Flip())
    compiled = jax.jit(change).lower(KEY, (GREY, Y)).compile().as_text()
    assert compiled.count(" conditional(") == 3


@every_step
def test_a_step_is_its_configuration(step):
    again = eval(repr(step), vars(data))
    assert again == step
    assert hash(again) == hash(step)
    assert pickle.loads(pickle.dumps(step)) == step
    same(run(again, KEY, GREY), run(step, KEY, GREY))


def test_a_cell_that_is_run_again_compiles_nothing():
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def cell(change, key, batch):
        traces.append(change)
        return change(key, batch)

    for degrees in (10, 10.0, np.float32(10), jnp.asarray(10.0)):
        cell(data.augment(data.Rotate(degrees), data.LabelSmoothing(classes=4)), KEY, (GREY, Y))
    assert len(traces) == 1
    cell(data.augment(data.Rotate(11), data.LabelSmoothing(classes=4)), KEY, (GREY, Y))
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Shift(-1), "Shift: max_pixels=-1 .* at least 0"),
        (lambda: data.Shift(1.5), "Shift: max_pixels=1.5 .* whole number"),
        (lambda: data.Shift(1, fill=np.nan), "fill=nan"),
        (lambda: data.Crop(size=0), "Crop: size=0 .* at least 1"),
        (lambda: data.Crop(size=(1, 2, 3)), "a height and a width"),
        (lambda: data.Flip(1.5), r"Flip: horizontal=1.5 .* \[0, 1\]"),
        (lambda: data.Rotate(181), r"Rotate: max_degrees=181.0 .*\[0, 180\]"),
        (lambda: data.Noise(-0.1), "Noise: deviation=-0.1"),
        (lambda: data.Cutout(-2), "Cutout: size=-2"),
        (lambda: data.Mixup(-1.0), "Mixup: alpha=-1.0"),
        (lambda: data.Mixup(0.2, classes=1), "Mixup: classes=1 .* at least 2"),
        (lambda: data.LabelSmoothing(1.1), r"smoothing=1.1 .*\[0, 1\]"),
    ],
)
def test_settings_are_checked_where_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_are_known_before_tracing():
    with pytest.raises(TypeError, match=r"Noise: deviation=<traced .*outside of jit"):
        jax.vmap(lambda strength: data.Noise(strength)(KEY, GREY))(jnp.ones(2))


@pytest.mark.parametrize("step", [*IMAGE_STEPS, data.Cutmix(1.0, 4)], ids=repr)
@pytest.mark.parametrize("shape", [(16, 64), (16,), (1, 16, 8, 8, 3), (0, 8, 8)])
def test_what_is_no_image_is_an_error(step, shape):
    with pytest.raises(ValueError, match=rf"{type(step).__name__}\(.*shape .*\(batch, height, width\).*images\[None\]"):
        run(step, KEY, jnp.zeros(shape))


@every_image_step
def test_what_are_no_pixels_is_an_error(step):
    with pytest.raises(TypeError, match=r"dtype int32.*astype"):
        step(KEY, jnp.zeros((2, 8, 8), jnp.int32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: data.Shift(8)(KEY, GREY), ValueError, "8 × 10 pixels"),
        (lambda: data.Cutout(9)(KEY, GREY), ValueError, "8 × 10 pixels"),
        (lambda: data.Crop(1, size=11)(KEY, GREY), ValueError, "smaller size"),
        (lambda: data.Shift(1, fill=0.5)(KEY, BYTES), ValueError, "fill=0.5, a whole number from 0 to 255"),
        (lambda: data.Cutout(1, fill=-1)(KEY, BYTES), ValueError, "from 0 to 255"),
        (lambda: data.Mixup(0.2)(KEY, (GREY, Y)), ValueError, r"dtype int.*Mixup\(classes=10\)"),
        (lambda: data.Mixup(0.2, 4)(KEY, (GREY, jnp.ones((16, 3)))), ValueError, r"\(16, 3\).*\(batch, 4\)"),
        (lambda: data.LabelSmoothing(0.1)(KEY, (GREY, jnp.ones(16))), ValueError, "regression cannot"),
        (lambda: data.Mixup(0.2, 4)(KEY, (GREY, Y, Y)), TypeError, "batch of 3 parts"),
        (lambda: data.Mixup(0.2, 4)(KEY, GREY), TypeError, r"\(x, y\) was expected"),
        (lambda: data.augment(data.Shift(1))(KEY, {"x": GREY}), TypeError, "type dict"),
        (lambda: data.augment(data.Shift), TypeError, r"Shift\(1\)"),
        (lambda: data.augment((data.Shift(1), data.Flip())), TypeError, "one by one"),
    ],
)
def test_misuse_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_double_precision_stays(x64):
    x = jnp.asarray(np.asarray(GREY), jnp.float64)
    for step in (*IMAGE_STEPS, *LABEL_STEPS):
        assert jax.eval_shape(functools.partial(eager, step), KEY, x).dtype == jnp.float64
    out = jax.eval_shape(CHANGE, KEY, (x, Y))
    assert [a.dtype for a in out] == [jnp.float64, jnp.float32]
