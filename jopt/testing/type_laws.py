"""Laws of types: what goes in comes out, and a state never changes its type."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.testing.compare import assert_same, assert_types
from jopt.testing.law import law, law_if
from jopt.testing.subject import Subject, take_step


def float_dtypes() -> list[Any]:
    """The real dtypes parameters come in."""
    wide = [jnp.float64] if jnp.result_type(float) == jnp.float64 else []
    return [jnp.float32, jnp.bfloat16, jnp.float16, *wide]


def cast(tree: Any, dtype: Any) -> Any:
    """Every leaf in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def structs(tree: Any, dtype: Any = None) -> Any:
    """The abstract form of a tree, in a dtype of choice."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype if dtype is None else dtype), tree)


def _traced_types(subject: Subject, dtype: Any) -> tuple[Any, ...]:
    """Types of: the first state, updates, state and parameters of two steps."""

    def train(params, grads):
        state = subject.tx.init(params)
        updates, after, stepped = take_step(subject.tx, grads, state, params, subject.extras)
        return state, updates, after, stepped, take_step(subject.tx, grads, after, stepped, subject.extras)[1]

    params = structs(subject.params, dtype)
    return params, *jax.eval_shape(train, params, params)


@law
def updates_have_the_types_of_parameters(subject: Subject) -> None:
    """Updates and stepped parameters keep structure, shape and dtype in every floating dtype.

    If it lands, the updates have the dtype of the arithmetic.
    """
    for dtype in float_dtypes():
        params, _, updates, _, stepped, _ = _traced_types(subject, dtype)
        expected = structs(params, dtypes.compute_dtype(dtype)) if subject.lands else params
        assert_types(updates, expected, f"the updates of {jnp.dtype(dtype)} parameters")
        assert_types(stepped, params, f"the stepped {jnp.dtype(dtype)} parameters")
    run = subject.compiled_run
    assert_types(run.updates[0], subject.params, "the updates")
    assert_types(run.params[-1], subject.params, "the stepped parameters")


@law
def state_type_is_fixed(subject: Subject) -> None:
    """A state out of `update` has the structure, shapes, dtypes and weak types of the one out of `init`."""
    for dtype in float_dtypes():
        _, state, _, after, _, later = _traced_types(subject, dtype)
        assert_types(after, state, f"the state after one step on {jnp.dtype(dtype)} parameters")
        assert_types(later, state, f"the state after two steps on {jnp.dtype(dtype)} parameters")
    for step, state in enumerate(subject.compiled_run.states):
        assert_types(state, subject.tx.init(subject.params), f"the state after {step} compiled steps")
    assert_types(subject.eager_run.states[-1], subject.tx.init(subject.params), "the state after steps op by op")


@law
def abstract_init_has_the_types_of_init(subject: Subject) -> None:
    """`init` of `jax.ShapeDtypeStruct`, under `eval_shape` and under `jit` gives the types of `init` of arrays."""
    init, params = subject.tx.init, subject.params
    expected = init(params)
    abstract = init(structs(params))
    arrays = [x for x in jax.tree.leaves(abstract) if not isinstance(x, jax.ShapeDtypeStruct)]
    if arrays:
        raise AssertionError(f"init of abstract parameters returned {arrays[0]!r}, jax.ShapeDtypeStruct was expected.")
    assert_types(abstract, expected, "the state of abstract parameters")
    assert_types(jax.eval_shape(init, params), expected, "the state under eval_shape")
    assert_types(jax.eval_shape(jax.jit(init), params), expected, "the state under jit")


@law_if(lambda subject: not subject.lands, "it is declared to round by itself")
def sixteen_bit_leaves_are_computed_in_float32(subject: Subject) -> None:
    """The update of a bfloat16 leaf is the float32 update of the same numbers, rounded once."""
    params = cast(subject.params, jnp.bfloat16)
    grads = [cast(g, jnp.bfloat16) for g in subject.grads]

    def two_updates(params, grads):
        state, updates = subject.tx.init(params), []
        for g in grads:
            u, state = subject.tx.update(g, state, params, **subject.extras)
            updates.append(u)
        return updates

    narrow = subject.call(two_updates, params, grads)
    wide = subject.call(two_updates, cast(params, jnp.float32), [cast(g, jnp.float32) for g in grads])
    assert_same(narrow, cast(wide, jnp.bfloat16), "the updates of bfloat16 parameters")
