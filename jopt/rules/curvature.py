"""Steps divided by an estimate of the curvature (Sophia, AdaHessian), and the estimators."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt import dtypes, linalg
from jopt.rule import Own, Whole
from jopt.rules.each import each, opened, wide, zeros
from jopt.rules.slots import dtype_name
from jopt.scalars import DECAY, FRACTION, POSITIVE, ScalarOrSchedule, scalar_dtype, size
from jopt.transform import Transform, as_transform, whole
from jopt.update import salt


def _signs(key, path, p):
    drawn = jax.random.rademacher(jax.random.fold_in(key, salt(path)), p.shape, p.dtype)
    return jnp.zeros_like(p) + drawn  # sharded as the parameter is


def hutchinson_update(grads, own, params, *, key, layout, rest, obj_fn):
    """A new estimate v ⊙ Hv of the diagonal, from a random v."""
    x = wide(params, "hutchinson_estimator_diag_hessian")
    r = {path: _signs(key, path, p) for path, p in x.items()}
    product = jax.jvp(jax.grad(lambda flat: obj_fn(layout.tree(rest | flat))), (x,), (r,))[1]
    return {path: r[path] * product[path] for path in grads}, own


HUTCHINSON = Whole("hutchinson_estimator_diag_hessian", hutchinson_update, complex=False)


def hutchinson_estimator_diag_hessian(random_seed: Any = None, *, key: Any = 0) -> Transform:
    """Replace the gradient by an unbiased estimate of the diagonal of the Hessian (Hutchinson).

        u = r ⊙ Hr,   H the Hessian at p, r random signs

    Needs the loss as a function of the parameters: ``update(grads, state, params, obj_fn=f)``. f is
    called with the whole tree; what is estimated for is float32 or wider in it.

    Args:
        random_seed: a seed or a key; optax's name for `key`, which it replaces.
        key: a seed or a key.

    Differs: each parameter has a stream of its own, by its path, and resuming shifts none.
    Reference: [liu2024sophia], Algorithm 1.
    """
    return whole(HUTCHINSON, key=key if random_seed is None else random_seed)


def gauss_newton_update(grads, own, params, *, key, layout, rest, sampled_obj_fn, batch_size):
    """A new estimate of the diagonal, from a gradient at drawn labels."""
    x = wide(params, "gauss_newton_estimator_diag_hessian")
    sampled = jax.grad(lambda flat: sampled_obj_fn(layout.tree(rest | flat), key))(x)
    return {
        path: batch_size.astype(g.dtype) * jnp.square(dtypes.enter(sampled[path])) for path, g in grads.items()
    }, own


GAUSS_NEWTON = Whole("gauss_newton_estimator_diag_hessian", gauss_newton_update, complex=False)


def gauss_newton_estimator_diag_hessian(batch_size: ScalarOrSchedule, *, key: Any = 0) -> Transform:
    """Replace the gradient by an estimate of the diagonal of the Gauss-Newton matrix (Gauss-Newton-Bartlett).

        u = B ĝ ⊙ ĝ,   ĝ the gradient of the mean loss over B examples, with labels drawn from the model itself

    It is never negative, and costs one gradient. Needs that loss at each update:
    ``update(grads, state, params, sampled_obj_fn=f)``, where f(params, key) draws the labels, for
    cross-entropy by ``jax.random.categorical(key, logits)``, and returns the mean. Which labels are
    right does not enter. f is called with the whole tree; what is estimated for is float32 or wider in
    it.

    Args:
        batch_size: B ≥ 1, how many examples (for a language model: tokens) f averages over.
        key: a seed or a key.

    Reference: [liu2024sophia], Algorithm 2.
    """
    return whole(GAUSS_NEWTON, hyper={"batch_size": batch_size}, domain={"batch_size": "[1, inf)"}, key=key)


def sophia_init(params, *, mu_dtype, inner):
    """No momentum, no curvature, and the estimator's own state."""
    x = {path: dtypes.compute(p) for path, p in params.items()}
    mu = {path: jnp.zeros_like(p, dtype=mu_dtype) for path, p in x.items()}
    return Own({"mu": mu, "nu": zeros(x)}, {"win_rate": jnp.zeros((), scalar_dtype())}, inner(params))


