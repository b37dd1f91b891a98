"""What training minimises: loss functions of several signatures, seen as one."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt.dtypes import compute_dtype

SHAPES = {
    (False, False): "loss_fn(params, batch)",
    (False, True): "loss_fn(params, batch, key)",
    (True, False): "loss_fn(params, model_state, batch)",
    (True, True): "loss_fn(params, model_state, batch, key)",
}


class Aux(NamedTuple):
    """What a loss returns beside its value."""

    model_state: Any
    metrics: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss for training and one for evaluation; equal where both functions are.

    Attributes:
        loss_fn: the user's function or an adapter.
        eval_fn: for evaluation, without a key; None if the loss has no evaluation mode.
        stateful: whether both take and return the model's own state.
        takes_key: whether the loss takes a key.
        precision: "bf16", "f16" or None: what the losses compute in.
    """

    loss_fn: Callable[..., Any]
    eval_fn: Callable[..., Any] | None
    stateful: bool
    takes_key: bool
    precision: str | None = None

    def train(self, params: Any, model_state: Any, batch: Any, key: Any) -> tuple[jax.Array, Aux]:
        """The loss, float32 or wider, and what comes with it."""
        before = (params, model_state) if self.stateful else (params,)
        after = (batch, key) if self.takes_key else (batch,)
        return self._call(self.loss_fn, before, after, model_state)

    def evaluate(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
        """The loss and the metrics in evaluation mode."""
        assert self.eval_fn is not None
        before = (params, model_state) if self.stateful else (params,)
        loss, aux = self._call(self.eval_fn, before, (batch,), model_state)
        return loss, aux.metrics

    def _call(self, function: Callable[..., Any], before: Any, after: Any, model_state: Any) -> tuple[jax.Array, Aux]:
        before = (narrow(before[0], self.precision), *before[1:])
        after = (narrow(after[0], self.precision), *after[1:])
        loss, aux = _read(function(*before, *after), self.stateful, model_state)
        return _checked(loss), aux


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """The evaluation of an adapter, equal where the adapter is; its bound method compares by identity."""

    of: Any

    def __call__(self, *args: Any) -> Any:
        return self.of.evaluate(*args)


def narrow(tree: Any, precision: str | None) -> Any:
    """The tree with its float32 and wider arrays in the training precision."""
    if precision is None:
        return tree
    dtype = jnp.bfloat16 if precision == "bf16" else jnp.float16
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _read(result: Any, stateful: bool, model_state: Any) -> tuple[Any, Aux]:
    if not isinstance(result, tuple):
        if stateful:
            raise TypeError(
                f"fit: with model_state= the loss returned {_kind(result)}, (loss, (model_state, metrics)) was "
                f"expected. Return the new model state too, and {{}} where there are no metrics."
            )
        return result, Aux(model_state, {})
    if len(result) != 2:
        raise TypeError(
            f"fit: the loss returned {len(result)} values, (loss, metrics) was expected, or with model_state= "
            f"(loss, (model_state, metrics)). Put the metrics into one dictionary."
        )
    loss, aux = result
    if not stateful or isinstance(aux, dict):  # an evaluation has no state to return
        return loss, Aux(model_state, aux)
    if not isinstance(aux, tuple) or len(aux) != 2:
        raise TypeError(
            f"fit: with model_state= the loss returned {_kind(aux)} beside its value, (model_state, metrics) was "
            f"expected. Return (loss, (model_state, metrics))."
        )
    return loss, Aux(*aux)


def _checked(loss: Any) -> jax.Array:
    loss = jnp.asarray(loss)
    if loss.ndim or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(
            f"fit: the loss is {loss.dtype}{list(loss.shape)}, a real scalar was expected. Return its mean over the "
            f"batch."
        )
    return loss.astype(compute_dtype(loss.dtype))


def objective(
    loss_fn: Callable[..., Any],
    eval_fn: Callable[..., Any] | None = None,
    *,
    stateful: bool,
    precision: str | None = None,
) -> Objective:
    """See a loss function as an objective.

    An adapter (`jopt.linen_loss`, `jopt.nnx_loss`) brings its own evaluation; a loss that takes no key is its
    own evaluation.

    Raises:
        TypeError: not callable, or a number of arguments that has no meaning.
        ValueError: an unknown precision.
    """
    if precision not in (None, "bf16", "f16"):
        raise ValueError(
            f"fit: precision={precision!r} was given, None, 'bf16' or 'f16' was expected. Use None for full precision."
        )
    if not callable(loss_fn):
        raise TypeError(
            f"fit: the loss {loss_fn!r} is not callable, {SHAPES[stateful, True]} was expected. "
            f"Make one from a Flax model with jopt.linen_loss(model, ...) or jopt.nnx_loss(model, ...)."
        )
    takes_key = _takes_key(loss_fn, stateful)
    if hasattr(loss_fn, "detached"):
        loss_fn = loss_fn.detached()  # what compiled code is kept by must not keep a model's arrays alive
    if eval_fn is None:
        eval_fn = _Evaluation(loss_fn) if hasattr(loss_fn, "evaluate") else None if takes_key else loss_fn
    return Objective(loss_fn, eval_fn, stateful, takes_key, precision)


def _takes_key(loss_fn: Callable[..., Any], stateful: bool) -> bool:
    """Whether the loss has a place for a key, by the number of its positional arguments."""
    least = 3 if stateful else 2
    try:
        parameters = inspect.signature(loss_fn).parameters.values()
    except (TypeError, ValueError):
        return True  # a built-in tells nothing: it gets the full form
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in places if p.default is p.empty]
    if not len(needed) <= least + 1 or len(places) < least:
        raise TypeError(
            f"fit: the loss {getattr(loss_fn, '__name__', loss_fn)!r} takes {[p.name for p in places]}, "
            f"{SHAPES[stateful, False]} or {SHAPES[stateful, True]} was expected. "
            + (
                "Drop model_state= if the model has no state of its own."
                if stateful
                else "Pass model_state= if the model has a state of its own, such as batch statistics."
            )
        )
    # An optional argument that is not called key is the user's own.
    return len(needed) == least + 1 or (len(places) > least and places[least].name == "key")


def _kind(x: Any) -> str:
    return type(x).__name__
