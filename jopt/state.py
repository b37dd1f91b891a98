"""The state of a transform, and the accessors that read and set its hyper-parameters by name."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt import scalars
from jopt.dtypes import leave
from jopt.formats import widen
from jopt.paths import Flat, flatten


class StateMismatchError(ValueError):
    """A state was made by another transform, or for other parameters."""


def check_kept(call: str, kept: Mapping[str, Any], grads: Flat, leading: tuple[int, ...] = ()) -> None:
    """Raise a `StateMismatchError` unless `kept` has an array for every gradient, of its shape.

    Args:
        call: the part of the chain, for the message.
        kept: ``{path: array}`` from its state.
        grads: ``{path: array}``.
        leading: the axes that an array of the state has before those of the gradient.
    """
    held = {path: tuple(x.shape) for path, x in kept.items()}
    expected = {path: (*leading, *g.shape) for path, g in grads.items()}
    if held != expected:
        path = min(path for path in held | expected if held.get(path) != expected.get(path))
        raise StateMismatchError(
            f"update: for the parameter {path!r} the state of {call} holds an array of shape {held.get(path)}, "
            f"{expected.get(path)} was expected. The state was made for other parameters: make one with init(params)."
        )


class State(NamedTuple):
    """Everything a chain keeps, by name: arrays under their parameter's path, numbers under theirs.

    Attributes:
        count: int32, finished updates.
        hyper: every number of the chain as used in the last update (before the first: as it will be).
        base: the configured values the state last saw, settable names only.
        slots: ``{part: {slot: {path: array}}}``.
        scalars: ``{part: {name: array}}``, what a part keeps for the whole tree.
        inner: ``{part: anything}``, the states of wrapped or foreign transforms.
    """

    count: Any
    hyper: dict[str, Any]
    base: dict[str, Any]
    slots: dict[str, dict[str, Flat]]
    scalars: dict[str, dict[str, Any]]
    inner: dict[str, Any]

    def __repr__(self) -> str:
        """A summary: numbers by full name, those of wrapped states too; of arrays their number and bytes."""
        hyper = [f"{name}={_value(x)}" for name, x in hyperparams(self).items()]
        slots = [f"{part}/{slot}: {_size(x)}" for part, kept in self.slots.items() for slot, x in kept.items()]
        numbers = [f"{part}/{name}={_value(x)}" for part, kept in self.scalars.items() for name, x in kept.items()]
        inner = [f"{part}: {_size(x)}" for part, x in self.inner.items()]
        groups = {"hyper": hyper, "slots": slots, "scalars": numbers, "inner": inner}
        shown = [f"{name}=({', '.join(lines)})" for name, lines in groups.items() if lines]
        return f"State({', '.join([f'count={_value(self.count)}', *shown])})"


def _value(x: Any) -> str:
    """A number as it is, another array or one without a value as its dtype and shape."""
    leaves = jax.tree.leaves(x)
    if len(leaves) != 1:
        return _size(x)
    (x,) = leaves
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        return repr(x)
    known = isinstance(x, np.ndarray | np.generic) or (
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and x.is_fully_addressable
        and not x.is_deleted()
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
    )
    if not known or x.size != 1:
        return f"{x.dtype}{list(x.shape)}"
    return f"{x.item():.6g}" if jnp.issubdtype(x.dtype, jnp.inexact) else str(x.item())


def _size(tree: Any) -> str:
    """How many arrays there are, and their bytes."""
    arrays = [x for x in jax.tree.leaves(tree) if hasattr(x, "shape") and hasattr(x, "dtype")]
    total = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays)
    return f"{len(arrays)} {'array' if len(arrays) == 1 else 'arrays'} ({total:,} bytes)"


def states(state: Any, scope: str = "") -> Iterator[tuple[str, State]]:
    """Every `State` inside a state of any nesting, with the scope its names are under."""
    if isinstance(state, State):
        yield scope, state
    for _, below, inner in _held(state, scope):
        yield from states(inner, below)


def _check_held(call: str, state: Any) -> None:
    """Raise a `StateMismatchError` if there is no `State` in a state."""
    if next(states(state), None) is None:
        raise StateMismatchError(
            f"{call}: a {type(state).__name__} was given as the state, with no jopt state in it; one that init or "
            f"update of a jopt transform returned was expected. Pass the state, not the transform or the parameters."
        )


def _held(state: Any, scope: str) -> list[tuple[Any, str, Any]]:
    """Key, scope and value of all that may hold a `State` in turn.

    The members of a tuple go by their fields' names, or by their place if they have none (a foreign
    chain's), but only where several of them hold states, so that their names cannot clash.
    """
    if isinstance(state, State):
        state = state.inner
    if isinstance(state, dict):
        return [(name, f"{scope}{name}/", value) for name, value in state.items()]
    if isinstance(state, tuple | list):
        several = sum(next(states(value), None) is not None for value in state) > 1
        names = getattr(state, "_fields", range(len(state)))
        return [(n, f"{scope}{n}/" if several else scope, value) for n, value in zip(names, state, strict=True)]
    return []


@jax.tree_util.register_pytree_with_keys_class
class Hyperparams(dict[str, Any]):
    """Hyper-parameters by full name; indexing also takes any short name that is not ambiguous."""

    def __missing__(self, name: str) -> Any:
        return self[resolve_name("hyperparams", name, list(self))]

    def tree_flatten_with_keys(self):
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names, values):
        return cls(zip(names, values, strict=True))


def resolve_name(call: str, name: str, full_names: list[str]) -> str:
    """The one full name that `name` stands for: itself, the one it ends, or the one it is cut from.

    Cut from ``muon/scale_by_learning_rate/learning_rate`` is ``muon/learning_rate``: the last part
    stays, others may be left out.

    Raises:
        KeyError: none is found, or several are.
    """
    if name in full_names:
        return name
    found = [full for full in full_names if full.endswith("/" + name)]
    found = found or [full for full in full_names if _is_cut_from(name.split("/"), full.split("/"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise KeyError(f"{call}: {name!r} is ambiguous, one of {found} was expected. Use the full name.")
    raise KeyError(f"{call}: {name!r} is not in this state, which has {sorted(full_names)}. Use one of these.")


def _is_cut_from(short: list[str], full: list[str]) -> bool:
    """Whether the parts of a short name are some of a full one's, in order, with the same last part."""
    rest = iter(full)
    return short[-1] == full[-1] and all(part in rest for part in short)