def sophia_step(g, s, p, *, b1, c1, gamma, eps):
    m = b1 * s["mu"] + (1 - b1) * g
    return m / c1 / jnp.maximum(gamma * s["nu"], eps), s | {"mu": m}


def clipped(g, s, p, *, threshold):
    """The ratio of momentum and curvature, within ± the threshold."""
    return jnp.clip(g, -threshold, threshold), s


def inside(u, *, threshold):
    """1 where the threshold left an element as it was, else 0."""
    return (jnp.abs(u) < threshold).astype(u.dtype)


def curvature_step(g, s, p, *, b2):
    return g, {"nu": b2 * s["nu"] + (1 - b2) * g}


def sophia_update(grads, own, params, *, t, count, inner, b1, b2, eps, gamma, clip_threshold, update_interval):
    """A step along the clipped ratio of momentum and curvature."""
    g, x = opened("scale_by_sophia", grads, own, params)
    u, slots = each(sophia_step, g, own.slots, x, b1=b1, c1=1 - b1**t, gamma=gamma, eps=eps)
    win_rate = jnp.ones((), scalar_dtype())
    if clip_threshold is not None:
        size = max(sum(y.size for y in u.values()), 1)
        win_rate = linalg.total(inside, u, threshold=clip_threshold) / size
        u, _ = each(clipped, u, {}, x, threshold=clip_threshold)

    def refreshed(kept):
        nu, state = kept
        curvature, state = inner.update(grads, state, params)
        return each(curvature_step, curvature, {"nu": nu}, x, b2=b2)[1]["nu"], state

    # `cond` and not `run_if`: the loss that the estimator calls closes over the batch.
    nu, state = jax.lax.cond(count % update_interval == 0, refreshed, lambda kept: kept, (slots["nu"], own.inner))
    return u, Own(slots | {"nu": nu}, {"win_rate": win_rate}, state)


SOPHIA = Whole("scale_by_sophia", sophia_update, sophia_init, complex=False, wraps="hessian_diagonal_fn")


def scale_by_sophia(
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.01,
    clip_threshold: ScalarOrSchedule | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Any = None,
    mu_dtype: Any = None,
) -> Transform:
    """Divide momentum by a moving average of the curvature, and clip each element.

        m ← β₁m + (1 − β₁)g
        u = clip(m / c₁ / max(γh, ε), ±ρ),   c₁ = 1 − β₁ᵗ
        h ← β₂h + (1 − β₂)ĥ   after every k-th update, from the first on

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0; where the curvature is smaller or negative the step is ±ρ.
        gamma: γ > 0; larger clips less.
        clip_threshold: ρ > 0; None does not clip.
        update_interval: k ≥ 1.
        hessian_diagonal_fn: a transform that replaces gradients by ĥ; None is
            `hutchinson_estimator_diag_hessian` (Sophia-H, which needs ``obj_fn=``), and
            `gauss_newton_estimator_diag_hessian` makes Sophia-G.
        mu_dtype: dtype of m in the state; None is float32 or wider.

    The share of elements that are not clipped is ``state.scalars["scale_by_sophia"]["win_rate"]``; the
    authors want 0.1 to 0.5, and a larger γ where it is less.

    Differs: m is corrected, and the first update has h = 0, as in optax; the paper estimates first
        and does not correct.
    Reference: [liu2024sophia], Algorithm 3.
    """
    k = size(update_interval, "scale_by_sophia", "update_interval")
    numbers = {"b1": b1, "b2": b2, "eps": eps, "gamma": gamma, "clip_threshold": clip_threshold}
    fixed: dict[str, Any] = {"update_interval": k, "mu_dtype": dtype_name(mu_dtype, "scale_by_sophia", "mu_dtype")}
    if clip_threshold is None:
        fixed["clip_threshold"] = numbers.pop("clip_threshold")
    estimator = hutchinson_estimator_diag_hessian() if hessian_diagonal_fn is None else hessian_diagonal_fn
    return whole(
        SOPHIA,
        hyper=numbers,
        static=fixed,
        domain={"b1": DECAY, "b2": DECAY, "eps": POSITIVE, "gamma": POSITIVE, "clip_threshold": POSITIVE},
        inner=as_transform(estimator, "scale_by_sophia"),
    )


