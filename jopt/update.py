"""One update of a plan over flat trees.

Groups have been resolved to sets of paths, so that a chain is a flat list of parts, each with the
leaves it claims. Element and array rules only append themselves to the pending program of each
leaf. What needs more (a norm of the whole tree, a batch of matrices, a part written by hand) first
flushes the leaves it reads: one inner call per leaf runs its whole pending program.
"""

import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import dtypes, scalars
from jopt.axes import View
from jopt.calls import named, view_of
from jopt.engine import Plan, Tree, formats_of, scalar, views
from jopt.formats import FORMATS, Chance, Stored, is_random, narrow, widen
from jopt.kernel import split_numbers
from jopt.linalg import Gradients, is_sharded
from jopt.paths import Flat, TreeMismatchError
from jopt.rule import LEAF_KEYWORDS, LIVE, Own, Part, Rule, Whole, keywords
from jopt.state import State, StateMismatchError


def update(
    plan: Plan,
    numbers: Mapping[str, Any],
    grads: Flat,
    state: State,
    params: Flat | None,
    tree: Tree,
    extra: Mapping[str, Any],
    *,
    mode: str,
) -> tuple[Flat, State]:
    """Update the trained leaves.

    Args:
        plan: what runs.
        numbers: the transform's numbers by full name; those of a wrapped one under ``"name/"``.
        grads: ``{path: array}``.
        state: as `Plan.init` made it.
        params: ``{path: array}``, or None if nothing reads them.
        tree: layout and leaves of the whole tree.
        extra: extras of `update`.
        mode: "update" gives updates in the parameters' dtype, "compute" in the compute dtype,
            "apply" gives new parameters.
    """
    if not isinstance(state, State):
        raise StateMismatchError(
            f"update: a state of type {type(state).__name__} was given, a jopt State was expected. "
            f"Make one with init(params) of this transform."
        )
    running = _Update(plan, numbers, grads, state, params, tree, extra, mode)
    running.run()
    return running.values, running.new_state()


class Inner:
    """A wrapped transform as its wrapper sees it: on flat trees in the compute dtype."""

    def __init__(self, plan: Plan, tree: Tree, numbers: Any, extra: Mapping[str, Any], rest: Flat):
        self._plan, self._tree = plan, tree
        self._callables = {name: value for name, value in extra.items() if callable(value)}
        arrays = {name: value for name, value in extra.items() if not callable(value)}
        self.operands: Any = (
            numbers,
            arrays,
            rest,
        )  # `control.run_if` must be handed them: its work closes over no tracer

    def given(self, operands: Any) -> "Inner":
        """The same transform with its numbers and extras read from `operands`."""
        numbers, arrays, rest = operands
        return Inner(self._plan, self._tree, numbers, self._callables | arrays, rest)

    def init(self, params: Flat) -> State:
        """A fresh state."""
        return self._plan.init(self.operands[0], params, self._tree)

    def update(self, grads: Flat, state: State, params: Flat | None) -> tuple[Flat, State]:
        """Updates in the compute dtype, and the new state; the gradients may be as the user gave them."""
        return self._run(grads, state, params, "compute")

    def apply(self, grads: Flat, state: State, params: Flat) -> tuple[Flat, State]:
        """New parameters, and the new state."""
        return self._run(grads, state, params, "apply")

    def _run(self, grads, state, params, mode):
        numbers, arrays, rest = self.operands
        extra = self._callables | arrays
        params = None if params is None else rest | params
        return update(self._plan, numbers, grads, state, params, self._tree, extra, mode=mode)


