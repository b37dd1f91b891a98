"""Second moments kept as the outer product of a row and a column: Adafactor and CAME."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jopt import linalg
from jopt.scalars import DECAY, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, rule


def _largest_axes(shape: tuple[int, ...], min_size: int) -> tuple[int, int] | None:
    """The second longest and the longest axis, or None where the former is shorter than `min_size`."""
    if len(shape) < 2:
        return None
    *_, second, first = np.argsort(shape, kind="stable")
    return None if shape[second] < min_size else (int(second), int(first))


def _mean(x: jax.Array, axis: int) -> jax.Array:
    """The mean over one axis, kept with size 1; it divides first, so that squares of 1e18 do not overflow."""
    return jnp.sum(x / max(x.shape[axis], 1), axis=axis, keepdims=True)


def _zeros_without(p: jax.Array, axis: int) -> jax.Array:
    """Zeros in the shape of p without an axis, and sharded as p is over the others."""
    return jnp.zeros_like(jnp.sum(jnp.real(p), axis=axis))


def _over_root(x: jax.Array, row: jax.Array, col: jax.Array, row_axis: int) -> jax.Array:
    """x / √V with V = row · col / mean(row); in an order in which nothing overflows that x, row and col come from.

    Args:
        row: of size 1 along one axis, and of size n along `row_axis`.
        col: of size 1 along `row_axis`.
    """
    mean = _mean(row, row_axis)
    return (x / jnp.sqrt(row).astype(x.dtype)) * (jnp.sqrt(mean) / jnp.sqrt(col)).astype(x.dtype)


# Adafactor ---------------------------------------------------------------------------------------


def factored_slots(p, *, factored, min_dim_size_to_factor):
    axes = _largest_axes(p.shape, min_dim_size_to_factor) if factored else None
    if axes is None:
        return {"v": jnp.zeros_like(jnp.real(p))}
    return {"v_row": _zeros_without(p, axes[1]), "v_col": _zeros_without(p, axes[0])}


def factored_shared(*, t, count, decay_rate, step_offset, decay_rate_fn):
    if decay_rate_fn is None:
        fresh = jnp.maximum(t - step_offset, 1) ** -decay_rate
    else:
        fresh = 1 - jnp.asarray(decay_rate_fn(count - step_offset.astype(count.dtype), decay_rate), t.dtype)
    return {"old": 1 - fresh, "fresh": fresh}


def factored_step(g, s, p, *, epsilon, old, fresh, factored, min_dim_size_to_factor):
    squares = linalg.abs_square(g) + epsilon
    axes = _largest_axes(g.shape, min_dim_size_to_factor) if factored else None
    if axes is None:
        v = old * s["v"] + fresh * squares
        return g / jnp.sqrt(v).astype(g.dtype), {"v": v}
    second, first = axes
    row = old * jnp.expand_dims(s["v_row"], first) + fresh * _mean(squares, first)
    col = old * jnp.expand_dims(s["v_col"], second) + fresh * _mean(squares, second)
    u = _over_root(g, row, col, second)
    return u, {"v_row": jnp.squeeze(row, first), "v_col": jnp.squeeze(col, second)}


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: ScalarOrSchedule = 0.8,
    step_offset: ScalarOrSchedule = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: ScalarOrSchedule = 1e-30,
    decay_rate_fn: Callable[[Any, Any], Any] | None = None,
) -> Transform:
    """Divide by the root of second moments of which only the means of rows and of columns are kept.

        R ← β R + (1 − β) mean over columns of (g² + ε)
        C ← β C + (1 − β) mean over rows of (g² + ε),   β = 1 − (t − t₀)⁻ᶜ
        u = g / √(R Cᵀ / mean(R))

    Rows and columns are the two longest axes; where one of them is short, all of g² is averaged.

    Args:
        factored: False keeps all second moments.
        decay_rate: c > 0; the greater, the longer the memory grows.
        step_offset: t₀, steps that were done before this run; as long as t ≤ t₀ + 1, β is 0.
        min_dim_size_to_factor: the shortest axis that is a row or a column.
        epsilon: ε > 0.
        decay_rate_fn: ``(step from 0, decay_rate) -> β`` in place of the formula; None is the formula.

    Differs: in optax β is computed in float32 also under x64, and 1 − β from it.
    Reference: [shazeer2018adafactor], Algorithms 4 and 5.
    """
    return rule(
        "scale_by_factored_rms",
        factored_step,
        slots=factored_slots,
        shared=factored_shared,
        hyper={"decay_rate": decay_rate, "step_offset": step_offset, "epsilon": epsilon},
        static={
            "factored": bool(factored),
            "min_dim_size_to_factor": int(min_dim_size_to_factor),
            "decay_rate_fn": decay_rate_fn,
        },
        domain={"decay_rate": POSITIVE, "epsilon": POSITIVE},
        reads="array",
        complex="native",
    )


# CAME --------------------------------------------------------------------------------------------


def came_slots(p):
    m = {"mu": jnp.zeros_like(p)}
    if p.ndim < 2:
        return m | {"v": jnp.zeros_like(p)}
    row, col = _zeros_without(p, p.ndim - 1), _zeros_without(p, p.ndim - 2)
    return m | {"v_row": row, "v_col": col, "doubt_row": jnp.zeros_like(row), "doubt_col": jnp.zeros_like(col)}


def came_step(g, s, p, *, b1, b2, b3, eps, eps_doubt, threshold):
    squares = g * g + eps
    if g.ndim < 2:
        v = b2 * s["v"] + (1 - b2) * squares
        m = b1 * s["mu"] + (1 - b1) * _clipped(g / jnp.sqrt(v), threshold)
        return m, {"mu": m, "v": v}
    rows, columns = g.ndim - 2, g.ndim - 1
    row = b2 * jnp.expand_dims(s["v_row"], columns) + (1 - b2) * _mean(squares, columns)
    col = b2 * jnp.expand_dims(s["v_col"], rows) + (1 - b2) * _mean(squares, rows)
    scaled = _clipped(_over_root(g, row, col, rows), threshold)
    m = b1 * s["mu"] + (1 - b1) * scaled
    doubt = (scaled - m) * (scaled - m) + eps_doubt
    doubt_row = b3 * jnp.expand_dims(s["doubt_row"], columns) + (1 - b3) * _mean(doubt, columns)
    doubt_col = b3 * jnp.expand_dims(s["doubt_col"], rows) + (1 - b3) * _mean(doubt, rows)
    return _over_root(m, doubt_row, doubt_col, rows), {
        "mu": m,
        "v_row": jnp.squeeze(row, columns),
        "v_col": jnp.squeeze(col, rows),
        "doubt_row": jnp.squeeze(doubt_row, columns),
        "doubt_col": jnp.squeeze(doubt_col, rows),
    }


def _clipped(u: jax.Array, threshold: jax.Array) -> jax.Array:
    return u / jnp.maximum(linalg.rms(u) / threshold, 1)


def scale_by_came(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-30,
    eps_doubt: ScalarOrSchedule = 1e-16,
    threshold: ScalarOrSchedule = 1.0,
) -> Transform:
    """Adafactor with momentum, which goes slower where the momentum has often been wrong.

        V ← β₂V + (1 − β₂)(g² + ε₁),   ũ = g / √V,   û = ũ / max(1, RMS(ũ) / d)
        m ← β₁m + (1 − β₁)û
        S ← β₃S + (1 − β₃)((û − m)² + ε₂)
        u = m / √S

    Of V and S the means of rows and of columns are kept, over the last two axes. Vectors and
    scalars keep all of V and have no S: u = m.

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        b3: β₃ in [0, 1).
        eps: ε₁ > 0.
        eps_doubt: ε₂ > 0.
        threshold: d > 0.

    Differs: as in the authors' code, the averages start at 0 and are not corrected.
    Reference: [luo2023came], Algorithm 2.
    """
    return rule(
        "scale_by_came",
        came_step,
        slots=came_slots,
        hyper={"b1": b1, "b2": b2, "b3": b3, "eps": eps, "eps_doubt": eps_doubt, "threshold": threshold},
        domain={
            "b1": DECAY,
            "b2": DECAY,
            "b3": DECAY,
            "eps": POSITIVE,
            "eps_doubt": POSITIVE,
            "threshold": POSITIVE,
        },
        reads="array",
    )
