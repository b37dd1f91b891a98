"""L-BFGS: the inverse Hessian from the last few steps and changes of the gradient."""

import functools

import jax
import jax.numpy as jnp

from jopt import dtypes
from jopt.linalg import Gradients
from jopt.paths import Flat
from jopt.rule import Own, Whole, no_params
from jopt.scalars import scalar_dtype, size
from jopt.state import check_kept
from jopt.transform import Transform, whole


def inner(a: Flat, b: Flat) -> jax.Array:
    """Re Σ ā b over the whole tree: complex arrays count as pairs of real ones."""
    products = [jnp.sum((jnp.conj(a[path]) * b[path]).real).astype(scalar_dtype()) for path in a]
    return functools.reduce(jnp.add, products, jnp.zeros((), scalar_dtype()))


def add(a: Flat, factor: jax.Array, b: Flat) -> Flat:
    """a + factor · b."""
    return {path: x + factor.astype(x.dtype) * b[path] for path, x in a.items()}


def lbfgs_init(params, *, memory_size):
    """No differences yet: the first direction is the gradient."""
    zeros = {path: jnp.zeros_like(p, dtype=dtypes.compute_dtype(p.dtype)) for path, p in params.items()}
    memory = {path: jnp.stack([z] * memory_size) for path, z in zeros.items()}
    return Own(
        slots={
            "params": zeros,
            "updates": {path: jnp.copy(z) for path, z in zeros.items()},
            "diff_params_memory": memory,
            "diff_updates_memory": {path: jnp.copy(m) for path, m in memory.items()},
        },
        scalars={"weights_memory": jnp.zeros(memory_size, scalar_dtype())},
    )


def lbfgs_update(grads, own, params, *, count, norms, memory_size, scale_init_precond):
    """Remember the last step, and multiply the gradient by the inverse Hessian it suggests."""
    if params is None:
        raise no_params(LBFGS.name)
    for slot, kept in own.slots.items():
        check_kept(LBFGS.name, kept, grads, (memory_size,) if slot.endswith("_memory") else ())
    params = {path: dtypes.compute(params[path]) for path in grads}
    begun, s_all, y_all = count > 0, own.slots["diff_params_memory"], own.slots["diff_updates_memory"]
    s, y = (
        {path: jnp.where(begun, x - own.slots[slot][path], jnp.zeros_like(x)) for path, x in new.items()}
        for slot, new in (("params", params), ("updates", grads))
    )
    ys, yy = inner(y, s), inner(y, y)
    one = jnp.ones_like(ys)
    rho = jnp.where(jnp.isfinite(one / ys) & jnp.isfinite(ys), one / jnp.where(ys == 0, one, ys), 0)

    last = jnp.mod(count - 1, memory_size)
    s_all, y_all = (
        {path: memory[path].at[last].set(x) for path, x in new.items()} for memory, new in ((s_all, s), (y_all, y))
    )
    rhos = own.scalars["weights_memory"].at[last].set(rho)

    # A sum of squares can overflow; then, as for a y of zero, nothing is known of the scale.
    quotient = ys / jnp.where(yy > 0, yy, one)
    known = (yy > 0) & jnp.isfinite(yy) & jnp.isfinite(quotient)
    first = one / jnp.maximum(Gradients(grads, norms).norm().astype(one.dtype), one)
    gamma = jnp.where(begun, jnp.where(known, quotient, one), first) if scale_init_precond else one
    ages = jnp.mod(count + jnp.arange(memory_size, dtype=jnp.int32), memory_size)
    direction = _two_loops(grads, s_all, y_all, rhos, gamma, ages)
    finite = [jnp.all(jnp.isfinite(d)) for d in direction.values()]
    fine = functools.reduce(jnp.logical_and, finite, jnp.ones((), bool))
    direction = {path: jnp.where(fine, d, first.astype(d.dtype) * grads[path]) for path, d in direction.items()}
    slots = {"params": params, "updates": grads, "diff_params_memory": s_all, "diff_updates_memory": y_all}
    return direction, own._replace(slots=slots, scalars={"weights_memory": rhos})


def _two_loops(g, s_all, y_all, rhos, gamma, ages):
    """Algorithm 7.4 of Nocedal and Wright; `ages` are the places in the memory, the oldest first."""

    def newest_to_oldest(q, i):
        s, y = ({path: memory[path][i] for path in q} for memory in (s_all, y_all))
        alpha = rhos[i] * inner(s, q)
        return add(q, -alpha, y), alpha

    def oldest_to_newest(r, i_alpha):
        i, alpha = i_alpha
        s, y = ({path: memory[path][i] for path in r} for memory in (s_all, y_all))
        return add(r, alpha - rhos[i] * inner(y, r), s), None

    q, alphas = jax.lax.scan(newest_to_oldest, g, ages, reverse=True)
    r = {path: gamma.astype(x.dtype) * x for path, x in q.items()}
    return jax.lax.scan(oldest_to_newest, r, (ages, alphas))[0]


LBFGS = Whole("scale_by_lbfgs", lbfgs_update, lbfgs_init)


def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> Transform:
    """Multiply by the inverse Hessian that the last steps suggest: the direction of L-BFGS.

        s = p − p₋,   y = g − g₋,   ρ = 1/(yᵀs)
        H ← (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ   from γI, over the last m pairs, the oldest first
        γ = yᵀs/(yᵀy),   at the first step min(1, 1/‖g‖)
        u = Hg

    For smooth functions and exact gradients, followed by a line search: `lbfgs` is both.
    `jopt.minimize` runs a whole minimization, and faster.

    Args:
        memory_size: m ≥ 1, how many steps are remembered: 2m + 2 arrays of the parameter's size.
        scale_init_precond: whether γ is as above, or 1.

    Differs: a direction that is not finite, as of numbers that overflow, is the gradient, cut to norm 1.
    Reference: [liu1989limited], [nocedal2006numerical].
    """
    m = size(memory_size, "scale_by_lbfgs", "memory_size")
    return whole(LBFGS, static={"memory_size": m, "scale_init_precond": bool(scale_init_precond)})
