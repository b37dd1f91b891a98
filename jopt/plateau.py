"""Scale updates down when a metric stops improving."""

import jax.numpy as jnp

from jopt.rule import Own, Whole
from jopt.scalars import FRACTION, NONNEGATIVE, ScalarOrSchedule, scalar_dtype
from jopt.transform import Transform, whole


def plateau_init(params):
    """No best value yet, no wait, a scale of 1."""
    real, whole_number = scalar_dtype(), jnp.int32
    return Own(
        scalars={
            "best_value": jnp.full((), jnp.inf, real),
            "avg_value": jnp.zeros((), real),
            "scale": jnp.ones((), real),
            "values": jnp.zeros((), whole_number),
            "plateau_count": jnp.zeros((), whole_number),
            "cooldown_count": jnp.zeros((), whole_number),
        }
    )


def plateau_update(grads, own, params, *, value, factor, patience, rtol, atol, cooldown, accumulation_size, min_scale):
    """Count values that did not improve; lower the scale when there were too many."""
    s, one = own.scalars, jnp.ones((), jnp.int32)
    values = s["values"] + one
    average = s["avg_value"] + (jnp.asarray(value, scalar_dtype()) - s["avg_value"]) / values.astype(scalar_dtype())
    judged = values.astype(scalar_dtype()) >= accumulation_size

    best = s["best_value"]
    # |best|, so that a negative metric improves by going down; from inf, everything improves.
    bound = jnp.where(jnp.isfinite(best), best - rtol * jnp.abs(best) - atol, best)
    improved = average < bound
    waited = jnp.where(improved, 0, s["plateau_count"] + one)
    cooling = s["cooldown_count"] > 0
    reduces = ~cooling & (waited.astype(scalar_dtype()) >= patience) & ~improved
    scale = jnp.where(reduces, jnp.maximum(s["scale"] * factor, jnp.minimum(min_scale, s["scale"])), s["scale"])
    after = {
        "best_value": jnp.where(improved, average, best),
        "avg_value": jnp.zeros_like(average),
        "scale": scale,
        "values": jnp.zeros_like(values),
        "plateau_count": jnp.where(cooling | reduces, 0, waited),
        "cooldown_count": jnp.where(reduces, cooldown.astype(jnp.int32), jnp.maximum(s["cooldown_count"] - one, 0)),
    }
    between = s | {"avg_value": average, "values": values}
    new = {name: jnp.where(judged, after[name], between[name]) for name in s}
    return {path: g * new["scale"].astype(g.dtype) for path, g in grads.items()}, own._replace(scalars=new)


PLATEAU = Whole("reduce_on_plateau", plateau_update, plateau_init)


def reduce_on_plateau(
    factor: ScalarOrSchedule = 0.1,
    patience: ScalarOrSchedule = 10,
    rtol: ScalarOrSchedule = 1e-4,
    atol: ScalarOrSchedule = 0.0,
    cooldown: ScalarOrSchedule = 0,
    accumulation_size: ScalarOrSchedule = 1,
    min_scale: ScalarOrSchedule = 0.0,
) -> Transform:
    """Scale updates by a factor that shrinks each time a metric has not improved for a while.

        u = s g;   s ← f s  after `patience` judged values without  v < best − rtol |best| − atol

    Needs the metric at each update: ``update(grads, state, params, value=loss)``; lower is better.

    Args:
        factor: f in (0, 1).
        patience: judged values without improvement before s shrinks.
        rtol, atol: by how much a value must fall to count, relative to |best| and absolute, ≥ 0.
        cooldown: judged values after a reduction during which none is counted.
        accumulation_size: how many values are averaged to one that is judged.
        min_scale: s does not shrink below it.

    Differs: `rtol` is relative to |best|, so that negative metrics reduce too (in optax they never
        do).
    """
    for name, number in (("patience", patience), ("accumulation_size", accumulation_size)):
        if isinstance(number, int | float) and number < 1:
            raise ValueError(f"reduce_on_plateau: {name}={number} was given, at least 1 was expected. Raise it.")
    return whole(
        PLATEAU,
        hyper={
            "factor": factor,
            "patience": patience,
            "rtol": rtol,
            "atol": atol,
            "cooldown": cooldown,
            "accumulation_size": accumulation_size,
            "min_scale": min_scale,
        },
        domain={
            "factor": "(0, 1)",
            "rtol": FRACTION,
            "atol": NONNEGATIVE,
            "cooldown": NONNEGATIVE,
            "min_scale": NONNEGATIVE,
        },
    )
