"""Losses from Flax models in one line, equal by configuration."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jopt.dtypes import compute_dtype
from jopt.train.metrics import WEIGHT, ExpMean

Measure = Callable[[Any, Any], Any]


def accuracy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """1 where the largest output is the target (an integer, or the largest of soft labels), else 0."""
    labels = targets if jnp.issubdtype(targets.dtype, jnp.integer) else targets.argmax(-1)
    return (outputs.argmax(-1) == labels).astype(jnp.float32)


def _named_loss(loss: str | Measure) -> Measure:
    if callable(loss):
        return loss
    found = getattr(optax.losses, loss, None) if isinstance(loss, str) else None
    if found is None:
        names = sorted(name for name in dir(optax.losses) if callable(getattr(optax.losses, name)))
        raise ValueError(
            f"loss={loss!r} was given, a name in optax.losses or a function (outputs, targets) → values was expected. "
            f"Choose one of {', '.join(names)}."
        )
    return found


def _named_metric(metric: str | Measure) -> tuple[str, Measure | None]:
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__), metric
    if metric == "accuracy":
        return "accuracy", accuracy
    if metric == "perplexity":
        return "perplexity", None
    raise ValueError(
        f"metrics={metric!r} was given, 'accuracy', 'perplexity' or a function (outputs, targets) → values was "
        f"expected. Pass for example metrics=('accuracy',)."
    )


@dataclasses.dataclass(frozen=True)
class Scored:
    """What two Flax adapters share: how outputs and targets become a loss and metrics.

    Attributes:
        loss: a name in `optax.losses`, or (outputs, targets) → values.
        metrics: "accuracy", "perplexity", or functions (outputs, targets) → values.
        augment: (key, batch) → batch, applied in training; None for none.
    """

    loss: str | Measure
    metrics: tuple[str | Measure, ...]
    augment: Callable[..., Any] | None

    def __post_init__(self) -> None:
        _named_loss(self.loss)
        for metric in self.metrics:
            _named_metric(metric)

    def score(self, outputs: jax.Array, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
        """The mean loss and the metrics of a batch (inputs, targets) or (inputs, targets, weights)."""
        targets, weights = _targets(batch)
        outputs = outputs.astype(compute_dtype(outputs.dtype))
        mean = _mean_with(weights, len(targets))
        loss = mean(_named_loss(self.loss)(outputs, targets))
        found: dict[str, Any] = {}
        for name, measure in map(_named_metric, self.metrics):
            if measure is None:
                weight = jnp.asarray(len(targets) if weights is None else weights.sum(), jnp.float32)
                found[name] = ExpMean(loss * weight, weight)
            else:
                found[name] = mean(measure(outputs, targets))
        return loss, found if weights is None else found | {WEIGHT: weights.sum()}


def _targets(batch: Any) -> tuple[jax.Array, jax.Array | None]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        found = f"{len(batch)} arrays" if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(
            f"fit: a batch of {found} was given to the loss of a Flax model, (inputs, targets) or "
            f"(inputs, targets, weights) was expected. Pass the data in this form, or write a loss function."
        )
    return batch[1], (batch[2] if len(batch) == 3 else None)


def _mean_with(weights: jax.Array | None, examples: int) -> Callable[[jax.Array], jax.Array]:
    """The mean over a batch, weighted by example."""

    def mean(values: jax.Array) -> jax.Array:
        values = jnp.asarray(values)
        if weights is None or values.ndim == 0:
            return values.mean()
        per_example = values.reshape(examples, -1).mean(-1)
        total = weights.sum()
        return jnp.where(total > 0, jnp.vdot(per_example, weights.astype(per_example.dtype)), 0) / jnp.where(
            total > 0, total, 1
        ).astype(per_example.dtype)

    return mean


def _frozen(kwargs: Mapping[str, Any] | None) -> tuple[tuple[str, Any], ...] | None:
    return None if kwargs is None else tuple(sorted(kwargs.items()))


def _mode(call: Any, train: bool) -> tuple[tuple[str, Any], ...]:
    """The keyword that switches a model between training and evaluation, by its usual names."""
    names = inspect.signature(call).parameters
    values = {"train": train, "training": train, "is_training": train, "deterministic": not train}
    return tuple((name, value) for name, value in values.items() if name in names)


@dataclasses.dataclass(frozen=True)
class LinenLoss(Scored):
    """The loss of a Flax linen model; made by `linen_loss`."""

    model: Any
    rngs: tuple[str, ...]
    train_kwargs: tuple[tuple[str, Any], ...]
    eval_kwargs: tuple[tuple[str, Any], ...]

    def __hash__(self) -> int:
        # A module with a list among its fields compares, but does not hash.
        return hash((type(self.model), self.loss, self.metrics, self.rngs))

    def init(self, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        """Fresh (params, model_state) for batches like `batch`."""
        names = ("params", *self.rngs)
        keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
        variables = _initial(self, keys, batch[0][:1])
        return variables["params"], {name: value for name, value in variables.items() if name != "params"}

    def __call__(self, params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        if self.augment is not None:
            key, drawn = jax.random.split(key)
            batch = self.augment(drawn, batch)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(self.rngs)}
        outputs, state = self.model.apply(
            {"params": params, **model_state}, batch[0], rngs=rngs, mutable=list(model_state), **dict(self.train_kwargs)
        )
        loss, metrics = self.score(outputs, batch)
        return loss, (dict(state), metrics)

    def evaluate(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Loss and metrics in evaluation mode."""
        return self.score(self.predict(params, model_state, batch[0]), batch)

    def predict(self, params: Any, model_state: Any, inputs: Any) -> Any:
        """Outputs in evaluation mode."""
        return self.model.apply({"params": params, **model_state}, inputs, **dict(self.eval_kwargs))

    def rebuild(self, params: Any, model_state: Any) -> Any:
        """The module bound to these variables."""
        return self.model.bind({"params": params, **model_state})


