"""Evaluation and prediction in compiled batches."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train import metrics
from jopt.train.batches import ArrayFeed, BatchSize, count_examples
from jopt.train.cache import cached
from jopt.train.metrics import Means
from jopt.train.objective import Objective, objective
from jopt.train.program import Layout, fetcher, operands
from jopt.train.step import examples_of, no_means
from jopt.train.streams import StreamFeed


def is_stream(data: Any) -> bool:
    """Whether the data are an iterable of batches, not a tree of arrays."""
    if callable(data) or hasattr(data, "__next__"):
        return True
    leaves = jax.tree.leaves(data)
    plain = bool(leaves) and all(isinstance(x, jax.Array | np.ndarray | np.generic | int | float) for x in leaves)
    # A list of batches is a list; a tree of arrays that belong together is a tuple or a dictionary.
    return not plain or isinstance(data, list)


def _program(of: Objective, layout: Layout) -> Callable[..., Means]:
    """The jitted evaluation of some batches, `(means, params, model_state, data, ...) → means`."""

    def build() -> Callable[..., Means]:
        def evaluate(
            means: Means, params: Any, model_state: Any, data: Any, order: Any, start: Any, micro: Any, count: Any
        ) -> Means:
            def body(i: Any, means: Means) -> Means:
                batch = fetcher(layout, data, order, start, i, micro)(0)
                loss, found = of.evaluate(params, model_state, batch)
                weight, values, objects = metrics.split(found, examples_of(batch))
                return metrics.add(means, weight, {"loss": loss.astype(jnp.float32), **values}, objects)

            return jax.lax.fori_loop(0, count, body, means)

        return jax.jit(evaluate)

    return cached(of.loss_fn, (of, layout), build)


def _empty(of: Objective, params: Any, model_state: Any, batch: Any) -> Means:
    """Means of nothing for batches of these shapes; to find out what an evaluation reports it is traced, once."""
    leaves, structure = jax.tree.flatten(batch)

    def build() -> Means:
        loss, found = jax.eval_shape(of.evaluate, params, model_state, batch)
        return no_means(loss, found, batch)

    return cached(of.loss_fn, (of, structure, tuple((x.shape, x.dtype) for x in leaves)), build)


def measure(of: Objective, params: Any, model_state: Any, feed: ArrayFeed | StreamFeed) -> dict[str, float]:
    """The weighted means over one epoch of a feed, from its beginning."""
    means = None
    while (work := feed.take(2**30)) is not None:
        if means is None:
            means = _empty(of, params, model_state, feed.shapes_of(work))
        means = _program(of, Layout(work.kind, work.size, False))(means, params, model_state, *operands(work))
    feed.next_epoch()
    return metrics.read(jax.device_get(means)) if means is not None else {}


def eval_feed(data: Any, batch_size: int) -> ArrayFeed | StreamFeed:
    """Data as a feed in their own order."""
    if is_stream(data):
        return StreamFeed(data)
    return ArrayFeed(data, BatchSize(min(batch_size, count_examples(data))), False, "keep", None)


def evaluate(
    loss_fn: Callable[..., Any],
    params: Any,
    data: Any,
    *,
    batch_size: int = 256,
    model_state: Any = None,
    eval_fn: Callable[..., Any] | None = None,
    precision: str | None = None,
) -> dict[str, float]:
    """The mean loss and metrics over data, in evaluation mode.

    Args:
        loss_fn: as for `fit`: an adapter, or a loss function.
        params: to evaluate, for example ``fit.eval_params``.
        data: arrays with the examples on their first axis, or an iterable of batches.
        batch_size: examples at once; the result does not depend on it, but for rounding.
        model_state: of the model, as `fit` returned it.
        eval_fn: as for `fit`.
        precision: as for `fit`.

    Returns:
        ``{"loss": mean, ...}``: means over the examples (or by returned weights), also where the last batch is
        not full.

    Raises:
        TypeError: the loss takes a key and has no evaluation of its own.
    """
    of = objective(loss_fn, eval_fn, stateful=_stateful(loss_fn, model_state), precision=precision)
    if of.eval_fn is None:
        raise needs_eval_fn("evaluate", loss_fn)
    feed = eval_feed(data, batch_size)
    try:
        return measure(of, params, model_state if model_state is not None else {}, feed)
    finally:
        feed.close()


def needs_eval_fn(call: str, loss_fn: Any) -> TypeError:
    """The error for data to evaluate on without a function that can."""
    return TypeError(
        f"{call}: the loss {getattr(loss_fn, '__name__', loss_fn)!r} takes a key, so that it has no evaluation mode; "
        f"eval_fn= was expected. Pass eval_fn(params, batch), which takes what the loss takes but the key."
    )


def _stateful(loss_fn: Any, model_state: Any) -> bool:
    return model_state is not None or hasattr(loss_fn, "rebuild")


def predict(
    function: Callable[..., Any], params: Any, inputs: Any, *, model_state: Any = None, batch_size: int = 256
) -> Any:
    """The outputs of a model for all inputs, in evaluation mode.

    Args:
        function: an adapter (`linen_loss`, `nnx_loss`), or a function (params, inputs) or (params, model_state,
            inputs) → outputs.
        params: of the model.
        inputs: a tree of arrays with the examples on their first axis.
        model_state: of the model; the function then takes it.
        batch_size: examples at once, which bounds the memory.

    Returns:
        The outputs of all examples, in order.
    """
    before = (params, model_state or {}) if _stateful(function, model_state) else (params,)
    examples = count_examples(inputs)
    owner = function.detached() if hasattr(function, "detached") else function
    run = cached(function, ("predict", owner), lambda: jax.jit(getattr(owner, "predict", owner)))
    parts = [
        run(*before, jax.tree.map(lambda a, i=i: a[i : i + batch_size], inputs)) for i in range(0, examples, batch_size)
    ]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
