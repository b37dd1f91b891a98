"""Laws of composition and of calling."""

import jax

from jopt.apply import apply_gradients
from jopt.partition import chain
from jopt.rules import identity, scale, trace
from jopt.testing.compare import assert_close, assert_same, assert_types
from jopt.testing.law import law, law_if
from jopt.testing.subject import Subject, copy, take_step
from jopt.testing.tree_laws import expect_error


@law
def chain_is_associative(subject: Subject) -> None:
    """However a chain is bracketed it is one transform, and the identity leaves no trace in it."""
    a, tx, b = trace(0.9), subject.tx, scale(0.5)
    flat = chain(a, tx, b)
    for other in (chain(chain(a, tx), b), chain(a, chain(tx, b)), chain(identity(), a, chain(), tx, b, identity())):
        if other != flat or hash(other) != hash(flat):
            raise AssertionError(f"{other!r} was found, one equal to {flat!r} was expected.")
    if chain(tx) != tx or chain(tx, identity()) != tx:
        raise AssertionError(f"chain(tx, identity()) is {chain(tx, identity())!r}, tx was expected.")


@law
def chain_is_composition(subject: Subject) -> None:
    """A chain gives what its transforms give when each is fed the updates of the one before."""
    stages = [trace(0.9), subject.tx, scale(0.5)]
    states = [tx.init(subject.params) for tx in stages]
    grads, expected = subject.grads[:2], []
    with jax.disable_jit():
        for g in grads:
            for i, tx in enumerate(stages):
                g, states[i] = tx.update(g, states[i], subject.params, **subject.extras)
            expected.append(g)

    def updates_of_chain(grads):
        tx, updates = chain(*stages), []
        state = tx.init(subject.params)
        for g in grads:
            u, state = tx.update(g, state, subject.params, **subject.extras)
            updates.append(u)
        return updates

    assert_close(subject.call(updates_of_chain, grads), expected, "the updates", subject.ulps)


@law
def unknown_extras_are_ignored(subject: Subject) -> None:
    """An extra that nothing names changes nothing, also one that is no array."""
    state, grads = subject.tx.init(subject.params), subject.grads[0]
    with jax.disable_jit():
        updates, after = subject.tx.update(
            grads, state, subject.params, **subject.extras, unheard_of=1.0, unheard_of_function=len
        )
    assert_same(updates, subject.eager_run.updates[0], "the updates")
    assert_same(after, subject.eager_run.states[1], "the state")


@law
def parameters_are_asked_for(subject: Subject) -> None:
    """Without params `update` gives the same, or a TypeError that says to pass them."""
    state, grads = subject.tx.init(subject.params), subject.grads[0]
    with jax.disable_jit():
        try:
            updates, after = subject.tx.update(grads, state, **subject.extras)
        except TypeError as error:
            if "params" not in str(error):
                raise AssertionError(f"TypeError: {error}\nIt should say that params are missing.") from error
            return
    assert_same(updates, subject.eager_run.updates[0], "the updates without params")
    assert_same(after, subject.eager_run.states[1], "the state without params")


@law_if(lambda subject: bool(subject.extra), "it is not declared to need an extra")
def extras_are_asked_for(subject: Subject) -> None:
    """Without an extra that it needs `update` is a TypeError that names the extra."""
    state = subject.tx.init(subject.params)
    for name in subject.extra:
        others = {other: x for other, x in subject.extras.items() if other != name}
        arguments = subject.grads[0], state, subject.params
        expect_error(TypeError, [name], f"update without {name}=", subject.tx.update, *arguments, **others)


@law
def apply_gradients_is_update_and_add(subject: Subject) -> None:
    """The fused step gives what `update` and `apply_updates` give, with state and parameters donated too."""

    def fused(grads, state, params):
        return apply_gradients(subject.tx, grads, state, params, **subject.extras)

    params, state = copy(subject.params), subject.tx.init(subject.params)
    step = jax.jit(fused, donate_argnums=(1, 2)) if subject.compiled else fused
    with subject.executing():
        for g in subject.grads:
            params, state = step(g, state, params)
    assert_types(params, subject.params, "the parameters")
    assert_close(params, subject.baseline.params[-1], "the parameters", subject.ulps)
    assert_close(state, subject.baseline.states[-1], "the state", subject.ulps)


@law
def steps_are_pure(subject: Subject) -> None:
    """The same step twice gives the same bits, and changes nothing that was passed to it."""
    state = subject.tx.init(subject.params)
    before = copy((subject.grads[0], state, subject.params))
    with jax.disable_jit():
        first = take_step(subject.tx, subject.grads[0], state, subject.params, subject.extras)
        second = take_step(subject.tx, subject.grads[0], state, subject.params, subject.extras)
    assert_same(second, first, "(updates, state, parameters) of the second call")
    assert_same((subject.grads[0], state, subject.params), before, "what was passed")
