"""One optimizer step inside a compiled loop: gradient, guard, update, running means."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt import dtypes
from jopt.apply import apply_updates
from jopt.paths import flatten
from jopt.train import metrics
from jopt.train.cache import cached
from jopt.train.metrics import Means
from jopt.train.objective import Aux, Objective
from jopt.transform import Transform, run_planned
from jopt.wrap.finite import NONE, first_bad

GROW_AFTER = 2000
"""Good steps after which the scale of a float16 loss doubles."""
LARGEST_SCALE = 2.0**24


class Guard(NamedTuple):
    """What was not finite.

    Attributes:
        skipped: int32, steps skipped so far.
        consecutive: int32, of them the last in a row.
        first_bad: int32, place of the last offender among the sorted paths of the trained parameters; their
            number for the loss itself; -1 if none.
    """

    skipped: Any
    consecutive: Any
    first_bad: Any


class Scale(NamedTuple):
    """The dynamic scale of a float16 loss.

    Attributes:
        scale: float32, a power of two.
        good: int32, good steps since it last changed.
    """

    scale: Any
    good: Any


class Carry(NamedTuple):
    """All that training changes.

    Attributes:
        params, state, model_state: of the model and its optimizer.
        step: int32, optimizer steps done, skipped ones included.
        guard: account of skipped steps.
        scale: of a float16 loss, else None.
        means: running means since the last record.
    """

    params: Any
    state: Any
    model_state: Any
    step: Any
    guard: Guard
    scale: Scale | None
    means: Means


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A transform as compiled code knows it: its plan, which has no numbers."""

    plan: Any

    @classmethod
    def of(cls, tx: Transform) -> tuple["Optimizer", Any]:
        """The optimizer, and its numbers as operands."""
        return cls(tx.plan), tx.numbers

    def apply(self, numbers: Any, grads: Any, state: Any, params: Any, factor: Any, extra: Any) -> tuple[Any, Any]:
        """New parameters and state; `factor` scales the update, None is 1."""
        if factor is None:
            return run_planned(self.plan, "apply", numbers, grads, state, params, extra)
        updates, state = run_planned(self.plan, "update", numbers, grads, state, params, extra)
        scaled = jax.tree.map(lambda u: u * factor.astype(u.dtype) if dtypes.is_trained(u) else u, updates)
        return apply_updates(params, scaled), state