class _Update:
    """The values one update works on, and its steps."""

    def __init__(self, plan, numbers, grads, state, params, tree, extra, mode):
        self.plan, self.numbers, self.state, self.params = plan, numbers, state, params
        self.tree, self.extra, self.mode = tree, extra, mode
        self.values = {path: grads[path] for path in tree.trained}
        self.entered: set[str] = set()  # leaves in the compute dtype, saturated
        self.wide: set[str] = set()  # leaves whose update leaves in the compute dtype
        self.pending: dict[str, list[int]] = {path: [] for path in tree.trained}
        self.hyper, self.base = self._resolve_hyper()
        self.slots = {part: {slot: dict(flat) for slot, flat in s.items()} for part, s in state.slots.items()}
        self.scalars, self.inner = dict(state.scalars), dict(state.inner)
        self.available = dict(extra) | {
            "count": state.count,
            "t": state.count.astype(scalars.scalar_dtype()) + jnp.ones((), scalars.scalar_dtype()),
        }
        self.numbers_of: dict[int, dict[str, Any]] = {}
        self.packed: dict[tuple[int, ...], Any] = {}
        self.views: dict[int, dict[str, View]] = {}  # how leaves are matrices, by part
        self.norms: dict[Any, jax.Array] = {}
        self.measures: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        """Run the parts in order; rules wait, leaf by leaf, until something needs their values."""
        claims = self.plan.claims(self.tree)
        for index, (part, paths) in enumerate(zip(self.plan.flat, claims, strict=True)):
            self._check_slots(index, part, paths)
        last = len(self.plan.flat) - 1
        for index, (part, paths) in enumerate(zip(self.plan.flat, claims, strict=True)):
            lands = isinstance(part.of, Rule) and part.of.lands
            lands |= any(inner.lands for _, inner in part.wrapped if isinstance(inner, Plan))
            self.wide |= set(paths) if lands else set()
            if isinstance(part.of, Whole):
                apply = part.of.apply if index == last and self.mode == "apply" else None
                if apply is not None and len(paths) == len(self.values):
                    self._run_whole(part, paths, apply)
                    return
                self._run_whole(part, paths, part.of.update)
            elif part.of.reads == "matrix":
                self._run_matrices(index, part, paths)
            else:
                if part.of.reads == "tree":
                    self._flush(paths)
                self.numbers_of[index] = self._numbers_for(part, paths)
                for path in paths:
                    self.pending[path].append(index)
        self._flush(self.tree.trained, self.mode)

    def new_state(self) -> State:
        top = jnp.asarray(np.iinfo(np.int32).max, jnp.int32)
        # Saturates: a clock that wraps round would restart every schedule.
        count = jnp.where(self.state.count < top, self.state.count + jnp.ones((), jnp.int32), top)
        return State(count, self.hyper, self.base, self.slots, self.scalars, self.inner)

    def _resolve_hyper(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Whoever spoke last wins: the transform's number where it is new, else what the state holds."""
        state, hyper, base = self.state, {}, {}
        entries = dict(self.plan.hyper_entries())
        settable = {name for name, value in entries.items() if value is LIVE}
        if set(entries) != set(state.hyper) or settable != set(state.base):
            raise StateMismatchError(
                f"update: the state holds the hyper-parameters {sorted(state.hyper)} (of these settable: "
                f"{sorted(state.base)}), {sorted(entries)} (settable: {sorted(settable)}) were expected. "
                f"The state was made by another transform: make one with init(params)."
            )
        for name, value in entries.items():
            if value is LIVE:
                base[name] = scalar(self.numbers[name], name)
                hyper[name] = jnp.where(base[name] != state.base[name], base[name], state.hyper[name])
            else:
                hyper[name] = scalar(value(state.count), name)
        return hyper, base

    def _check_slots(self, index: int, part: Part, paths: tuple[str, ...]) -> None:
        """Whether the state was made for these leaves; and how they are matrices, for a rule that reads some."""
        if not isinstance(part.of, Rule):
            return
        declared = views(part, self.tree)
        if part.of.axes is not None or part.of.reads == "matrix":
            found = {path: view_of(part, path, self.tree.leaves[path], declared) for path in paths}
            self.views[index] = {path: view for path, view in found.items() if view is not None}
        if part.of.slots is None:
            return
        held = self.slots.get(part.name, {})
        for path in paths:
            expected = self.plan.kernels.slot_shapes(part, self.tree.leaves[path], self.hyper, declared)
            got = {slot: tuple(flat[path].shape) for slot, flat in held.items() if path in flat}
            if got != expected:
                raise StateMismatchError(
                    f"update: for the parameter {path!r} of shape {list(self.tree.leaves[path].shape)} the state of "
                    f"{part.name} holds {got}, {expected} was expected. The state was made for other parameters: "
                    f"make one with init(params)."
                )
        self._check_formats(part, held)
        left_over = sorted({path for flat in held.values() for path in flat} - self.tree.leaves.keys())
        if left_over:
            raise StateMismatchError(
                f"update: the state of {part.name} holds {left_over}, which the gradients do not have. "
                f"Pass gradients of the same tree as the parameters that init was given."
            )

    def _check_formats(self, part: Part, held: Mapping[str, Mapping[str, Any]]) -> None:
        """Whether the slots are stored as the transform says."""
        chosen = formats_of(part, self.tree)
        for slot, flat in held.items():
            for path, x in flat.items():
                got = x.format.name if isinstance(x, Stored) else None
                asked = chosen.get((slot, path))
                real = jnp.issubdtype(x.dtype, jnp.floating)
                expected = asked if asked is not None and real and FORMATS[asked].boxed else None
                if got != expected:
                    raise StateMismatchError(
                        f"update: the state of {part.name} holds the slot {slot!r} of {path!r} as {got or x.dtype}, "
                        f"{expected or 'an array'} was expected. It was made with another jopt.store: make one with "
                        f"init(params)."
                    )

    # Numbers -------------------------------------------------------------------------------------

    def _hyper_of(self, part: Part) -> dict[str, Any]:
        return {name: self.hyper[f"{part.name}/{name}"] for name, _ in part.hyper}

    def _numbers_for(self, part: Part, paths: tuple[str, ...]) -> dict[str, Any]:
        """The numbers that a rule's step names, shared ones computed here, once for all arrays."""
        rule, available = part.rule, self.available | dict(part.static) | self._hyper_of(part)
        if rule.shared is not None:
            tree = (Gradients({path: self.values[path] for path in paths}, self.norms),) if rule.reads == "tree" else ()
            shared = rule.shared(*tree, **named(rule.shared, available, part, self.extra))
            if not isinstance(shared, dict) or any(np.ndim(x) for x in shared.values()):
                shapes = (
                    {n: np.shape(x) for n, x in shared.items()} if isinstance(shared, dict) else type(shared).__name__
                )
                raise TypeError(
                    f"{part.name}: its shared returned {shapes}, a dict of named numbers was expected. "
                    f"Return for example {{'c': 1 - b1**t}}; what is no scalar belongs in slots or step."
                )
            self.measures[part.name] = shared
            available |= shared
        if part.key is not None:
            available["key"] = (self.scalars[part.name]["key"], self.state.count)
        available |= dict.fromkeys(LEAF_KEYWORDS)  # the kernel knows them
        static = {name for name, _ in part.static} | LEAF_KEYWORDS
        found = named(rule.step, available, part, self.extra)
        if rule.refresh is not None:
            found |= named(rule.refresh, available, part, self.extra)
        return {name: value for name, value in found.items() if name not in static}

    def _packed(self, program: tuple[int, ...]) -> Any:
        if program not in self.packed:
            self.packed[program] = split_numbers(self.numbers_of, program)
        return self.packed[program]

    # The three ways a part runs ------------------------------------------------------------------

    def _flush(self, paths: tuple[str, ...], mode: str | None = None) -> None:
        """Run the pending programs of some leaves. Without a mode, only where one is pending."""
        for path in paths:
            program = tuple(self.pending[path])
            entering = path not in self.entered
            if not program and (mode is None or (mode == "compute" and not entering)):
                continue
            names, vector, others = self._packed(program)
            dtype = self.tree.leaf(path).dtype
            viewed = tuple((index, self.views[index][path]) for index in program if index in self.views)
            wide = path in self.wide
            kernel = self.plan.kernels.leaf(program, names, entering, mode or "compute", dtype, wide, viewed)
            p = None if self.params is None else self.params[path]
            slots = self._slots_at(program, path)
            count = self._clock(program, slots)
            seed = None if count is None and not others else salt(path)
            self.values[path], new = kernel(self.values[path], slots, p, vector, others, seed, count)
            self._store(new, path)
            self.pending[path] = []
            self.entered.add(path)

    def _run_matrices(self, index: int, part: Part, paths: tuple[str, ...]) -> None:
        """A matrix rule: the leaves in batches of equal matrices."""
        self._flush(paths)
        self.numbers_of[index] = self._numbers_for(part, paths)
        names, vector, others = self._packed((index,))
        batches: dict[Any, list[tuple[str, View]]] = {}
        held = {path: self._slots_at((index,), path).get(index, {}) for path in paths}
        for path in paths:
            kind, view = self._batch_of(part, path, self.views[index][path], held[path])
            batches.setdefault(kind, []).append((path, view))
        number = {path: math.prod(view.batch(self.values[path].shape)) for path, view in self.views[index].items()}
        first, total = 0, sum(number.values())
        for members in batches.values():
            batch, viewed = zip(*members, strict=True)
            turns = (first, total) if part.rule.refresh is not None else ()
            first += sum(number[path] for path in batch)
            entering, dtype = batch[0] not in self.entered, self.tree.leaf(batch[0]).dtype
            run = self.plan.kernels.matrices(index, names, viewed, entering, dtype, *turns)
            grads = [self.values[path] for path in batch]
            slots = [held[path] for path in batch]
            params = [None if self.params is None else self.params[path] for path in batch]
            draws = part.key is not None or "chance" in part.rule.names or is_random(slots)
            salts = [salt(path) if draws else None for path in batch]
            results = run(grads, slots, params, vector, others, salts, self.state.count)
            for path, (value, new) in zip(batch, results, strict=True):
                self.values[path] = value
                self._store({index: new}, path)
                self.entered.add(path)

    def _batch_of(self, part: Part, path: str, view: View, slots: Mapping[str, Any]) -> tuple[Any, View]:
        """What matrices that run together have in common, and how this leaf is seen in its batch."""
        x = self.values[path]
        rows, columns = view.sides(x.shape)
        if part.rule.transposes and rows > columns and not is_sharded(x):
            view, rows, columns = view.transposed, columns, rows
        layout = (view, jax.typeof(x)) if is_sharded(x) else None
        stored = tuple((name, x.dtype, x.format if isinstance(x, Stored) else None) for name, x in slots.items())
        entering = path not in self.entered
        return (rows, columns, x.dtype, entering, self.tree.leaf(path).dtype, stored, layout), view

    def _run_whole(self, part: Part, paths: tuple[str, ...], function: Any) -> None:
        """A part over the whole tree: all its leaves at once, with what it names."""
        self._flush(paths, "compute" if part.whole.enters else None)
        held = self.slots.get(part.name, {})
        slots = {slot: {path: self._open(x, part, path) for path, x in flat.items()} for slot, flat in held.items()}
        kept = dict(self.scalars.get(part.name, {}))
        key = {"key": kept.pop("key")} if part.key is not None else {}
        own = Own(slots, kept, self.inner.get(part.name))
        tree, grads = self.tree.only(paths), {path: self.values[path] for path in paths}
        params = None if self.params is None else {path: self.params[path] for path in paths}
        rest = {path: p for path, p in (self.params or {}).items() if path not in grads}

        def running(below, inner):
            return Inner(inner, tree, self.numbers[below], self.extra, rest) if isinstance(inner, Plan) else inner

        inner = part.over_inner(running)
        available = self.available | dict(part.static) | self._hyper_of(part)
        available |= {"layout": tree.layout, "rest": rest, "inner": inner, "extra": self.extra}
        available |= {"measures": self.measures, "norms": self.norms}
        if key:
            available["key"] = jax.random.fold_in(key["key"], self.state.count)
        values, own = function(grads, own, params, **named(function, available, part, self.extra))
        for handle in inner.values() if isinstance(inner, dict) else [inner]:
            if isinstance(handle, Inner):
                handle.operands = None  # JAX keeps the closure of `run_if`, which must not keep tracers
        if values.keys() != grads.keys():
            raise TreeMismatchError(
                f"{part.name}: it returned updates for {sorted(values)}, {sorted(grads)} was expected. "
                f"Return an update for every gradient."
            )
        self.values |= values
        self.entered |= set(paths)
        if own.slots:
            self.slots[part.name] = {
                slot: {path: self._close(x, held.get(slot, {}).get(path), part, slot, path) for path, x in flat.items()}
                for slot, flat in own.slots.items()
            }
        if own.scalars or key:
            self.scalars[part.name] = own.scalars | key
        if own.inner is not None:
            self.inner[part.name] = own.inner

    def _clock(self, program: tuple[int, ...], slots: Any) -> Any:
        """The count, where a format or a step draws from a `Chance`; else None."""
        draws = any("chance" in keywords(self.plan.flat[index].rule.step) for index in program)
        return self.state.count if draws or is_random(slots) else None

    def _open(self, x: Any, part: Part, path: str) -> Any:
        """A slot as a whole sees it."""
        leaf = self.tree.leaves.get(path)
        return widen(x, jnp.finfo(dtypes.compute_dtype(leaf.dtype)).dtype) if part.storage and leaf else x

    def _close(self, x: Any, before: Any, part: Part, slot: str, path: str) -> Any:
        """What a whole made of a slot, in the format of the one it replaces; only its storage stands for that."""
        if not part.storage or before is None:
            return x
        return narrow(x, before, Chance(salt(path)).fold(self.state.count, salt(slot)))

    def _slots_at(self, program: tuple[int, ...], path: str) -> dict[int, dict[str, Any]]:
        found = {}
        for index in program:
            slots = self.slots.get(self.plan.flat[index].name, {})
            found[index] = {slot: flat[path] for slot, flat in slots.items() if path in flat}
        return found

    def _store(self, new: Mapping[int, Mapping[str, Any]], path: str) -> None:
        for index, slots in new.items():
            for slot, x in slots.items():
                self.slots[self.plan.flat[index].name][slot][path] = x


def salt(path: str) -> np.uint32:
    """A number of the path, to fold into random keys; stable across processes, unlike `hash`."""
    return np.uint32(zlib.crc32(path.encode()))
