"""Short training at chosen learning rates, inside a trace: what the range test and the sweep of rates share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.scalars import scalar_dtype
from jopt.state import hyperparams, set_hyperparams, states
from jopt.train.arguments import key_of, model_of
from jopt.train.batches import ArrayFeed, BatchSize
from jopt.train.evaluate import is_stream
from jopt.train.loop import copy
from jopt.train.objective import objective
from jopt.train.program import Layout, Recipe, fetcher, one_step
from jopt.train.step import Carry, Optimizer, is_transform, start
from jopt.transform import Transform, as_transform


@dataclasses.dataclass(frozen=True)
class Trial:
    """All that shapes the compiled code of a trial; equal ones share it.

    Attributes:
        recipe: of a step.
        make: learning rate → transform; None where the state takes the rate.
        name: of the number that the state takes.
    """

    recipe: Recipe
    make: Callable[[Any], Any] | None
    name: str


class Operands(NamedTuple):
    """What the compiled code is given.

    Attributes:
        carry: before the first step.
        numbers: of the transform.
        rates: float32[n], the learning rates.
        data: arrays with all examples.
        order: int32, the examples of all steps, one after another.
        micro: int32, micro-batches of a step.
        key: of the steps.
    """

    carry: Carry
    numbers: Any
    rates: Any
    data: Any
    order: Any
    micro: Any
    key: Any


def spaced(call: str, low: float, high: float, count: int, schedule: str = "exponential") -> np.ndarray:
    """Rates from `low` to `high`, float64[count].

    Raises:
        ValueError: a range, a number or a spacing that does not exist.
    """
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"{call}: low={low!r} and high={high!r} were given, 0 < low < high was expected. "
            f"Pass for example low=1e-6, high=1."
        )
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 2:
        raise ValueError(
            f"{call}: {count!r} rates were asked for, a whole number of at least 2 was expected. Pass more."
        )
    spacings = {"exponential": np.geomspace, "linear": np.linspace}
    if schedule not in spacings:
        raise ValueError(f"{call}: schedule={schedule!r} was given, one of {list(spacings)} was expected. Choose one.")
    return spacings[schedule](low, high, count)


def trial(
    call: str,
    loss_fn: Any,
    params: Any,
    tx: Any,
    data: Any,
    *,
    rates: np.ndarray,
    steps: int,
    batch_size: int,
    key: Any,
    model_state: Any,
    shuffle: Any,
    accumulate: int | None,
    precision: str | None,
    name: str,
) -> tuple[Trial, Operands]:
    """Read the arguments of a user, who called `call`; they mean what they mean to `fit`."""
    if precision not in (None, "bf16"):
        raise ValueError(
            f"{call}: precision={precision!r} was given, None or 'bf16' was expected: the dynamic scale of a float16 "
            f"loss would hide where training breaks. Test in None; the rate holds for float16 too."
        )
    key = key_of(key)
    feed = _feed(call, data, batch_size, accumulate, shuffle, key)
    stateful = model_state is not None or hasattr(loss_fn, "rebuild")
    params, model_state = model_of(loss_fn, params, model_state, None, feed, key)
    params, model_state = copy((params, model_state if stateful else {}))
    transform, make = _transform(call, tx, rates[0])
    state = copy(transform.init(params))
    if make is None:
        name = _settable(call, transform, state, name)
    else:
        _check_made(call, transform, state, name)
    of = objective(loss_fn, None, stateful=stateful, precision=precision)
    optimizer, numbers = Optimizer.of(transform)
    order, size, micro = _order(feed, steps)
    if make is not None:
        optimizer = Optimizer(None)  # `step_at` makes one for each rate
    recipe = Recipe(of, optimizer, None, Layout("arrays", size, accumulate is not None))
    carry = start(params, state, model_state, of, feed.batch())
    rates = np.asarray(rates, scalar_dtype())
    operands = Operands(carry, numbers, rates, feed.data, order, np.int32(micro), jax.random.fold_in(key, 1))
    return Trial(recipe, make, name), operands


def step_at(what: Trial, operands: Operands, carry: Carry, rate: Any, i: Any) -> tuple[Carry, Any]:
    """The carry after step `i` with this learning rate, and the loss of its batch before it."""
    recipe, numbers = what.recipe, operands.numbers
    if what.make is None:
        carry = carry._replace(state=set_hyperparams(carry.state, **{what.name: rate}))
    else:
        optimizer, numbers = Optimizer.of(as_transform(what.make(rate), "lr_find"))
        recipe = dataclasses.replace(recipe, optimizer=optimizer)
    fetch = fetcher(recipe.layout, operands.data, operands.order, np.int32(0), i, operands.micro)
    carry = carry._replace(means=jax.tree.map(jnp.zeros_like, carry.means))  # a mean of one step is its loss
    carry = one_step(recipe, carry, numbers, fetch, operands.micro, operands.key)
    return carry, carry.means.values["loss"]


# Arguments ---------------------------------------------------------------------------------------


def _feed(call: str, data: Any, batch_size: Any, accumulate: int | None, shuffle: Any, key: Any) -> ArrayFeed:
    if is_stream(data):
        raise TypeError(
            f"{call}: data of type {type(data).__name__} were given, a tree of arrays was expected. Join some batches, "
            f"for example jax.tree.map(lambda *x: np.concatenate(x), *batches)."
        )
    for what, value in (("batch_size", batch_size), ("accumulate", 1 if accumulate is None else accumulate)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(
                f"{call}: {what}={value!r} was given, a whole number of at least 1 was expected. "
                f"Pass for example {what}=8."
            )
    size = BatchSize(batch_size, None if accumulate is None else -(-batch_size // accumulate))
    return ArrayFeed(data, size, shuffle, "drop", jax.random.fold_in(key, 0))


def _order(feed: ArrayFeed, steps: int) -> tuple[np.ndarray, int, int]:
    """The examples of so many steps, epoch after epoch; the examples of a micro-batch, and their number."""
    parts, left, size, micro = [], steps, 0, 0
    while left:
        work = feed.take(left)
        if work is None:
            feed.next_epoch()
            continue
        size, micro = work.size, work.micro
        order = np.arange(feed.examples, dtype=np.int32) if work.order is None else np.asarray(work.order)
        parts.append(order[work.start : work.start + work.count * size * micro])
        left -= work.count
    return np.concatenate(parts), size, micro


def _transform(call: str, tx: Any, rate: float) -> tuple[Transform, Callable[[Any], Any] | None]:
    """The transform to begin with; and the function that makes others, if one was given."""
    if is_transform(tx) or not callable(tx):
        return as_transform(tx, call), None
    try:
        return as_transform(tx(float(rate)), call), tx
    except Exception as error:
        error.add_note(f"{call} calls a function given as tx with a learning rate (fit: with the number of steps).")
        raise


def _settable(call: str, tx: Transform, state: Any, name: str) -> str:
    """The full name of the number to vary.

    Raises:
        ValueError: there is none, there are several, or it follows a schedule.
    """
    live = list(hyperparams(state))
    found = [full for full in live if full == name or full.endswith(f"/{name}")]
    if not found:
        problem = f"it has no number {name!r}, only {live}"
    elif len(found) > 1 and name not in found:
        problem = f"it has several, {found}; choose one by name="
    elif not set(found) & _numbers(state):
        problem = f"{found[0]!r} follows a schedule"
    else:
        return name if name in found else found[0]
    raise ValueError(
        f"{call}: the transform {tx!r} was given, a transform with a number {name!r} was expected, but {problem}. Pass "
        f"a function learning rate → transform instead, such as jopt.adamw, or lambda rate: jopt.sgd(rate, 0.9)."
    )


def _check_made(call: str, tx: Transform, state: Any, name: str) -> None:
    found = {full for full in hyperparams(state) if full == name or full.endswith(f"/{name}")}
    if found and not found & _numbers(state):
        raise ValueError(
            f"{call}: the function given as tx made {tx!r}, whose {sorted(found)[0]!r} follows a schedule; it is "
            f"called with a learning rate, and a transform that trains at this rate was expected. "
            f"Pass for example jopt.adamw, and put the schedule in after the test."
        )


def _numbers(state: Any) -> set[str]:
    """Full names of what can be set by hand."""
    return {scope + name for scope, s in states(state) for name in s.base}