@functools.partial(jax.jit, static_argnums=0)
def _initial(loss: LinenLoss, keys: Any, inputs: Any) -> Any:
    """Compiled once for equal adapters, as a re-run cell makes them."""
    return loss.model.init(keys, inputs)


def linen_loss(
    model: Any,
    loss: str | Measure,
    *,
    metrics: Sequence[str | Measure] = (),
    augment: Callable[..., Any] | None = None,
    rngs: Sequence[str] = ("dropout",),
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
) -> LinenLoss:
    """A loss from a Flax linen model, for batches (inputs, targets) or (inputs, targets, weights).

    Args:
        model: a linen module, called as ``model(inputs)``.
        loss: a name in `optax.losses`, or a function (outputs, targets) → values; the mean over the batch,
            weighted if the batch has weights, is what is minimised.
        metrics: "accuracy", "perplexity", or functions like `loss`.
        augment: (key, batch) → batch in training, for example from `jopt.data`.
        rngs: names of the streams of random numbers that the model uses in training; unused ones cost nothing.
        train_kwargs: further keywords of the model in training. None: the one of ``train``, ``training``,
            ``is_training`` (True) and ``deterministic`` (False) that it takes.
        eval_kwargs: the same in evaluation.

    Its parameters and state are those of ``model.init``: ``variables["params"]``, and the other collections.
    """
    call = type(model).__call__
    return LinenLoss(
        loss,
        tuple(metrics),
        augment,
        model,
        tuple(rngs),
        _mode(call, True) if train_kwargs is None else _frozen(train_kwargs) or (),
        _mode(call, False) if eval_kwargs is None else _frozen(eval_kwargs) or (),
    )


