"""One update of a plan over flat trees.

Groups have been resolved to sets of paths, so that a chain is a flat list of parts, each with the
leaves it claims. Element and array rules only append themselves to the pending program of each
leaf. What needs more (a norm of the whole tree, a batch of matrices, a part written by hand) first
flushes the leaves it reads: one inner call per leaf runs its whole pending program.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import scalars
from jopt.engine import Plan, Tree, scalar
from jopt.kernel import named, split_numbers
from jopt.linalg import Gradients
from jopt.paths import Flat, TreeMismatchError
from jopt.rule import LIVE, Own, Part, Rule, Whole
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

    def __init__(self, plan: Plan, tree: Tree, numbers: Any, extra: Mapping[str, Any]):
        self._plan, self._tree = plan, tree
        self._callables = {name: value for name, value in extra.items() if callable(value)}
        arrays = {name: value for name, value in extra.items() if not callable(value)}
        self.operands: Any = (numbers, arrays)  # `control.run_if` must be handed them: its work closes over no tracer

    def given(self, operands: Any) -> "Inner":
        """The same transform with its numbers and extras read from `operands`."""
        numbers, arrays = operands
        return Inner(self._plan, self._tree, numbers, self._callables | arrays)

    def update(self, grads: Flat, state: State, params: Flat | None) -> tuple[Flat, State]:
        """Updates in the compute dtype, and the new state; the gradients may be as the user gave them."""
        return self._run(grads, state, params, "compute")

    def apply(self, grads: Flat, state: State, params: Flat) -> tuple[Flat, State]:
        """New parameters, and the new state."""
        return self._run(grads, state, params, "apply")

    def _run(self, grads, state, params, mode):
        numbers, arrays = self.operands
        extra = self._callables | arrays
        return update(self._plan, numbers, grads, state, params, self._tree, extra, mode=mode)


class _Update:
    """The values one update works on, and its steps."""

    def __init__(self, plan, numbers, grads, state, params, tree, extra, mode):
        self.plan, self.numbers, self.state, self.params = plan, numbers, state, params
        self.tree, self.extra, self.mode = tree, extra, mode
        self.values = {path: grads[path] for path in tree.trained}
        self.entered: set[str] = set()  # leaves in the compute dtype, saturated
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
        self.norms: dict[Any, jax.Array] = {}
        self.measures: dict[str, dict[str, Any]] = {}

    def run(self) -> None:
        claims = self.plan.claims(self.tree)
        for part, paths in zip(self.plan.flat, claims, strict=True):
            self._check_slots(part, paths)
        last = len(self.plan.flat) - 1
        for index, (part, paths) in enumerate(zip(self.plan.flat, claims, strict=True)):
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

    def _check_slots(self, part: Part, paths: tuple[str, ...]) -> None:
        if not isinstance(part.of, Rule) or part.of.slots is None:
            return
        held = self.slots.get(part.name, {})
        for path in paths:
            expected = self.plan.kernels.slot_shapes(part, self.tree.leaves[path], self.hyper)
            got = {slot: tuple(flat[path].shape) for slot, flat in held.items() if path in flat}
            if got != expected:
                raise StateMismatchError(
                    f"update: for the parameter {path!r} of shape {list(self.tree.leaves[path].shape)} the state of "
                    f"{part.name} holds {got}, {expected} was expected. The state was made for other parameters: "
                    f"make one with init(params)."
                )
        left_over = sorted({path for flat in held.values() for path in flat} - self.tree.leaves.keys())
        if left_over:
            raise StateMismatchError(
                f"update: the state of {part.name} holds {left_over}, which the gradients do not have. "
                f"Pass gradients of the same tree as the parameters that init was given."
            )

    # Numbers -------------------------------------------------------------------------------------

    def _hyper_of(self, part: Part) -> dict[str, Any]:
        return {name: self.hyper[f"{part.name}/{name}"] for name, _ in part.hyper}

    def _numbers_for(self, part: Part, paths: tuple[str, ...]) -> dict[str, Any]:
        """The numbers that a rule's step names, shared ones computed here, once for all arrays."""
        rule, available = part.rule, self.available | dict(part.static) | self._hyper_of(part)
        if rule.shared is not None:
            tree = (Gradients({path: self.values[path] for path in paths}, self.norms),) if rule.reads == "tree" else ()
            shared = rule.shared(*tree, **named(rule.shared, available, part))
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
        static = {name for name, _ in part.static}
        return {name: value for name, value in named(rule.step, available, part).items() if name not in static}

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
            dtype = self.tree.leaves[path].dtype
            kernel = self.plan.kernels.leaf(program, names, entering, mode or "compute", dtype)
            p = None if self.params is None else self.params[path]
            self.values[path], new = kernel(
                self.values[path], self._slots_at(program, path), p, vector, others, _salt(path) if others else None
            )
            self._store(new, path)
            self.pending[path] = []
            self.entered.add(path)

    def _run_matrices(self, index: int, part: Part, paths: tuple[str, ...]) -> None:
        self._flush(paths, "compute")
        self.numbers_of[index] = self._numbers_for(part, paths)
        names, vector, others = self._packed((index,))
        batches: dict[Any, list[str]] = {}
        for path in paths:
            batches.setdefault(jax.typeof(self.values[path]), []).append(path)  # shape, dtype and sharding
        for batch in batches.values():
            run = self.plan.kernels.matrices(index, names)
            grads = [self.values[path] for path in batch]
            slots = [self._slots_at((index,), path).get(index, {}) for path in batch]
            params = [None if self.params is None else self.params[path] for path in batch]
            results = run(grads, slots, params, vector, others, [_salt(path) for path in batch])
            for path, (value, new) in zip(batch, results, strict=True):
                self.values[path] = value
                self._store({index: new}, path)

    def _run_whole(self, part: Part, paths: tuple[str, ...], function: Any) -> None:
        self._flush(paths, "compute" if part.whole.enters else None)
        own = Own(self.slots.get(part.name, {}), self.scalars.get(part.name, {}), self.inner.get(part.name))
        tree, inner = self.tree.only(paths), part.inner
        if isinstance(inner, Plan):
            inner = Inner(inner, tree, self.numbers[f"{part.name}/"], self.extra)
        available = self.available | dict(part.static) | self._hyper_of(part)
        available |= {"layout": tree.layout, "inner": inner, "extra": self.extra}
        available |= {"measures": self.measures, "norms": self.norms}
        grads = {path: self.values[path] for path in paths}
        params = None if self.params is None else {path: self.params[path] for path in paths}
        if params is None and function is part.whole.apply:
            raise TypeError(f"apply_gradients: {part.name} was given params=None, the parameters were expected.")
        values, own = function(grads, own, params, **named(function, available, part))
        if isinstance(inner, Inner):
            inner.operands = None  # JAX keeps the closure of `run_if`, which must not keep tracers
        if values.keys() != grads.keys():
            raise TreeMismatchError(
                f"{part.name}: it returned updates for {sorted(values)}, {sorted(grads)} was expected. "
                f"Return an update for every gradient."
            )
        self.values |= values
        self.entered |= set(paths)
        for kept, new in ((self.slots, own.slots), (self.scalars, own.scalars)):
            if new:
                kept[part.name] = new
        if own.inner is not None:
            self.inner[part.name] = own.inner

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


def _salt(path: str) -> np.uint32:
    return np.uint32(zlib.crc32(path.encode()))  # stable across processes, unlike hash()
