"""Matrix rules: declared axes, batches, accuracy, routing, and the rules that need more than a gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

import jopt
from jopt import polar
from jopt.axes import matrix_axes

SOURCE = [np.random.default_rng(0)]


@pytest.fixture(autouse=True)
def own_numbers():
    """Every test draws the same numbers, whichever ran before it."""
    SOURCE[:] = [np.random.default_rng(0)]


def normal(*shape):
    return jnp.asarray(SOURCE[0].normal(size=shape), jnp.float32)


def first(tx, g):
    return tx.update(g, tx.init(g), g)[0]


# Axes --------------------------------------------------------------------------------------------

AXES = {
    "stack": ((5, 4, 6), (1, 2), lambda x: x, lambda x: x),
    "stack in the middle": ((4, 5, 6), (0, 2), lambda x: x.transpose(1, 0, 2), lambda x: x.transpose(1, 0, 2)),
    "convolution": ((3, 2, 4, 6), (..., -1), lambda x: x.reshape(1, 24, 6), lambda x: x.reshape(3, 2, 4, 6)),
    "turned": ((4, 6), (1, 0), lambda x: x.T[None], lambda x: x[0].T),
    "outputs in two": ((4, 2, 3), (0, (1, 2)), lambda x: x.reshape(1, 4, 6), lambda x: x.reshape(4, 2, 3)),
}


@pytest.mark.parametrize("make", [jopt.scale_by_muon, jopt.scale_by_normuon, jopt.spectral_lmo, jopt.scale_by_galore])
@pytest.mark.parametrize("case", AXES)
def test_an_array_is_stepped_as_its_matrices(make, case):
    shape, (rows, columns), split, join = AXES[case]
    p, tx = normal(*shape), make(axes=[("w", rows, columns)])
    state = tx.init({"w": p})
    if "mu" in state.slots.get(make.__name__, {}):
        assert state.slots[make.__name__]["mu"]["w"].shape == shape
    apart, plain = list(split(p)), make()
    kept = plain.init(apart)
    for step in range(3):
        g = normal(*shape)
        u, state = tx.update({"w": g}, state, {"w": p})
        expected, kept = plain.update(list(split(g)), kept, apart)
        np.testing.assert_allclose(u["w"], join(jnp.stack(expected)), atol=2e-5, err_msg=str(step))


def test_a_shape_is_that_of_the_matrix_and_not_of_the_array():
    g = {"w": normal(2, 3, 24)}
    np.testing.assert_allclose(first(jopt.scale_by_shape(axes=[("w", ..., -1)]), g)["w"], 2 * g["w"], rtol=1e-6)
    np.testing.assert_allclose(
        first(jopt.scale_by_shape(consistent_rms=0.5, axes=[("w", 0, (1, 2))]), g)["w"],
        0.5 * 72**0.5 * g["w"],
        rtol=1e-6,
    )


def test_the_forms_of_optax_are_read():
    numbers, leaf = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3), {"a": normal(2, 2, 3, 4), "b": normal(3)}
    forms = ({"a": numbers, "b": None}, lambda params: {"a": numbers, "b": None}, numbers, "conv")
    expected = first(jopt.muon(0.1, axes=[("a", ..., -1)]), leaf)
    for form in forms[:2]:
        u = first(jopt.muon(0.1, muon_weight_dimension_numbers=form), leaf)
        jax.tree.map(np.testing.assert_array_equal, u, expected)
    for form in forms[2:]:
        np.testing.assert_array_equal(first(jopt.scale_by_muon(axes=form), {"a": leaf["a"]})["a"].shape, (2, 2, 3, 4))
    assert repr(matrix_axes("muon", {"a": numbers, "b": None})) == "{'a': ((0, 1, 2), 3), 'b': None}"


def test_heads_of_attention_are_matrices_each():
    p = {"attention": {"query": {"kernel": normal(8, 2, 4)}, "out": {"kernel": normal(2, 4, 8)}}}
    u = first(jopt.scale_by_muon("polar_express", axes="heads"), p)["attention"]
    for head in range(2):
        assert jopt.orthogonality_error(u["query"]["kernel"][:, head]) < 0.3
        assert jopt.orthogonality_error(u["out"]["kernel"][head]) < 0.3


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ([("w", 0, 3)], ValueError, r"axes: rows=0 and columns=3 .* 'w' of shape \[2, 3, 4\]"),
        ([("w", (0, 1), -2)], ValueError, "different axes"),
        ([("w", ..., ...)], ValueError, "different axes"),
        ([(jopt.ndim(5), 0, 1)], TypeError, "'w' .* a matrix was expected.*axes="),
        ({"w": None}, TypeError, "a matrix was expected"),
        ("rows", TypeError, r"cases \(where, rows, columns\)"),
        ({"w": 3}, TypeError, "has 3 at 'w'"),
    ],
)
def test_wrong_axes_are_errors_that_name_the_leaf(axes, error, message):
    with pytest.raises(error, match=message):
        jopt.scale_by_muon(axes=axes).init({"w": normal(2, 3, 4)})


def test_axes_and_dimension_numbers_together_are_an_error():
    with pytest.raises(TypeError, match="one of them was expected"):
        jopt.muon(0.1, axes="conv", muon_weight_dimension_numbers=lambda p: p)


def test_a_declared_axis_that_matches_nothing_is_an_error():
    tx = jopt.muon(0.1, axes=[("**/kernal", ..., -1)])
    with pytest.raises(
        jopt.TreeMismatchError, match=r"axes: where='\*\*/kernal' matches no parameter(.|\n)*conv/kernel"
    ):
        tx.init({"conv": {"kernel": jnp.ones((3, 3, 4, 8))}, "dense": jnp.ones((8, 4))})


# Batches -----------------------------------------------------------------------------------------


def test_a_leaf_is_stepped_alike_whatever_is_in_its_batch():
    """Transposes, parameters of other dtypes, stacks: one loop, and nobody's neighbours matter."""
    params = {
        "wide": normal(4, 6),
        "tall": normal(6, 4),
        "narrow": normal(4, 6).astype(jnp.bfloat16),
        "stack": normal(3, 4, 6),
    }
    tx = jopt.scale_by_muon(axes=[(jopt.ndim(3), 1, 2)])
    together = first(tx, params)
    for name, p in params.items():
        assert together[name].dtype == p.dtype
        alone = first(tx, {name: p})[name].astype(jnp.float32)
        # A matrix alone needs no loop, and rounds apart.
        atol = 1e-5 if p.dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(together[name].astype(jnp.float32), alone, atol=atol, err_msg=name)


def noisy_step(g, s, p, *, key):
    return g + jax.random.normal(key, g.shape), s


def test_each_matrix_of_a_stack_has_noise_of_its_own():
    def noisy(**more):
        return jopt.rule("noisy", noisy_step, key=0, reads="matrix", static={"axes": more.get("axes")}, axes="axes")

    zeros = jnp.zeros((3, 2, 2))
    u = first(noisy(axes=matrix_axes("noisy", [("w", 1, 2)])), {"w": zeros, "v": jnp.zeros((2, 2))})
    draws = np.stack([*u["w"], u["v"]]).reshape(4, -1)
    assert len(np.unique(draws)) == draws.size
    np.testing.assert_array_equal(u["v"], first(noisy(), {"v": jnp.zeros((2, 2))})["v"])


def test_an_accelerator_is_told_and_multiplies_in_bfloat16():
    text = str(
        jax.make_jaxpr(jopt.scale_by_muon().update)(
            *[{"w": normal(4, 4)}, jopt.scale_by_muon().init({"w": normal(4, 4)})]
        )
    )
    assert "bf16" in text  # the variant for other platforms
    x = normal(8, 12)
    rounded = polar.newton_schulz(x, polar.triples("standard", 5), 1e-8, accelerator=True)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, polar.newton_schulz(x, polar.triples("standard", 5), 1e-8), atol=0.1)


# Newton-Schulz -----------------------------------------------------------------------------------


def plain(x, coefficients):
    """The iteration as it is written, in float64."""
    x = x / np.linalg.norm(x)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


SPECTRA = {
    "even": np.ones(24),
    "falling": np.geomspace(1, 1e-6, 24),
    "one large": np.r_[1, np.full(23, 1e-5)],
    "low rank": np.r_[np.ones(3), np.zeros(21)],
}


@pytest.mark.parametrize("coefficients", ["standard", "dion", "polar_express"])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("n", [24, 96])
def test_single_precision_is_as_good_on_the_gram_matrix(coefficients, spectrum, n):
    """96 columns go through the Gram matrix, which squares the condition; 24 do not."""
    left, _ = np.linalg.qr(SOURCE[0].normal(size=(24, 24)))
    right, _ = np.linalg.qr(SOURCE[0].normal(size=(n, 24)))
    x = np.asarray((left * SPECTRA[spectrum]) @ right.T, np.float32)
    triples = polar.triples(coefficients, 5)
    got = polar.newton_schulz(jnp.asarray(x), triples, 0.0)
    assert np.linalg.norm(np.asarray(got, np.float64) - plain(x.astype(np.float64), triples), 2) < 5e-4


def test_many_steps_stay_bounded_on_the_gram_matrix():
    got = polar.newton_schulz(normal(16, 64), polar.triples("standard", 30), 1e-8)
    assert np.linalg.norm(got, 2) < 1.3


def test_products_in_blocks_are_the_products():
    x = normal(330, 340)
    whole = polar.newton_schulz(x, polar.triples("dion", 5), 1e-8, accelerator=False)
    np.testing.assert_allclose(whole, plain(np.asarray(x, np.float64), polar.triples("dion", 5)), atol=1e-5)
    long = normal(330, 700)
    got = polar.newton_schulz(long, polar.triples("dion", 5), 1e-8)
    np.testing.assert_allclose(got, plain(np.asarray(long, np.float64), polar.triples("dion", 5)), atol=1e-5)


def test_better_coefficients_come_closer_to_orthogonal():
    g = {"w": normal(32, 40)}
    errors = [
        float(jopt.orthogonality_error(first(jopt.scale_by_muon(c), g)["w"])) for c in ("standard", "polar_express")
    ]
    assert errors[1] < 0.25 < errors[0] < 0.5


@pytest.mark.parametrize("kind", ["spectral", "schatten", "aol"])
def test_another_scaling_comes_closer_in_few_steps(kind):
    g = {"w": normal(32, 40)}
    error = {
        k: jopt.orthogonality_error(first(jopt.scale_by_muon(ns_steps=2, preconditioning=k), g)["w"])
        for k in (kind, "frobenius")
    }
    assert error[kind] < error["frobenius"]


def test_the_error_of_orthogonality():
    assert jopt.orthogonality_error(jnp.eye(3, 5)) == 0
    assert jopt.orthogonality_error(jnp.zeros((2, 5, 3))).tolist() == [1, 1]
    np.testing.assert_allclose(jopt.orthogonality_error(2 * jnp.eye(4)), 3)
    assert jopt.orthogonality_error({"w": jnp.eye(2), "b": jnp.ones(3)}) == {"w": 0, "b": None}
    with pytest.raises(ValueError, match=r"orthogonality_error: an array of shape \(3,\) was given"):
        jopt.orthogonality_error(jnp.ones(3))


def test_a_monitor_records_the_error_of_orthogonality():
    tx = jopt.chain(jopt.scale_by_muon(), jopt.monitor({"orthogonality": jopt.orthogonality_error}))
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 16)), jnp.float32)}
    u, state = tx.update(params, tx.init(params), params)
    recorded = jopt.monitored(state)["orthogonality"]["w"]
    np.testing.assert_allclose(recorded, jopt.orthogonality_error(u["w"]), rtol=1e-6)
    assert 0 < recorded < 0.5


@pytest.mark.parametrize(
    ("options", "message"), [({"ns_coeffs": "quintic"}, "ns_coeffs='quintic'"), ({"preconditioning": "l2"}, "'l2'")]
)
def test_unknown_names_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        jopt.scale_by_muon(**options)


# Routing -----------------------------------------------------------------------------------------

TREE = {
    "embed": {"embedding": normal(10, 4)},
    "block_0": {"multihead_attention": {"out": {"kernel": normal(4, 4)}}, "norm": {"scale": normal(4)}},
    "conv": {"kernel": normal(3, 3, 2, 4)},
    "lm_head": {"kernel": normal(4, 10), "bias": normal(10)},
    "output": {"kernel": normal(4, 3)},
}


def groups(tx):
    return {row.path: row.group for row in jopt.explain(tx, TREE).rows}


def test_embeddings_heads_norms_and_biases_go_to_adam():
    found = groups(jopt.muon(0.02))
    assert [path for path, group in found.items() if group == "muon"] == ["block_0/multihead_attention/out/kernel"]
    assert set(found.values()) == {"muon", "adam"}
    assert "block_0/multihead_attention/out/kernel  4×4      float32  muon" in str(jopt.explain(jopt.muon(0.02), TREE))


def test_where_and_axes_say_otherwise():
    assert groups(jopt.muon(0.02, where="embed/*"))["embed/embedding"] == "muon"
    assert groups(jopt.muon(0.02, where="embed/*"))["block_0/multihead_attention/out/kernel"] == "adam"
    assert groups(jopt.muon(0.02, axes="conv"))["conv/kernel"] == "muon"
    assert groups(jopt.scion(0.02))["lm_head/kernel"] == "head"


ROUTED = (jopt.muon, jopt.normuon, jopt.scion, jopt.galore, jopt.soap, jopt.kl_soap, jopt.shampoo)


@pytest.mark.parametrize("make", ROUTED)
@pytest.mark.parametrize("choice", [{"where": "**/kernal"}, {"axes": "conv"}, {"axes": lambda shapes: None}])
def test_a_choice_that_takes_no_parameter_is_an_error(make, choice):
    params = {"kernel": normal(3, 4) if "where" in choice else normal(3), "bias": normal(4)}
    with pytest.raises(jopt.TreeMismatchError, match="claims no parameter, one or more were expected"):
        make(0.1, **choice).init(params)


@pytest.mark.parametrize("make", ROUTED)
def test_by_default_and_for_the_other_cases_a_tree_may_lack_any_kind(make):
    make(0.1).init({"bias": normal(4)})
    make(0.1, where="kernel").init({"kernel": normal(3, 4)})
    make(0.1, where="kernel").init({})


@pytest.mark.parametrize("make", ROUTED)
def test_biases_scales_and_tables_of_positions_are_no_weights(make):
    kernel, others = normal(4, 6), ("query/bias", "norm/scale", "pos", "pos_table", "encoder/position_table", "rel_pos")
    tree = {"mlp": {"kernel": kernel}, "positionwise": {"kernel": kernel}}
    for path in others:
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = kernel
    by_path = {row.path: row.group for row in jopt.explain(make(0.1), tree).rows}
    assert {by_path[path] for path in others} == {"rest" if make is jopt.scion else "adam"}
    assert {by_path["mlp/kernel"], by_path["positionwise/kernel"]}.isdisjoint({"rest", "adam"})
    chosen = {row.path: row.group for row in jopt.explain(make(0.1, where="**/bias"), tree).rows}
    assert chosen["query/bias"] == by_path["mlp/kernel"]


def test_adam_has_its_own_rate():
    state = jopt.muon(0.02, adam_learning_rate=0.003).init(TREE)
    assert jopt.hyperparams(state)["adam/scale_by_learning_rate/learning_rate"] == pytest.approx(0.003)


# GaLore ------------------------------------------------------------------------------------------


def galore_steps(tx, grads, p):
    """Updates and projectors of a run over gradients of one matrix."""

    def step(state, g):
        u, state = tx.update(g, state, p)
        return state, (u, state.slots["scale_by_galore"]["projector"][""])

    return jax.jit(lambda grads: jax.lax.scan(step, tx.init(p), grads)[1])(grads)


@pytest.mark.parametrize("shape", [(40, 100), (100, 40)])
def test_galore_keeps_moments_of_its_rank(shape):
    state = jopt.galore(0.01, rank=8).init({"w": jnp.zeros(shape), "b": jnp.zeros(40)})
    slots = state.slots["galore/scale_by_galore"]
    moment = (8, 100) if shape == (40, 100) else (100, 8)
    assert {name: x["w"].shape for name, x in slots.items()} == {"projector": (40, 8), "mu": moment, "nu": moment}
    assert sum(x["w"].nbytes for x in slots.values()) == 4 * 8 * (40 + 2 * 100)


def test_galore_takes_a_new_projector_every_gap():
    _, projectors = galore_steps(jopt.scale_by_galore(2, update_proj_gap=3), normal(8, 4, 6), normal(4, 6))
    changes = np.any(np.diff(projectors, axis=0) != 0, axis=(1, 2))
    np.testing.assert_array_equal(changes, [False, False, True, False, False, True, False])
    np.testing.assert_allclose(np.swapaxes(projectors, 1, 2) @ projectors, np.tile(np.eye(2), (8, 1, 1)), atol=1e-6)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_galore_steps_in_the_leading_directions_and_at_full_rank_in_all(shape):
    grads = jnp.stack([normal(*shape), normal(*shape)])
    for rank in (2, 4, 99):
        updates, projectors = galore_steps(jopt.scale_by_galore(rank), grads, grads[0])
        assert projectors.shape[1:] == (4, min(rank, 4))
        assert [np.linalg.matrix_rank(u, tol=1e-4) for u in np.asarray(updates)] == [min(rank, 4)] * 2
    # b1 = b2 = 0 makes the step the sign in the basis, so that at full rank PᵀU is of ones.
    signs, projectors = galore_steps(jopt.scale_by_galore(4, b1=0.0, b2=0.0), grads, grads[0])
    low = projectors[-1].T @ (signs[-1] if shape == (4, 6) else signs[-1].T)
    np.testing.assert_allclose(np.abs(low), 1.0, atol=1e-4)


def test_galore_leaves_rows_without_gradient_alone():
    """optax makes full steps of rounding there: more directions were asked for than the gradient has."""
    grads = normal(20, 5, 8).at[:, 3].set(0.0)
    u, _ = galore_steps(jopt.scale_by_galore(5), grads, grads[0])
    assert np.max(np.abs(u[:, 3])) < 1e-5 < 0.1 < np.max(np.abs(u))


def test_galore_keeps_its_projector_through_a_zero_gradient():
    grads = jnp.stack([normal(4, 6), jnp.zeros((4, 6)), normal(4, 6)])
    u, projectors = galore_steps(jopt.scale_by_galore(2, update_proj_gap=1), grads, grads[0])
    np.testing.assert_array_equal(projectors[1], projectors[0])
    assert np.all(np.isfinite(u))
    assert np.any(projectors[2] != projectors[1])
    _, projectors = galore_steps(jopt.scale_by_galore(2), 0 * grads, grads[0])
    np.testing.assert_array_equal(projectors[-1], np.eye(4)[:, :2])


def test_galore_sends_embeddings_and_heads_to_adam():
    found = groups(jopt.galore(0.01))
    assert [path for path, group in found.items() if group == "galore"] == ["block_0/multihead_attention/out/kernel"]
    assert groups(jopt.galore(0.01, where="*"))["embed/embedding"] == "galore"
    assert groups(jopt.galore(0.01, axes="conv"))["conv/kernel"] == "galore"


def test_galore_refuses_ranks_that_are_none():
    for numbers in ({"rank": 0}, {"rank": 2.5}, {"update_proj_gap": 0}):
        with pytest.raises(ValueError, match=next(iter(numbers))):
            jopt.galore(0.01, **numbers)


# QK-clip -----------------------------------------------------------------------------------------

ATTENTION = {
    "block": {
        "query": {"kernel": normal(6, 2, 3), "bias": normal(2, 3)},
        "key": {"kernel": normal(6, 2, 3)},
        "value": {"kernel": normal(6, 2, 3)},
    }
}


def clipped(logits, params=ATTENTION, **options):
    tx = jopt.chain(jopt.sgd(0.1), jopt.qk_clip(100.0, 0.25, **options))
    g = jax.tree.map(jnp.ones_like, params)
    u, _ = tx.update(g, tx.init(params), params, max_logits=logits)
    return jopt.apply_updates(params, u)


def test_heads_with_large_logits_are_scaled_and_no_other():
    got = clipped({"block": jnp.asarray([400.0, 99.0])})["block"]
    for name, power in (("query", 0.25), ("key", 0.75)):
        scale = np.asarray([0.25**power, 1.0])
        for leaf, x in ATTENTION["block"][name].items():
            np.testing.assert_allclose(got[name][leaf], np.asarray(x - 0.1) * scale[:, None], rtol=1e-5)
    np.testing.assert_allclose(got["value"]["kernel"], ATTENTION["block"]["value"]["kernel"] - 0.1, rtol=1e-6)


def test_the_logits_of_a_clipped_head_are_bounded():
    x, large = normal(50, 6), jax.tree.map(lambda p: 30 * p, ATTENTION)

    def largest(params):
        q, k = (jnp.einsum("ti,ihd->thd", x, params["block"][n]["kernel"]) for n in ("query", "key"))
        return jnp.max(jnp.einsum("thd,shd->hts", q, k), axis=(1, 2))

    tx = jopt.qk_clip()
    zeros = jax.tree.map(jnp.zeros_like, large)
    u, _ = tx.update(zeros, tx.init(large), large, max_logits={"block": largest(large)})
    np.testing.assert_allclose(largest(jopt.apply_updates(large, u)), 100, rtol=1e-4)


def test_joined_heads_one_number_and_infinite_logits():
    flat = {"query": {"kernel": normal(6, 6)}, "key": {"kernel": normal(6, 6)}}
    got = clipped(jnp.asarray([400.0, 1.0]), flat, heads=-1)
    scale = np.repeat([0.25**0.25, 1.0], 3)
    np.testing.assert_allclose(got["query"]["kernel"], np.asarray(flat["query"]["kernel"] - 0.1) * scale, rtol=1e-5)
    np.testing.assert_allclose(clipped(jnp.inf, flat)["key"]["kernel"], flat["key"]["kernel"] - 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ({"other": 1.0}, "nothing for 'block/"),
        ({"block": 1.0, "other": 2.0}, r"\['other'\]"),
        ({"block": jnp.ones(4)}, "heads="),
    ],
)
def test_logits_that_do_not_fit_are_errors(logits, message):
    with pytest.raises(ValueError, match=message):
        clipped(logits)


def test_forgotten_logits_are_an_error():
    tx = jopt.qk_clip()
    with pytest.raises(TypeError, match="qk_clip was called without"):
        tx.update(ATTENTION, tx.init(ATTENTION), ATTENTION)


# Slots and views of unusual shapes -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["muon", "normuon", "soap", "shampoo", "scion"])
def test_the_axis_that_counts_matrices_may_be_the_last(name):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)

    def steps(x, rows, columns):
        tx = getattr(jopt, name)(0.1, axes=[("w", rows, columns)])
        params, state = {"w": x}, tx.init({"w": x})
        for _ in range(2):
            updates, state = tx.update({"w": x}, state, params)
        return updates["w"]

    first = steps(jnp.moveaxis(x, 2, 0), 1, 2)
    np.testing.assert_allclose(steps(x, 0, 1), jnp.moveaxis(first, 0, 2), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: jopt.kron(0.1, max_size_triangular=4), (8,)),
        (lambda: jopt.kron(0.1, max_size_triangular=4), (8, 3)),
        (lambda: jopt.shampoo(0.1, axes="any"), (1, 4, 4)),
        (lambda: jopt.shampoo(0.1, axes="any", max_preconditioner_size=4), (2, 4, 4)),
        (lambda: jopt.normuon(0.1, axes="any"), (1,)),
        (lambda: jopt.scale_by_galore(axes=[("w", 0, 1)]), (4, 3, 2)),
    ],
)
def test_a_slot_may_have_the_shape_of_the_parameter_by_chance(make, shape):
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)}
    tx = make()
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(params, state, params)
    assert updates["w"].shape == shape
    assert np.all(np.isfinite(updates["w"]))
    assert np.any(np.asarray(updates["w"]) != 0)


def test_kron_keeps_a_diagonal_for_a_vector():
    slots = jopt.scale_by_kron().init({"b": jnp.ones(4096), "w": jnp.ones((3, 5))}).slots["scale_by_kron"]
    assert (slots["left"]["b"].shape, slots["right"]["b"].shape) == ((4096,), (1,))
    assert (slots["left"]["w"].shape, slots["right"]["w"].shape) == ((3, 3), (5, 5))


@pytest.mark.parametrize(
    ("name", "number", "value"),
    [
        ("scale_by_soap", "precondition_frequency", 0),
        ("scale_by_kl_soap", "precondition_frequency", 2.5),
        ("scale_by_shampoo", "precondition_frequency", -1),
        ("scale_by_shampoo", "max_preconditioner_size", 0),
        ("scale_by_shampoo", "exponent", -1.0),
        ("scale_by_kron", "precondition_frequency", 0),
        ("scale_by_muon", "ns_steps", 2.9),
        ("scale_by_galore", "rank", 0),
    ],
)
def test_numbers_that_shape_the_program_are_checked(name, number, value):
    with pytest.raises(ValueError, match=rf"{name}: {number}={value} was given, .* was expected"):
        getattr(jopt, name)(**{number: value})


def test_a_number_that_shapes_the_program_is_not_traced():
    with pytest.raises(TypeError, match=r"scale_by_galore: rank=.* was given, a Python integer was expected"):
        jax.vmap(lambda rank: jopt.scale_by_galore(rank).init({"w": jnp.ones((2, 2))}))(jnp.arange(1, 3))


def test_coefficients_may_be_an_array_and_are_checked():
    rows = np.asarray(jopt.polar.COEFFICIENTS["dion"])
    assert jopt.scale_by_muon(rows) == jopt.scale_by_muon(tuple(map(tuple, rows.tolist())))
    with pytest.raises(ValueError, match=r"ns_coeffs=\(\) was given"):
        jopt.scale_by_muon(())
