"""States of optax read into states of jopt, so that a run that began there goes on here."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from jopt.paths import Flat, flatten, path_of
from jopt.rule import Group, Part, Several
from jopt.state import AVERAGED, State, hyperparams, set_hyperparams
from jopt.transform import Transform, as_transform, is_transform
from jopt.wrap.finite import NONE

# Fields that are clocks.
_CLOCKS = ("count", "step", "t")
# Fields under another name here, by the class of optax's state.
_RENAMED = {"ReduceLROnPlateauState": {"count": "values"}}
# Fields without a counterpart, which jopt derives anew.
_DERIVED = {"MuonState": {"ns_coeffs"}}
# States of what keeps nothing here, or starts to measure afresh.
_STATELESS = {"ZeroNansState", "SnapshotState", "MonitorState", "NonNegativeParamsState"}
_MEASURING = {"snapshot", "monitor_measures", "monitor_gradients", "monitor_updates"}


class OptaxStateError(ValueError):
    """A state of optax that cannot be read into the given transform."""


def from_optax(tx: Any, optax_state: Any, params: Any, count: int | None = None) -> State:
    """Read a state of optax into one of jopt; the next updates are those that optax would have given.

    Args:
        tx: the jopt transform that takes over, made by the same calls as optax's was.
        optax_state: the state of optax's transform.
        params: the parameters; for `lookahead` optax's pair of them.
        count: finished updates, where no part of optax's state knows (a chain without moments and
            schedules); None reads it from the state.

    The arrays are copied into the types that ``tx.init(params)`` gives. Numbers that
    `inject_hyperparams` kept are set as by `set_hyperparams`.

    Raises:
        OptaxStateError: a state of a class that has no counterpart in `tx`, or of other shapes; the
            message names both sides.
        TypeError: `tx` is no transform, or two arguments are swapped.
    """
    _check_order(tx, optax_state, params)
    transform = as_transform(tx, "from_optax")
    fast = getattr(params, "fast", params)
    return _Reading(fast, getattr(params, "slow", None)).state(
        transform.parts, cast(State, transform.init(fast)), optax_state, count
    )


def _check_order(tx: Any, optax_state: Any, params: Any) -> None:
    """Raise a `TypeError` if two arguments of `from_optax` are swapped."""
    swapped = None
    if _holds_state(params) and not _holds_state(optax_state):
        swapped = "state and params"
    elif not is_transform(tx) and is_transform(optax_state):
        swapped = "tx and state"
    elif not is_transform(tx) and is_transform(params):
        swapped = "tx and params"
    if swapped:
        given = ", ".join(type(x).__name__ for x in (tx, optax_state, params))
        raise TypeError(
            f"from_optax: {swapped} are swapped: arguments of the types {given} were given; a transform, a state of "
            f"optax and the parameters were expected. Call from_optax(tx, optax_state, params)."
        )


def _holds_state(x: Any) -> bool:
    """Whether the state of a transform is in it: a named tuple that is called so."""
    if isinstance(x, tuple) and hasattr(x, "_fields") and type(x).__name__.endswith("State"):
        return True
    members = x.values() if isinstance(x, Mapping) else x if isinstance(x, tuple | list) else ()
    return any(map(_holds_state, members))


def _pieces(state: Any) -> Iterator[Any]:
    """The states of single transforms, in the order in which they run."""
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        through = isinstance(state, optax.MaskedState)
        if not through:
            yield state
        if through or hasattr(state, "hyperparams"):
            yield from _pieces(getattr(state, "inner_state", ()))
    elif isinstance(state, tuple | list | Mapping):
        for member in state.values() if isinstance(state, Mapping) else state:
            yield from _pieces(member)
    elif state is not None:
        raise OptaxStateError(
            f"from_optax: the state holds a {type(state).__name__}, a state of an optax transform was expected. "
            f"Pass the state as optax's init or update returned it."
        )


def _is_stateless(piece: Any) -> bool:
    named = type(piece).__name__
    return (
        named in _STATELESS
        or hasattr(piece, "hyperparams")
        or (named not in _RENAMED and set(piece._fields) <= {"count"})
    )


def _flat(tree: Any) -> Flat:
    """``{path: array}`` of a tree in optax's state, without the leaves that a mask left out."""
    masked = (optax.MaskedNode,)
    entries, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is None or isinstance(x, masked))
    return {path_of(keys): x for keys, x in entries if x is not None and not isinstance(x, masked)}


