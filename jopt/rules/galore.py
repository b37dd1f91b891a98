"""GaLore: Adam in a subspace of few directions, those in which a matrix's gradient is largest."""

from typing import Any

import jax.numpy as jnp

from jopt import lapack, linalg
from jopt.axes import matrix_axes
from jopt.control import run_if
from jopt.rules import factors
from jopt.rules.adam import adam_shared, adam_step
from jopt.scalars import DECAY, NONNEGATIVE, ScalarOrSchedule, size
from jopt.transform import Transform, rule


def galore_slots(p, *, rank):
    (m, n), short = p.shape, min(p.shape)
    r = min(rank, short)
    projector, moments = _kept(p, short, r), _kept(p, *((r, n) if m <= n else (m, r)))
    axes = factors.placed_like(factors.zeros(p, short, r) + jnp.eye(short, r, dtype=p.dtype), projector)
    return {"projector": projector + axes, "mu": moments, "nu": jnp.zeros_like(moments)}


def _kept(p, *shape):
    """Zeros whole on every device, or sharded as the parameter where they have its shape."""
    return jnp.zeros_like(p) if shape == p.shape else factors.zeros(p, *shape)


def leading(projector, g):
    """The first left singular vectors of g, as many as there were; those there were if g is zero."""
    if projector.size == 0:
        return projector
    vectors = lapack.svd(factors.normalised(g))[0][:, : projector.shape[1]]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None, :], axis=0)
    vectors = vectors * jnp.where(largest < 0, -1.0, 1.0).astype(g.dtype)
    return jnp.where(jnp.any(g != 0), vectors, projector)


def above_rounding(low, g, axis):
    """PᵀG with 0 in the directions that G has no part in: Adam would step along the rounding there, and far."""
    size = jnp.sqrt(jnp.sum(low * low, axis=axis, keepdims=True))
    return jnp.where(size <= 16 * float(jnp.finfo(g.dtype).eps) * linalg.norm(g), 0, low)


def galore_step(g, s, p, *, count, update_proj_gap, scale, b1, b2, eps, c1, c2):
    m, n = g.shape
    h, old = factors.entire(factors.bounded(g)), {name: factors.entire(x) for name, x in s.items()}
    # A taller matrix has P on its right: its moments then lie as it does, also where they have its shape.
    q = run_if(leading, count % update_proj_gap == 0, old["projector"], h if m <= n else h.T)
    low = above_rounding(q.T @ h, h, 1) if m <= n else above_rounding(h @ q, h, 0)
    step, new = adam_step(low, old, p, b1=b1, b2=b2, eps=eps, eps_root=0, c1=c1, c2=c2)
    u = scale * (q @ step if m <= n else step @ q.T)
    new = {name: factors.placed_like(x, s[name]) for name, x in (new | {"projector": q}).items()}
    return factors.placed_like(u, g), new


def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: ScalarOrSchedule = 1.0,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_dimension_numbers: Any = None,
    axes: Any = None,
) -> Transform:
    """Scale each matrix by Adam of its gradient in a few directions, its leading singular vectors.

        P ← the first r left singular vectors of G      in every `update_proj_gap`-th update, from the first on
        R = PᵀG,   M ← β₁M + (1 − β₁)R,   V ← β₂V + (1 − β₂)R²
        U = αP[(M / c₁) / (√(V / c₂) + ε)],   cᵢ = 1 − βᵢᵗ

    for G of shape (m, n) with m ≤ n; a taller one has P on its right, so that P is always on the shorter side.

    Args:
        rank: r ≥ 1, cut to min(m, n). There P is square and nothing is lost: Adam in another basis.
        update_proj_gap: ≥ 1, how many updates share a P.
        scale: α, of the updates of matrices; 0.25 in the paper.
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε ≥ 0.
        weight_dimension_numbers: optax's form of `axes`.
        axes: which axes of an array are rows and columns, as for `scale_by_muon`; "any" takes every
            parameter, a vector as a column.

    The state is P (m, r), M and V (r, n): 4r(m + 2n) bytes in float32, where Adam has 8mn; at rank 128
    of a matrix (4096, 11008) 13 MB and 361 MB. It is smaller than Adam's while r < 2mn / (m + 2n).
    A taller matrix has M and V (m, r). On a mesh each device has all of it, but for what has the parameter's
    shape. All matrices change P in the same update; M and V are kept then, as in the paper.

    A zero gradient keeps P, which begins as the first r unit vectors. A row of R within 16 roundings of ‖G‖ is
    0, or Adam would make full steps of it: there are such rows where the gradient has fewer than r directions.
    Others than matrices are refused: `galore` routes them to AdamW.

    Differs: each column of P points to where its largest component is positive, as M depends on its sign;
        the paper takes what the decomposition gives. optax projects the longer side, in which a
        later gradient may have parts at any rank.
    Reference: [zhao2024galore], Algorithm 2.
    """
    static = {
        "rank": size(rank, "scale_by_galore", "rank"),
        "update_proj_gap": size(update_proj_gap, "scale_by_galore", "update_proj_gap"),
        "axes": matrix_axes("scale_by_galore", axes, weight_dimension_numbers),
    }
    return rule(
        "scale_by_galore",
        galore_step,
        slots=galore_slots,
        shared=adam_shared,
        hyper={"scale": scale, "b1": b1, "b2": b2, "eps": eps},
        static=static,
        domain={"b1": DECAY, "b2": DECAY, "eps": NONNEGATIVE},
        reads="matrix",
        axes="axes",
    )
