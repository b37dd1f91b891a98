"""Laws of sharding: on a mesh of devices the numbers are those of one device, and types are fixed."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jopt.paths import flatten
from jopt.testing.compare import assert_close
from jopt.testing.law import NotApplicableError, law
from jopt.testing.subject import Subject, run_steps, take_step


@law
def explicit_mesh_is_one_device(subject: Subject) -> None:
    """Sharded over an Explicit mesh the steps are those of one device, traced once, of states of one type."""
    _check_mesh(subject, AxisType.Explicit)


@law
def auto_mesh_is_one_device(subject: Subject) -> None:
    """Sharded over an Auto mesh the steps are those of one device, traced once, of states of one type."""
    _check_mesh(subject, AxisType.Auto)


def make_mesh(kind: AxisType) -> Any:
    """A mesh of two axes over up to eight devices.

    Raises:
        NotApplicableError: there is one device only.
    """
    count = next((n for n in (8, 4, 2) if n <= jax.device_count()), 1)
    if count < 2:
        raise NotApplicableError(
            "one device was found, two or more were expected; on a CPU set "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 before jax starts"
        )
    sizes = (count // 2, 2)
    return jax.make_mesh(sizes, ("rows", "columns"), axis_types=(kind,) * 2, devices=jax.devices()[:count])


def place(tree: Any, mesh: Any) -> Any:
    """Each leaf sharded along its first axes, as far as the mesh divides them."""

    def placed(x):
        axes = zip(x.shape, mesh.shape.items(), strict=False)
        spec = [name if size and size % n == 0 else None for size, (name, n) in axes]
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    return jax.tree.map(placed, tree)


def _check_mesh(subject: Subject, kind: AxisType) -> None:
    mesh = make_mesh(kind)
    params, grads = place(subject.params, mesh), [place(g, mesh) for g in subject.grads]
    _check_types_inside_a_trace(subject, params, grads[0])
    with jax.set_mesh(mesh):
        _check_types_inside_a_trace(subject, params, grads[0])
        state = subject.tx.init(params)
        _check_slots_follow(state, params)
        subject.step(subject.tx, grads[0], state, params)
        before = len(subject.traces)
        run = run_steps(lambda *args: subject.step(subject.tx, *args), params, grads, state)
    if len(subject.traces) != before:
        raise AssertionError("the state of a sharded update traced the step once more: its type is not that of init.")
    assert_close(run.visible, subject.compiled_run.visible, "sharded (updates, parameters)", subject.ulps)
    for i, after in enumerate(run.states[1:]):
        _check_shardings(after, state, f"the state after step {i}")
    _check_shardings(run.params[-1], params, "the parameters")


def _check_types_inside_a_trace(subject: Subject, params: Any, grads: Any) -> None:
    found = []

    def train(params, grads):
        state = subject.tx.init(params)
        after = take_step(subject.tx, grads, state, params, subject.extras)[1]
        found.extend((_specs(state), _specs(after)))

    jax.eval_shape(train, params, grads)
    first, after = found
    for path, spec in after.items():
        if spec != first[path]:
            raise AssertionError(f"inside a trace, state {path!r} is sharded as {spec}, {first[path]} was expected.")


def _specs(tree: Any) -> dict[str, Any]:
    return {path: jax.typeof(x).sharding.spec for path, x in flatten(tree)[0].items()}


def _check_slots_follow(state: Any, params: Any) -> None:
    flat = flatten(params)[0]
    for part, slots in state.slots.items():
        for slot, arrays in slots.items():
            for path, x in arrays.items():
                p = flat[path]
                if x.shape == p.shape and not x.sharding.is_equivalent_to(p.sharding, x.ndim):
                    raise AssertionError(
                        f"{part}/{slot} of {path!r} is sharded as {x.sharding.spec}, its parameter as "
                        f"{p.sharding.spec}; the same was expected. Make slots by zeros_like."
                    )


def _check_shardings(got: Any, expected: Any, what: str) -> None:
    there = flatten(expected)[0]
    for path, x in flatten(got)[0].items():
        if np.ndim(x) and not x.sharding.is_equivalent_to(there[path].sharding, x.ndim):
            raise AssertionError(
                f"{what}, leaf {path!r}, is sharded as {x.sharding}, {there[path].sharding} was expected."
            )
