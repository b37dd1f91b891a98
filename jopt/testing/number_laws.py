"""Laws of numbers: zero, complex and extreme gradients, live hyper-parameters, clocks, noise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.paths import flatten
from jopt.state import State, hyperparams, set_hyperparams, states
from jopt.testing.compare import assert_close, assert_different, assert_finite, assert_same
from jopt.testing.law import law, law_if
from jopt.testing.run_laws import another
from jopt.testing.subject import Run, Subject, configured
from jopt.testing.tree_laws import expect_error
from jopt.testing.type_laws import cast

HUGE, TINY = 3e38, 1e-45


def zeros(tree: Any) -> Any:
    """A tree of zeros."""
    return jax.tree.map(jnp.zeros_like, tree)


@law
def a_zero_gradient_moves_nothing(subject: Subject) -> None:
    """Zero gradients leave fresh parameters alone, bit for bit (and do not if zero_gradient=False)."""
    still = zeros(subject.params)
    run = subject.loop(subject.tx, subject.params, [still] * len(subject.grads))
    assert_finite(run.visible, "the (updates, parameters) of zero gradients")
    if subject.zero_gradient:
        assert_close(run.updates, [still] * len(subject.grads), "the updates of zero gradients", 0)
    else:
        advice = "Declare zero_gradient=True."
        assert_different(run.updates, [still] * len(subject.grads), "zero gradients", 0, advice)


@law
def complex_leaves_have_a_meaning(subject: Subject) -> None:
    """A complex leaf is the pair of its parts, or a field of its own, or refused, as declared."""
    params = to_complex(subject.params, subject.gradients(20))
    grads = [to_complex(g, subject.gradients(21 + i)) for i, g in enumerate(subject.grads)]
    if subject.complex is None:
        path = next(iter(flatten(params)[0])).partition("/")[0]
        expect_error(TypeError, ["complex", path], "init of complex parameters", subject.tx.init, params)
        return
    run = subject.run(subject.tx, params, grads)
    if subject.complex == "pair":
        expected = subject.run(subject.tx, to_pairs(params), [to_pairs(g) for g in grads])
        assert_close(to_pairs(run.visible), expected.visible, "complex (updates, parameters) as pairs", subject.ulps)
        return
    turned = subject.run(subject.tx, turn(params), [turn(g) for g in grads])
    assert_close(turned.visible, turn(run.visible), "complex (updates, parameters) that are turned", subject.ulps)
    run = subject.run(subject.tx, to_complex(subject.params), [to_complex(g) for g in subject.grads])
    expected = to_complex(subject.baseline.visible)
    assert_close(run.visible, expected, "(updates, parameters) without imaginary parts", subject.ulps)


def to_complex(real: Any, imaginary: Any = None) -> Any:
    """A complex tree of its parts; without an imaginary one that is zero."""
    return jax.tree.map(jax.lax.complex, real, zeros(real) if imaginary is None else imaginary)


def to_pairs(tree: Any) -> Any:
    """Each complex leaf as a real one with a leading axis (real, imaginary)."""
    return jax.tree.map(lambda z: jnp.stack([z.real, z.imag]), tree)


def turn(tree: Any) -> Any:
    """Each leaf times i."""
    return jax.tree.map(lambda z: z * jnp.asarray(1j, z.dtype), tree)


@law
def finite_in_finite_out(subject: Subject) -> None:
    """Finite gradients of any size give finite updates, parameters and states, and so do the steps after."""
    top = float(jnp.finfo(jax.tree.leaves(subject.params)[0].dtype).max)
    for values in ([HUGE], [-top], [1e25], [TINY], [0.0], [HUGE, -TINY, 0.0, 1.0, -1e25]):
        extreme = jax.tree.map(lambda p, v=values: jnp.resize(jnp.asarray(v, p.dtype), p.shape), subject.params)
        run = subject.loop(subject.tx, subject.params, [extreme, extreme, *subject.grads[:2]])
        assert_run_is_finite(run, f"gradients of {values}")


@law
def float16_stays_finite(subject: Subject) -> None:
    """float16 gradients of 0, 1e-4 and 300 give finite updates, parameters and states."""
    params = cast(subject.params, jnp.float16)
    grads = [jax.tree.map(lambda p, v=value: jnp.full_like(p, v), params) for value in (0.0, 1e-4, 300.0)]
    assert_run_is_finite(subject.run(subject.tx, params, grads), "float16 gradients of 0, 1e-4 and 300")


def assert_run_is_finite(run: Run, what: str) -> None:
    """Everything that came of a run is finite, except where the state was not from the start."""
    for i, (updates, params, state) in enumerate(zip(run.updates, run.params, run.states[1:], strict=True)):
        assert_finite(updates, f"{what}: the updates of step {i}")
        assert_finite(params, f"{what}: the parameters after step {i}")
        assert_finite(state, f"{what}: the state after step {i}", run.states[0])


@law
def hyperparams_are_the_numbers_used(subject: Subject) -> None:
    """The state holds every number as the last update used it: the configured one, or the schedule's of that step."""
    run = subject.compiled_run
    for name, value, scheduled in configured(subject.tx.parts):
        for step, state in enumerate(run.states[1:]):
            if scheduled and name.count("/") > 1:
                continue  # the clock of a wrapped transform is its wrapper's to move
            expected = jnp.asarray(value(np.int32(step)) if scheduled else value, jnp.result_type(float))
            assert_same(hyperparams(state)[name], expected, f"the state's {name} after step {step}")


