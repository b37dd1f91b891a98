"""Transforms: optax's protocol over the engine, equal and printed by configuration."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jopt import dtypes, scalars
from jopt.engine import KEY_IMPLEMENTATIONS, Parts, Plan, Tree, check_leaves, walk
from jopt.paths import Flat, TreeMismatchError, Where, flatten
from jopt.paths import mask as mask_
from jopt.paths import where as where_
from jopt.rule import LIVE, Group, Own, Part, Rule, Several, Whole, chain_call, make_part
from jopt.state import State
from jopt.update import update as run_update


@dataclasses.dataclass(frozen=True)
class _Init:
    """``init(params) -> State``."""

    parts: Parts

    def __call__(self, params: Any) -> State:
        plan, numbers = plan_of(self.parts), numbers_of(self.parts)
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(params)):
            return jax.eval_shape(lambda p: _init(plan, numbers, p), params)
        return _init(plan, numbers, params)


@dataclasses.dataclass(frozen=True)
class _Update:
    """``update(grads, state, params=None, **extra) -> (updates, state)``."""

    parts: Parts
    plan: Plan = dataclasses.field(init=False, repr=False, compare=False)
    numbers: dict[str, Any] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        object.__setattr__(self, "plan", plan_of(self.parts))
        object.__setattr__(self, "numbers", numbers_of(self.parts))

    def __reduce__(self):
        return _Update, (self.parts,)

    def __call__(self, grads: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return self.run("update", grads, state, params, extra)

    def run(self, mode: str, grads: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> tuple[Any, Any]:
        """Inside a trace the update joins it; outside it runs as one compiled call."""
        plan = self.plan
        extra = _known(plan, extra)
        operands = (self.numbers, grads, state, params, extra)
        leaves = jax.tree.leaves(operands)
        if plan.traced or any(isinstance(x, jax.core.Tracer) or not _is_operand(x) for x in leaves):
            return _update(plan, mode, *operands)
        if any(type(x) is float for x in leaves):  # else the first call, with a weak type, traces apart
            operands = (self.numbers, *jax.tree.map(_strong, operands[1:]))
        if mode not in plan.compiled:
            plan.compiled[mode] = jax.jit(lambda *operands: _update(plan, mode, *operands))
        return plan.compiled[mode](*operands)


class Transform(optax.GradientTransformationExtraArgs):
    """A gradient transformation: optax's pair of `init` and `update`, made of parts.

    Two transforms are equal, and hash alike, if their configurations are; `repr` is the call that
    makes one; it pickles if its functions do.
    """

    __slots__ = ()

    @property
    def parts(self) -> Parts:
        """The rules, hand-written parts and groups it runs, in order."""
        return cast(_Init, self.init).parts

    @property
    def plan(self) -> Plan:
        """What it runs, without its numbers: the key of compiled code."""
        return cast(_Update, self.update).plan

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers that its plan lacks, by full name: operands of compiled code."""
        return cast(_Update, self.update).numbers

    def apply(self, grads: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> tuple[Any, Any]:
        """New parameters and state; `apply_gradients` calls it."""
        return cast(_Update, self.update).run("apply", grads, state, params, extra)

    def __repr__(self) -> str:
        return chain_call(self.parts)

    def __reduce__(self):
        return make_transform, (self.parts,)


def make_transform(parts: Parts) -> Transform:
    """A transform of these parts, each named uniquely."""
    parts = _name(parts, "", set())
    return Transform(_Init(parts), cast(Any, _Update(parts)))


def rule(
    name: str,
    step: Callable[..., Any],
    *,
    slots: Callable[..., dict[str, Any]] | None = None,
    shared: Callable[..., dict[str, Any]] | None = None,
    hyper: Mapping[str, Any] | None = None,
    static: Mapping[str, Any] | None = None,
    domain: Mapping[str, str] | None = None,
    reads: str = "element",
    complex: str | None = None,
    refresh: Callable[..., dict[str, Any]] | None = None,
    every: str | None = None,
    axes: str | None = None,
    transposes: bool = False,
    lands: bool = False,
    key: Any = None,
) -> Transform:
    """Lift an update for one array to a transform over trees.

    Args:
        name: the name in states, messages and `repr`; give it the name of your factory.
        step: ``(g, s, p, *, t, ...) -> (u, s)`` for one array: gradient, slots and parameter in the
            compute dtype to an update that points uphill, and the new slots. As keyword-only
            arguments it names what it wants: hyper-parameters, static values, shared numbers, ``t``
            (float, from 1), ``count`` (int32, from 0), ``key``, or extras of `update`.
        slots: ``(p, ...) -> {name: array}``, what to keep for a parameter.
        shared: ``(*, t, ...) -> {name: number}``, computed once per update for all arrays.
        hyper: name to number or schedule; live, batchable and differentiable.
        static: name to hashable value that may shape the computation.
        domain: name to interval, such as ``"[0, 1)"``, checked on plain numbers.
        reads: "element", "array", "matrix" or "tree"; see `jopt.Rule`.
        complex: "pair", "native" or None; see `jopt.Rule`.
        refresh, every: dear work that is not done in each update; see `jopt.Rule`.
        axes, transposes: what a matrix rule may take for a matrix, and which run together; see `jopt.Rule`.
        lands: whether it rounds the stepped parameter itself; see `jopt.Rule`.
        key: seed or key of a random rule (one whose step names ``key``).

    Raises:
        TypeError, ValueError: a number that is no scalar or outside its domain, an unused name.
    """
    of = Rule(name, step, slots, shared, reads, complex, refresh, every, axes, transposes, lands)
    return make_transform((make_part(of, hyper or {}, static or {}, domain or {}, key=_seed(name, key)),))


def whole(
    of: Whole,
    *,
    hyper: Mapping[str, Any] | None = None,
    static: Mapping[str, Any] | None = None,
    domain: Mapping[str, str] | None = None,
    inner: Any = None,
    key: Any = None,
) -> Transform:
    """Lift a part written by hand on the flat form (see `jopt.Whole`) to a transform.

    Args:
        of: its functions.
        hyper, static, domain: as for `rule`.
        inner: a transform it wraps, or a dict of several by name; its functions then name ``inner``.
        key: seed or key of a random part (one whose update names ``key``, a key of this step).
    """
    if isinstance(inner, dict):
        inner = Several(tuple((name, as_transform(tx, of.name)) for name, tx in inner.items()))
    elif inner is not None:
        inner = as_transform(inner, of.name)
    key = _seed(of.name, key)
    return make_transform((make_part(of, hyper or {}, static or {}, domain or {}, inner=inner, key=key),))


# Foreign transforms ------------------------------------------------------------------------------


def _foreign_init(params, *, layout, inner):
    return Own(inner=inner.init(layout.tree(params)))


def _foreign_update(grads, own, params, *, layout, inner, extra):
    tree = None if params is None else layout.tree(params)
    updates, state = optax.with_extra_args_support(inner).update(layout.tree(grads), own.inner, tree, **extra)
    flat, _ = flatten(updates)
    return {path: flat[path].astype(g.dtype) for path, g in grads.items()}, own._replace(inner=state)


def is_transform(x: Any) -> bool:
    """Whether it is a transform, ours or another's: with `init` and `update`."""
    return callable(getattr(x, "init", None)) and callable(getattr(x, "update", None))


def as_transform(tx: Any, call: str) -> Transform:
    """A transform of any kind as ours; a foreign one becomes a part that keeps its own state.

    Raises:
        TypeError: it has no `init` and `update`.
    """
    if isinstance(tx, Transform):
        return tx
    if not is_transform(tx):
        called = f"Call it first: {tx.__name__}(...)." if callable(tx) and hasattr(tx, "__name__") else ""
        given = repr(tx) if called or isinstance(tx, str | int | float | None) else f"a {type(tx).__name__}"
        raise TypeError(
            f"{call}: {given} was given, a transform (with init and update) was expected. "
            f"{called or 'Pass a jopt or optax transform.'}"
        )
    made_by = getattr(tx.init, "__qualname__", type(tx).__name__).split(".")[0]
    of = Whole(f"foreign_{made_by}", _foreign_update, _foreign_init)
    return make_transform((Part(of.name, of, inner=tx),))


# Masks -------------------------------------------------------------------------------------------


def masked(inner: Any, mask: Any = None, *, where: Any = None) -> Transform:
    """Run a transform on some leaves; the others pass unchanged and have no state.

    Args:
        inner: the transform.
        mask: optax's form: a tree of booleans (or a prefix of one), or a function of the parameters
            that makes one.
        where: glob over paths, regex, or predicate.

    Raises:
        TypeError: neither or both of `mask` and `where` are given.
    """
    parts = as_transform(inner, "masked").parts
    return make_transform((Group((("", _chooser("masked", mask, where), parts),), total=False),))


def _chooser(call: str, mask: Any, where: Any) -> Where:
    if (mask is None) == (where is None):
        raise TypeError(
            f"{call}: mask={mask!r} and where={where!r} were given, exactly one of them was expected. "
            f"Pass for example where='**/kernel'."
        )
    return where_(where) if mask is None else mask_(mask)


# Names, plans, numbers ---------------------------------------------------------------------------


def _name(parts: Parts, scope: str, taken: set[str]) -> Parts:
    """Give each part a unique name: a second instance gets ``_2``, a case of a partition a prefix."""
    named: list[Part | Group] = []
    for part in parts:
        if isinstance(part, Group):
            cases = []
            for case, chooser, inner in part.cases:
                below = f"{scope}{case}/" if part.total else scope
                cases.append((case, chooser, _name(inner, below, taken)))
            named.append(dataclasses.replace(part, cases=tuple(cases)))
            continue
        name, n = f"{scope}{part.of.name}", 1
        while name in taken:
            n += 1
            name = f"{scope}{part.of.name}_{n}"
        taken.add(name)
        named.append(dataclasses.replace(part, name=name))
    return tuple(named)


def plan_of(parts: Parts) -> Plan:
    """The parts without their numbers."""
    return Plan(tuple(map(_skeleton, parts)))


def _skeleton(part: Part | Group) -> Part | Group:
    if isinstance(part, Group):
        return dataclasses.replace(
            part, cases=tuple((name, chooser, tuple(map(_skeleton, inner))) for name, chooser, inner in part.cases)
        )
    return dataclasses.replace(
        part,
        hyper=tuple((name, value if callable(value) else LIVE) for name, value in part.hyper),
        inner=_inner_plan(part.inner),
        key=None if part.key is None else LIVE,
    )


def _inner_plan(inner: Any) -> Any:
    if isinstance(inner, Several):
        return Several(tuple((name, _inner_plan(tx)) for name, tx in inner.members))
    return plan_of(inner.parts) if isinstance(inner, Transform) else inner


def numbers_of(parts: Parts) -> dict[str, Any]:
    """The numbers by full name; those of a wrapped transform under ``"name/"``."""
    numbers: dict[str, Any] = {}
    for part in walk(parts):
        numbers |= {f"{part.name}/{name}": scalars.raw(v) for name, v in part.hyper if not callable(v)}
        numbers |= {below: numbers_of(tx.parts) for below, tx in part.wrapped if isinstance(tx, Transform)}
        if part.key is not None:
            key = scalars.raw(part.key)
            numbers[f"{part.name}/key"] = np.asarray(key, np.uint32) if isinstance(key, int | tuple) else key
    return numbers


def _seed(name: str, key: Any) -> Any:
    """A seed or key as configuration: an int, the words of a key, or a tracer."""
    if key is None or isinstance(key, scalars.Traced):
        return key
    if isinstance(key, jax.core.Tracer):
        return scalars.Traced(key)
    if isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    words = np.asarray(key)
    fits = words.dtype.kind in "iu" and (words.ndim == 0 or words.shape in KEY_IMPLEMENTATIONS)
    if not fits or words.min() < 0 or words.max() >= 2**32:
        raise ValueError(
            f"{name}: key={key!r} was given, a seed in [0, 2**32) or a random key was expected. Pass for example key=0."
        )
    return tuple(int(word) for word in words) if words.ndim else int(words)


# Entry and exit ----------------------------------------------------------------------------------


def _init(plan: Plan, numbers: Mapping[str, Any], params: Any) -> State:
    flat, layout = flatten(params)
    check_leaves("init", flat)
    return plan.init(numbers, flat, Tree.of(flat, layout))


def _known(plan: Plan, extra: Mapping[str, Any]) -> Mapping[str, Any]:
    return extra if plan.takes_any_extra else {name: value for name, value in extra.items() if name in plan.extras}


def run_planned(
    plan: Plan, mode: str, numbers: Any, grads: Any, state: Any, params: Any, extra: Mapping[str, Any]
) -> tuple[Any, Any]:
    """`update` or `apply` of a transform that is given as its plan and its numbers, inside a trace.

    Compiled code that is kept by plan and takes numbers as operands serves every value of them.

    Args:
        mode: "update" for (updates, state), "apply" for (params, state).
    """
    return _update(plan, mode, numbers, grads, state, params, _known(plan, extra))


def _update(plan: Plan, mode: str, numbers: Any, grads: Any, state: Any, params: Any, extra: Mapping[str, Any]):
    """Flatten once, run, and put every leaf back under its path."""
    g, layout = flatten(grads)
    check_leaves("update", g)
    if params is None:
        if mode == "apply":
            raise TypeError("apply_gradients: params=None was given, the parameters were expected. Pass them.")
        p, tree = None, Tree.of(g, layout)
    else:
        p, params_layout = flatten(params)
        check_leaves("update", p)
        trained = _matching(_without_examples(g, p) if plan.takes_examples else g, p)
        g |= {path: _as_wide(g[path], p[path]) for path in trained}
        tree = Tree.of(p, params_layout, trained)
        layout = params_layout if mode == "apply" else layout
    values, state = run_update(plan, numbers, g, state, p, tree, extra, mode=mode)
    return layout.unflatten((p if p is not None and mode == "apply" else g) | values), state


def _matching(grads: Flat, params: Flat) -> tuple[str, ...]:
    """The leaves to train: real or complex parameters that have a gradient.

    Raises:
        TreeMismatchError: gradients and parameters differ in structure, shape or kind.
    """
    if grads.keys() != params.keys():
        lone = {
            "only in grads": sorted(grads.keys() - params.keys()),
            "only in params": sorted(params.keys() - grads.keys()),
        }
        raise TreeMismatchError(
            f"update(grads, state, params): grads and params have different leaves, the same were expected: "
            f"{ {side: paths for side, paths in lone.items() if paths} }. Was init called with other parameters, "
            f"or were the gradients filtered after jax.grad?"
        )
    trained = []
    for path, g in grads.items():
        p = params[path]
        if p is None or g is None or not dtypes.is_trained(p):
            if g is not None and dtypes.is_trained(g):
                raise TreeMismatchError(
                    f"update(grads, state, params): the gradient of {path!r} is {_describe(g)}, but the parameter is "
                    f"{_describe(p)}, which is not trained. Pass a float0 or integer gradient there, or None."
                )
            continue
        if not dtypes.is_trained(g):
            raise TreeMismatchError(
                f"update(grads, state, params): the gradient of {path!r} is {_describe(g)}, but the parameter is "
                f"{_describe(p)}; a real or complex gradient was expected. Pass None to leave the parameter alone."
            )
        same_kind = jnp.iscomplexobj(g) == jnp.iscomplexobj(p)
        if np.shape(g) != np.shape(p) or not same_kind:
            raise TreeMismatchError(
                f"update(grads, state, params): the gradient of {path!r} is {_describe(g)}, but the parameter is "
                f"{_describe(p)}; the same shape and kind were expected. Nothing broadcasts: reduce the gradient first."
            )
        trained.append(path)
    return tuple(trained)


def _without_examples(grads: Flat, params: Flat) -> Flat:
    """The gradients as they will be once their leading axis of examples, if all have one, is reduced.

    Raises:
        TreeMismatchError: some have that axis and some do not, or it has several lengths.
    """
    counts: dict[int | None, str] = {}
    reduced = dict(grads)
    for path, g in grads.items():
        p = params.get(path)
        if g is None or p is None or not (dtypes.is_trained(g) and dtypes.is_trained(p)):
            continue
        has_axis = np.ndim(g) == np.ndim(p) + 1 and np.shape(g)[1:] == np.shape(p)
        counts.setdefault(np.shape(g)[0] if has_axis else None, path)
        if has_axis:
            reduced[path] = jax.ShapeDtypeStruct(np.shape(p), dtypes.dtype_of(g))
    if len(counts) > 1:
        found = ", ".join(f"{path!r} {_describe(grads[path])}" for path in counts.values())
        raise TreeMismatchError(
            f"update(grads, state, params): the gradients are {found}, one number of examples along a leading axis of "
            f"all was expected, or none. Take them all by one jax.vmap(jax.grad(loss), in_axes=(None, 0))."
        )
    return reduced


def _as_wide(g: Any, p: Any) -> Any:
    """The gradient, in the compute dtype of the parameter if its own is another (float32 beside float64)."""
    dtype = dtypes.compute_dtype(dtypes.dtype_of(p))
    return g if dtypes.compute_dtype(dtypes.dtype_of(g)) == dtype else dtypes.enter(g).astype(dtype)


def _describe(x: Any) -> str:
    return "None" if x is None else f"{dtypes.dtype_of(x)}{list(np.shape(x))}"


def _is_operand(x: Any) -> bool:
    """Whether a leaf can enter a compiled call (callables, strings and float0 cannot)."""
    if isinstance(x, jax.Array | float | int):
        return True
    return hasattr(x, "dtype") and x.dtype != jax.dtypes.float0


def _strong(x: Any) -> Any:
    return np.asarray(x, jax.dtypes.canonicalize_dtype(np.float64)) if type(x) is float else x


def leaves_of(parts: Parts) -> Iterator[Part]:
    """Every part of a transform, those inside wrappers included."""
    for part in walk(parts):
        yield part
        for _, tx in part.wrapped:
            if isinstance(tx, Transform):
                yield from leaves_of(tx.parts)
