"""The race: equal budgets, then fresh seeds.

An optimizer gets `RATES` learning rates, spaced evenly by their logarithm and the same for all, times
`TUNING_SEEDS` seeds; everything else stays at its default. The rate with the smallest median number
of steps to the target wins (if none reaches it, the one with the smallest final loss). Then it runs
on `RACING_SEEDS` seeds that tuning has not seen: these runs are reported. A run that has not reached
the target counts as later than all that have.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jopt
from benchmarks.measure import interleaved
from benchmarks.optimizers.workloads import Workload, parameters

RATES = np.logspace(-4, 2 / 3, 15)
TUNING_SEEDS = 5
RACING_SEEDS = 10
BUDGET = f"{len(RATES)} rates × {TUNING_SEEDS} seeds each, then {RACING_SEEDS} fresh seeds"
NEAR = 0.05  # a rate is near the best if its final loss is within this share


@dataclasses.dataclass(frozen=True)
class Result:
    """What one optimizer did on one workload.

    Args:
        optimizer, workload: names.
        rate: the learning rate that tuning chose.
        tuned: median final loss at each of `RATES`.
        curves: measured loss of each racing seed, (seeds, records); infinite from where a run left the numbers.
        steps: updates until the target for each racing seed; infinite where it was not reached.
        state_bytes: of the optimizer's state, for each parameter.
    """

    optimizer: str
    workload: str
    rate: float
    tuned: tuple[float, ...]
    curves: np.ndarray
    steps: np.ndarray
    state_bytes: float

    @property
    def near(self) -> float:
        """Share of the rates whose loss is near the best."""
        best = min(self.tuned)
        return float(np.mean([x <= best + NEAR * abs(best) for x in self.tuned]))


def trainer(workload: Workload, make: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """``(rate, seed) -> losses``: a whole run as one pure function, measured before it and every so often."""

    def run(rate, seed):
        init_key, batch_key = jax.random.split(jax.random.key(seed))
        params = workload.init(init_key)
        tx = make(rate)
        rows = workload.batches(batch_key)

        def advance(carry, indices):
            params, state = carry

            def loss(params):
                return workload.loss(params, indices)

            value, grads = jax.value_and_grad(loss)(params)
            extra = {"value": value, "grad": grads, "value_fn": loss, "obj_fn": loss}  # for those that name them
            return jopt.apply_gradients(tx, grads, state, params, **extra), None

        def stretch(carry, rows):
            carry, _ = jax.lax.scan(advance, carry, rows)
            return carry, workload.measure(jopt.eval_params(carry[1], carry[0]))

        rows = rows.reshape(workload.steps // workload.every, workload.every, -1)
        _, losses = jax.lax.scan(stretch, (params, tx.init(params)), rows)
        return jnp.concatenate([workload.measure(params)[None], losses])

    return run


def steps_to_target(curves: np.ndarray, target: float, every: int) -> np.ndarray:
    """Updates until a curve first is at or below the target; infinite if it never is."""
    reached = curves <= target
    return np.where(reached.any(axis=-1), reached.argmax(axis=-1) * every, np.inf)


def race(workload: Workload, name: str, make: Callable[[Any], Any], lanes: int = 25) -> Result:
    """Tune, then run on fresh seeds.

    Args:
        workload: the problem.
        name: of the optimizer.
        make: ``rate -> transform``.
        lanes: how many runs go through one call side by side, for memory.
    """
    run = jax.jit(jax.vmap(trainer(workload, make)))
    seeds, rates = np.meshgrid(np.arange(TUNING_SEEDS), RATES)
    curves = _in_chunks(run, rates.ravel().astype(np.float32), seeds.ravel(), lanes)
    curves = curves.reshape(len(RATES), TUNING_SEEDS, -1)
    final = np.median(curves[..., -1], axis=1)
    steps = np.median(steps_to_target(curves, workload.target, workload.every), axis=1)
    best = min(range(len(RATES)), key=lambda i: (steps[i], final[i]))
    fresh = 1000 + np.arange(RACING_SEEDS)
    raced = _in_chunks(run, np.full(RACING_SEEDS, RATES[best], np.float32), fresh, lanes)
    return Result(
        name,
        workload.name,
        float(RATES[best]),
        tuple(map(float, final)),
        raced,
        steps_to_target(raced, workload.target, workload.every),
        state_bytes(workload, make),
    )


def _in_chunks(run: Any, rates: np.ndarray, seeds: np.ndarray, lanes: int) -> np.ndarray:
    """All runs, `lanes` at a time, the last call filled up so that one program serves all; not finite is infinite."""
    found = []
    for i in range(0, len(rates), lanes):
        part = np.resize(np.arange(i, min(i + lanes, len(rates))), lanes)
        found.append(np.asarray(run(rates[part], seeds[part]))[: min(lanes, len(rates) - i)])
    curves = np.concatenate(found)
    # Once a run has left the numbers it has failed, whatever it measures later.
    return np.where(np.logical_or.accumulate(~np.isfinite(curves), axis=1), np.inf, curves)


def seconds_of_runs(
    workload: Workload, makers: dict[str, Callable[[Any], Any]], rates: dict[str, float], rounds: int
) -> dict[str, list[float]]:
    """Seconds of a whole run of each optimizer by itself, in turns, compiled beforehand."""

    def timed(name: str) -> Callable[[], Any]:
        run, rate = jax.jit(trainer(workload, makers[name])), np.float32(rates[name])
        return lambda: run(rate, 0)

    return interleaved({name: timed(name) for name in makers}, rounds, warmup=1)


def state_bytes(workload: Workload, make: Callable[[Any], Any]) -> float:
    """Bytes of the optimizer's state for each parameter."""
    shapes = jax.eval_shape(lambda key: make(0.1).init(workload.init(key)), jax.random.key(0))
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes) if hasattr(x.dtype, "itemsize"))
    return total / parameters(workload)


def p_value(ours: np.ndarray, others: np.ndarray, resamples: int = 20_000) -> float:
    """Two-sided bootstrap p of a difference in median steps to the target, ranks in place of steps.

    Ranks give runs that never reached the target a place behind all that did. Both samples are drawn
    again from their union, as if the optimizers were one.
    """
    both = np.concatenate([ours, others])
    ranks = np.searchsorted(np.sort(np.unique(both)), both).astype(float)
    n = len(ours)
    observed = abs(ranks[:n].mean() - ranks[n:].mean())
    draws = np.random.default_rng(0).choice(ranks, (resamples, len(ranks)))
    drawn = np.abs(draws[:, :n].mean(axis=1) - draws[:, n:].mean(axis=1))
    return float((1 + np.sum(drawn >= observed - 1e-12)) / (1 + resamples))
