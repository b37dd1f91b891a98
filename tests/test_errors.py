"""Every error is a repair manual: what was called, what was received, what was expected, what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jopt
from jopt import StateMismatchError, TreeMismatchError

P = {"net": {"w": np.ones((3, 2), np.float32)}, "b": np.ones(2, np.float32)}
ADAM = jopt.adam(0.1)


def other(path, value):
    """The parameters with one leaf replaced, as gradients."""
    return {"net": {"w": value if path == "net/w" else P["net"]["w"]}, "b": value if path == "b" else P["b"]}


def update(tx, grads=P, params=P, state=None, **extra):
    return tx.update(grads, tx.init(P) if state is None else state, params, **extra)


def plain_step(g, s, p):
    return g, s


def rated_step(g, s, p, *, rate):
    return rate * g, s


def one_rule(step=plain_step, **options):
    return jopt.rule("mine", step, **options)


def with_slots(result):
    """A rule that keeps m and whose step returns `result`."""
    return one_rule(lambda g, s, p: result(g, s), slots=lambda p: {"m": jnp.zeros_like(p)})


# name: (bad call, error, "called … received … expected … what to do"), regexes in the order of the message.
MESSAGES = {
    # numbers
    "range": (
        lambda: jopt.sgd(-0.1),
        ValueError,
        r"scale_by_learning_rate … learning_rate=-0\.1 … in \[0, inf\) … Choose",
    ),
    "nan": (lambda: jopt.clip(float("nan")), ValueError, "clip … max_delta=nan … a number in … Choose max_delta"),
    "text": (lambda: jopt.sgd("0.1"), TypeError, "scale_by_learning_rate … '0.1' … a real number … Pass a float"),
    "flag": (lambda: jopt.sgd(True), TypeError, "scale_by_learning_rate … True … a real number … Pass a float"),
    "complex": (lambda: jopt.sgd(1j), TypeError, "scale_by_learning_rate … complex128 … a real number … Pass a float"),
    "vector": (
        lambda: jopt.adam(0.1, [0.8, 0.9]),
        TypeError,
        r"scale_by_adam … b1 of shape \(2,\) … a scalar … jax.vmap",
    ),
    "every": (lambda: jopt.accumulate(ADAM, 0), ValueError, r"accumulate … every=0 … \[1, inf\) … Choose every"),
    "swapped": (
        lambda: jopt.clip_params(1.0, 0.0),
        ValueError,
        "clip_params … low=1.0 and high=0.0 … low ≤ high … Swap",
    ),
    "patience": (
        lambda: jopt.reduce_on_plateau(patience=0),
        ValueError,
        "reduce_on_plateau … patience=0 … at least 1 … Raise",
    ),
    "dtype": (
        lambda: jopt.adam(0.1, mu_dtype="int8"),
        TypeError,
        "scale_by_adam … mu_dtype='int8' … floating … 'bfloat16'",
    ),
    "triples": (
        lambda: jopt.scale_by_muon([(1, 2, 3)] * 3),
        ValueError,
        "scale_by_muon … ns_steps=5 … exactly 5 … Set ns_steps",
    ),
    "key": (lambda: jopt.add_noise(1.0, 0.0, key=-1), ValueError, "add_noise … key=-1 … a seed … key=0"),
    "key words": (
        lambda: jopt.add_noise(1.0, 0.0, key=[1, 2, 3]),
        ValueError,
        r"add_noise … \[1, 2, 3\] … a seed … key=0",
    ),
    "schedule of a vector": (
        lambda: jopt.sgd(lambda n: jnp.ones(2)).init(P),
        TypeError,
        r"schedule of scale_by_learning_rate/learning_rate … shape \(2,\) … a scalar … Return one number",
    ),
    "schedule of nothing": (
        lambda: jopt.sgd(lambda n: None).init(P),
        TypeError,
        "schedule of scale_by_learning_rate/learning_rate … None … a number … Return one number",
    ),
    # composition
    "no transform": (
        lambda: jopt.chain(ADAM, 3),
        TypeError,
        "chain … 3 was given … init and update … Pass a jopt or optax",
    ),
    "not called": (
        lambda: jopt.chain(jopt.adam),
        TypeError,
        r"chain … function adam … a transform … Call it first: adam\(\.\.\.\)",
    ),
    "ema of a number": (lambda: jopt.ema(0.9), TypeError, r"ema … 0.9 … a transform … scale_by_ema\(0\.9\)"),
    "case": (lambda: jopt.partition([("w",)]), TypeError, r"partition … \('w',\) … \(where, transform\) … sgd\(0\.1\)"),
    "case names": (
        lambda: jopt.partition([("w", ADAM), ("w", ADAM)]),
        ValueError,
        r"partition … \['w', 'w'\] … different names … Name them",
    ),
    "idle": (
        lambda: jopt.partition([("w", ADAM)], idle="x"),
        ValueError,
        "partition … idle='x' … 'error' or 'allow' … Leave it out",
    ),
    "no mask": (
        lambda: jopt.masked(ADAM),
        TypeError,
        "masked … mask=None and where=None … exactly one … Pass for example",
    ),
    "two masks": (
        lambda: jopt.adamw(0.1, mask=True, where="w"),
        TypeError,
        "masked … mask=True and where='w' … exactly one … Pass for example",
    ),
    "mask of numbers": (
        lambda: jopt.masked(ADAM, {"w": 1}),
        TypeError,
        "mask … 'w' of the mask is 1 … True or False … where=",
    ),
    "where": (lambda: jopt.masked(ADAM, where=3), TypeError, r"where … 3 … a glob … '\*\*/bias'"),
    "path": (lambda: jopt.path(3), TypeError, r"path … 3 … a glob … '\*\*/bias'"),
    "ndim": (lambda: jopt.ndim("2"), TypeError, r"ndim … '2' … numbers of axes … ndim\(2\)"),
    "gradients of no transform": (
        lambda: jopt.apply_gradients(3, P, None, P),
        TypeError,
        "apply_gradients … 3 was given … a transform … Pass a jopt or optax",
    ),
    # rules of one's own
    "unused number": (
        lambda: one_rule(rated_step, hyper={"rate": 1.0, "decay": 0.1}),
        TypeError,
        r"mine … \['decay'\] … which name \['rate'\] … keyword-only arguments",
    ),
    "reads": (lambda: one_rule(reads="all"), ValueError, "Rule … 'all' … 'element' … Name one"),
    "list": (
        lambda: one_rule(rated_step, static={"rate": [1]}),
        TypeError,
        r"mine … rate=\[1\] does not hash … hashable … Pass a tuple",
    ),
    "number forgotten": (lambda: update(one_rule(rated_step)), TypeError, r"mine … \['rate'\] … needs … rate=\.\.\."),
    "shape of the update": (
        lambda: update(one_rule(lambda g, s, p: (g.sum(), s))),
        TypeError,
        r"mine … float32\[\] … gradient of float32\[ … missing reduction",
    ),
    "no pair": (
        lambda: update(one_rule(lambda g, s, p: g)),
        TypeError,
        r"mine … Tracer … \(update, dict of slots\) … return u",
    ),
    "slots that are no dict": (
        lambda: one_rule(slots=lambda p: p).init(P),
        TypeError,
        r"mine … slots returned … a dict of named arrays … 'mu': jnp\.zeros_like\(p\)",
    ),
    "shape of a slot": (
        lambda: update(with_slots(lambda g, s: (g, {"m": g.sum()}))),
        TypeError,
        r"mine … \{'m': \(\)\} … 'm': \(2,\) … Return each slot",
    ),
    "name of a slot": (
        lambda: update(with_slots(lambda g, s: (g, {"n": g}))),
        TypeError,
        "mine … 'n' … 'm' … Return each slot",
    ),
    "shared of a vector": (
        lambda: update(one_rule(rated_step, shared=lambda *, t: {"rate": jnp.ones(2)})),
        TypeError,
        r"mine: its shared … \{'rate': \(2,\)\} … named numbers … Return for example",
    ),
    "whole": (
        lambda: update(jopt.whole(jopt.Whole("mine", lambda grads, own, params: ({}, own)))),
        TreeMismatchError,
        r"mine … updates for \[\] … \['b', 'net/w'\] … Return an update",
    ),
    # leaves
    "text leaf": (
        lambda: ADAM.init({"name": "adam"}),
        TypeError,
        "init … 'name' is 'adam' … an array … None in its place",
    ),
    "function leaf": (
        lambda: ADAM.update({"f": abs}, ADAM.init({}), {"f": abs}),
        TypeError,
        "update … 'f' is <built-in … an array … None in its place",
    ),
    "complex leaf": (
        lambda: jopt.scale_by_muon().init({"c": jnp.ones((2, 2), jnp.complex64)}),
        TypeError,
        "init: scale_by_muon … 'c' of dtype complex64 … a real array … two parameters",
    ),
    "no matrix": (
        lambda: jopt.scale_by_muon().init({"k": jnp.ones(3)}),
        TypeError,
        r"init: scale_by_muon … 'k' .* shape \(3,\) … a matrix … partition",
    ),
    # trees
    "missing": (
        lambda: update(ADAM, {"b": P["b"]}),
        TreeMismatchError,
        r"update … the same were expected … only in params': \['net/w'\] … filtered",
    ),
    "left over": (
        lambda: update(ADAM, P | {"x": P["b"]}),
        TreeMismatchError,
        r"update … the same were expected … only in grads': \['x'\] … filtered",
    ),
    "shape": (
        lambda: update(ADAM, other("net/w", np.ones((2, 3), np.float32))),
        TreeMismatchError,
        r"update … 'net/w' is float32\[2, 3\] … float32\[3, 2\]; the same shape … reduce the gradient",
    ),
    "broadcast": (
        lambda: update(ADAM, other("net/w", np.ones((1, 2), np.float32))),
        TreeMismatchError,
        r"update … 'net/w' is float32\[1, 2\] … float32\[3, 2\] … Nothing broadcasts",
    ),
    "complex gradient": (
        lambda: update(ADAM, other("b", np.ones(2, np.complex64))),
        TreeMismatchError,
        r"update … 'b' is complex64\[2\] … the same shape and kind … Nothing broadcasts",
    ),
    "integer gradient": (
        lambda: update(ADAM, other("b", np.ones(2, np.int32))),
        TreeMismatchError,
        r"update … 'b' is int32\[2\] … a real or complex gradient … Pass None",
    ),
    "integer parameter": (
        lambda: update(ADAM, params=other("b", np.ones(2, np.int32))),
        TreeMismatchError,
        r"update … 'b' is float32\[2\] … not trained … Pass a float0",
    ),
    "updates of another tree": (
        lambda: jopt.apply_updates(P, {"b": P["b"]}),
        TreeMismatchError,
        r"apply_updates … \['net/w'\] … the same leaves … Pass the updates",
    ),
    "updates of another shape": (
        lambda: jopt.apply_updates(P, other("b", np.ones(1, np.float32))),
        TreeMismatchError,
        r"apply_updates … 'b' has the shape \(1,\) … \(2,\) was expected … Nothing broadcasts",
    ),
    # what update needs
    "params": (
        lambda: update(jopt.adamw(0.1), params=None),
        TypeError,
        "update: add_decayed_weights … None … the parameters … Call tx",
    ),
    "params inside": (
        lambda: update(jopt.accumulate(jopt.adamw(0.1), 1), params=None),
        TypeError,
        "update: add_decayed_weights … None … the parameters … Call tx",
    ),
    "params of a monitor": (
        lambda: update(jopt.monitor(ADAM), params=None),
        TypeError,
        "monitor … None … the parameters … Call tx",
    ),
    "params to apply to": (
        lambda: jopt.apply_gradients(ADAM, P, ADAM.init(P), None),
        TypeError,
        "apply_gradients … None … the parameters … Pass them",
    ),
    "value": (
        lambda: update(jopt.reduce_on_plateau()),
        TypeError,
        r"reduce_on_plateau … \['value'\] … needs … value=\.\.\.",
    ),
    # states
    "another state": (
        lambda: update(ADAM, state=jopt.sgd(0.1).init(P)),
        StateMismatchError,
        r"update … holds the hyper-parameters … scale_by_adam/b1 … make one with init\(params\)",
    ),
    "optax's state": (
        lambda: update(ADAM, state=optax.adam(0.1).init(P)),
        StateMismatchError,
        r"update … type tuple … a jopt State … init\(params\)",
    ),
    "a schedule for a number": (
        lambda: update(ADAM, state=jopt.adam(lambda n: 0.1).init(P)),
        StateMismatchError,
        r"update … of these settable … were expected … init\(params\)",
    ),
    "a state of fewer parameters": (
        lambda: update(ADAM, state=ADAM.init({"b": P["b"]})),
        StateMismatchError,
        r"update … 'net/w' of shape \[3, 2\] … 'mu': \(3, 2\) … init\(params\)",
    ),
    "a state of more parameters": (
        lambda: update(ADAM, state=ADAM.init(P | {"x": P["b"]})),
        StateMismatchError,
        r"update … scale_by_adam holds \['x'\] … do not have … Pass gradients of the same tree",
    ),
    "a sum of other shapes": (
        lambda: update(
            jopt.accumulate(jopt.sgd(0.1), 2), state=jopt.accumulate(jopt.sgd(0.1), 2).init(P | {"b": P["net"]})
        ),
        StateMismatchError,
        r"update … 'b … was expected … init\(params\)",
    ),
    "two averages": (
        lambda: jopt.eval_params(jopt.ema(jopt.ema(ADAM)).init(P), P),
        StateMismatchError,
        "eval_params … 'average_params', 'average_params_2' … one was expected … Keep one",
    ),
    # hyper-parameters
    "unknown": (
        lambda: jopt.set_hyperparams(ADAM.init(P), momentum=0.9),
        KeyError,
        "hyperparams … 'momentum' … scale_by_adam/b1 … Use one of these",
    ),
    "ambiguous": (
        lambda: jopt.hyperparams(jopt.muon(0.1).init(P))["learning_rate"],
        KeyError,
        "hyperparams … 'learning_rate' is ambiguous … muon/scale_by_learning_rate … full name",
    ),
    "scheduled": (
        lambda: jopt.set_hyperparams(jopt.sgd(lambda n: 0.1).init(P), learning_rate=0.1),
        KeyError,
        "set_hyperparams … learning_rate' follows … lost at the next … Build the transform",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_an_error_says_what_was_called_received_expected_and_what_to_do(name):
    call, error, parts = MESSAGES[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value).replace("\\n", "\n")
    place = 0
    for part in parts.split(" … "):
        found = re.compile(part).search(message, place)
        assert found, f"{part!r} is not in what is left of: {message}"
        place = found.start() + 1
    assert message.rstrip("\"'").endswith((".", "?", ")")), message


@pytest.mark.parametrize("name", ["missing", "left over", "shape", "broadcast", "another state", "params", "value"])
def test_errors_of_trees_and_states_come_while_tracing(name):
    """Under jit nothing has run yet; the message is the same."""
    call, error, _ = MESSAGES[name]
    with pytest.raises(error) as eager:
        call()
    with pytest.raises(error) as traced:
        jax.jit(lambda: jax.tree.leaves(call()))()
    assert str(traced.value) == str(eager.value)


@pytest.mark.parametrize(
    ("tx", "extra", "came"),
    [
        (one_rule(rated_step), {}, "none"),
        (jopt.chain(jopt.reduce_on_plateau(), one_rule(rated_step)), {"value": 1.0}, r"\['value'\]"),
        (jopt.skip_nonfinite(one_rule(rated_step)), {"unknown": 1.0}, "none"),
        (jopt.reduce_on_plateau(), {}, "none"),
    ],
)
def test_a_forgotten_extra_is_reported_beside_those_of_the_caller_alone(tx, extra, came):
    with pytest.raises(TypeError, match=f"was called without .* which it needs; of the extras .*, {came} came"):
        update(tx, **extra)


def test_a_long_list_of_leaves_is_cut():
    params = {f"layer_{i}": np.ones(1, np.float32) for i in range(100)}
    with pytest.raises(TreeMismatchError, match=r"layer_0 (.|\n)*and 92 more") as raised:
        jopt.partition([("other", ADAM)], idle="allow").init(params)
    assert len(str(raised.value).splitlines()) < 15


def test_an_error_inside_a_wrapper_names_the_leaf_and_the_rule():
    tx = jopt.skip_nonfinite(jopt.accumulate(jopt.partition([("net", ADAM), ("b", jopt.adamw(0.1))]), 2))
    with pytest.raises(TypeError, match="b/add_decayed_weights reads the parameters"):
        update(tx, params=None)
