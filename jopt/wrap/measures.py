"""Measurements of the updates at a place in a chain, by functions of the user."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jopt.rule import Own, Whole
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, number, raw
from jopt.transform import Transform, whole


class SnapshotState(NamedTuple):
    """State of `snapshot`: ``{name: what was measured last}``."""

    measurement: dict[str, Any]


class MeasuresState(NamedTuple):
    """State of `monitor` with measures: what each measured last, and the state of those that have one."""

    measurements: dict[str, Any]
    measure_states: tuple[Any, ...]


def _like(measured, kept):
    """What was measured, in the types that the state holds."""
    leaves, structure = jax.tree.flatten(measured)
    return jax.tree.unflatten(
        structure, [jnp.asarray(x).astype(k.dtype) for x, k in zip(leaves, jax.tree.leaves(kept), strict=True)]
    )


def _blank(measured):
    """Zeros in place of the shapes that a measurement will have."""
    leaves, structure = jax.tree.flatten(measured)
    return jax.tree.unflatten(structure, [jnp.zeros(x.shape, x.dtype) for x in leaves])


# One function --------------------------------------------------------------------------------------


def snapshot_init(params, *, measure_name, measure, layout):
    """A blank measurement of the right shapes."""
    return Own(inner=SnapshotState({measure_name: _blank(jax.eval_shape(measure, layout.tree(params)))}))


def snapshot_update(grads, own, params, *, measure_name, measure, layout):
    """Measure what passes."""
    kept = own.inner.measurement[measure_name]
    return grads, own._replace(inner=SnapshotState({measure_name: _like(measure(layout.tree(grads)), kept)}))


SNAPSHOT = Whole("snapshot", snapshot_update, snapshot_init)


def snapshot(measure_name: str, measure: Callable[[Any], Any]) -> Transform:
    """Keep a measurement of the updates at this place; they pass unchanged.

    Read it with ``monitored(state)[measure_name]``.

    Args:
        measure_name: its name.
        measure: a function of the tree of updates that returns arrays, of the same shapes at each step.

    Differs: before the first update it is zero; optax measures the parameters.
    """
    return whole(SNAPSHOT, static={"measure_name": measure_name, "measure": measure})


# Several, some with a memory -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class AveragedMeasure:
    """A measure with the exponential moving average of a function as its memory; see `measure_with_ema`."""

    measure: Callable[[Any], Any]
    decay: float
    debias: bool
    accumulator_dtype: str | None

    def init(self, params: Any) -> Any:
        """``(count, average)``, at zero."""
        leaves, structure = jax.tree.flatten(jax.eval_shape(self.measure, params))
        dtype = self.accumulator_dtype or jnp.result_type(float)
        zeros = [jnp.zeros(x.shape, dtype) for x in leaves]
        return jnp.zeros((), jnp.int32), jax.tree.unflatten(structure, zeros)

    def update(self, updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        """The average with this measurement in it, and the state."""
        count, average = state[0] + jnp.ones((), jnp.int32), state[1]
        new, structure = jax.tree.flatten(self.measure(updates))
        old = jax.tree.leaves(average)
        mean = [
            self.decay * a + (1 - self.decay) * jnp.asarray(x).astype(a.dtype) for x, a in zip(new, old, strict=True)
        ]
        weight = [1 - self.decay ** count.astype(a.dtype) if self.debias else jnp.ones((), a.dtype) for a in mean]
        shown = [a / w for a, w in zip(mean, weight, strict=True)]
        return jax.tree.unflatten(structure, shown), (count, jax.tree.unflatten(structure, mean))


def measure_with_ema(
    measure: Callable[[Any], Any], decay: float, debias: bool = True, accumulator_dtype: Any = None
) -> AveragedMeasure:
    """A measure for ``monitor({...})``: the exponential moving average of a function of the updates.

    Args:
        measure: a function of the tree of updates that returns arrays, of the same shapes at each step.
        decay: β in [0, 1).
        debias: whether to correct the start from zero.
        accumulator_dtype: dtype of the average; None is float32, or float64 under x64.
    """
    weight = raw(number(decay, "measure_with_ema", "decay", DECAY))
    dtype = dtype_name(accumulator_dtype, "measure_with_ema", "accumulator_dtype")
    return AveragedMeasure(measure, weight, bool(debias), dtype)


def _first(what, tree):
    return tuple(m.init(tree) if hasattr(m, "update") else () for _, m in what)


def _measure(what, states, tree, params):
    found, after = {}, []
    for (name, measure), state in zip(what, states, strict=True):
        if hasattr(measure, "update"):
            found[name], state = measure.update(tree, state, params)
        else:
            found[name] = measure(tree)
        after.append(state)
    return found, tuple(after)


def measures_init(params, *, what, layout):
    """Blank measurements, and the first states of those that have one."""
    tree = layout.tree(params)
    states = _first(what, tree)
    found, _ = jax.eval_shape(lambda: _measure(what, states, tree, tree))
    return Own(inner=MeasuresState(_blank(found), states))


def measures_update(grads, own, params, *, what, layout):
    """Measure what passes, by measures that may keep a state."""
    kept = own.inner
    tree = None if params is None else layout.tree(params)
    found, states = _measure(what, kept.measure_states, layout.tree(grads), tree)
    states = tuple(_like(new, old) for new, old in zip(states, kept.measure_states, strict=True))
    found = {name: _like(found[name], old) for name, old in kept.measurements.items()}
    return grads, own._replace(inner=MeasuresState(found, states))


MEASURES = Whole("monitor_measures", measures_update, measures_init)


def monitor_measures(what: Any) -> Transform:
    """Keep measurements of the updates at this place: optax's form of `monitor`."""
    what = dict(what)
    for name, measure in what.items():
        if not (callable(measure) or hasattr(measure, "update")):
            raise TypeError(
                f"monitor: the measure {name!r} is {measure!r}, a function of the updates was expected. "
                f"Pass one, or measure_with_ema(function, decay)."
            )
    return whole(MEASURES, static={"what": tuple(what.items())})
