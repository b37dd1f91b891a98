"""Optimizers that estimate their rate, or read the loss or its curvature."""

from typing import Any

from jopt.partition import chain
from jopt.regularize import add_decayed_weights
from jopt.rules import (
    identity,
    scale,
    scale_by_adahessian,
    scale_by_cocob,
    scale_by_dadapt_adamw,
    scale_by_dog,
    scale_by_dowg,
    scale_by_learning_rate,
    scale_by_momo,
    scale_by_momo_adam,
    scale_by_polyak,
    scale_by_prodigy,
    scale_by_sophia,
)
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = [
    "adahessian",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "momo",
    "momo_adam",
    "polyak_sgd",
    "prodigy",
    "sophia",
]


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[ScalarOrSchedule, ScalarOrSchedule] = (0.9, 0.999),
    beta3: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ScalarOrSchedule = 1e-6,
    estim_lr_coef: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    safeguard_warmup: bool = False,
) -> Transform:
    """Prodigy: AdamW that estimates its rate; leave `learning_rate` at 1, or give a schedule from 1 to 0.

    See `scale_by_prodigy`, also for how to read the estimate.
    """
    b1, b2 = betas
    direction = scale_by_prodigy(
        learning_rate, b1, b2, beta3, eps, estim_lr0, estim_lr_coef, weight_decay, safeguard_warmup
    )
    return chain(direction, scale(-1.0))


def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[ScalarOrSchedule, ScalarOrSchedule] = (0.9, 0.999),
    eps: ScalarOrSchedule = 1e-8,
    estim_lr0: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
) -> Transform:
    """D-Adaptation: AdamW that estimates its rate; leave `learning_rate` at 1, or give a schedule from 1 to 0.

    See `scale_by_dadapt_adamw`, also for how to read the estimate.
    """
    b1, b2 = betas
    return chain(scale_by_dadapt_adamw(learning_rate, b1, b2, eps, estim_lr0, weight_decay), scale(-1.0))


def _decay(weight_decay, mask):
    return identity() if weight_decay is None else add_decayed_weights(weight_decay, mask)


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[str, float] = ("heuristic", 1e-6),
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Any = None,
) -> Transform:
    """DoG: gradient descent whose rate is the distance travelled over the root of all squared gradients.

    See `scale_by_dog`. Evaluate an average of the parameters (`ema`), as its authors do.
    """
    return chain(_decay(weight_decay, mask), scale_by_dog(init_step, eps), scale_by_learning_rate(learning_rate))


def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-4,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Any = None,
) -> Transform:
    """DoWG: DoG with gradients weighted by the distance, so that early ones count less.

    See `scale_by_dowg`.
    """
    rule = scale_by_dowg(init_estim_sq_dist, eps)
    return chain(_decay(weight_decay, mask), rule, scale_by_learning_rate(learning_rate))


def polyak_sgd(
    max_learning_rate: ScalarOrSchedule = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 0.0,
    variant: str = "sps",
) -> Transform:
    """Gradient descent with Polyak's step size, which reads the loss: ``update(..., value=loss)``.

    See `scale_by_polyak`, which gets −scaling · g; so that a scaling s divides the step by s.
    """
    return chain(scale_by_learning_rate(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))


def momo(
    learning_rate: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 0.9,
    lower_bound: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> Transform:
    """MoMo: momentum with a step size read off the loss, ``update(..., value=loss)``; `learning_rate` bounds it.

    See `scale_by_momo`.
    """
    return chain(scale_by_momo(learning_rate, beta, lower_bound, weight_decay, adapt_lower_bound), scale(-1.0))


def momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    lower_bound: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    adapt_lower_bound: bool = False,
) -> Transform:
    """MoMo-Adam: Adam with a step size read off the loss, ``update(..., value=loss)``; `learning_rate` bounds it.

    See `scale_by_momo_adam`.
    """
    rule = scale_by_momo_adam(learning_rate, b1, b2, eps, lower_bound, weight_decay, adapt_lower_bound)
    return chain(rule, scale(-1.0))


def cocob(
    learning_rate: ScalarOrSchedule = 1.0,
    alpha: ScalarOrSchedule = 100.0,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> Transform:
    """COCOB: coin betting, which has no rate; `learning_rate` scales the gradients and hardly matters.

    See `scale_by_cocob`.
    """
    return chain(add_decayed_weights(weight_decay, mask), scale(learning_rate), scale_by_cocob(alpha, eps))


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    weight_decay_mask: Any = None,
    gamma: ScalarOrSchedule = 0.01,
    clip_threshold: ScalarOrSchedule | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: Any = None,
    mu_dtype: Any = None,
) -> Transform:
    """Sophia: momentum over a diagonal of the curvature, clipped; ``update(..., obj_fn=loss_of_params)``.

    See `scale_by_sophia`, also for Sophia-G.
    """
    rule = scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, hessian_diagonal_fn, mu_dtype)
    return chain(rule, add_decayed_weights(weight_decay, weight_decay_mask), scale_by_learning_rate(learning_rate))


def adahessian(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-4,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    hessian_power: ScalarOrSchedule = 1.0,
    hessian_diagonal_fn: Any = None,
) -> Transform:
    """AdaHessian: Adam over a diagonal of the Hessian, with decoupled decay; ``update(..., obj_fn=loss_of_params)``.

    See `scale_by_adahessian`. Its authors train with a rate of 0.15.
    """
    rule = scale_by_adahessian(b1, b2, eps, hessian_power, hessian_diagonal_fn)
    return chain(rule, add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