def hyperparams(state: Any) -> Hyperparams:
    """The hyper-parameters of a state at any nesting, as used in its last update.

    Args:
        state: a jopt state, or any structure (a foreign chain's tuple) that holds some.

    Returns:
        A mapping from full names (``scale_by_adam/b1``) to arrays; ``["b1"]`` works where only
        one name ends so, ``["muon/learning_rate"]`` also where parts between are left out. It is a
        KeyError that lists the full names otherwise.
    """
    return Hyperparams({scope + name: value for scope, s in states(state) for name, value in s.hyper.items()})


def set_hyperparams(state: Any, **values: Any) -> Any:
    """A new state in which the named hyper-parameters have the given values; nothing retraces.

    Args:
        state: a jopt state, or any structure that holds some.
        **values: by short or full name: ``learning_rate=3e-4`` or ``**{"scale_by_adam/b1": 0.95}``.
            A batch of values goes with `jax.vmap` over this call.

    Raises:
        KeyError: a name is unknown, ambiguous, or follows a schedule.
        StateMismatchError: there is no state of jopt in `state`.
        TypeError, ValueError: a value is no scalar, or NaN.
    """
    _check_held("set_hyperparams", state)
    known = hyperparams(state)
    settable = {scope + name for scope, s in states(state) for name in s.base}
    new = {}
    for name, value in values.items():
        full = resolve_name("set_hyperparams", name, list(known))
        if full not in settable:
            raise KeyError(
                f"set_hyperparams: {full!r} follows a schedule, so that a value set here would be lost at the next "
                f"update. Build the transform with a number, or with another schedule."
            )
        checked = scalars.raw(scalars.number(value, "set_hyperparams", name))
        new[full] = _beside(jnp.asarray(checked, known[full].dtype), *jax.tree.leaves(known[full]))
    return _replace_hyper(state, new, "")


def keep_hyperparams(fresh: Any, old: Any) -> Any:
    """A fresh state with the hyper-parameters of another state of the same transform, those set by hand included."""
    return _replace_hyper(fresh, dict(hyperparams(old)), "")


def _beside(new: jax.Array, old: Any) -> jax.Array:
    """The new number on the mesh of the old one: elsewhere, it would make the next step compile anew."""
    known = isinstance(old, jax.Array) and not isinstance(old, jax.core.Tracer) and not isinstance(new, jax.core.Tracer)
    return jax.device_put(new, old.sharding) if known and len(old.sharding.device_set) > 1 else new


