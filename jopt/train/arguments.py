"""What `fit` is given, checked and resolved."""

import inspect
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt.train.batches import ArrayFeed, BatchSize, count_examples
from jopt.train.evaluate import eval_feed, is_stream
from jopt.train.fragile import name_of
from jopt.train.step import is_transform
from jopt.train.streams import StreamFeed
from jopt.transform import Transform, as_transform

if TYPE_CHECKING:
    from jopt.train.fit import Fit


def key_of(key: Any) -> jax.Array:
    """A seed or a key of either kind as a typed key."""
    if isinstance(key, int | np.integer):
        return jax.random.key(key)
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"fit: key={key!r} was given, a seed or a random key was expected. Pass for example key=0.")
    key = jnp.asarray(key)
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"fit: {name}={value!r} was given, a whole number of at least 1 was expected. Pass one.")
    return int(value)


def choice(name: str, value: Any, choices: dict[Any, Any]) -> Any:
    """What one of several choices stands for."""
    if value not in choices:
        raise ValueError(f"fit: {name}={value!r} was given, one of {list(choices)} was expected. Choose one.")
    return choices[value]


def check_rules(until: Sequence[Any], evaluation: Any) -> None:
    """A rule of an evaluation that never comes would never stop anything."""
    for rule in until:
        metric = getattr(rule, "metric", "")
        if evaluation is None and isinstance(metric, str) and metric.startswith("eval_"):
            raise TypeError(
                f"fit: until={rule!r} was given without data to evaluate on, eval_data= or validation_split= was "
                f"expected. Pass one, or a rule of a training metric such as 'loss'."
            )


def listed(given: Any) -> tuple[Any, ...]:
    """One thing or several as a tuple."""
    if given is None:
        return ()
    return tuple(given) if isinstance(given, tuple | list) else (given,)


def batch_size_of(batch_size: Any, accumulate: int | None, micro: int | None, key: Any) -> BatchSize:
    """The batch size, with the micro-batches that `accumulate` or `micro_batch_size` ask for."""
    if accumulate is not None and micro is not None:
        raise TypeError(
            f"fit: accumulate={accumulate!r} and micro_batch_size={micro!r} were given, one of them was expected. "
            f"Pass accumulate for a fixed number of micro-batches, micro_batch_size for a fixed size."
        )
    seed = int(np.asarray(jax.random.key_data(key)).ravel()[-1])
    of = tuple(batch_size) if isinstance(batch_size, list) else batch_size
    if accumulate is not None:
        if not isinstance(of, int | np.integer):
            raise TypeError(
                f"fit: accumulate={accumulate!r} was given with batch_size={batch_size!r}, a batch size that is a "
                f"number was expected. Pass micro_batch_size instead: it goes with any batch size."
            )
        micro = -(-int(of) // whole("accumulate", accumulate))
    return BatchSize(of, None if micro is None else whole("micro_batch_size", micro), seed)


def feeds(
    data: Any,
    size: BatchSize,
    eval_data: Any,
    share: float | None,
    eval_batch_size: int,
    shuffle: Any,
    last_batch: str,
    key: Any,
    overfit: int | None,
    accumulate: int | None,
) -> tuple[ArrayFeed | StreamFeed, ArrayFeed | StreamFeed | None]:
    """The data to train on and to evaluate on."""
    choice("last_batch", last_batch, {"keep": None, "drop": None})
    if not isinstance(shuffle, bool) and not callable(shuffle):
        raise TypeError(
            f"fit: shuffle={shuffle!r} was given, True, False or a function (key, examples) → indices was expected. "
            f"Pass True."
        )
    if share is not None:
        data, eval_data = _split(data, eval_data, share, key)
    if hasattr(eval_data, "__next__"):
        eval_data = list(eval_data)  # it is read again and again
    if is_stream(data):
        if overfit is not None:
            data = list(itertools.islice(iter(data(0) if callable(data) else data), overfit))
            eval_data = data if eval_data is not None else None
        if not size.fixed:
            raise TypeError(
                f"fit: batch_size={size.of!r} was given with an iterable of batches, whose sizes are its own; arrays "
                f"were expected. Pass arrays, or let the iterable vary its batches."
            )
        if size.micro is not None and accumulate is None:
            raise TypeError(
                f"fit: micro_batch_size={size.micro} was given with an iterable of batches, whose sizes are its own; "
                f"accumulate was expected. Pass accumulate=k to split each batch into k."
            )
        feed: ArrayFeed | StreamFeed = StreamFeed(data, micro=accumulate or 1)
    else:
        feed = ArrayFeed(data, size, shuffle, last_batch, jax.random.fold_in(key, 0), limit=overfit)
        if overfit is not None and eval_data is not None:
            first = sum(s.count * s.size for s in feed.segments)
            eval_data = jax.tree.map(lambda a: a[:first], data)
    try:
        return feed, None if eval_data is None else eval_feed(eval_data, eval_batch_size)
    except BaseException:
        feed.close()
        raise


def _split(data: Any, eval_data: Any, share: float, key: Any) -> tuple[Any, ...]:
    """Some examples, drawn by key, for evaluation."""
    if eval_data is not None or is_stream(data) or not 0 < share < 1:
        raise ValueError(
            f"fit: validation_split={share!r} was given {'beside eval_data' if eval_data is not None else ''}, a share "
            f"in (0, 1) of data that are arrays was expected. Pass validation_split=0.1, or eval_data alone."
        )
    examples = count_examples(data)
    held = round(examples * share)
    if not 0 < held < examples:
        raise ValueError(
            f"fit: validation_split={share!r} of {examples} examples leaves a part empty, at least one example in each "
            f"was expected. Choose another share."
        )
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, 3), examples))
    return tuple(_chosen(data, np.sort(part)) for part in (order[held:], order[:held]))


def _chosen(data: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a)[rows], data)


def transform_of(tx: Any, total: int | None) -> Transform:
    """The transform, made for `total` steps if it is a function of them."""
    if is_transform(tx) or not callable(tx):
        return as_transform(tx, "fit")
    if next(iter(inspect.signature(tx).parameters), "") == "learning_rate":  # it would train at a rate of `total`
        raise TypeError(
            f"fit: tx={name_of(tx)} was given, an optimizer that was called was expected. Call it: {name_of(tx)}(1e-3)."
        )
    if total is None:
        raise TypeError(
            "fit: tx is a function of the number of steps, which is not known for this data; steps= was expected. "
            "Pass steps=, or data with a length."
        )
    return as_transform(tx(total), "fit")


def model_of(loss_fn: Any, params: Any, model_state: Any, start: "Fit | None", feed: Any, key: Any) -> tuple[Any, Any]:
    """The parameters and the model's state to begin with."""
    if hasattr(loss_fn, "init") and (params is None or model_state is None):
        fresh, state = loss_fn.init(jax.random.fold_in(key, 2), feed.sample())
        params, model_state = fresh if params is None else params, state if model_state is None else model_state
    if start is not None:  # it goes on from there, but epochs may begin anew from the first state
        return start.params, start.model_state if model_state is None else model_state
    if params is None:
        raise TypeError(
            f"fit: params=None was given with the loss function {name_of(loss_fn)!r}, parameters were expected. Pass "
            f"them; only a Flax model or its adapter makes its own."
        )
    return params, model_state
