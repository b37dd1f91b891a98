"""Approximations of the inverse Hessian: of limited memory, and as a dense matrix."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Move(NamedTuple):
    """A step that was taken, and the gradient it led to.

    Attributes:
        s, y: by how much the point and the gradient have changed.
        ys: yᵀs.
        sbs: sᵀH⁻¹s.
        g: the new gradient.
        fresh: whether H is still a multiple of I.
        valid: whether s and y are to be learnt from; if not, H stays.
    """

    s: Any
    y: Any
    ys: Any
    sbs: Any
    g: Any
    fresh: Any
    valid: Any


class Kind(NamedTuple):
    """A way to approximate curvature.

    Attributes:
        start: ``(n, dtype, memory_size) -> model`` of H = I.
        restart: ``(model, scale) -> model`` of H = scale · I, nothing else remembered.
        update: ``(model, move) -> (model, Hg)``.
    """

    start: Callable[..., Any]
    restart: Callable[..., Any]
    update: Callable[..., Any]


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """A matrix product in full precision: accelerators would round float32 to bfloat16 or tf32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# Limited memory ----------------------------------------------------------------------------------


class Memory(NamedTuple):
    """The last m pairs (s, y), in a ring.

    Attributes:
        pairs: (2m, n), the rows of S and of Y.
        inverse: (m, m), R⁻¹ in the order of the ring; R is the triangle of SYᵀ where s is no later than y.
        squares: (m, m), YYᵀ.
        diagonal: (m,), the sᵀy.
        scale: γ, of the initial γI.
        place: int32, where the next pair goes.
    """

    pairs: Any
    inverse: Any
    squares: Any
    diagonal: Any
    scale: Any
    place: Any


def memory_start(n: int, dtype: Any, memory_size: int) -> Memory:
    """No pairs: the inverse Hessian is the identity."""
    m, square = memory_size, jnp.zeros((memory_size, memory_size), dtype)
    pairs, place = jnp.zeros((2 * m, n), dtype), jnp.zeros((), jnp.int32)
    return Memory(pairs, square, square, jnp.zeros(m, dtype), jnp.ones((), dtype), place)


def memory_restart(model: Memory, scale: Any) -> Memory:
    """Forget the pairs; the inverse Hessian is `scale` times the identity."""
    # Pairs without an entry in R⁻¹ have no influence.
    return model._replace(inverse=jnp.zeros_like(model.inverse), scale=scale)


def memory_update(model: Memory, move: Move) -> tuple[Memory, Any]:
    """Store a pair and multiply, in the compact form of Byrd, Nocedal and Schnabel.

        Hg = γg + Sᵀp − γYᵀq,   q = R⁻¹Sg,   p = R⁻ᵀ(Dq + γ(YYᵀq − Yg))

    That is two passes over the memory, where the two loops of algorithm 7.4 make 4m short ones. When the
    oldest pair leaves, what remains of R⁻¹ is the inverse of what remains of R; a new one adds a column.
    Reference: [byrd1994representations].
    """
    m, k, valid = model.diagonal.shape[0], model.place, move.valid
    s, y = (jnp.where(valid, new, model.pairs[row]) for new, row in ((move.s, k), (move.y, m + k)))
    pairs = model.pairs.at[k].set(s).at[m + k].set(y)
    products = product(pairs, jnp.stack([y, move.g], axis=1))
    sy, yy, sg, yg = products[:m, 0], products[m:, 0], products[:m, 1], products[m:, 1]

    here = jnp.arange(m, dtype=jnp.int32) == k
    row, column = here[:, None], here[None, :]
    kept = jnp.where(row | column, 0, model.inverse)
    added = jnp.where(here, 1, -product(kept, sy)) / move.ys
    new = Memory(
        pairs,
        jnp.where(column, added[:, None], kept),
        jnp.where(row, yy[None, :], jnp.where(column, yy[:, None], model.squares)),
        jnp.where(here, move.ys, model.diagonal),
        move.ys / jnp.sum(jnp.where(here, yy, 0)),
        jnp.where(k + 1 == m, 0, k + 1).astype(jnp.int32),
    )
    model = Memory(pairs, *(jnp.where(valid, a, b) for a, b in zip(new[1:], model[1:], strict=True)))
    q = product(model.inverse, sg)
    p = product(model.diagonal * q + model.scale * (product(model.squares, q) - yg), model.inverse)
    return model, model.scale * move.g + product(jnp.concatenate([p, -model.scale * q]), pairs)


# Dense matrices ----------------------------------------------------------------------------------


def dense_start(n: int, dtype: Any, memory_size: int) -> Any:
    """The identity."""
    return jnp.eye(n, dtype=dtype)


def dense_restart(model: Any, scale: Any) -> Any:
    """`scale` times the identity."""
    return scale * jnp.eye(model.shape[0], dtype=model.dtype)


