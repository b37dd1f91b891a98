"""A transform under test: what is declared of it, its data, and the runs that laws share."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jopt.apply import apply_updates
from jopt.engine import walk
from jopt.transform import Transform

STEPS = 3


class Run(NamedTuple):
    """Several steps: the updates and the parameters after each, the states from `init` on."""

    updates: list[Any]
    params: list[Any]
    states: list[Any]

    @property
    def visible(self) -> tuple[Any, Any]:
        """Updates and parameters: what two transforms with differently named states can agree in."""
        return self.updates, self.params


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A transform under test, with what is declared of it.

    Each declaration is checked from both sides: a transform that does not need an exception which
    is declared for it fails as well.

    Args:
        tx: the transform.
        params: parameters to run on, real floating arrays; by default a small tree of matrices and a vector.
        extra: extras that `update` needs, such as ``{"value": 1.0}``.
        factory: makes the same kind of transform from one number (say, the learning rate), for the
            laws about numbers that are traced or changed.
        numbers: two numbers to give to `factory`.
        namespace: names, beside those of jopt, that ``repr(tx)`` uses.
        zero_gradient: whether a zero gradient leaves fresh parameters alone.
        complex: "pair" where a complex leaf is the pair of its parts, "native" where it is a field
            of its own (turning gradient and parameter turns the update), None where it is refused.
        elementwise: whether moving elements about, within leaves and between them, commutes with it.
        matrices_only: whether it refuses everything that is not 2-D.
        random: whether it draws random numbers.
        reads_paths: whether it treats leaves by their names.
        lands: whether it rounds the stepped parameters itself: updates of narrow ones are then float32, and no
            rounding of those of wider ones.
        plain: whether it compares, prints and pickles by configuration; not so with closures or
            foreign transforms inside.
        ulps: roundings by which two ways to compute the same may differ, of the largest element.
        compiled: compile what runs, instead of op by op; slower, and only needed once.
    """

    tx: Any
    params: Any = None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    factory: Callable[[Any], Any] | None = None
    numbers: tuple[float, float] = (0.05, 0.02)
    namespace: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    zero_gradient: bool = True
    complex: str | None = "pair"
    elementwise: bool = True
    matrices_only: bool = False
    random: bool = False
    reads_paths: bool = False
    lands: bool = False
    plain: bool = True
    ulps: float = 64
    compiled: bool = False
    traces: list[Any] = dataclasses.field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        if self.params is None:
            object.__setattr__(self, "params", default_params(self.matrices_only))
        if self.complex not in ("pair", "native", None):
            raise ValueError(
                f"check_transform: complex={self.complex!r} was given, 'pair', 'native' or None was expected. "
                f"Say how the transform takes complex leaves."
            )

    # Data ----------------------------------------------------------------------------------------

    def gradients(self, step: int, like: Any = None) -> Any:
        """Normal random numbers, another tree for every step, in the dtypes of `like` (the parameters)."""
        source = np.random.default_rng(1000 + step)
        return jax.tree.map(lambda p: draw(source, p), self.params if like is None else like)

    @functools.cached_property
    def grads(self) -> list[Any]:
        """The gradients of the shared runs."""
        return [self.gradients(step) for step in range(STEPS)]

    @functools.cached_property
    def extras(self) -> dict[str, Any]:
        """The declared extras, numbers as arrays (of NumPy, which belong to no mesh)."""
        return {name: x if callable(x) else np.asarray(x, jnp.result_type(float)) for name, x in self.extra.items()}

    @functools.cached_property
    def settable(self) -> list[str]:
        """The full names of the hyper-parameters that follow no schedule."""
        return [name for name, _, scheduled in configured(self.tx.parts) if not scheduled]

    # Running -------------------------------------------------------------------------------------

    def stepper(self, tx: Any) -> Callable[..., Any]:
        """One step with the declared extras: ``(grads, state, params) -> (updates, state, params)``."""
        return functools.partial(take_step, tx, extra=self.extras)

    def step(self, tx: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        """One compiled step, ``(updates, state, params)``, that leaves its arguments alone."""
        return self.donating_step(tx, grads, copy(state), copy(params))

    def donating_step(self, tx: Any, grads: Any, state: Any, params: Any) -> tuple[Any, Any, Any]:
        """The same; it consumes state and parameters."""
        arrays = {name: x for name, x in self.extras.items() if not callable(x)}
        return self._jitted(tx, grads, state, params, arrays)

    @functools.cached_property
    def _jitted(self) -> Callable[..., Any]:
        def counted(tx, grads, state, params, arrays):
            self.traces.append(type(tx))
            return take_step(tx, grads, state, params, self.extras | arrays)

        return jax.jit(counted, static_argnums=0, donate_argnums=(2, 3))

    def loop(self, tx: Any, params: Any, grads: Sequence[Any], state: Any = None) -> Run:
        """Several compiled steps, one call each."""
        return run_steps(functools.partial(self.step, tx), params, grads, tx.init(params) if state is None else state)

    def run(self, tx: Any, params: Any, grads: Sequence[Any], state: Any = None) -> Run:
        """Several steps, op by op or compiled, as the subject says."""
        step = self.stepper(tx)
        with self.executing():
            state = tx.init(params) if state is None else state
            return run_steps(jax.jit(step) if self.compiled else step, params, grads, state)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function of arrays, op by op or compiled, as the subject says."""
        with self.executing():
            return (jax.jit(function) if self.compiled else function)(*arguments)

    def executing(self) -> Any:
        return contextlib.nullcontext() if self.compiled else jax.disable_jit()

    @functools.cached_property
    def compiled_run(self) -> Run:
        """The transform on its parameters, compiled."""
        return self.loop(self.tx, self.params, self.grads)

    @functools.cached_property
    def eager_run(self) -> Run:
        """The same op by op: no compiler has touched it."""
        with jax.disable_jit():
            return run_steps(self.stepper(self.tx), self.params, self.grads, self.tx.init(self.params))

    @property
    def baseline(self) -> Run:
        """The same in the way `run` runs."""
        return self.compiled_run if self.compiled else self.eager_run


def configured(parts: Any, scope: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Every number of a transform by full name, and whether it is a schedule."""
    for part in walk(parts):
        for name, value in part.hyper:
            yield f"{scope}{part.name}/{name}", value, callable(value)
        for below, tx in part.wrapped:
            if isinstance(tx, Transform):
                yield from configured(tx.parts, f"{scope}{below}")


def default_params(matrices_only: bool = False) -> Any:
    """Two matrices, and a vector where those are accepted; no element is near zero."""
    source = np.random.default_rng(7)

    def make(*shape):
        x = source.normal(size=shape)
        return jnp.asarray(x + 0.1 * np.sign(x), jnp.result_type(float))

    return {"dense": {"kernel": make(8, 4), **({} if matrices_only else {"bias": make(4)})}, "out": [make(4, 8)]}


def draw(source: np.random.Generator, like: Any) -> jax.Array:
    """Normal random numbers in the shape and dtype of an array."""
    x = source.normal(size=like.shape)
    if jnp.issubdtype(like.dtype, jnp.complexfloating):
        x = x + 1j * source.normal(size=like.shape)
    return jnp.asarray(x).astype(like.dtype)


def take_step(tx: Any, grads: Any, state: Any, params: Any, extra: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """One step: ``(updates, state, params)``."""
    updates, state = tx.update(grads, state, params, **extra)
    return updates, state, apply_updates(params, updates)


def run_steps(step: Callable[..., Any], params: Any, grads: Sequence[Any], state: Any) -> Run:
    """Feed gradients one after another to a step ``(grads, state, params)``."""
    run = Run([], [], [state])
    for g in grads:
        updates, state, params = step(g, state, params)
        run.updates.append(updates)
        run.params.append(params)
        run.states.append(state)
    return run


def copy(tree: Any) -> Any:
    """The same values in other buffers."""
    return jax.tree.map(jnp.copy, tree)


def stack(trees: Sequence[Any]) -> Any:
    """Trees of equal types as one with a leading axis."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *trees)


def lane(tree: Any, index: int) -> Any:
    """One entry along the leading axis of every leaf."""
    return jax.tree.map(lambda x: x[index], tree)
