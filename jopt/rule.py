"""What an author writes: `Rule` (functions over one array) and `Whole` (functions over the flat tree).

Both are frozen records of module-level functions. The engine passes a function exactly the keywords
it names: hyper-parameters, static values, shared numbers, `t` (float, from 1), `count` (int32, from
0), `key` (a random key of this leaf and step), and extras of `update` such as `value`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jopt.paths import MaskFunction, MaskTree, Where
from jopt.scalars import FINITE, number_or_schedule

ENGINE_KEYWORDS = frozenset({"t", "count", "key", "layout", "inner", "extra", "measures", "norms"})
READS = ("element", "array", "matrix", "tree")


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update for one array.

    Args:
        name: the name in states and messages; the factory's own name.
        step: ``(g, s, p, *, t, ...) -> (u, s)`` for one array; u points uphill.
        slots: ``(p, ...) -> {name: array}``, what is kept for a parameter; None keeps nothing.
        shared: ``(*, t, ...) -> {name: number}``, computed once per update for all arrays. With
            ``reads="tree"`` its first argument is the `Gradients` of the whole tree.
        reads: "element" (its own element), "array" (norms of its array), "matrix" (one 2-D array;
            equal shapes run as one batch) or "tree" (element-wise, with numbers of the whole tree).
        complex: "pair" runs on (real, imaginary), "native" on the complex array, None refuses it.
            Element-wise rules default to "pair", all others to None.
    """

    name: str
    step: Callable[..., Any]
    slots: Callable[..., dict[str, Any]] | None = None
    shared: Callable[..., dict[str, Any]] | None = None
    reads: str = "element"
    complex: str | None = None

    def __post_init__(self):
        if "/" in self.name:
            raise ValueError(
                f"Rule: the name {self.name!r} was given, a name without a slash was expected. "
                f"Replace the slash: it sets groups apart from the rules in them."
            )
        if self.reads not in READS:
            raise ValueError(
                f"Rule({self.name!r}): reads={self.reads!r} was given, one of {READS} was expected. Name one."
            )
        if self.complex is None and self.reads == "element":
            object.__setattr__(self, "complex", "pair")

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return tuple(f for f in (self.step, self.slots, self.shared) if f is not None)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A part written by hand on the flat form, for what needs the whole tree, the loss or a wrapper.

    Args:
        name: the name in states and messages.
        init: ``(params, ...) -> Own`` from ``{path: array}``; None keeps nothing.
        update: ``(grads, own, params, ...) -> (grads, own)``; returns in the compute dtype.
        apply: optional ``(grads, own, params, ...) -> (params, own)``: update and apply in one.
        complex: whether complex leaves are understood.
        enters: whether gradients arrive in the compute dtype, saturated. If not, they may still be as
            the user gave them, and the functions call `dtypes.enter`, fused with what they do.
    """

    name: str
    update: Callable[..., Any]
    init: Callable[..., "Own"] | None = None
    apply: Callable[..., Any] | None = None
    complex: bool = True
    enters: bool = True

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        return tuple(f for f in (self.update, self.init, self.apply) if f is not None)


class Own(NamedTuple):
    """What a part keeps in the state: arrays by slot and path, numbers by name, or anything (inner)."""

    slots: dict[str, dict[str, Any]] = {}  # noqa: RUF012 - a NamedTuple; nothing writes to the default
    scalars: dict[str, Any] = {}  # noqa: RUF012
    inner: Any = None


class Live:
    """Stands in a plan where a number travels as an operand."""

    def __repr__(self) -> str:
        return "<live>"

    def __reduce__(self) -> str:
        return "LIVE"


LIVE = Live()


@dataclasses.dataclass(frozen=True)
class Part:
    """A rule or a whole with its numbers; `name` is unique in its chain."""

    name: str
    of: Rule | Whole
    hyper: tuple[tuple[str, Any], ...] = ()
    static: tuple[tuple[str, Any], ...] = ()
    inner: Any = None
    key: Any = None

    @property
    def rule(self) -> Rule:
        """The rule of a part that is one."""
        assert isinstance(self.of, Rule)
        return self.of

    @property
    def whole(self) -> Whole:
        """The whole of a part that is one."""
        assert isinstance(self.of, Whole)
        return self.of

    def call(self) -> str:
        """The call that makes it."""
        if isinstance(self.of, Whole) and self.of.name.startswith("foreign"):
            return repr(self.inner)
        arguments = [repr(self.inner)] if self.inner is not None else []
        arguments += [f"{name}={value!r}" for name, value in (*self.hyper, *self.static)]
        arguments += [f"key={self.key!r}"] if self.key is not None else []
        return f"{self.of.name}({', '.join(arguments)})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts that see some leaves only. `scope` is "" for a mask, the case's name in a partition."""

    cases: tuple[tuple[str, Where, tuple["Part | Group", ...]], ...]
    total: bool  # whether every leaf must be claimed
    idle: str = "error"  # whether a case of a total group may claim nothing

    def call(self) -> str:
        """The call that makes it."""
        if self.total:
            cases = ", ".join(f"({n!r}, {w!r}, {chain_call(p)})" for n, w, p in self.cases)
            return f"partition([{cases}]{'' if self.idle == 'error' else f', idle={self.idle!r}'})"
        ((_, chooser, parts),) = self.cases
        form = "mask" if isinstance(chooser, MaskTree | MaskFunction) else "where"
        return f"masked({chain_call(parts)}, {form}={chooser!r})"


