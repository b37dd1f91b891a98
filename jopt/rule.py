"""What an author writes: `Rule` (functions over one array) and `Whole` (functions over the flat tree).

Both are frozen records of module-level functions. The engine passes a function exactly the keywords
it names: hyper-parameters, static values, shared numbers, `t` (float, from 1), `count` (int32, from
0), `key` (a random key of this leaf and step), `chance` (a cheap one, see `jopt.formats`), `leaf_dtype`
(that of the parameter, before it was widened), and extras of `update` such as `value`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

from jopt.paths import Labelled, MaskFunction, MaskTree, Where
from jopt.scalars import FINITE, number_or_schedule

LEAF_KEYWORDS = frozenset({"leaf_dtype", "chance"})
PART_KEYWORDS = frozenset({"layout", "rest", "inner", "extra", "measures", "norms", "accelerator"})
ENGINE_KEYWORDS = frozenset({"t", "count", "key"}) | PART_KEYWORDS | LEAF_KEYWORDS
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
        refresh: of a matrix rule: ``(s, p, ...) -> s``, work too dear for every update (a root, an
            eigenbasis). It runs after `step`: for all matrices in the first update, then for each
            once in `every` updates, in turn, so that no update has to do it for all.
        every: the name of the static value that says in how many updates each is refreshed once.
        axes: the name of the static value that says which axes of an array are rows and columns (see
            `jopt.axes.matrix_axes`), of a rule that reads an array or a matrix. It then sees one
            matrix at a time; slots of the matrix's shape are kept in the parameter's.
        transposes: whether a matrix rule commutes with transposition, so that (m, n) and (n, m) may
            run in one batch; its slots are as the matrix, or the same for both.
        lands: whether p + u is a number that a narrow parameter can hold; the update then leaves in
            the compute dtype, because rounded to the parameter's it would miss that number.

    A matrix rule may name `accelerator` (give it the default False): whether this is the program for
    an accelerator, where low precision is fast, and not for a CPU.
    """

    name: str
    step: Callable[..., Any]
    slots: Callable[..., dict[str, Any]] | None = None
    shared: Callable[..., dict[str, Any]] | None = None
    reads: str = "element"
    complex: str | None = None
    refresh: Callable[..., dict[str, Any]] | None = None
    every: str | None = None
    axes: str | None = None
    transposes: bool = False
    lands: bool = False

    def __post_init__(self):
        if (self.axes is not None and self.reads not in ("array", "matrix")) or (
            self.transposes and self.reads != "matrix"
        ):
            raise ValueError(
                f"Rule({self.name!r}): axes={self.axes!r} and transposes={self.transposes} were given with "
                f"reads={self.reads!r}; axes go with an array or a matrix, transposes with a matrix. Leave them out."
            )
        if (self.refresh is None) != (self.every is None) or (self.refresh is not None and self.reads != "matrix"):
            raise ValueError(
                f"Rule({self.name!r}): refresh={self.refresh!r} and every={self.every!r} were given with "
                f"reads={self.reads!r}; both or neither was expected, of a rule that reads a matrix. "
                f"Name the static value that holds the interval, or leave both out."
            )
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
        return tuple(f for f in (self.step, self.slots, self.shared, self.refresh) if f is not None)

    @property
    def names(self) -> frozenset[str]:
        """The keywords that its work on one array names: those of `step` and of `refresh`."""
        return keywords(self.step) | (keywords(self.refresh) if self.refresh is not None else frozenset())


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
        examples: whether, first in a chain, it also takes gradients with a leading axis of examples,
            which `update` reduces; they come as the user gave them.
        note: optional ``(leaf, ...) -> str``: what `explain` says of a leaf beside the numbers.
        wraps: the argument of the factory that takes the wrapped transform, where it is not the first.
    """

    name: str
    update: Callable[..., Any]
    init: Callable[..., "Own"] | None = None
    apply: Callable[..., Any] | None = None
    complex: bool = True
    enters: bool = True
    examples: bool = False
    note: Callable[..., str] | None = None
    wraps: str = ""

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
class Several:
    """Several wrapped transforms by name; their wrapper keeps a state with a field of each name."""

    members: tuple[tuple[str, Any], ...]

    def __repr__(self) -> str:
        return ", ".join(f"{name}={tx!r}" for name, tx in self.members)


@dataclasses.dataclass(frozen=True)
class Storage:
    """Which slots of a part are stored in which formats (see `jopt.formats`), on which leaves."""

    formats: tuple[tuple[str, str], ...]
    where: Where | None = None

    def call(self, inner: str) -> str:
        """The call that stores a transform so."""
        shown = "" if self.where is None else f", where={self.where!r}"
        return f"store({inner}, {dict(self.formats)!r}{shown})"


@dataclasses.dataclass(frozen=True)
class Part:
    """A rule or a whole with its numbers; `name` is unique in its chain. Of `storage` the last that names a slot
    decides."""

    name: str
    of: Rule | Whole
    hyper: tuple[tuple[str, Any], ...] = ()
    static: tuple[tuple[str, Any], ...] = ()
    inner: Any = None
    key: Any = None
    storage: tuple[Storage, ...] = ()

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

    @property
    def wrapped(self) -> tuple[tuple[str, Any], ...]:
        """What it wraps, each with the full name that its numbers are under."""
        if isinstance(self.inner, Several):
            return tuple((f"{self.name}/{name}/", tx) for name, tx in self.inner.members)
        return () if self.inner is None else ((f"{self.name}/", self.inner),)

    def over_inner(self, function: Callable[[str, Any], Any]) -> Any:
        """What a function of (full name, wrapped transform) gives: for several, by name."""
        if isinstance(self.inner, Several):
            return {name: function(f"{self.name}/{name}/", tx) for name, tx in self.inner.members}
        return None if self.inner is None else function(f"{self.name}/", self.inner)

    def call(self) -> str:
        """The call that makes it."""
        return functools.reduce(lambda inner, storage: storage.call(inner), self.storage, self._bare_call())

    def _bare_call(self) -> str:
        if isinstance(self.of, Whole) and self.of.name.startswith("foreign"):
            return repr(self.inner)
        keyword = f"{self.of.wraps}=" if isinstance(self.of, Whole) and self.of.wraps else ""
        arguments = [f"{keyword}{self.inner!r}"] if self.inner is not None else []
        arguments += [f"{name}={value!r}" for name, value in (*self.hyper, *self.static)]
        arguments += [f"key={self.key!r}"] if self.key is not None else []
        return f"{self.of.name}({', '.join(arguments)})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Parts that see some leaves only. `scope` is "" for a mask, the case's name in a partition."""

    cases: tuple[tuple[str, Where, tuple["Part | Group", ...]], ...]
    total: bool  # whether every leaf must be claimed
    idle: str | tuple[str, ...] = "error"  # which cases of a total group may claim nothing: "allow" is all

    def may_idle(self, case: str) -> bool:
        """Whether this case may claim nothing."""
        return self.idle == "allow" or (isinstance(self.idle, tuple) and case in self.idle)

    def call(self) -> str:
        """The call that makes it."""
        if self.cases and all(isinstance(chooser, Labelled) for _, chooser, _ in self.cases):
            transforms = ", ".join(f"{cast(Labelled, w).label!r}: {chain_call(p)}" for _, w, p in self.cases)
            return f"partition({{{transforms}}}, {self.cases[0][1]!r})"
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
    if isinstance(of, Rule) and of.every is not None:
        used |= {of.every}
    if isinstance(of, Rule) and of.axes is not None:
        used |= {of.axes}
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


def no_params(name: str, call: str = "tx.update(grads, state, params)") -> TypeError:
    """The error of a part that reads the parameters and was given none."""
    return TypeError(
        f"update: {name} reads the parameters, and params=None was received; the parameters were expected. Call {call}."
    )