def _dense_update(model: Any, move: Move, numbers: Callable[..., Any]) -> tuple[Any, Any]:
    """The self-scaled Broyden family; `numbers` gives φ and τ of b = sᵀH⁻¹s/(yᵀs) and h = yᵀHy/(yᵀs).

        v = s/(yᵀs) − Hy/(yᵀHy)
        H ← (H − Hy(Hy)ᵀ/(yᵀHy) + φ(yᵀHy)vvᵀ)/τ + ssᵀ/(yᵀs)

    Before the first update H becomes (yᵀs)/(yᵀy) I (Nocedal and Wright, 6.20).
    """
    valid = move.valid
    s, y, ys = (jnp.where(valid, x, other) for x, other in ((move.s, 0), (move.y, 0), (move.ys, 1)))
    products = product(model, jnp.stack([y, move.g], axis=1))
    scale = jnp.where(move.fresh & valid, ys / jnp.where(valid, jnp.sum(y * products[:, 0]), 1), 1)
    hy, hg = scale * products[:, 0], scale * products[:, 1]
    yhy = jnp.where(valid, jnp.sum(y * hy), 1)
    phi, tau = numbers(move.sbs / (scale * ys), yhy / ys, y.shape[0])
    phi, tau = jnp.where(valid, phi, 0) * yhy, jnp.where(valid, tau, 1)
    v = s / ys - hy / yhy

    def outer(a, b):
        return a[:, None] * b[None, :]

    model = (scale * model - outer(hy, hy / yhy) + outer(phi * v, v)) / tau + outer(s, s / ys)
    hg = (hg - hy * (jnp.sum(hy * move.g) / yhy) + v * (phi * jnp.sum(v * move.g))) / tau
    return model, hg + s * (jnp.sum(s * move.g) / ys)


def bfgs_numbers(b: Any, h: Any, n: int) -> tuple[Any, Any]:
    """BFGS: φ = τ = 1."""
    return jnp.ones_like(b), jnp.ones_like(b)


def ssbfgs_numbers(b: Any, h: Any, n: int) -> tuple[Any, Any]:
    """Self-scaled BFGS: φ = 1, τ = min(1, 1/b)."""
    return jnp.ones_like(b), jnp.minimum(1, 1 / b)


def ssbroyden_numbers(b: Any, h: Any, n: int) -> tuple[Any, Any]:
    """φ and τ of the self-scaled Broyden method.

        a = bh − 1,   c = √(a/(1 + a)),   ρ⁻ = min(1, h(1 − c)),   ρ⁺ = min(1, 1/b)
        θ = max((ρ⁻ − 1)/a, min(1/ρ⁻, (1 − b)/b)),   σ = 1 + aθ,   φ = (1 − θ)/σ
        τ = min(ρ⁺σ^(1/(1−n)), σ) if θ ≤ 0,   else ρ⁺ min(σ^(1/(1−n)), 1/θ)

    Reference: [urban2025unveiling], [kiyani2025optimizing].
    """
    tiny = jnp.finfo(b.dtype).eps
    # a ≥ 0 by Cauchy and Schwarz. At 0, as for n = 1, s and Hy are parallel, v is 0 and φ idle.
    a = jnp.maximum(b * h - 1, tiny)
    low, high = jnp.clip(h * (1 - jnp.sqrt(a / (1 + a))), tiny, 1), jnp.minimum(1, 1 / b)
    theta = jnp.maximum((low - 1) / a, jnp.minimum(1 / low, (1 - b) / b))
    sigma = jnp.maximum(1 + a * theta, tiny)
    root = sigma ** (1 / (1 - n)) if n > 1 else jnp.ones_like(sigma)
    above = high * jnp.minimum(root, 1 / jnp.where(theta > 0, theta, 1))
    return (1 - theta) / sigma, jnp.where(theta <= 0, jnp.minimum(high * root, sigma), above)


def bfgs_update(model: Any, move: Move) -> tuple[Any, Any]:
    """The BFGS update of a dense inverse Hessian."""
    return _dense_update(model, move, bfgs_numbers)


def ssbfgs_update(model: Any, move: Move) -> tuple[Any, Any]:
    """The same, self-scaled."""
    return _dense_update(model, move, ssbfgs_numbers)


def ssbroyden_update(model: Any, move: Move) -> tuple[Any, Any]:
    """The self-scaled member of Broyden's class."""
    return _dense_update(model, move, ssbroyden_numbers)


KINDS = {
    "lbfgs": Kind(memory_start, memory_restart, memory_update),
    "bfgs": Kind(dense_start, dense_restart, bfgs_update),
    "ssbfgs": Kind(dense_start, dense_restart, ssbfgs_update),
    "ssbroyden": Kind(dense_start, dense_restart, ssbroyden_update),
}