@law_if(lambda subject: bool(subject.settable), "it has no hyper-parameter to set")
def hyperparams_can_be_set(subject: Subject) -> None:
    """A hyper-parameter that is set stays set, does what a transform made with it does, and retraces nothing."""
    first = subject.tx.init(subject.params)
    subject.step(subject.tx, subject.grads[0], first, subject.params)
    before = len(subject.traces)
    for name in subject.settable:
        value = jnp.asarray(another(hyperparams(first)[name]), jnp.result_type(float))
        run = subject.loop(subject.tx, subject.params, subject.grads[:2], set_hyperparams(first, **{name: value}))
        for state in run.states:
            assert_same(hyperparams(state)[name], value, f"{name} after it was set")
    if len(subject.traces) != before:
        raise AssertionError(f"{len(subject.traces) - before} more traces were found, none was expected.")
    if subject.factory is not None:
        old, new = (subject.factory(number) for number in subject.numbers)
        run = subject.run(new, subject.params, subject.grads, old.init(subject.params))
        fresh = subject.run(new, subject.params, subject.grads)
        assert_same(run.visible, fresh.visible, "a new number on an old state: (updates, parameters)")
        assert_same(run.states[1:], fresh.states[1:], "a new number on an old state: the states")
        numbers = {name: hyperparams(fresh.states[0])[name] for name in subject.settable}
        state = set_hyperparams(old.init(subject.params), **numbers)
        run = subject.run(old, subject.params, subject.grads, state)
        assert_same(run.visible, fresh.visible, "the same number set by hand: (updates, parameters)")


@law_if(lambda subject: bool(rates(subject)), "it has no learning rate to set")
def a_zero_learning_rate_moves_nothing(subject: Subject) -> None:
    """With learning rates of 0 the parameters keep their bits while the state advances."""
    state = set_hyperparams(subject.tx.init(subject.params), **dict.fromkeys(rates(subject), 0.0))
    run = subject.loop(subject.tx, subject.params, subject.grads, state)
    assert_close(run.params[-1], subject.params, "the parameters", 0)
    if int(run.states[-1].count) != len(subject.grads):
        raise AssertionError(f"the count is {int(run.states[-1].count)}, {len(subject.grads)} was expected.")


def rates(subject: Subject) -> list[str]:
    """The learning rates, where all of them can be set."""
    named = [name for name, _, _ in configured(subject.tx.parts) if name.endswith("/learning_rate")]
    return named if set(named) <= set(subject.settable) else []


@law
def clocks_saturate(subject: Subject) -> None:
    """At the last int32 the clock stands still, and updates stay finite."""
    top = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
    state = _with_clocks(subject.tx.init(subject.params), top)
    run = subject.loop(subject.tx, subject.params, subject.grads[:2], state)
    for step, after in enumerate(run.states):
        for scope, s in states(after):
            if int(s.count) != int(top):
                raise AssertionError(
                    f"the count {scope or 'of the chain'} is {int(s.count)} after {step} steps, {top} was expected."
                )
    assert_run_is_finite(run, "at the last count")


def _with_clocks(state: Any, count: Any) -> Any:
    """The state with every clock set, also those of wrapped transforms."""
    if isinstance(state, State):
        return state._replace(count=count, inner=_with_clocks(state.inner, count))

    def below(x):
        return _with_clocks(x, count) if isinstance(x, State) else x

    return jax.tree.map(below, state, is_leaf=lambda x: isinstance(x, State))


@law_if(lambda subject: not subject.reads_paths, "it is declared to read paths")
def equal_leaves_get_equal_updates(subject: Subject) -> None:
    """Equal leaves with equal gradients get equal updates; from a random transform never, nor at all steps."""
    leaf, gradient = jax.tree.leaves(subject.params)[-1], jax.tree.leaves(subject.grads[0])[-1]
    params, grads = {"a": leaf, "b": leaf}, {"a": gradient, "b": gradient}
    run = subject.run(subject.tx, params, [grads] * 3)
    if not subject.random:
        assert_close([u["a"] for u in run.updates], [u["b"] for u in run.updates], "two equal leaves", subject.ulps)
        return
    first, _, third = run.updates  # what is learned by chance for the next step shows in the one after
    pairs = {"two equal leaves": (first["a"], first["b"]), "two equal steps": (first["a"], third["a"])}
    for what, (one, other) in pairs.items():
        share = float(jnp.mean((one == other).astype(float)))
        if share > 0.5:
            raise AssertionError(
                f"{what} got {share:.0%} equal updates, none was expected of a random transform. Name `key` in the "
                f"step: it differs by leaf and step. If nothing is random, declare random=False."
            )