@dataclasses.dataclass(frozen=True)
class NnxLoss(Scored):
    """The loss of a Flax nnx model; made by `nnx_loss`."""

    graph: Any
    trained: Any = dataclasses.field(compare=False, repr=False)
    rest: Any = dataclasses.field(compare=False, repr=False)
    wrt: Any
    start: Any = dataclasses.field(compare=False, repr=False)

    def init(self, key: jax.Array, batch: Any) -> tuple[Any, Any]:
        """The (params, model_state) that the model came with; both as plain dictionaries."""
        del key, batch
        return self.start

    def detached(self) -> "NnxLoss":
        """The same loss without the arrays of the model it was made from."""
        return dataclasses.replace(self, start=None)

    def rebuild(self, params: Any, model_state: Any) -> Any:
        """A new module with these arrays."""
        from flax import nnx

        trained, rest = (jax.tree.map(lambda x: x, part) for part in (self.trained, self.rest))
        nnx.replace_by_pure_dict(trained, params)
        nnx.replace_by_pure_dict(rest, model_state)
        return nnx.merge(self.graph, trained, rest)

    def __call__(self, params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        from flax import nnx

        batch = batch if self.augment is None else self.augment(key, batch)
        model = self.rebuild(params, model_state)
        model.train()
        outputs = model(batch[0])
        loss, metrics = self.score(outputs, batch)
        _, _, rest = nnx.split(model, self.wrt, ...)
        return loss, (nnx.to_pure_dict(rest), metrics)

    def evaluate(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, dict[str, Any]]:
        """Loss and metrics in evaluation mode."""
        return self.score(self.predict(params, model_state, batch[0]), batch)

    def predict(self, params: Any, model_state: Any, inputs: Any) -> Any:
        """Outputs in evaluation mode."""
        model = self.rebuild(params, model_state)
        model.eval()
        return model(inputs)


def nnx_loss(
    model: Any,
    loss: str | Measure,
    *,
    metrics: Sequence[str | Measure] = (),
    augment: Callable[..., Any] | None = None,
    wrt: Any = None,
) -> NnxLoss:
    """A loss from a Flax nnx model, for batches (inputs, targets) or (inputs, targets, weights).

    The model itself is not touched: `Fit.model()` makes a new one. Its random streams are part of the model
    state. ``model.train()`` and ``model.eval()`` choose the mode.

    Args:
        model: an nnx module, called as ``model(inputs)``.
        loss, metrics, augment: as for `linen_loss`.
        wrt: which variables are trained, an nnx filter. None: `nnx.Param`.
    """
    from flax import nnx

    wrt = nnx.Param if wrt is None else wrt
    graph, trained, rest = nnx.split(model, wrt, ...)
    start = (nnx.to_pure_dict(trained), nnx.to_pure_dict(rest))
    shapes = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
    return NnxLoss(loss, tuple(metrics), augment, graph, shapes(trained), shapes(rest), wrt, start)


def as_loss(model: Any, loss: str | Measure | None, metrics: Sequence[str | Measure]) -> Any:
    """A loss function as it is, a Flax model through its adapter.

    Raises:
        TypeError: a model without `loss`, or a loss function with `loss` or `metrics`.
    """
    kind = _flax_kind(model)
    if kind is None:
        if loss is not None or metrics:
            raise TypeError(
                f"fit: loss={loss!r} and metrics={metrics!r} were given beside the function {model!r}, a Flax model "
                f"was expected. Drop them, as a function makes its own, or pass the model in place of the function."
            )
        return model
    if loss is None:
        raise TypeError(
            f"fit: the model {type(model).__name__} was given without loss=, a name in optax.losses was expected. "
            f"Pass for example loss='softmax_cross_entropy_with_integer_labels'."
        )
    return (linen_loss if kind == "linen" else nnx_loss)(model, loss, metrics=metrics)


def _flax_kind(model: Any) -> str | None:
    """Told by the names of its classes, so that Flax is not imported for it."""
    classes = {f"{c.__module__}.{c.__qualname__}" for c in type(model).__mro__}
    if "flax.linen.module.Module" in classes:
        return "linen"
    return "nnx" if any(c.startswith("flax.nnx.") and c.endswith(".Module") for c in classes) else None