def _as(x: Any, kept: Any, what: str) -> jax.Array:
    if jnp.shape(x) != kept.shape or jnp.iscomplexobj(x) != jnp.iscomplexobj(kept):
        raise OptaxStateError(
            f"from_optax: {what} is {jnp.asarray(x).dtype}{list(jnp.shape(x))} in optax's state, "
            f"{kept.dtype}{list(kept.shape)} was expected. Pass the parameters that the state was made for; second "
            f"moments of complex parameters are other quantities here, and cannot be taken over."
        )
    return jnp.array(x, kept.dtype)


class _Reading:
    """One reading of a state: what is read along the way is the same for all of its parts."""

    def __init__(self, params: Any, slow: Any):
        self.params, self.slow = flatten(params)[0], slow

    def state(self, parts: Any, fresh: State, optax_state: Any, count: int | None = None) -> State:
        """The jopt state of one clock."""
        source = list(_pieces(optax_state))
        clocks = {int(value) for piece in source for value in _clocks_of(piece)}
        new = fresh._replace(slots=dict(fresh.slots), scalars=dict(fresh.scalars), inner=dict(fresh.inner))
        numbers = {n: x for piece in source for n, x in getattr(piece, "hyperparams", {}).items()}
        rest = [piece for piece in source if not _is_stateless(piece)]
        clocks |= self._parts(parts, new, rest)
        if rest:
            raise OptaxStateError(
                f"from_optax: a {type(rest[0]).__name__} is left over, which no part of the transform takes; "
                f"{[part.name for part in _flat_parts(parts)]} were expected. Build the transform by the same calls."
            )
        if count is not None:
            clocks = {count}
        if len(clocks) > 1:
            raise OptaxStateError(
                f"from_optax: the clocks of optax's state stand at {sorted(clocks)}, one number was expected: "
                f"a chain of jopt has one clock. Pass count= to choose."
            )
        new = new._replace(count=jnp.asarray(clocks.pop() if clocks else 0, jnp.int32))
        return _with_numbers(new, numbers)

    def _parts(self, parts: Any, new: State, rest: list[Any]) -> set[int]:
        """Fill what a sequence of parts keeps from the states in `rest`, which are used up."""
        clocks: set[int] = set()
        for part in parts:
            if isinstance(part, Part):
                if part.of.name not in _MEASURING:
                    clocks |= self._part(part, new, rest)
            elif part.total and not (len(part.cases) == 1 and not _holds_partition(rest)):
                clocks |= self._cases(part, new, rest)
            else:
                for _, _, inner in part.cases:
                    clocks |= self._parts(inner, new, rest)
        return clocks

    def _cases(self, group: Group, new: State, rest: list[Any]) -> set[int]:
        piece = _take(rest, f"partition of {[name for name, _, _ in group.cases]}")
        if not isinstance(piece, optax.PartitionState):
            raise _mismatch(piece, "a partition", "PartitionState")
        states = {str(label): state for label, state in piece.inner_states.items()}
        clocks: set[int] = set()
        for name, _, inner in group.cases:
            if name not in states:
                raise OptaxStateError(
                    f"from_optax: the case {name!r} of the partition is not among optax's labels {sorted(states)}, one "
                    f"of them was expected. Name the cases by the labels."
                )
            source = list(_pieces(states[name]))
            clocks |= {int(value) for one in source for value in _clocks_of(one)}
            below = [one for one in source if not _is_stateless(one)]
            clocks |= self._parts(inner, new, below)
            if below:
                raise _mismatch(below[0], f"the case {name!r}", "no further state")
        return clocks

    def _part(self, part: Part, new: State, rest: list[Any]) -> set[int]:
        slots, scalars = new.slots.get(part.name, {}), new.scalars.get(part.name, {})
        if not (slots or scalars or part.name in new.inner):
            return set()
        piece = _take(rest, part.name)
        if part.of.name in _WRAPPERS:
            kind, read = _WRAPPERS[part.of.name]
            if type(piece).__name__ != kind:
                raise _mismatch(piece, part.name, kind)
            return read(self, part, new, piece)
        renamed, derived = _RENAMED.get(type(piece).__name__, {}), _DERIVED.get(type(piece).__name__, set())
        fields = {renamed.get(n, n): x for n, x in _fields_of(piece) if n not in derived}
        wanted = {*slots, *scalars}
        fields = {n: x for n, x in fields.items() if n in wanted or n not in _CLOCKS}
        if part.name in new.inner or fields.keys() != wanted:
            raise _mismatch(piece, part.name, f"a state of {sorted(wanted) or 'its own class'}")
        if slots:
            new.slots[part.name] = {n: self._slot(fields[n], kept, f"{part.name}/{n}") for n, kept in slots.items()}
        if scalars:
            new.scalars[part.name] = {n: _as(fields[n], kept, f"{part.name}/{n}") for n, kept in scalars.items()}
        return set()

    def _slot(self, tree: Any, kept: Flat, name: str) -> Flat:
        found = _flat(tree)
        lone = sorted(found.keys() ^ kept.keys())
        if lone:
            hint = "; optax's muon takes all matrices, as where=jopt.ndim(2) does" if "muon" in name else ""
            raise OptaxStateError(
                f"from_optax: {name} has {lone} on one side only, the same parameters were expected in optax's state "
                f"and under tx. Build the transform with the same masks{hint}."
            )
        return {path: _as(found[path], x, f"{name} of {path!r}") for path, x in kept.items()}

    # Wrappers -------------------------------------------------------------------------------------

    def _inner(self, part: Part, fresh: State, optax_state: Any) -> State:
        tx = part.inner
        assert isinstance(tx, Transform)
        return self.state(tx.parts, fresh, optax_state)

    def multi_steps(self, part: Part, new: State, piece: Any) -> set[int]:
        kept = new.inner[part.name]
        inner = self._inner(part, kept.inner_opt_state, piece.inner_opt_state)
        new.inner[part.name] = kept._replace(
            mini_step=jnp.asarray(piece.mini_step, jnp.int32),
            gradient_step=jnp.asarray(piece.gradient_step, jnp.int32),
            inner_opt_state=inner._replace(count=jnp.asarray(piece.gradient_step, jnp.int32)),
            acc_grads=self._slot(piece.acc_grads, kept.acc_grads, f"{part.name}/acc_grads"),
            skip_state=piece.skip_state,
        )
        return set()

    def accumulate(self, part: Part, new: State, piece: Any) -> set[int]:
        kept, n = new.inner[part.name], jnp.asarray(piece.mini_step, jnp.int32)
        mean = self._slot(piece.acc_grads, kept.total, f"{part.name}/total")
        inner = self._inner(part, kept.state, piece.inner_opt_state)
        new.inner[part.name] = kept._replace(
            micro_step=n,
            used=jnp.array(n),
            total={path: x * n.astype(jnp.finfo(x.dtype).dtype).astype(x.dtype) for path, x in mean.items()},
            state=inner._replace(count=jnp.asarray(piece.gradient_step, jnp.int32)),
        )
        return set()

    def apply_if_finite(self, part: Part, new: State, piece: Any) -> set[int]:
        new.inner[part.name] = new.inner[part.name]._replace(
            notfinite_count=jnp.asarray(piece.notfinite_count, jnp.int32),
            last_finite=jnp.asarray(piece.last_finite, bool),
            total_notfinite=jnp.asarray(piece.total_notfinite, jnp.int32),
            inner_state=self._inner(part, new.inner[part.name].inner_state, piece.inner_state),
        )
        return set()

    def skip_nonfinite(self, part: Part, new: State, piece: Any) -> set[int]:
        new.inner[part.name] = new.inner[part.name]._replace(
            skipped=jnp.asarray(piece.total_notfinite, jnp.int32),
            consecutive=jnp.asarray(piece.notfinite_count, jnp.int32),
            first_bad=jnp.asarray(NONE, jnp.int32),
            state=self._inner(part, new.inner[part.name].state, piece.inner_state),
        )
        return set()

    def conditional(self, part: Part, new: State, piece: Any) -> set[int]:
        inner = self._inner(part, new.inner[part.name].inner_state, piece.inner_state)
        new.inner[part.name] = new.inner[part.name]._replace(inner_state=inner)
        return set()

    def schedule_free(self, part: Part, new: State, piece: Any) -> set[int]:
        slots, b1 = new.slots[part.name], float(piece.b1)
        z = self._slot(piece.z, slots["z"], f"{part.name}/z")
        if b1 == 0:
            raise OptaxStateError(
                "from_optax: the ScheduleFreeState has b1=0.0, a positive one was expected: optax keeps no average "
                "then. Start a fresh state."
            )
        # optax keeps y and z, and solves y = (1 − β₁)z + β₁x for the average.
        y = {path: jnp.asarray(self.params[path]).astype(x.dtype) for path, x in slots[AVERAGED].items()}
        x = {path: (p - (1 - b1) * z[path].astype(p.dtype)) / b1 for path, p in y.items()}
        new.slots[part.name] = {"z": z, AVERAGED: x}
        scalars = new.scalars[part.name]
        new.scalars[part.name] = {n: _as(getattr(piece, n), k, f"{part.name}/{n}") for n, k in scalars.items()}
        inner = self._inner(part, new.inner[part.name], piece.base_optimizer_state)
        new.inner[part.name] = inner._replace(count=jnp.asarray(int(piece.step_count) - 1, jnp.int32))
        return {int(piece.step_count) - 1}

    def sam(self, part: Part, new: State, piece: Any) -> set[int]:
        kept, several = new.inner[part.name], part.inner
        assert isinstance(several, Several)
        states = dict(zip(kept._fields, (piece.opt_state, piece.adv_state), strict=True))
        new.inner[part.name] = kept._replace(
            **{name: self.state(tx.parts, getattr(kept, name), states[name]) for name, tx in several.members}
        )
        if piece.cache is not None:
            slots = new.slots[part.name]
            new.slots[part.name] = {AVERAGED: self._slot(piece.cache, slots[AVERAGED], f"{part.name}/{AVERAGED}")}
            new.scalars[part.name] = {"steps_since_sync": jnp.asarray(piece.steps_since_sync, jnp.int32)}
        return set()

    def lookahead(self, part: Part, new: State, piece: Any) -> set[int]:
        if self.slow is None:
            raise OptaxStateError(
                "from_optax: a LookaheadState was given with plain parameters, optax's LookaheadParams were expected, "
                "which hold the slow ones. Pass the pair; train on with its .fast."
            )
        slots = new.slots[part.name]
        new.slots[part.name] = {AVERAGED: self._slot(self.slow, slots[AVERAGED], f"{part.name}/{AVERAGED}")}
        new.scalars[part.name] = {"steps_since_sync": jnp.asarray(piece.steps_since_sync, jnp.int32)}
        new.inner[part.name] = self._inner(part, new.inner[part.name], piece.fast_state)
        return set()


