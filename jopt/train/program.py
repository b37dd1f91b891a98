"""The compiled chunk: any number of optimizer steps in one call."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train import metrics
from jopt.train.batches import Work
from jopt.train.cache import cached
from jopt.train.objective import Objective
from jopt.train.step import Carry, Optimizer, accumulated, advance, examples_of, gradient


class Layout(NamedTuple):
    """How a batch lies in the data.

    Attributes:
        kind: of the work, "arrays" or "stack".
        size: examples of a micro-batch.
        accumulates: whether a step may have several micro-batches.
    """

    kind: str
    size: int
    accumulates: bool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that shapes the compiled chunk; equal recipes share one compilation.

    Attributes:
        objective: the losses.
        optimizer: without its numbers.
        alarm: skipped steps in a row after which the chunk ends; None: no guard.
        layout: of the work.
        base_size: examples of a batch whose update is not scaled; None: no scaling.
        power: of the batch size in the scale of the update.
    """

    objective: Objective
    optimizer: Optimizer
    alarm: int | None
    layout: Layout
    base_size: int | None = None
    power: float = 0.0


def compiled(recipe: Recipe) -> Callable[..., Carry]:
    """The jitted chunk of a recipe, `(carry, numbers, data, order, start, micro, count, key) → carry`.

    It donates the carry.
    """
    return cached(recipe.objective.loss_fn, recipe, lambda: jax.jit(_chunk_of(recipe), donate_argnums=0))


def _chunk_of(recipe: Recipe) -> Callable[..., Carry]:
    def chunk(carry: Carry, numbers: Any, data: Any, order: Any, start: Any, micro: Any, count: Any, key: Any) -> Carry:
        # A trip count that is an operand: one program for every number of steps, and so the same bits.
        def going_on(loop: tuple[Any, Carry]) -> Any:
            i, carry = loop
            alarmed = False if recipe.alarm is None else carry.guard.consecutive >= recipe.alarm
            return (i < count) & ~jnp.asarray(alarmed)

        def body(loop: tuple[Any, Carry]) -> tuple[Any, Carry]:
            i, carry = loop
            fetch = fetcher(recipe.layout, data, order, start, i, micro)
            return i + 1, one_step(recipe, carry, numbers, fetch, micro, key)

        return jax.lax.while_loop(going_on, body, (jnp.zeros((), jnp.int32), carry))[1]

    return chunk


def fetcher(layout: Layout, data: Any, order: Any, start: Any, i: Any, micro: Any) -> Callable[[Any], Any]:
    """j → the j-th micro-batch of the i-th step."""
    size = layout.size

    def from_arrays(j: Any) -> Any:
        first = start + (i * micro + j) * size
        if order is None:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), data)
        chosen = jax.lax.dynamic_slice_in_dim(order, first, size)
        return jax.tree.map(lambda a: a.at[chosen].get(mode="promise_in_bounds"), data)

    def from_stack(j: Any) -> Any:
        batch = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, start + i, keepdims=False), data)
        if not layout.accumulates:
            return batch
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, j * size, size), batch)

    return from_arrays if layout.kind == "arrays" else from_stack


def one_step(recipe: Recipe, carry: Carry, numbers: Any, fetch: Any, micro: Any, key: Any) -> Carry:
    """The carry after one optimizer step."""
    objective, scale = recipe.objective, None if carry.scale is None else carry.scale.scale
    # Folding in the step, not splitting, keeps the streams of a resumed run where they were.
    key = jax.random.fold_in(key, carry.step) if objective.takes_key else None
    model = (carry.params, carry.model_state)
    value_fn = None
    if recipe.layout.accumulates:
        loss, aux, grads, means = accumulated(objective, *model, fetch, micro, key, scale)
        values = {name: mean for name, mean in means.values.items() if name != "loss"}
        measured = (means.weight, values, means.objects)
    else:
        batch = fetch(0)
        loss, aux, grads = gradient(objective, *model, batch, key, scale)
        measured = metrics.split(aux.metrics, examples_of(batch))

        def value_fn(params: Any) -> Any:
            return objective.train(params, carry.model_state, batch, key)[0]

    factor = None
    if recipe.base_size is not None:
        size = (micro * recipe.layout.size).astype(jnp.float32)
        factor = (size / recipe.base_size) ** recipe.power
    found = (loss, aux, grads, measured)
    return advance(recipe.optimizer, recipe.alarm is not None, carry, numbers, found, factor, value_fn)


def operands(work: Work) -> tuple[Any, ...]:
    """What a chunk takes of some work."""
    return work.data, work.order, np.int32(work.start), np.int32(work.micro), np.int32(work.count)
