"""Laws of running: however the same steps are run, they are the same steps."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.partition import chain
from jopt.rule import Whole
from jopt.state import hyperparams, set_hyperparams, sweep_axes
from jopt.testing.compare import assert_close, assert_same
from jopt.testing.law import law, law_if
from jopt.testing.subject import Subject, copy, lane, run_steps, stack
from jopt.transform import make_transform, whole


@law
def jit_is_eager(subject: Subject) -> None:
    """Compiled steps give what the same steps give op by op."""
    assert_close(subject.compiled_run, subject.eager_run, "(updates, parameters, states)", subject.ulps)


@law
def scan_is_a_loop(subject: Subject) -> None:
    """A `lax.scan` over updates gives the bits of a Python loop over compiled steps."""
    run = subject.compiled_run
    # The parameters are those of the loop: XLA rounds p + u once in one program and twice in another.
    inputs = stack(subject.grads), stack([subject.params, *run.params[:-1]])

    def body(state, inputs):
        updates, state, params = subject.stepper(subject.tx)(inputs[0], state, inputs[1])
        return state, (updates, params)

    state, outputs = jax.jit(lambda s, xs: jax.lax.scan(body, s, xs))(subject.tx.init(subject.params), inputs)
    assert_same(outputs[0], stack(run.updates), "the updates")
    assert_same(state, run.states[-1], "the last state")


@law
def vmap_over_models_is_a_loop(subject: Subject) -> None:
    """`vmap` over parameters and gradients gives what each model gives alone."""
    models = [subject.params, jax.tree.map(lambda p: p * jnp.asarray(-0.5, p.dtype), subject.params)]
    grads = [subject.grads, [subject.gradients(10 + i) for i in range(len(subject.grads))]]

    def train(params, grads):
        return run_steps(subject.stepper(subject.tx), params, grads, subject.tx.init(params)).visible

    together = subject.call(jax.vmap(train), stack(models), stack(grads))
    for i, params in enumerate(models):
        alone = subject.loop(subject.tx, params, grads[i]).visible
        assert_close(lane(together, i), alone, f"model {i}: (updates, parameters)", subject.ulps)


@law_if(lambda subject: bool(subject.settable), "it has no hyper-parameter to set")
def sweep_is_separate_runs(subject: Subject) -> None:
    """`vmap` over any live hyper-parameter, with `sweep_axes`, gives what each value gives alone."""
    state, names = subject.tx.init(subject.params), subject.settable
    axes, own = sweep_axes(state), hyperparams(state)
    lanes = [{name: own[name] for name in names}]
    lanes += [lanes[0] | {name: jnp.asarray(another(own[name]), own[name].dtype)} for name in names]
    width = -len(lanes) % 8 + len(lanes)  # few batch sizes, so that op by op little compiles anew

    batch = jax.vmap(lambda values: set_hyperparams(state, **values), out_axes=axes)(
        stack(lanes + lanes[:1] * (width - len(lanes)))
    )
    batched = jax.vmap(subject.stepper(subject.tx), in_axes=(None, axes, 0), out_axes=(0, axes, 0))
    with subject.executing():
        batched = jax.jit(batched) if subject.compiled else batched
        together = run_steps(batched, stack([subject.params] * width), subject.grads, batch)
    for i, values in enumerate(lanes):
        alone = subject.loop(subject.tx, subject.params, subject.grads, set_hyperparams(state, **values))
        changed = "the configured values" if i == 0 else f"{names[i - 1]}={float(values[names[i - 1]]):g}"
        assert_close(lane(together.visible, i), alone.visible, f"{changed}: (updates, parameters)", subject.ulps)


@law_if(lambda subject: subject.factory is not None, "no factory of one number was given")
def a_traced_number_is_a_number(subject: Subject) -> None:
    """A transform made from a number inside `vmap` gives what it gives made from each number alone."""

    factory = subject.factory
    assert factory is not None  # the law does not apply else

    def train(number):
        tx = factory(number)
        return run_steps(subject.stepper(tx), subject.params, subject.grads, tx.init(subject.params)).visible

    together = subject.call(jax.vmap(train), jnp.asarray(subject.numbers, jnp.result_type(float)))
    for i, number in enumerate(subject.numbers):
        alone = subject.run(factory(number), subject.params, subject.grads).visible
        assert_close(lane(together, i), alone, f"made from {number}: (updates, parameters)", subject.ulps)


@law
def compiled_steps_trace_once(subject: Subject) -> None:
    """Inside `jit` nothing that keeps the types retraces: new values, NumPy gradients, an equal transform."""
    state, params = subject.tx.init(subject.params), subject.params
    subject.step(subject.tx, subject.grads[0], state, params)
    before = len(subject.traces)
    _, state, params = subject.step(subject.tx, subject.grads[0], state, params)
    subject.step(subject.tx, jax.tree.map(np.asarray, subject.grads[1]), state, params)
    for name in subject.settable:
        changed = set_hyperparams(state, **{name: another(hyperparams(state)[name])})
        subject.step(subject.tx, subject.grads[1], changed, params)
    subject.step(again(subject, subject.tx), subject.grads[2], state, params)
    if len(subject.traces) != before:
        raise AssertionError(f"{len(subject.traces) - before} more traces were found, none was expected.")


_PROBED: list[int] = []


def _probe_update(grads, own, params):
    _PROBED.append(len(grads))  # runs when the update is traced
    return grads, own


PROBE = Whole("probe", _probe_update)


@law_if(lambda subject: not any(map(callable, subject.extra.values())), "a callable extra cannot enter a compiled call")
def calls_outside_jit_trace_once(subject: Subject) -> None:
    """Outside of `jit` an update is one compiled call, and no number, re-creation or new state retraces it."""
    tx = chain(subject.tx, whole(PROBE))
    state = tx.init(subject.params)
    updates, state = tx.update(subject.grads[0], state, subject.params, **subject.extras)
    assert_close(updates, subject.compiled_run.updates[0], "the updates", subject.ulps)
    before = len(_PROBED)
    tx.update(subject.grads[1], state, subject.params, **subject.extras)
    again(subject, tx).update(jax.tree.map(np.asarray, subject.grads[1]), state, subject.params, **subject.extras)
    for name in subject.settable:
        changed = set_hyperparams(state, **{name: another(hyperparams(state)[name])})
        tx.update(subject.grads[1], changed, subject.params, **subject.extras)
    if subject.factory is not None:
        for number in subject.numbers:
            chain(subject.factory(number), whole(PROBE)).update(
                subject.grads[1], state, subject.params, **subject.extras
            )
    if len(_PROBED) != before:
        raise AssertionError(f"{len(_PROBED) - before} more traces were found, none was expected.")


@law
def donation_is_safe(subject: Subject) -> None:
    """`init` shares no buffer with the parameters nor within the state, so that both can be donated at every step."""
    params = copy(subject.params)
    state = subject.tx.init(params)
    seen = {pointer(p): "a parameter" for p in jax.tree.leaves(params)}
    for place, x in jax.tree_util.tree_leaves_with_path(state):
        if x.size and not jnp.issubdtype(x.dtype, jax.dtypes.extended):
            name = jax.tree_util.keystr(place)
            if pointer(x) in seen:
                raise AssertionError(
                    f"state{name} shares its buffer with {seen[pointer(x)]}, one of its own was expected."
                )
            seen[pointer(x)] = f"state{name}"
    run = run_steps(lambda *args: subject.donating_step(subject.tx, *args), params, subject.grads, state)
    assert_same(run.updates, subject.compiled_run.updates, "the updates of donated steps")


def pointer(x: jax.Array) -> int:
    """Where an array of one device lies."""
    return x.addressable_shards[0].data.unsafe_buffer_pointer()


def another(value: Any) -> float:
    """A value that every domain which holds `value` holds as well."""
    number = float(value)
    if not np.isfinite(number):
        return 1.0
    return number / 2 if number else 0.0625


def again(subject: Subject, tx: Any) -> Any:
    """An equal transform that shares no object with this one, where it pickles."""
    return pickle.loads(pickle.dumps(tx)) if subject.plain else make_transform(tx.parts)
