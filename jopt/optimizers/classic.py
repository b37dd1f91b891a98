"""The classics: gradient descent, momentum, AdaGrad, RMSProp, Adam, signs and trust ratios."""

from typing import Any

from jopt.partition import chain
from jopt.regularize import add_decayed_weights
from jopt.rules import (
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_ema,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_nadam,
    scale_by_rms,
    scale_by_rss,
    scale_by_sign,
    scale_by_stddev,
    scale_by_trust_ratio,
    scale_by_uncorrected_adam,
    trace,
)
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform, masked

__all__ = [
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "amsgrad",
    "lamb",
    "lars",
    "lion",
    "momentum",
    "nadam",
    "nadamw",
    "nesterov",
    "rmsprop",
    "sgd",
    "sign_sgd",
    "signum",
]


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    accumulator_dtype: Any = None,
) -> Transform:
    """Gradient descent, with momentum if asked.

    u = −γ g  or  −γ (g + μm + ...): see `trace`.
    """
    memory = [] if momentum is None else [trace(momentum, nesterov, accumulator_dtype)]
    return chain(*memory, scale_by_learning_rate(learning_rate))


def momentum(
    learning_rate: ScalarOrSchedule, momentum: ScalarOrSchedule = 0.9, accumulator_dtype: Any = None
) -> Transform:
    """Gradient descent with heavy-ball momentum.

    m ← g + μm,   u = −γ m
    """
    return sgd(learning_rate, momentum, False, accumulator_dtype)


def nesterov(
    learning_rate: ScalarOrSchedule, momentum: ScalarOrSchedule = 0.9, accumulator_dtype: Any = None
) -> Transform:
    """Gradient descent with Nesterov's momentum.

    m ← g + μm,   u = −γ (g + μm)
    """
    return sgd(learning_rate, momentum, True, accumulator_dtype)


def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: ScalarOrSchedule = 0.1,
    eps: ScalarOrSchedule = 1e-7,
) -> Transform:
    """AdaGrad: rates that shrink with the sum of squared gradients; for sparse features.

    See `scale_by_rss`.
    """
    return chain(scale_by_rss(initial_accumulator_value, eps), scale_by_learning_rate(learning_rate))


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-8,
    initial_scale: ScalarOrSchedule = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
) -> Transform:
    """RMSProp: gradients divided by the root of their recent mean square.

    See `scale_by_rms`, and `scale_by_stddev` for `centered`. Momentum comes after the rate.
    """
    scaling = scale_by_stddev if centered else scale_by_rms
    memory = [] if momentum is None else [trace(momentum, nesterov)]
    scaled = scaling(decay, eps, initial_scale, eps_in_sqrt, bias_correction)
    return chain(scaled, scale_by_learning_rate(learning_rate), *memory)


def adadelta(
    learning_rate: ScalarOrSchedule | None = None,
    rho: ScalarOrSchedule = 0.9,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdaDelta: AdaGrad with averages for sums, and steps in units of past steps.

    See `scale_by_adadelta`. Without a learning rate the sign is left as it is (optax's way).
    """
    decay = add_decayed_weights(weight_decay, weight_decay_mask, where=where)
    return chain(decay, scale_by_adadelta(rho, eps), scale_by_learning_rate(learning_rate))


def adam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    bias_correction: bool = True,
) -> Transform:
    """Adam: steps scaled by decaying moments of the gradient.

    See `scale_by_adam`; without `bias_correction` `scale_by_uncorrected_adam`.
    """
    if not bias_correction:
        moments = scale_by_uncorrected_adam(b1, b2, eps, eps_root, mu_dtype)
    else:
        moments = scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov)
    return chain(moments, scale_by_learning_rate(learning_rate))


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
    where: Any = None,
) -> Transform:
    """AdamW: Adam with decoupled weight decay; the usual choice for deep networks.

    u = −γ (Adam(g) + λp);   the decay λ is multiplied by the rate, as in torch and optax.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
) -> Transform:
    """NAdam: Adam with Nesterov's look-ahead.

    See `scale_by_nadam`.
    """
    return chain(scale_by_nadam(b1, b2, eps, eps_root, mu_dtype), scale_by_learning_rate(learning_rate))


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """NAdamW: NAdam with decoupled weight decay; AlgoPerf's baseline.

    u = −γ (NAdam(g) + λp)
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, mu_dtype, weight_decay, mask, nesterov=True, where=where)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> Transform:
    """AMSGrad: Adam whose rates never grow again.

    See `scale_by_amsgrad`.
    """
    moments = scale_by_amsgrad(b1, b2, eps, eps_root, mu_dtype, bias_correction_mu, bias_correction_nu)
    return chain(moments, scale_by_learning_rate(learning_rate))


def adamax(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
) -> Transform:
    """Adamax: Adam with the maximum norm; for embeddings and other gradients of uneven size.

    See `scale_by_adamax`.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdamaxW: Adamax with decoupled weight decay.

    u = −γ (Adamax(g) + λp)
    """
    return chain(
        scale_by_adamax(b1, b2, eps),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def lion(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """Lion: sign of an interpolated momentum, with decoupled weight decay; half of Adam's state.

    u = −γ (Lion(g) + λp);   take γ 3 to 10 times smaller and λ as much larger than with AdamW.
    """
    return chain(
        scale_by_lion(b1, b2, mu_dtype),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def sign_sgd(learning_rate: ScalarOrSchedule) -> Transform:
    """Sign descent: every coordinate moves by the learning rate.

    u = −γ sign(g)
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


def signum(learning_rate: ScalarOrSchedule, beta: ScalarOrSchedule = 0.9, accumulator_dtype: Any = None) -> Transform:
    """Signum: the sign of an averaged gradient.

    m ← βm + (1 − β)g,   u = −γ sign(m)
    """
    average = scale_by_ema(beta, debias=False, accumulator_dtype=accumulator_dtype)
    return chain(average, scale_by_sign(), scale_by_learning_rate(learning_rate))


def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: ScalarOrSchedule = 0.001,
    eps: ScalarOrSchedule = 0.0,
    trust_ratio_mask: Any = True,
    momentum: ScalarOrSchedule = 0.9,
    nesterov: bool = False,
) -> Transform:
    """LARS: momentum on steps scaled layer by layer; for very large batches of convolutional nets.

    u = momentum of  −γ (g + λp) η‖p‖ / ‖g + λp‖
    """
    return chain(
        masked(add_decayed_weights(weight_decay), weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """LAMB: AdamW steps scaled layer by layer; for very large batches of attention models.

    u = −γ a ‖p‖ / ‖a‖,   a = Adam(g) + λp
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )
