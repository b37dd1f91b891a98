"""Choosing parameters: globs, regexes, predicates, masks; partition, freeze and the audit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt
from jopt import Leaf, everything_else, ndim, partition, path

P = {
    "embed": {"table": np.ones((4, 2), np.float32)},
    "layers": [
        {"kernel": np.full((2, 3), 0.5, np.float32), "bias": np.zeros(3, np.float32)},
        {"kernel": np.full((3, 2), -0.5, np.float32), "bias": np.ones(2, np.float32)},
    ],
    "steps": np.arange(3),
}
G = jax.tree.map(lambda p: np.ones_like(p) * (np.arange(p.size).reshape(p.shape) % 3 - 1).astype(p.dtype), P)
PATHS = ["embed/table", "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/kernel", "steps"]


def flat(tree):
    return jopt.paths.flatten(tree)[0]


def step(tx, grads=G, params=P):
    updates, _ = tx.update(grads, tx.init(params), params)
    return flat(updates)


# Predicates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("glob", "names", "others"),
    [
        ("**/bias", ["bias", "a/bias", "a/b/bias"], ["bias/a", "a/my_bias", "a/bias2"]),
        ("*/bias", ["a/bias"], ["bias", "a/b/bias"]),
        ("bias", ["bias", "a/bias", "bias/a"], ["my_bias", "a/biases"]),  # no slash: any one key
        ("embed*|head*", ["embed/w", "x/embedding/w", "head", "head_2/b"], ["x/my_head", "emb"]),
        ("layers/*/kernel", ["layers/0/kernel", "layers/11/kernel"], ["layers/kernel", "layers/0/1/kernel"]),
        ("layers/**", ["layers/0", "layers/0/kernel", "layers"], ["x/layers/0"]),
        ("layers/[01]/*", ["layers/0/w", "layers/1/w"], ["layers/2/w", "layers/10/w"]),
        ("w?", ["w1", "a/wx"], ["w", "w12"]),
        ("**", ["a", "a/b", ""], []),
        ("a/**/w", ["a/w", "a/b/w", "a/b/c/w"], ["w", "b/a/w"]),
        ("W", ["W"], ["w"]),  # case matters
    ],
)
def test_globs(glob, names, others):
    matches = path(glob)
    assert [name for name in names if not matches(Leaf(name, (), np.float32))] == []
    assert [name for name in others if matches(Leaf(name, (), np.float32))] == []


def test_a_slash_in_a_key_does_not_make_two_keys():
    params = {"a/b": np.ones(2, np.float32), "a": {"b": np.ones(2, np.float32)}}
    updates = step(jopt.masked(jopt.scale(3.0), where="a/b"), params, params)
    assert {name: float(u[0]) for name, u in updates.items()} == {"a/b": 3.0, "a~1b": 1.0}


def small(leaf):
    return leaf.size <= 4


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("**/bias", {"layers/0/bias", "layers/1/bias"}),
        (re.compile(r"layers/\d/k"), {"layers/0/kernel", "layers/1/kernel"}),
        (ndim(1), {"layers/0/bias", "layers/1/bias"}),
        (ndim(1, 2), set(PATHS) - {"steps"}),
        (ndim(2) & ~path("embed*"), {"layers/0/kernel", "layers/1/kernel"}),
        (ndim(1) | path("embed*"), {"layers/0/bias", "layers/1/bias", "embed/table"}),
        (path("layers") & "**/bias", {"layers/0/bias", "layers/1/bias"}),  # the right side may be a glob
        (~everything_else, set()),
        (small, {"layers/0/bias", "layers/1/bias"}),
        (lambda leaf: leaf.dtype == jnp.float32 and leaf.shape[0] == 3, {"layers/0/bias", "layers/1/kernel"}),
        (ndim(2) | small, set(PATHS) - {"steps"}),
    ],
)
def test_what_where_accepts(where, names):
    changed = step(jopt.masked(jopt.scale(3.0), where=where))
    assert {name for name, u in changed.items() if not np.array_equal(u, flat(G)[name])} == names


def test_a_mask_that_matches_nothing_is_an_error_that_lists_the_parameters():
    for where in (re.compile("^table$"), "**/gamma"):
        with pytest.raises(jopt.TreeMismatchError, match=r"matches no parameter(.|\n)*embed/table  float32\[4, 2\]"):
            jopt.masked(jopt.adam(0.1), where=where).init(P)


def test_predicates_print_as_they_are_written_and_compare():
    where = ndim(2) & ~path("embed*|head*") | everything_else
    assert repr(where) == "((ndim(2) & ~path('embed*|head*')) | everything_else)"
    assert where == ndim(2) & ~path("embed*|head*") | everything_else
    assert hash(where) == hash(ndim(2) & ~path("embed*|head*") | everything_else)
    assert path("a") != path("b")


# Masks in optax's form ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        {"embed": {"table": True}, "layers": [{"kernel": False, "bias": True}] * 2, "steps": False},
        {"embed": True, "layers": [{"kernel": False, "bias": True}] * 2, "steps": False},  # a prefix
        lambda params: jax.tree.map(lambda p: (p.shape[0] == 4 or p.ndim == 1) and p.dtype == np.float32, params),
        lambda params: {"embed": True, "layers": [{"kernel": False, "bias": True}] * 2, "steps": False},
    ],
    ids=["tree", "prefix", "function", "function of a prefix"],
)
def test_masks_mean_what_they_mean_in_optax(mask):
    ours = step(jopt.masked(jopt.scale(3.0), mask))
    full = mask if callable(mask) else lambda params: mask
    theirs = optax.masked(optax.scale(3.0), full)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = theirs.update(G, theirs.init(P), P)
    jax.tree.map(np.testing.assert_array_equal, ours, flat(expected))


@pytest.mark.parametrize("mask", [True, False])
def test_one_boolean_masks_everything_or_nothing(mask):
    updates = step(jopt.masked(jopt.scale(3.0), mask))
    expected = {name: g * 3 if mask and name != "steps" else g for name, g in flat(G).items()}
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_a_mask_that_says_nothing_of_a_parameter_is_an_error_that_names_it():
    with pytest.raises(jopt.TreeMismatchError, match=r"says nothing of 'layers/0/bias'.*it names 'embed'"):
        jopt.masked(jopt.scale(3.0), {"embed": True}).init(P)


def test_a_masked_leaf_has_no_state_and_passes_unchanged():
    tx = jopt.masked(jopt.adam(0.1), where="**/kernel")
    state = tx.init(P)
    assert set(state.slots["scale_by_adam"]["mu"]) == {"layers/0/kernel", "layers/1/kernel"}
    np.testing.assert_array_equal(step(tx)["embed/table"], G["embed"]["table"])


# partition ---------------------------------------------------------------------------------------


def test_the_first_match_wins():
    tx = partition([("**/kernel", jopt.scale(2.0)), (ndim(2), jopt.scale(3.0)), (everything_else, jopt.scale(5.0))])
    factors = {"layers/0/kernel": 2, "layers/1/kernel": 2, "embed/table": 3, "layers/0/bias": 5, "layers/1/bias": 5}
    updates = step(tx)
    for name, factor in factors.items():
        np.testing.assert_array_equal(updates[name], factor * flat(G)[name])


def test_a_partition_is_its_optimizers_apart():
    cases = [
        ("**/kernel", jopt.adamw(0.1)),
        ("**/bias", jopt.sgd(0.2, momentum=0.9)),
        (everything_else, jopt.lion(0.3)),
    ]
    tx = partition(cases)
    params, state = P, tx.init(P)
    for _ in range(3):
        params, state = jopt.apply_gradients(tx, G, state, params)
    got = flat(params)
    for where, alone in [(r"kernel$", cases[0][1]), (r"bias$", cases[1][1]), (r"table$", cases[2][1])]:
        mine = {name: p for name, p in flat(P).items() if re.search(where, name)}
        grads = {name: flat(G)[name] for name in mine}
        state = alone.init(mine)
        for _ in range(3):
            mine, state = jopt.apply_gradients(alone, grads, state, mine)
        for name, p in mine.items():
            np.testing.assert_allclose(got[name], p, rtol=1e-6, err_msg=name)


def test_an_unclaimed_parameter_is_an_error_that_lists_it():
    tx = partition([("**/kernel", jopt.sgd(0.1))])
    with pytest.raises(jopt.TreeMismatchError) as error:
        tx.init(P)
    assert str(error.value) == (
        "partition: no case claims these parameters, exactly one was expected to:\n"
        "  embed/table  float32[4, 2]\n  layers/0/bias  float32[3]\n  layers/1/bias  float32[2]\n"
        "Add a case, or end with (everything_else, freeze())."
    )


def test_an_idle_case_is_an_error_that_lists_what_was_left():
    tx = partition([("**/kernel", jopt.sgd(0.1)), ("**/gamma", jopt.sgd(0.1)), (everything_else, jopt.sgd(0.1))])
    with pytest.raises(jopt.TreeMismatchError, match=r"'\*\*/gamma' .* claims no parameter(.|\n)*layers/0/bias  float"):
        tx.init(P)
    late = partition([("**", jopt.sgd(0.1)), (everything_else, jopt.freeze())])
    with pytest.raises(jopt.TreeMismatchError, match=r"'everything_else'(.|\n)*left:\n  nothing\n"):
        late.init(P)
    named = partition([("a", "x", jopt.sgd(0.1)), ("b", "**", jopt.sgd(0.1))], idle=["a"])
    named.init({"w": jnp.ones(2)})
    assert eval(repr(named), {**vars(jopt)}) == named
    with pytest.raises(jopt.TreeMismatchError, match="'b'"):
        named.init({"x": jnp.ones(2)})
    allowed = partition([("**", jopt.sgd(0.1)), (everything_else, jopt.freeze())], idle="allow")
    allowed.init(P)


def test_claims_are_made_anew_at_every_call():
    """Nothing of `init` is kept to compare with: nnx shows `init` another tree than `update`."""
    seen = []

    def where(leaf):
        seen.append(leaf.path)
        return leaf.ndim == 2

    tx = partition([("matrices", where, jopt.scale(2.0)), ("rest", everything_else, jopt.scale(3.0))])
    state = tx.init(P)
    at_init = len(seen)
    assert at_init >= len(PATHS)
    tx.update(G, state, P)
    assert len(seen) >= 2 * at_init
    other = {"x": np.ones((2, 2), np.float32), "y": np.ones(2, np.float32)}
    updates, _ = tx.update(other, state, other)
    assert (float(updates["x"][0, 0]), float(updates["y"][0])) == (2.0, 3.0)


def test_names_of_a_group_are_prefixed():
    tx = partition([("mat", ndim(2), jopt.adam(0.1)), ("**/bias", jopt.sgd(0.2))])
    state = tx.init(P)
    assert {name.rpartition("/")[0] for name in jopt.hyperparams(state)} == {
        "mat/scale_by_adam",
        "mat/scale_by_learning_rate",
        "**/bias/scale_by_learning_rate",
    }
    assert set(state.slots) == {"mat/scale_by_adam"}


def test_frozen_parameters_have_no_entry_and_do_not_move():
    tx = partition([("layers/0/*", jopt.freeze()), (everything_else, jopt.adam(0.1))])
    state = tx.init(P)
    assert not any("layers/0" in str(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(state)[0])
    rows = {row.path: row for row in jopt.explain(tx, P).rows}
    assert rows["layers/0/kernel"].state_bytes == rows["layers/0/bias"].state_bytes == 0
    assert rows["layers/1/kernel"].state_bytes == 2 * 4 * 6
    params, _ = jopt.apply_gradients(tx, G, state, P)
    np.testing.assert_array_equal(params["layers"][0]["kernel"], P["layers"][0]["kernel"])


def test_a_clip_inside_a_group_sees_the_norm_of_the_group():
    tx = partition([("biases", ndim(1), jopt.clip_by_global_norm(0.5)), ("rest", everything_else, jopt.identity())])
    updates = step(tx)
    biases = [name for name in PATHS if name.endswith("bias")]
    norm = np.sqrt(sum(np.sum(flat(G)[name] ** 2) for name in biases))
    for name in biases:
        np.testing.assert_allclose(updates[name], flat(G)[name] * 0.5 / norm, rtol=1e-6)
    np.testing.assert_array_equal(updates["embed/table"], flat(G)["embed/table"])


def test_partitions_and_masks_nest():
    inner = partition([("head", "layers/1/*", jopt.scale(2.0)), ("body", everything_else, jopt.scale(3.0))])
    tx = jopt.chain(
        partition([("net", "layers", jopt.masked(inner, where="**/kernel")), ("rest", everything_else, jopt.freeze())]),
        jopt.masked(jopt.scale(10.0), where=ndim(2)),
    )
    updates, factors = step(tx), {"layers/0/kernel": 30, "layers/1/kernel": 20, "layers/0/bias": 1, "embed/table": 0}
    for name, factor in factors.items():
        np.testing.assert_array_equal(updates[name], factor * flat(G)[name], err_msg=name)
    assert set(jopt.hyperparams(tx.init(P))) == {
        "net/head/scale/step_size",
        "net/body/scale/step_size",
        "scale/step_size",
    }


def test_a_wrapper_inside_a_group_has_a_clock_of_its_own():
    tx = partition([("slow", ndim(1), jopt.accumulate(jopt.sgd(1.0), 2)), ("fast", everything_else, jopt.sgd(1.0))])
    state = tx.init(P)
    for expected in (0.0, 1.0):
        updates, state = tx.update(G, state, P)
        np.testing.assert_array_equal(updates["layers"][0]["bias"], -expected * G["layers"][0]["bias"])
        np.testing.assert_array_equal(updates["embed"]["table"], -G["embed"]["table"])


# explain -----------------------------------------------------------------------------------------


def test_the_audit_says_who_gets_what():
    tx = partition(
        [
            ("decay", "**/kernel", jopt.adamw(jopt.schedules.linear_schedule(0.1, 0.0, 10))),
            ("**/bias", jopt.sgd(0.2)),
            (everything_else, jopt.freeze()),
        ]
    )
    audit = jopt.explain(tx, P)
    rows = {row.path: row for row in audit.rows}
    assert list(rows) == PATHS
    kernel = rows["layers/0/kernel"]
    assert (kernel.shape, kernel.dtype, kernel.group, kernel.state_bytes) == ((2, 3), "float32", "decay", 48)
    assert kernel.rules.endswith(
        "add_decayed_weights(weight_decay=0.0001) → scale_by_learning_rate(learning_rate=0.1*)"
    )
    assert rows["layers/0/bias"].rules == "scale_by_learning_rate(learning_rate=0.2)"
    assert rows["embed/table"].rules == "set_to_zero()"
    assert rows["steps"].rules == "passes through"
    text = str(audit)
    assert text.splitlines()[0].split() == ["parameter", "shape", "dtype", "group", "rules", "state"]
    assert "6 parameters, 96 bytes of state" in text.splitlines()
    assert "learning_rate=0.2" in text
    structs = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, P))
    assert str(jopt.explain(tx, structs)) == text
    for swapped, arguments in {"params and tx": (P, tx), "state and params": (tx, tx.init(P), P)}.items():
        with pytest.raises(TypeError, match=f"explain: {swapped} are swapped.*Call explain") as raised:
            jopt.explain(*arguments)
        assert "rray(" not in str(raised.value)
    with pytest.raises(TypeError, match=r"explain: a dict was given, a transform"):
        jopt.explain(P, P)


def test_the_audit_shows_counts_names_and_flags_that_are_set():
    (row,) = jopt.explain(jopt.scale_by_muon(ns_steps=3, ns_coeffs="standard"), {"w": jnp.ones((2, 3))}).rows
    assert row.rules == (
        "scale_by_muon(beta=0.95, eps=1e-08, nesterov, ns_coeffs=standard, ns_steps=3, preconditioning=frobenius)"
    )
    (row,) = jopt.explain(jopt.scale_by_muon(nesterov=False), {"w": jnp.ones((2, 3))}).rows
    assert row.rules == "scale_by_muon(beta=0.95, eps=1e-08, ns_steps=5, preconditioning=frobenius)"


def test_the_audit_reads_the_numbers_of_a_state():
    tx = jopt.accumulate(jopt.sgd(0.1), 2)
    state = jopt.set_hyperparams(tx.init(P), learning_rate=0.025)
    assert jopt.explain(tx, P, state).rows[0].rules == (
        "accumulate(every=2) → scale_by_learning_rate(learning_rate=0.025)"
    )


def test_the_audit_runs_no_foreign_init_but_on_the_parameters():
    mask = jax.tree.map(lambda p: p.ndim == 2, P)
    rows = jopt.explain(jopt.chain(optax.masked(optax.adam(0.1), mask), jopt.scale(0.5)), P).rows
    assert {row.path: row.state_bytes for row in rows if row.state_bytes} == {
        "embed/table": 64,
        "layers/0/kernel": 48,
        "layers/1/kernel": 48,
    }


@pytest.mark.parametrize(
    ("make", "per_element"),
    [
        (lambda: jopt.sgd(0.1), 0),
        (lambda: jopt.adam(0.1), 8),
        (lambda: jopt.adam(0.1, mu_dtype="bfloat16"), 6),
        (lambda: jopt.accumulate(jopt.adam(0.1), 4), 12),
        (lambda: jopt.skip_nonfinite(jopt.ema(jopt.sgd(0.1))), 4),
        (lambda: optax.adam(0.1), 8),
        (lambda: jopt.accumulate(optax.adam(0.1), 4), 12),
    ],
    ids=["sgd", "adam", "narrow mu", "accumulate", "guarded average", "optax", "accumulated optax"],
)
def test_the_audit_counts_the_bytes_of_wrappers_and_foreign_states_too(make, per_element):
    rows = {row.path: row for row in jopt.explain(make(), P).rows}
    for name, p in flat(P).items():
        assert rows[name].state_bytes == (per_element * p.size if name != "steps" else 0), name
    assert jopt.explain(make(), P["embed"]["table"]).state_bytes == per_element * 8  # a bare array
