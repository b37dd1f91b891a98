"""Regularisation: decay, sparsity, noise, and constraints on the parameters themselves."""

from typing import Any

import jax
import jax.numpy as jnp

from jopt.clip import unit_norm
from jopt.scalars import NONNEGATIVE, POSITIVE, ScalarOrSchedule
from jopt.transform import Transform, masked, rule


def decay_step(g, s, p, *, weight_decay):
    return g + weight_decay * p, s


def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None, *, where: Any = None) -> Transform:
    """Add a multiple of the parameters to the update.

        u = g + λp

    Before the optimizer's rule this is the gradient of (λ/2)Σp² (coupled, L2); between the rule and
    `scale_by_learning_rate` it is decoupled weight decay.

    Args:
        weight_decay: λ, a number or a schedule.
        mask: optax's form: a tree of booleans, or a function of the parameters that makes one.
        where: glob, regex or predicate of the leaves to decay; None decays all.

    Reference: [loshchilov2019decoupled].
    """
    return _where(rule("add_decayed_weights", decay_step, hyper={"weight_decay": weight_decay}), mask, where)


def cautious_decay_step(g, s, p, *, weight_decay):
    agrees = jnp.sign(g) * jnp.sign(p) >= 0
    return g + jnp.where(agrees, weight_decay * p, jnp.zeros_like(p)), s


def add_cautious_decay(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None, *, where: Any = None) -> Transform:
    """Decay the weights that the update itself does not push away from zero.

        u = g + λp where gp ≥ 0, else g

    Between the optimizer's rule and `scale_by_learning_rate`, in the place of `add_decayed_weights`.

    Args:
        weight_decay: λ, a number or a schedule.
        mask: optax's form: a tree of booleans, or a function of the parameters that makes one.
        where: glob, regex or predicate of the leaves to decay; None decays all.

    Reference: [chen2025cautious].
    """
    return _where(rule("add_cautious_decay", cautious_decay_step, hyper={"weight_decay": weight_decay}), mask, where)


def _where(tx: Transform, mask: Any, where: Any) -> Transform:
    return tx if mask is None and where is None else masked(tx, mask, where=where)


def l1_step(g, s, p, *, l1):
    return g + l1 * jnp.sign(p), s


def add_l1_subgradient(l1: ScalarOrSchedule, *, where: Any = None) -> Transform:
    """Add the subgradient of an L1 penalty.

        u = g + λ sign(p)

    Args:
        l1: λ ≥ 0.
        where: glob, regex or predicate of the leaves to penalise; None takes all.

    Weights hover about zero and do not reach it; `soft_threshold` makes exact zeros.
    """
    return _where(rule("add_l1_subgradient", l1_step, hyper={"l1": l1}, domain={"l1": NONNEGATIVE}), None, where)


def soft_threshold_step(u, s, p, *, l1, step_size):
    x, k = p + u, l1 * step_size
    return jnp.sign(x) * jnp.maximum(jnp.abs(x) - k, 0) - p, s


def soft_threshold(l1: ScalarOrSchedule, step_size: ScalarOrSchedule, *, where: Any = None) -> Transform:
    """Move the stepped parameters towards zero, and onto it: the proximal step of an L1 penalty.

        x = p + u
        u ← sign(x) max(|x| − λγ, 0) − p

    Last in a chain, after `scale_by_learning_rate`.

    Args:
        l1: λ ≥ 0.
        step_size: γ ≥ 0, the learning rate or the same schedule.
        where: glob, regex or predicate of the leaves to penalise; None takes all.

    Reference: [beck2009fast].
    """
    tx = rule(
        "soft_threshold",
        soft_threshold_step,
        hyper={"l1": l1, "step_size": step_size},
        domain={"l1": NONNEGATIVE, "step_size": NONNEGATIVE},
    )
    return _where(tx, None, where)


def noise_shared(*, t, eta, gamma):
    return {"deviation": jnp.sqrt(eta / t**gamma)}


def noise_step(g, s, p, *, key, deviation):
    return g + deviation * jax.random.normal(key, g.shape, g.dtype), s


def add_noise(eta: ScalarOrSchedule, gamma: ScalarOrSchedule, key: Any = 0) -> Transform:
    """Add Gaussian noise that fades.

        u = g + √(η / tᵞ) n,   n ~ N(0, 1)

    Args:
        eta: η ≥ 0, the variance at the first step.
        gamma: γ ≥ 0, how fast it fades.
        key: seed or random key. Each leaf and step has noise of its own, which depends on the key,
            the path and the step only, so that resuming or adding parameters does not shift it.

    Reference: [neelakantan2015adding].
    """
    return rule(
        "add_noise",
        noise_step,
        shared=noise_shared,
        hyper={"eta": eta, "gamma": gamma},
        domain={"eta": NONNEGATIVE, "gamma": NONNEGATIVE},
        key=key,
    )


def nonnegative_step(u, s, p):
    return jnp.where(p + u < 0, -p, u), s


def keep_params_nonnegative() -> Transform:
    """Stop parameters at zero that a step would take below it.

        u ← −p where p + u < 0

    Last in a chain, after `scale_by_learning_rate`.
    """
    return rule("keep_params_nonnegative", nonnegative_step)


def clip_params_step(u, s, p, *, low, high):
    return jnp.clip(p + u, low, high) - p, s


def clip_params(low: ScalarOrSchedule, high: ScalarOrSchedule, *, where: Any = None) -> Transform:
    """Keep the stepped parameters in a range (weight clipping).

        u ← min(max(p + u, a), b) − p

    Last in a chain, after `scale_by_learning_rate`.

    Args:
        low: a.
        high: b.
        where: glob, regex or predicate of the leaves to clip; None takes all.

    Raises:
        ValueError: low > high.

    Reference: [arjovsky2017wasserstein].
    """
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        raise ValueError(f"clip_params: low={low} and high={high} were given, low ≤ high was expected. Swap them.")
    domain = {"low": "[-inf, inf]", "high": "[-inf, inf]"}
    return _where(rule("clip_params", clip_params_step, hyper={"low": low, "high": high}, domain=domain), None, where)


def max_norm_step(u, s, p, *, max_norm, axis):
    x = p + u
    norm = unit_norm(x, axis)
    over = norm > max_norm
    return x * jnp.where(over, max_norm / jnp.where(over, norm, 1), 1).astype(x.dtype) - p, s


def max_norm_constraint(
    max_norm: ScalarOrSchedule, axis: int | tuple[int, ...] | None = None, *, where: Any = None
) -> Transform:
    """Keep the weight vector of each unit inside a ball.

        x = p + u
        uᵢ ← xᵢ · min(1, c / ‖xᵢ‖) − pᵢ   for each output unit i

    Last in a chain, after `scale_by_learning_rate`.

    Args:
        max_norm: c > 0.
        axis: the axes one unit reaches over; None takes all but the last of a kernel.
        where: glob, regex or predicate of the leaves to constrain; None takes all.

    Reference: [srivastava2014dropout], section 5.1.
    """
    tx = rule(
        "max_norm_constraint",
        max_norm_step,
        hyper={"max_norm": max_norm},
        static={"axis": axis if axis is None or isinstance(axis, int) else tuple(axis)},
        domain={"max_norm": POSITIVE},
        reads="array",
        complex="native",
    )
    return _where(tx, None, where)
