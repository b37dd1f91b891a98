"""Laws of trees: what leaves are called, where they lie and what else is in the tree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.partition import chain
from jopt.paths import everything_else, flatten
from jopt.rules import scale
from jopt.testing.compare import assert_close, assert_different, assert_finite, assert_same, assert_types
from jopt.testing.law import law, law_if
from jopt.testing.subject import Subject, draw
from jopt.transform import masked


@law_if(lambda subject: not subject.reads_paths, "it is declared to read paths")
def leaf_names_are_free(subject: Subject) -> None:
    """Renaming and reordering leaves renames and reorders the updates (but of random numbers)."""

    def rename(tree):
        return {f"leaf {i}": x for i, x in enumerate(reversed(jax.tree.leaves(tree)))}

    run = subject.run(subject.tx, rename(subject.params), [rename(g) for g in subject.grads])
    expected = [rename(u) for u in subject.baseline.updates]
    if subject.random:
        assert_different(run.updates, expected, "renamed leaves", subject.ulps, "Declare random=False.")
    else:
        assert_close(run.updates, expected, "the updates of renamed leaves", subject.ulps)


@law_if(lambda subject: not (subject.random or subject.reads_paths), "it is declared to be random, or to read paths")
def elements_are_free(subject: Subject) -> None:
    """Moving elements about, within leaves and between them, moves the updates, if and only if elementwise."""
    ways = [_shuffle] if subject.matrices_only else [_shuffle, _join]
    try:
        for move in ways:
            run = subject.run(subject.tx, move(subject.params), [move(g) for g in subject.grads])
            expected = [move(u) for u in subject.baseline.updates]
            assert_close(run.updates, expected, f"the updates after {move.__name__.strip('_')}", subject.ulps)
    except AssertionError:
        if subject.elementwise:
            raise
        return
    if not subject.elementwise:
        raise AssertionError("moving elements about made no difference. Declare elementwise=True.")


def _shuffle(tree: Any) -> Any:
    def shuffled(x):
        order = np.random.default_rng(x.size).permutation(x.size)
        return jnp.reshape(jnp.ravel(x)[order], x.shape)

    return jax.tree.map(shuffled, tree)


def _join(tree: Any) -> Any:
    return {"all": jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])}


@law
def masks_choose_leaves(subject: Subject) -> None:
    """Masked to all leaves it is itself; masked to none it is the identity and keeps nothing for a leaf."""
    run = subject.run(masked(subject.tx, where=everything_else), subject.params, subject.grads)
    assert_same(run, subject.baseline, "masked to all: (updates, parameters, states)")
    nobody = masked(subject.tx, where=~everything_else)
    run = subject.run(nobody, subject.params, subject.grads)
    assert_same(run.updates, subject.grads, "masked to none: the updates")
    assert_types(run.states[0], subject.tx.init({}), "masked to none: the state")


@law
def untrained_leaves_pass(subject: Subject) -> None:
    """Integers, booleans, keys and None pass `update` untouched and have no state."""
    params = subject.params if isinstance(subject.params, dict) else {"params": subject.params}
    grads = subject.grads[0] if isinstance(subject.params, dict) else {"params": subject.grads[0]}
    others = {"~int": jnp.arange(4), "~bool": jnp.asarray([True, False]), "~key": jax.random.key(0), "~none": None}
    passed = {
        "~int": np.zeros((4,), jax.dtypes.float0),
        "~bool": np.zeros((2,), jax.dtypes.float0),
        "~key": np.zeros((), jax.dtypes.float0),
        "~none": None,
    }
    with jax.disable_jit():  # float0 cannot enter a compiled call
        state = subject.tx.init(params | others)
        updates, after = subject.tx.update(grads | passed, state, params | others, **subject.extras)
        expected, _ = subject.tx.update(grads, subject.tx.init(params), params, **subject.extras)
    assert_types(state, subject.tx.init(params), "the state beside leaves that are not trained")
    assert_types(after, state, "the state after a step beside them")
    assert_close({name: updates[name] for name in params}, expected, "the updates beside them", subject.ulps)
    for name, gradient in passed.items():
        if updates[name] is not gradient:
            raise AssertionError(f"the update of {name!r} is {updates[name]!r}, its gradient itself was expected.")
    integers = {"~int": jnp.ones((4,), jnp.int32)}
    updates, _ = jax.eval_shape(
        lambda g: subject.tx.update(g, state, params | others, **subject.extras), grads | passed | integers
    )
    assert_types(updates["~int"], integers["~int"], "the update of an integer leaf with an integer gradient")


@law
def edge_leaves_are_leaves(subject: Subject) -> None:
    """Empty trees, leaves of size zero or one and scalars work, and give finite updates of their types."""
    shapes = [(0, 3), (1, 1), (3, 0)] if subject.matrices_only else [(0, 3), (), (1,)]
    source = np.random.default_rng(3)
    like = flatten(subject.params)[0]
    dtype = next(iter(like.values())).dtype
    for shape in shapes:
        params = jax.tree.map(lambda p, s=shape: draw(source, jax.ShapeDtypeStruct(s, dtype)), subject.params)
        run = subject.run(subject.tx, params, [subject.gradients(step, params) for step in range(2)])
        assert_types(run.updates[-1], params, f"the updates of leaves of shape {shape}")
        assert_types(run.states[-1], run.states[0], f"the state for leaves of shape {shape}")
        assert_finite(run, f"leaves of shape {shape}: (updates, parameters, states)", _first_states(run))
    for empty in ({}, []):
        run = subject.run(subject.tx, empty, [empty])
        assert_types(run.updates[0], empty, f"the updates of the empty tree {empty!r}")
        assert_types(run.states[1], run.states[0], f"the state for the empty tree {empty!r}")


def _first_states(run: Any) -> Any:
    """A run whose values are those before the first step: what may be infinite from the start."""
    return run._replace(
        updates=jax.tree.map(jnp.zeros_like, run.updates),
        params=jax.tree.map(jnp.zeros_like, run.params),
        states=[run.states[0]] * len(run.states),
    )


@law_if(lambda subject: subject.matrices_only, "it is not declared to take matrices alone")
def non_matrices_are_refused(subject: Subject) -> None:
    """Another leaf is a TypeError at `init` or `update` that asks for a matrix."""

    def train(params):
        return subject.tx.update(params, subject.tx.init(params), params, **subject.extras)

    for shape in ((), (3,), (2, 3, 3)):
        odd = {"odd": jax.ShapeDtypeStruct(shape, jnp.float32)}
        expect_error(TypeError, ["a matrix"], f"a leaf of shape {shape}", jax.eval_shape, train, odd)


@law
def mismatches_name_the_leaf(subject: Subject) -> None:
    """Gradients, parameters and states that do not fit each other are a ValueError that names the leaf."""
    flat, layout = flatten(subject.params)
    state = subject.tx.init(subject.params)
    first, p = next((path, p) for path, p in flat.items() if p.ndim and p.shape[0] > 1)

    def update(leaf, state=state):
        grads = layout.unflatten(flat | {first: leaf})
        jax.eval_shape(lambda: subject.tx.update(grads, state, subject.params, **subject.extras))

    wrong = {
        "with one axis more": p[None],
        "of length 1": p[:1],
        "of too many rows": jnp.concatenate([p, p]),
        "of another kind": p.astype(jnp.complex64),
        "of integers": p.astype(jnp.int32),
    }
    for how, leaf in wrong.items():
        expect_error(ValueError, [first], f"update with a gradient {how}", update, leaf)
    if isinstance(subject.params, dict):
        key, *_ = subject.params
        fewer = {name: g for name, g in subject.grads[0].items() if name != key}
        what = f"update without the gradient of {key!r}"
        expect_error(ValueError, [key], what, subject.tx.update, fewer, state, subject.params, **subject.extras)
    for path, x in flat.items():
        other = subject.tx.init(layout.unflatten(flat | {path: jnp.concatenate([x, x])}))
        if jax.tree.map(np.shape, other) != jax.tree.map(np.shape, state):
            what = f"update with the state of parameters where {path!r} is longer"
            expect_error(ValueError, [path], what, update, p, other)
    expect_error(ValueError, ["State"], "update with an empty tuple as state", update, p, ())
    foreign = chain(subject.tx, scale(2.0)).init(subject.params)
    expect_error(ValueError, ["step_size"], "update with the state of another transform", update, p, foreign)


def expect_error(kind: type[Exception], words: list[str], what: str, call: Any, *arguments: Any, **extra: Any) -> None:
    """The call raises that kind of error, whose message has the words."""
    try:
        call(*arguments, **extra)
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise AssertionError(f"{what} raised {type(error).__name__}: {error}\nIt should name {missing}.") from error
        return
    except Exception as error:
        raise AssertionError(
            f"{what} raised {type(error).__name__}: {error}\n{kind.__name__} was expected, naming {words}."
        ) from error
    raise AssertionError(f"{what} was accepted, {kind.__name__} naming {words} was expected.")
