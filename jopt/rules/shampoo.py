"""Shampoo: gradients divided by roots of their second moments, on both sides."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt import linalg
from jopt.axes import matrix_axes
from jopt.rules import factors
from jopt.scalars import DECAY, FRACTION, NONNEGATIVE, POSITIVE, ScalarOrSchedule, number, raw, size
from jopt.stacks import one_by_one
from jopt.transform import Transform, rule

GRAFTS = ("none", "sgd", "adagrad", "rmsprop", "adam")


def blocks_of(shape, most):
    """How many blocks a matrix is cut into along each side, and their shape: even, and padded with zeros."""
    counts = tuple(max(1, -(-n // most)) for n in shape)
    return counts, tuple(-(-n // k) for n, k in zip(shape, counts, strict=True))


def cut(x, most):
    """A matrix as its blocks, (number, rows, columns)."""
    (down, across), (m, n) = blocks_of(x.shape, most)
    if (down, across) == (1, 1):
        return x[None]
    x = jnp.pad(x, ((0, down * m - x.shape[0]), (0, across * n - x.shape[1])))
    return x.reshape(down, m, across, n).swapaxes(1, 2).reshape(down * across, m, n)


def joined(blocks, shape, most):
    """The matrix of these blocks."""
    (down, across), (m, n) = blocks_of(shape, most)
    if (down, across) == (1, 1):
        return blocks[0]
    return blocks.reshape(down, across, m, n).swapaxes(1, 2).reshape(down * m, across * n)[: shape[0], : shape[1]]


def by_block(function, *blocks):
    """A function of matrices on each block."""
    if len(blocks[0]) == 1:
        return function(*(x[0] for x in blocks))[None]
    return jax.lax.platform_dependent(*blocks, cpu=one_by_one(function), default=jax.vmap(function))


def gram_of_rows(x):
    """XXᵀ."""
    return x @ x.T


def gram_of_columns(x):
    """XᵀX."""
    return x.T @ x


def sides_of(shape, most, one_sided):
    """Which sides have a factor, and its size: not a side of length 1, and of one-sided ones the shorter."""
    m, n = blocks_of(shape, most)[1]
    found = {side: size for side, size in (("left", m), ("right", n)) if size > 1} or {"left": m}
    shorter = min(found, key=lambda side: found[side])
    return {shorter: found[shorter]} if one_sided else found


def shampoo_slots(p, *, grafting, one_sided, max_preconditioner_size):
    (down, across), _ = blocks_of(p.shape, max_preconditioner_size)
    slots = {"mu": jnp.zeros_like(p)} | ({"nu": jnp.zeros_like(p)} if grafting not in ("none", "sgd") else {})
    for side, n in sides_of(p.shape, max_preconditioner_size, one_sided).items():
        slots |= {side: factors.zeros(p, down * across, n, n), f"{side}_root": factors.zeros(p, down * across, n, n)}
    return slots


def shampoo_shared(*, t, b1, b2, graft_b2, grafting):
    summed, one = grafting == "adagrad", jnp.ones_like(t)
    return {
        "c1": 1 - b1**t,
        # β₂ = 1 sums; the mean of what is summed has no bias.
        "w2": jnp.where(b2 < 1, 1 - b2, 1),
        "keep": one if summed else graft_b2,
        "add": one if summed else 1 - graft_b2,
        "c": 1 - graft_b2**t if grafting == "adam" else one,
    }


def shampoo_step(
    g, s, p, *, count, b1, b2, c1, w2, keep, add, c, graft_eps, grafting, one_sided, max_preconditioner_size
):
    h, most = factors.entire(factors.bounded(g)), max_preconditioner_size
    m = b1 * factors.entire(s["mu"]) + (1 - b1) * h
    new = {"mu": factors.placed_like(m, s["mu"])}
    grafted = m / c1
    if "nu" in s:
        v = keep * factors.entire(s["nu"]) + add * h * h
        new["nu"] = factors.placed_like(v, s["nu"])
        grafted = grafted / (jnp.sqrt(v / c) + graft_eps)
    # The weight is in the product, so that a sum of two products cannot be rounded in two ways.
    x = cut(h * jnp.sqrt(w2), most)
    for side, square in (("left", gram_of_rows), ("right", gram_of_columns)):
        if side in s:
            new[side] = b2 * s[side] + by_block(square, x)
    n = cut(m / c1, most)
    n = by_block(jnp.matmul, s["left_root"], n) if "left" in s else n
    n = joined(by_block(jnp.matmul, n, s["right_root"]) if "right" in s else n, g.shape, most)
    if grafting != "none":
        size = linalg.norm(n)
        n = n * (linalg.norm(grafted) / jnp.where(size > 0, size, 1.0))
    # There is no root before the first refresh.
    u = jnp.where(count > 0, n, jnp.zeros_like(n) if grafting == "none" else grafted)
    return factors.placed_like(u, g), s | new


def shampoo_refresh(s, p, *, t, b2, eps, exponent):
    """New roots of both factors."""
    sides = [side for side in ("left", "right") if side in s]
    e = 0.5 / len(sides) if exponent is None else exponent
    c2 = jnp.where(b2 < 1, 1 - b2**t, 1)
    return s | {f"{side}_root": factors.inverse_root(s[side] / c2, e, eps) for side in sides}


def scale_by_shampoo(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    grafting: str = "adam",
    graft_b2: ScalarOrSchedule = 0.999,
    graft_eps: ScalarOrSchedule = 1e-8,
    precondition_frequency: int = 10,
    max_preconditioner_size: int = 1024,
    *,
    exponent: float | None = None,
    one_sided: bool = False,
    axes: Any = None,
) -> Transform:
    """Divide the momentum of each matrix by roots of its two second moments, in the length of another optimizer.

        m ← β₁m + (1 − β₁)G,   L ← β₂L + w GGᵀ,   R ← β₂R + w GᵀG,   w = 1 − β₂, or 1 where β₂ = 1
        N = (L / c₂)⁻ᵉ (m / c₁) (R / c₂)⁻ᵉ,   cᵢ = 1 − βᵢᵗ
        U = N ‖D‖ / ‖N‖,   D the grafted step from m / c₁

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1]; 1 sums, as Adagrad does.
        eps: ε > 0; eigenvalues of L and R count as at least this share of the largest.
        grafting: whose length the step has: "sgd" (D = m / c₁), "adagrad", "rmsprop", "adam" (D divided
            by the root of their second moments), or "none" (U = N).
        graft_b2: β in [0, 1) of their second moments.
        graft_eps: ≥ 0, added to the root of their second moments.
        precondition_frequency: in how many updates each matrix gets new roots, one matrix after another.
        max_preconditioner_size: a longer side is cut into even blocks, each with factors of its own.
        exponent: e; None is 1/4 for two sides and 1/2 for one.
        one_sided: one factor only, of the shorter side.
        axes: which axes of an array are rows and columns, as for `scale_by_muon`; "any" takes every
            parameter, a vector as a column with one factor of its whole length.

    The first update is D itself (zero without grafting): there are no roots yet.
    Others than matrices are refused: `shampoo` routes them to AdamW.

    Differs: ε is relative to the largest eigenvalue; the original's is absolute. It refreshes all
        roots in the same step, before it; here they take turns, after it.
    Reference: [shi2023distributed]; [gupta2018shampoo].
    """
    if grafting not in GRAFTS:
        raise ValueError(
            f"scale_by_shampoo: grafting={grafting!r} was given, one of {GRAFTS} was expected. Name one of them."
        )
    return rule(
        "scale_by_shampoo",
        shampoo_step,
        slots=shampoo_slots,
        shared=shampoo_shared,
        refresh=shampoo_refresh,
        every="precondition_frequency",
        hyper={
            "b1": b1,
            "b2": b2,
            "eps": eps,
            "graft_b2": graft_b2,
            "graft_eps": graft_eps,
        },
        static={
            "grafting": grafting,
            "precondition_frequency": size(precondition_frequency, "scale_by_shampoo", "precondition_frequency"),
            "max_preconditioner_size": size(max_preconditioner_size, "scale_by_shampoo", "max_preconditioner_size"),
            "exponent": None if exponent is None else raw(number(exponent, "scale_by_shampoo", "exponent", POSITIVE)),
            "one_sided": bool(one_sided),
            "axes": matrix_axes("scale_by_shampoo", axes),
        },
        domain={"b1": DECAY, "b2": FRACTION, "eps": POSITIVE, "graft_b2": DECAY, "graft_eps": NONNEGATIVE},
        reads="matrix",
        axes="axes",
    )