def _replace_hyper(state: Any, new: dict[str, Any], scope: str) -> Any:
    held = {key: _replace_hyper(value, new, below) for key, below, value in _held(state, scope)}
    if isinstance(state, State):
        # Mapped, not replaced: nnx wraps each array in a node of its own, and losing that would retrace.
        given = {name: new[scope + name] for name in state.hyper if scope + name in new}
        hyper = state.hyper | {name: jax.tree.map(lambda _, x=x: x, state.hyper[name]) for name, x in given.items()}
        return state._replace(hyper=hyper, inner=held)
    if isinstance(state, dict):
        return type(state)(held)
    if isinstance(state, tuple | list):
        return type(state)(*held.values()) if hasattr(state, "_fields") else type(state)(held.values())
    return state


def sweep_axes(state: Any) -> Any:
    """The `in_axes`/`out_axes` of a state with a batch axis: 0 everywhere, None for the clocks.

    A batched clock would turn every periodic refresh into work at every step, so `count` stays
    unbatched. Only a clock that the data decides (behind a guard) is batched.

    Args:
        state: one state (a batched one gives the same).
    """
    if isinstance(state, State):
        axes = jax.tree.map(lambda _: 0, state._replace(inner={}))
        inner = {name: sweep_axes(value) for name, value in state.inner.items()}
        return axes._replace(count=None, inner=inner)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        if getattr(state, "clock_depends_on_data", False):
            return jax.tree.map(lambda _: 0, state)
        return type(state)(*map(sweep_axes, state))
    if isinstance(state, dict):
        return type(state)({name: sweep_axes(value) for name, value in state.items()})
    if isinstance(state, tuple | list):
        return type(state)(sweep_axes(value) for value in state)
    return jax.tree.map(lambda _: 0, state)


AVERAGED = "averaged"
"""The slot that holds parameters for evaluation, for `eval_params`: arrays, or stacks of them to average."""


# Averages that optax keeps in a way of its own, by the class of its state, and what replaces them.
_AVERAGES_OF_OPTAX = {
    "ScheduleFreeState": "jopt.schedule_free",
    "LookaheadState": "jopt.lookahead",
    "LookaheadParams": "jopt.lookahead",
}


def eval_params(state: Any, params: Any) -> Any:
    """The parameters to evaluate with: the averaged ones where the state has them, else `params`.

    Wrappers that average or look ahead keep them in a slot of one name, wherever they are nested: inside
    chains, masks, partitions and other wrappers.

    Raises:
        StateMismatchError: two parts average the same parameter, so that the choice is not clear; the state
            holds none of jopt; or it holds an average of optax, which only optax's own functions can read.
    """
    _check_readable(state, params)
    flat, layout = flatten(params)
    found: dict[str, str] = {}
    new = dict(flat)
    for scope, s in states(state):
        for part, slots in s.slots.items():
            for path, value in slots.get(AVERAGED, {}).items():
                if path not in flat:
                    continue
                if path in found:
                    raise StateMismatchError(
                        f"eval_params: {sorted({found[path], scope + part})} all keep averaged parameters of {path!r}, "
                        f"one was expected. Keep one of them."
                    )
                found[path] = scope + part
                stacked = value.ndim > np.ndim(flat[path])
                wide = widen(value, jnp.float32)
                new[path] = leave(jnp.mean(wide, axis=0) if stacked else wide, flat[path].dtype)
    return layout.unflatten(new)


def _check_readable(state: Any, params: Any) -> None:
    """Raise a `StateMismatchError` if `eval_params` would miss an average."""
    if next(states(params), None) is not None:
        raise StateMismatchError(
            f"eval_params: a {type(params).__name__} with a jopt state in it was given as the parameters, the "
            f"parameters were expected: state and params are swapped. Call eval_params(state, params)."
        )
    kept = next((name for name in _classes(state) if name in _AVERAGES_OF_OPTAX), None)
    if kept is not None:
        raise StateMismatchError(
            f"eval_params: the state holds a {kept} of optax, an average of jopt was expected. "
            f"Use {_AVERAGES_OF_OPTAX[kept]} in place of optax's transform."
        )
    _check_held("eval_params", state)


def _classes(state: Any) -> Iterator[str]:
    """Names of the classes inside a state of any nesting."""
    yield type(state).__name__
    for _, _, inner in _held(state, ""):
        yield from _classes(inner)