def chain_call(parts: tuple[Part | Group, ...]) -> str:
    """The call that makes a sequence of parts."""
    if len(parts) == 1:
        return parts[0].call()
    return f"chain({', '.join(part.call() for part in parts)})" if parts else "identity()"


@functools.lru_cache(maxsize=1024)
def _signature(function: Callable[..., Any]) -> tuple[frozenset[str], frozenset[str]]:
    named = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return frozenset(p.name for p in named), frozenset(p.name for p in named if p.default is p.empty)


def _read_signature(function: Callable[..., Any]) -> tuple[frozenset[str], frozenset[str]]:
    # Only functions of an importable module are cached: the cache must not keep a user's closure alive.
    is_local = "<locals>" in getattr(function, "__qualname__", "<locals>")
    return _signature.__wrapped__(function) if is_local else _signature(function)


def keywords(function: Callable[..., Any]) -> frozenset[str]:
    """The keyword-only arguments a function names."""
    return _read_signature(function)[0]


def required_keywords(function: Callable[..., Any]) -> frozenset[str]:
    """The keyword-only arguments a function cannot do without."""
    return _read_signature(function)[1]


def make_part(
    of: Rule | Whole,
    hyper: Mapping[str, Any],
    static: Mapping[str, Any],
    domain: Mapping[str, str],
    inner: Any = None,
    key: Any = None,
) -> Part:
    """Check the numbers and the functions against each other, and join them into a part.

    Raises:
        TypeError: a number is no real scalar, a static value does not hash, a name is not used by
            any function or is one of the engine's, or a random rule got no key.
        ValueError: a number is outside its domain.
    """
    numbers = tuple((n, number_or_schedule(v, of.name, n, domain.get(n, FINITE))) for n, v in hyper.items())
    for name, value in static.items():
        try:
            hash(value)
        except TypeError:
            raise TypeError(
                f"{of.name}: the static value {name}={value!r} does not hash, a hashable value was expected. "
                f"Pass a tuple instead of a list, or make it a hyper-parameter."
            ) from None
    names = [*hyper, *static]
    taken = sorted({name for name in names if name in ENGINE_KEYWORDS or names.count(name) > 1})
    if taken:
        raise TypeError(
            f"{of.name}: the names {taken} were given to its numbers, names of their own were expected: the engine "
            f"itself passes {sorted(ENGINE_KEYWORDS)}, and a name is either hyper or static. Rename them."
        )
    used = frozenset().union(*(keywords(f) for f in of.functions))
    if (key is not None) != ("key" in used):
        raise TypeError(
            f"{of.name}: key={key!r} was given, and its functions {'name' if 'key' in used else 'do not name'} a "
            f"random key; both or neither was expected. Pass key=0 (a seed or a key) exactly where step names key."
        )
    idle = sorted((set(hyper) | set(static)) - used)
    if idle:
        raise TypeError(
            f"{of.name}: the hyper-parameters {idle} are not named by any of its functions, "
            f"which name {sorted(used)}. Add them as keyword-only arguments, or leave them out."
        )
    return Part(of.name, of, numbers, tuple(static.items()), inner, key)


def extras_of(part: Part) -> frozenset[str]:
    """The extras of `update` (``value=``, ``value_fn=``) that a part may read."""
    known = {name for name, _ in (*part.hyper, *part.static)} | ENGINE_KEYWORDS
    return frozenset().union(*(keywords(f) for f in part.of.functions)) - known
