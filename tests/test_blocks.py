"""Who gets which block, which sphere and which layer; and what little state costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jopt
from jopt.rules.layerwise import LAYERS, layer_of

MODEL = {
    "embed": {"embedding": (11, 8)},
    "block_0": {
        "attention": {
            "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
            "key": {"kernel": (8, 2, 4)},
            "value": {"kernel": (8, 2, 4)},
            "out": {"kernel": (2, 4, 8)},
        },
        "hidden": {"kernel": (8, 32), "bias": (32,)},
        "norm": {"scale": (8,)},
    },
    "block_1": {"attention": {"query": {"kernel": (8, 8)}}, "hidden": {"kernel": (8, 32)}},
    "head": {"kernel": (8, 11)},
}
PARAMS = jax.tree.map(lambda shape: jnp.ones(shape), MODEL, is_leaf=lambda x: isinstance(x, tuple))


def rows(tx):
    return {row.path: row for row in jopt.explain(tx, PARAMS).rows}


def test_adam_mini_gives_flax_models_the_blocks_of_the_paper():
    nu = {
        path: x.shape
        for slots in jopt.adam_mini(0.1, heads=2).init(PARAMS).slots.values()
        for path, x in slots["nu"].items()
    }
    attention = "block_0/attention"
    assert nu == {
        "embed/embedding": (11, 1),
        f"{attention}/query/kernel": (1, 2, 1),
        f"{attention}/query/bias": (1, 1),
        f"{attention}/key/kernel": (1, 2, 1),
        f"{attention}/value/kernel": (1, 2, 4),
        f"{attention}/out/kernel": (1, 1, 8),
        "block_0/hidden/kernel": (1, 32),
        "block_0/hidden/bias": (1,),
        "block_0/norm/scale": (1,),
        "block_1/attention/query/kernel": (1, 2),
        "block_1/hidden/kernel": (1, 32),
        "head/kernel": (1, 11),
    }
    found = rows(jopt.adam_mini(0.1, heads=2))
    assert found["embed/embedding"].group == "tokens"
    assert found["block_1/attention/query/kernel"].group == "joined_heads"
    # Half of Adam's state: one array of the parameter's size instead of two, and a number for each block.
    assert found["block_0/hidden/kernel"].state_bytes == 4 * (8 * 32 + 32)


def test_declared_blocks_come_first():
    tx = jopt.adam_mini(0.1, blocks=(("head/*", 0), ("**/hidden/kernel", None)))
    slots = tx.init(PARAMS).slots
    assert slots["blocks_0/scale_by_adam_mini"]["nu"]["head/kernel"].shape == (8, 1)
    assert slots["blocks_1/scale_by_adam_mini"]["nu"]["block_0/hidden/kernel"].shape == (1, 1)


def test_parts_that_do_not_divide_are_an_error():
    tx = jopt.scale_by_adam_mini(axis=-1, parts=3)
    with pytest.raises(ValueError, match=r"parts=3 was given for an array of shape \(4, 8\)"):
        tx.init({"w": jnp.ones((4, 8))})
    with pytest.raises(ValueError, match="Only the last axis is split"):
        jopt.scale_by_adam_mini(axis=0, parts=2)


def test_a_factored_state_is_a_row_and_a_column():
    kept = jopt.explain(jopt.adafactor(0.1), {"w": jnp.ones((512, 256)), "small": jnp.ones((512, 64))})
    assert {row.path: row.state_bytes for row in kept.rows} == {"w": 4 * (512 + 256), "small": 4 * 512 * 64}


def test_large_and_tiny_rows_do_not_overflow():
    g = jnp.ones((4, 256)).at[0].set(1e18).at[1].set(0.0).at[2, ::2].set(1e-30)
    for tx in (jopt.adafactor(0.1, 2, clipping_threshold=None), jopt.came(0.1)):
        params = {"w": jnp.ones_like(g)}
        u, state = tx.update({"w": g}, tx.init(params), params)
        u, state = tx.update({"w": g}, state, params)
        assert all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves((u, state)))


# Spheres -----------------------------------------------------------------------------------------


def test_hyperball_stays_on_the_sphere_and_steps_by_the_angle():
    source = np.random.default_rng(1)
    params = {"w": jnp.asarray(source.normal(size=(6, 5)), jnp.float32), "b": jnp.zeros(5), "zero": jnp.zeros((2, 2))}
    tx = jopt.hyperball(jopt.scale_by_adam(), 0.1)
    state, before, radius = tx.init(params), params, float(jnp.linalg.norm(params["w"]))
    for t in range(20):
        g = jax.tree.map(lambda p: jnp.asarray(source.normal(size=p.shape), jnp.float32), params)
        u, state = tx.update(g, state, params)
        before, params = params, jopt.apply_updates(params, u)
        assert float(jnp.linalg.norm(params["w"])) == pytest.approx(radius, rel=1e-5)
        cosine = float(jnp.sum(params["w"] * before["w"])) / radius**2
        assert np.arccos(min(cosine, 1.0)) < 0.12
        if t == 0:
            np.testing.assert_allclose(u["zero"], -0.1 * np.sign(g["zero"]), rtol=1e-4)
            np.testing.assert_allclose(u["b"], -0.1 * np.sign(g["b"]), rtol=1e-4)


def test_hyperball_refuses_a_second_learning_rate():
    with pytest.raises(ValueError, match=r"without a learning rate was expected; it has \['scale_by_learning_rate'\]"):
        jopt.hyperball(jopt.adam(0.1), 0.1)
    tx = jopt.hyperball(jopt.scale_by_adam(), 0.1, 0.01, where="**/kernel")
    state = tx.init(PARAMS)
    assert jopt.hyperparams(state)["rest/scale_by_learning_rate/learning_rate"] == jnp.float32(0.01)
    assert "embed/embedding" not in state.slots["hyperball/scale_by_hyperball_rate"]["radius"]


def test_fromage_turns_every_array_by_one_angle():
    source = np.random.default_rng(4)
    w = jnp.asarray(source.normal(size=(50, 40)) * 7, jnp.float32)
    g = jnp.asarray(source.normal(size=(50, 40)), jnp.float32)
    g = g - w * jnp.sum(w * g) / jnp.sum(w * w)  # across w
    tx = jopt.fromage(0.1)
    new = w + tx.update(g, tx.init(w), w)[0]
    assert float(jnp.linalg.norm(new)) == pytest.approx(float(jnp.linalg.norm(w)), rel=1e-5)
    cosine = float(jnp.sum(new * w) / jnp.sum(w * w))
    assert cosine == pytest.approx(1 / np.sqrt(1.01), rel=1e-5)


# Layers ------------------------------------------------------------------------------------------


def test_layers_are_read_from_names():
    assert layer_of("embed/embedding", LAYERS, 3) == 0
    assert layer_of("block_0/dense_2/kernel", LAYERS, 3) == 1
    assert layer_of("params/layers/2/kernel", LAYERS, 3) == 3
    assert layer_of("norm/scale", LAYERS, 3) == 4
    order = ("stem", "stage_{}/unit_*", "head|norm")
    assert layer_of("net/stage_1/unit_0/kernel", order, 2) == 2
    assert layer_of("net/norm/scale", order, 2) == 3
    assert layer_of("other", order, 2) is None
    assert layer_of("stem/kernel", ("{}", "stem"), 2) == 2


def test_layerwise_decay_scales_and_explains():
    tx = jopt.chain(jopt.sgd(1.0), jopt.layerwise_decay(0.5, 2))
    u, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    got = {path: float(-x.reshape(-1)[0]) for path, x in jopt.paths.flatten(u)[0].items()}
    assert got["embed/embedding"] == 0.125
    assert got["block_0/hidden/kernel"] == 0.25
    assert got["block_1/hidden/kernel"] == 0.5
    assert got["head/kernel"] == 1.0
    found = rows(tx)
    assert "layerwise_decay(decay=0.5, depth=2, layer 1 of 0..3)" in found["block_0/norm/scale"].rules
    assert found["embed/embedding"].state_bytes == 0


def test_layerwise_decay_says_what_is_wrong():
    with pytest.raises(ValueError, match="Pass for example depth=12"):
        jopt.layerwise_decay(0.5)
    with pytest.raises(ValueError, match="Pass for example depth=12"):
        jopt.layerwise_decay(0.5, 3, ("embed", "head"))
    tx = jopt.layerwise_decay(0.5, 1)
    with pytest.raises(jopt.TreeMismatchError, match=r"'block_1/.* is in layer 1 .* below depth=1 was expected"):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    tx = jopt.layerwise_decay(0.5, 2, ("embed", "block_{}"))
    with pytest.raises(jopt.TreeMismatchError, match="'head/kernel' matches none of the patterns"):
        jopt.explain(tx, PARAMS)