# The wrappers of jopt: which state of optax they take, and how.
_WRAPPERS = {
    "MultiSteps": ("MultiStepsState", _Reading.multi_steps),
    "accumulate": ("MultiStepsState", _Reading.accumulate),
    "apply_if_finite": ("ApplyIfFiniteState", _Reading.apply_if_finite),
    "skip_nonfinite": ("ApplyIfFiniteState", _Reading.skip_nonfinite),
    "conditionally_mask": ("ConditionallyMaskState", _Reading.conditional),
    "conditionally_transform": ("ConditionallyTransformState", _Reading.conditional),
    "schedule_free": ("ScheduleFreeState", _Reading.schedule_free),
    "sam": ("SAMState", _Reading.sam),
    "lookahead": ("LookaheadState", _Reading.lookahead),
}


def _clocks_of(piece: Any) -> Iterator[Any]:
    """The clocks of a state, which are one with that of the chain."""
    if isinstance(piece, optax.PartitionState) or type(piece).__name__ in ("ScheduleFreeState", *_RENAMED):
        return
    for name in piece._fields:
        if name in _CLOCKS and jnp.ndim(value := getattr(piece, name)) == 0 and not isinstance(value, dict):
            yield value


def _fields_of(piece: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a state; a line search keeps some of them one level down, and None for what it does not store."""
    for name in piece._fields:
        value = getattr(piece, name)
        if name == "info" and hasattr(value, "_fields"):
            yield from _fields_of(value)
        elif name != "grad" or value is not None:
            yield name, value


def _flat_parts(parts: Any) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, Part):
            yield part
        else:
            for _, _, inner in part.cases:
                yield from _flat_parts(inner)


def _holds_partition(rest: list[Any]) -> bool:
    return bool(rest) and isinstance(rest[0], optax.PartitionState)


def _take(rest: list[Any], name: str) -> Any:
    if not rest:
        raise OptaxStateError(
            f"from_optax: optax's state ends before {name}, which keeps a state. Build the transform by the same calls."
        )
    return rest.pop(0)


def _mismatch(piece: Any, name: str, expected: str) -> OptaxStateError:
    return OptaxStateError(
        f"from_optax: for {name} optax's state has a {type(piece).__name__} of {list(piece._fields)}, {expected} was "
        f"expected. Build the transform by the same calls; a state without a counterpart cannot be read: start afresh."
    )


def _with_numbers(state: State, numbers: Mapping[str, Any]) -> State:
    """Set what `inject_hyperparams` kept; what follows a schedule is computed anew."""
    known = hyperparams(state)
    settable = {}
    for name, value in numbers.items():
        name = {"momentum": "trace/decay"}.get(name, name)
        found = [full for full in known if full == name or full.endswith("/" + name)]
        if not found:
            raise OptaxStateError(
                f"from_optax: optax's state has the hyper-parameter {name!r}, one of {sorted(known)} was expected. "
                f"Pass its .inner_state, and set numbers with set_hyperparams."
            )
        settable |= {full: value for full in found if full in state.base}
    return set_hyperparams(state, **settable)