def adahessian_init(params, *, inner):
    """No moments, and the estimator's own state."""
    x = {path: dtypes.compute(p) for path, p in params.items()}
    return Own({"mu": zeros(x), "nu": zeros(x)}, {}, inner(params))


def averaged(d):
    """The curvature of a kernel of a convolution by its mean over space: axes (..., inputs, outputs)."""
    space = tuple(range(d.ndim - 2)) if d.ndim in (4, 5) else ()
    return jnp.broadcast_to(jnp.mean(d, axis=space, keepdims=True), d.shape) if space and d.size else d


def squared_step(d, s, p, *, b2):
    return d, {"nu": b2 * s["nu"] + (1 - b2) * jnp.square(averaged(d))}


def adahessian_step(g, s, p, *, b1, c1, c2, eps, hessian_power):
    m = b1 * s["mu"] + (1 - b1) * g
    return (m / c1) / (jnp.sqrt(s["nu"] / c2) ** hessian_power + eps), s | {"mu": m}


def adahessian_update(grads, own, params, *, t, inner, b1, b2, eps, hessian_power):
    """A step of Adam whose second moment is that of the averaged diagonal."""
    g, x = opened("scale_by_adahessian", grads, own, params)
    estimate, state = inner.update(grads, own.inner, params)
    curvature = {path: dtypes.enter(d) for path, d in estimate.items()}
    _, squares = each(squared_step, curvature, {"nu": own.slots["nu"]}, x, b2=b2)
    numbers = {"b1": b1, "c1": 1 - b1**t, "c2": 1 - b2**t, "eps": eps, "hessian_power": hessian_power}
    u, slots = each(adahessian_step, g, own.slots | squares, x, **numbers)
    return u, Own(slots, {}, state)


ADAHESSIAN = Whole(
    "scale_by_adahessian", adahessian_update, adahessian_init, complex=False, wraps="hessian_diagonal_fn"
)


def scale_by_adahessian(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-4,
    hessian_power: ScalarOrSchedule = 1.0,
    hessian_diagonal_fn: Any = None,
) -> Transform:
    """AdaHessian: Adam with the diagonal of the Hessian in place of the gradient in the second moment.

        m ← β₁m + (1 − β₁)g
        v ← β₂v + (1 − β₂)d²,   d an estimate of the diagonal, averaged over space
        u = (m / c₁) / (√(v / c₂)ᵏ + ε),   cᵢ = 1 − βᵢᵗ

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).
        eps: ε > 0.
        hessian_power: k in [0, 1]; 1 is Newton's step, 0 is momentum.
        hessian_diagonal_fn: a transform that replaces gradients by d; None is
            `hutchinson_estimator_diag_hessian`, which needs ``update(..., obj_fn=loss_of_params)``.

    Kernels of convolutions, which are parameters of 4 or 5 axes with (inputs, outputs) last, have one d
    for each pair of inputs and outputs: its mean over the other axes. Every update costs one product with
    the Hessian, about a second gradient.

    Differs: the paper also averages over blocks of other arrays; the authors' code averages |d| over space,
        and like this leaves other arrays as they are.
    Reference: [yao2021adahessian], Algorithm 1.
    """
    estimator = hutchinson_estimator_diag_hessian() if hessian_diagonal_fn is None else hessian_diagonal_fn
    return whole(
        ADAHESSIAN,
        hyper={"b1": b1, "b2": b2, "eps": eps, "hessian_power": hessian_power},
        domain={"b1": DECAY, "b2": DECAY, "eps": POSITIVE, "hessian_power": FRACTION},
        inner=as_transform(estimator, "scale_by_adahessian"),
    )