def start(params: Any, state: Any, model_state: Any, objective: Objective, batch: Any) -> Carry:
    """The carry before the first step.

    Args:
        batch: a batch or its shapes, for the types of what the loss reports.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    train = cached(objective.loss_fn, ("train", objective), lambda: jax.jit(objective.train))
    loss, aux = train.eval_shape(params, model_state, batch, key)
    zero = np.zeros((), np.int32)
    scale = Scale(np.float32(2.0**15), zero) if objective.precision == "f16" else None
    _check_state(model_state, aux.model_state)
    guard = Guard(zero, zero, np.full((), NONE, np.int32))
    return Carry(params, state, model_state, zero, guard, scale, no_means(loss, aux.metrics, batch))


def no_means(loss: Any, found: Any, batch: Any) -> Means:
    """Running means before the first batch."""
    weight, values, objects = jax.eval_shape(lambda: metrics.split(_concrete(found), examples_of(batch)))
    return metrics.empty(weight, {"loss": loss, **values}, objects)


def _concrete(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _check_state(before: Any, after: Any) -> None:
    """The loss has to return a model state of the type it was given, or no loop can carry it."""
    old, _ = flatten(before)
    new, _ = flatten(after)
    types = [
        {path: (np.shape(x), jnp.result_type(x)) for path, x in flat.items() if x is not None} for flat in (old, new)
    ]
    if types[0] != types[1]:
        path = min(p for p in types[0] | types[1] if types[0].get(p) != types[1].get(p))
        raise TypeError(
            f"fit: the loss returned a model state whose leaf {path!r} is {types[1].get(path, 'missing')}, "
            f"{types[0].get(path, 'no such leaf')} as in model_state= was expected. Return the state in the structure "
            f"and types it came in."
        )


def examples_of(batch: Any) -> int:
    """The length of the first axis of the first array."""
    leaves = jax.tree.leaves(batch)
    return np.shape(leaves[0])[0] if leaves and np.ndim(leaves[0]) else 1


def gradient(
    objective: Objective, params: Any, model_state: Any, batch: Any, key: Any, scale: Any
) -> tuple[Any, Aux, Any]:
    """The loss, what comes with it, and the gradient, float32 or wider where the parameters are."""

    def scaled(params: Any) -> tuple[Any, Any]:
        loss, aux = objective.train(params, model_state, batch, key)
        return loss * scale.astype(loss.dtype) if scale is not None else loss, (loss, aux)

    (_, (loss, aux)), grads = jax.value_and_grad(scaled, has_aux=True, allow_int=True)(params)
    if scale is not None:
        grads = jax.tree.map(lambda g: g / scale.astype(g.dtype) if dtypes.is_trained(g) else g, grads)
    return loss, aux, grads


def accumulated(
    objective: Objective, params: Any, model_state: Any, micro: Any, count: Any, key: Any, scale: Any
) -> tuple[Any, Aux, Any, Means]:
    """The weighted mean over `count` micro-batches of loss, gradient and metrics, as of their joint batch.

    Args:
        micro: i → the i-th micro-batch.
        count: how many, int32; may be traced.
    """

    def one(i: Any, model_state: Any) -> tuple[Any, ...]:
        batch = micro(i)
        now = None if key is None else jax.random.fold_in(key, i)
        loss, aux, grads = gradient(objective, params, model_state, batch, now, scale)
        weight, values, objects = metrics.split(aux.metrics, examples_of(batch))
        return weight, {"loss": loss.astype(jnp.float32), **values}, objects, grads, aux.model_state

    def body(i: Any, carry: Any) -> Any:
        means, total, model_state = carry
        weight, values, objects, grads, model_state = one(i, model_state)
        total = jax.tree.map(lambda a, g: a + g * weight.astype(g.dtype) if dtypes.is_trained(g) else g, total, grads)
        return metrics.add(means, weight, values, objects), total, model_state

    weight, values, objects, grads, _ = jax.eval_shape(one, jnp.zeros((), jnp.int32), model_state)
    zeros = jax.tree.map(lambda g: np.zeros(g.shape, g.dtype), grads)
    first = (metrics.empty(weight, values, objects), zeros, model_state)
    means, total, model_state = jax.lax.fori_loop(0, count, body, first)
    whole = jnp.where(means.weight > 0, means.weight, 1)
    grads = jax.tree.map(lambda g: g / whole.astype(g.dtype) if dtypes.is_trained(g) else g, total)
    return means.values["loss"], Aux(model_state, {}), grads, means


def advance(
    optimizer: Optimizer,
    guarded: bool,
    carry: Carry,
    numbers: Any,
    found: tuple[Any, Aux, Any, tuple[Any, Any, Any]],
    factor: Any,
    value_fn: Any,
) -> Carry:
    """The carry after a step with this gradient; a step that is not finite changes nothing but the account."""
    loss, aux, grads, (weight, values, objects) = found
    extra = {"value": loss, "grad": grads} | ({} if value_fn is None else {"value_fn": value_fn})

    def work(inner: Any) -> Any:
        params, state, _ = inner
        return (*optimizer.apply(numbers, grads, state, params, factor, extra), aux.model_state)

    inner = (carry.params, carry.state, carry.model_state)
    guard, scale, fine = carry.guard, carry.scale, True
    if guarded:
        bad = _first_bad(grads, loss)
        fine = bad == NONE
        guard = _account(guard, bad, scale)
        # A loop that runs zero or one time leaves the buffers in place, where a cond would copy them.
        _, inner = jax.lax.while_loop(lambda c: c[0], lambda c: (c[0] & False, work(c[1])), (fine, inner))
    else:
        inner = work(inner)
    means = metrics.add(carry.means, weight, {"loss": loss.astype(jnp.float32), **values}, objects, fine)
    step = carry.step + jnp.ones((), jnp.int32)
    params, state, model_state = inner
    return Carry(params, state, model_state, step, guard, None if scale is None else _rescaled(scale, fine), means)


def _first_bad(grads: Any, loss: Any) -> jax.Array:
    flat, _ = flatten(grads)
    trained = {path: g for path, g in flat.items() if g is not None and dtypes.is_trained(g)}
    bad = first_bad(trained)
    of_loss = jnp.asarray(len(trained), jnp.int32)
    return jnp.where(jnp.isfinite(loss) | (bad != NONE), bad, of_loss)


def _account(guard: Guard, bad: Any, scale: Scale | None) -> Guard:
    missed = (bad != NONE).astype(jnp.int32)
    # While the scale of a float16 loss can still be halved, an overflow is no sign of trouble.
    counts = missed if scale is None else missed * (scale.scale <= 1).astype(jnp.int32)
    consecutive = jnp.where(missed == 0, 0, guard.consecutive + counts)
    return Guard(guard.skipped + missed, consecutive, jnp.where(missed == 0, guard.first_bad, bad))


def _rescaled(scale: Scale, fine: Any) -> Scale:
    good = jnp.where(fine, scale.good + 1, 0)
    grown = jnp.minimum(scale.scale * 2, LARGEST_SCALE)
    due = good >= GROW_AFTER
    new = jnp.where(fine, jnp.where(due, grown, scale.scale), jnp.maximum(scale.scale / 2, 1))
    return Scale(new, jnp.where(due, 0, good))


def bad_name(params: Any, place: int) -> str | None:
    """The path that `Guard.first_bad` stands for."""
    flat, _ = flatten(params)
    names = sorted(path for path, p in flat.items() if p is not None and dtypes.is_trained(p))
    return None if place == NONE else (*names, "the loss")[place]


def is_transform(tx: Any) -> bool:
    """Whether it is a transform, not a function that makes one."""
    return isinstance(tx, Transform) or (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None)))
