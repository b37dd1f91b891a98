"""Adam's descendants: other moments, other orders of averaging, cautious and corrected steps."""

from typing import Any

from jopt.optimizers.classic import adamw
from jopt.partition import chain, partition
from jopt.paths import everything_else, ndim
from jopt.paths import mask as chosen_by_mask
from jopt.paths import where as choose
from jopt.regularize import add_decayed_weights, add_noise
from jopt.rules import (
    scale,
    scale_by_acprop,
    scale_by_adam,
    scale_by_adan,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_belief,
    scale_by_laprop,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_madgrad,
    scale_by_mars,
    scale_by_novograd,
    scale_by_optimistic_gradient,
    scale_by_radam,
    scale_by_rprop,
    scale_by_simplified_ademamix,
    scale_by_stable_adam,
    scale_by_yogi,
    scale_with_corrected_decay,
)
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform
from jopt.wrap import cautious

__all__ = [
    "acprop",
    "adabelief",
    "adamc",
    "adan",
    "ademamix",
    "adopt",
    "cautious_adamw",
    "cautious_lion",
    "laprop",
    "madgrad",
    "mars",
    "noisy_sgd",
    "novograd",
    "optimistic_adam_v2",
    "optimistic_gradient_descent",
    "radam",
    "rprop",
    "simplified_ademamix",
    "stable_adamw",
    "yogi",
]


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    *,
    nesterov: bool = False,
) -> Transform:
    """AdaBelief: Adam with the spread of the gradients about their mean for their squares.

    See `scale_by_belief`.
    """
    return chain(scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), scale_by_learning_rate(learning_rate))


def acprop(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-16,
    eps_root: ScalarOrSchedule = 1e-16,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """ACProp: each gradient divided by the spread of those before it.

    See `scale_by_acprop`.
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def yogi(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-3,
) -> Transform:
    """Yogi: Adam whose rates grow back slowly after large gradients.

    See `scale_by_yogi`.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


def radam(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    threshold: ScalarOrSchedule = 5.0,
    *,
    nesterov: bool = False,
) -> Transform:
    """RAdam: Adam with a warm-up that follows from how uncertain its second moment is.

    See `scale_by_radam`.
    """
    moments = scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov)
    return chain(moments, scale_by_learning_rate(learning_rate))


def adan(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.98,
    b2: ScalarOrSchedule = 0.92,
    b3: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """Adan: averages of the gradient and of its change, for Nesterov's momentum.

    See `scale_by_adan`. The authors divide by 1 + γλ where decoupled decay multiplies by 1 − γλ.
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.25,
    eps: ScalarOrSchedule = 1e-6,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
) -> Transform:
    """NovoGrad: gradients divided by the norm of their array, with momentum; one moment a parameter.

    See `scale_by_novograd`.
    """
    return chain(scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate))


def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule, alpha: ScalarOrSchedule = 1.0, beta: ScalarOrSchedule = 1.0
) -> Transform:
    """Gradient descent that expects the gradient to change as it did: for min-max games.

    u = −γ (αg + β(g − g′))
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


def optimistic_adam_v2(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: ScalarOrSchedule = 1.0,
    beta: ScalarOrSchedule = 1.0,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    nesterov: bool = True,
) -> Transform:
    """Adam whose update is extrapolated, for min-max games.

    See `scale_by_adam` and `scale_by_optimistic_gradient`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )


def rprop(
    learning_rate: ScalarOrSchedule,
    eta_minus: ScalarOrSchedule = 0.5,
    eta_plus: ScalarOrSchedule = 1.2,
    min_step_size: ScalarOrSchedule = 1e-6,
    max_step_size: ScalarOrSchedule = 50.0,
) -> Transform:
    """Rprop: a step size for each element, from the signs of its gradient; for full batches only.

    See `scale_by_rprop`.
    """
    return chain(scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0))


def noisy_sgd(
    learning_rate: ScalarOrSchedule,
    eta: ScalarOrSchedule = 0.01,
    gamma: ScalarOrSchedule = 0.55,
    key: Any = 0,
) -> Transform:
    """Gradient descent with Gaussian noise that fades.

    u = −γ (g + n): see `add_noise`.
    """
    return chain(add_noise(eta, gamma, key), scale_by_learning_rate(learning_rate))


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: Any = None,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: ScalarOrSchedule | None = None,
) -> Transform:
    """ADOPT: Adam that converges with every b2.

    See `scale_by_adopt`.
    """
    moments = scale_by_adopt(
        b1, b2, eps, mu_dtype, nesterov=nesterov, use_clipping=use_clipping, clip_value_fn=clip_value_fn
    )
    return chain(moments, scale_by_learning_rate(learning_rate))


def laprop(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-15,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """LaProp: gradients divided first and averaged afterwards, with decoupled weight decay.

    u = −γ (LaProp(g) + λp)
    """
    return chain(
        scale_by_laprop(b1, b2, eps, mu_dtype),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdEMAMix: AdamW with a fast and a slow average of the gradient; for long runs.

    See `scale_by_ademamix`, also for the warm-ups of `alpha` and `b3`.
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root, mu_dtype),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.99,
    b2: ScalarOrSchedule = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """AdEMAMix with one first moment: a slow sum, and the gradient itself.

    See `scale_by_simplified_ademamix`.
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def madgrad(
    learning_rate: ScalarOrSchedule,
    momentum: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    eps: ScalarOrSchedule = 1e-6,
) -> Transform:
    """MADGRAD: dual averaging with cube roots and momentum.

    See `scale_by_madgrad`. The decay is L2: it enters the sums.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))


def mars(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    max_norm: ScalarOrSchedule = 1.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_weight_decay: ScalarOrSchedule = 0.1,
    where: Any = None,
) -> Transform:
    """MARS-AdamW on matrices: gradients corrected by their change; AdamW on everything else.

    Matrices: see `scale_by_mars`. Their numbers are named ``mars/...``, those of the others ``adam/...``.

    Args:
        mask: of the parameters to decay, in both halves; None takes all, vectors by `adam_weight_decay`.
        where: which parameters go to MARS; None takes every 2-D one.
        adam_learning_rate: None takes `learning_rate`.
    """
    mars_parts = chain(
        scale_by_mars(b1, b2, eps, gamma, max_norm, mu_dtype),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    adam_parts = adamw(rate, adam_b1, adam_b2, eps, 0.0, mu_dtype, adam_weight_decay, mask)
    matrices = ndim(2) if where is None else choose(where)
    return partition([("mars", matrices, mars_parts), ("adam", everything_else, adam_parts)], idle="allow")


def adamc(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_root: ScalarOrSchedule = 0.0,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    max_learning_rate: ScalarOrSchedule | None = None,
    where: Any = None,
) -> Transform:
    """AdamC: AdamW whose decay falls with the square of the learning rate.

    u = −γ (Adam(g) + λ(γ / γ_max) p)

    Args:
        max_learning_rate: γ_max; None takes the largest rate so far.
        mask, where: of the parameters to decay. Their numbers are then named ``decayed/...``, those of the
            others ``rest/...``, the learning rate included.
    """
    moments = scale_by_adam(b1, b2, eps, eps_root, mu_dtype)
    step = scale_with_corrected_decay(learning_rate, weight_decay, max_learning_rate)
    if mask is None and where is None:
        return chain(moments, step)
    decayed = chosen_by_mask(mask) if where is None else choose(where)
    rest = scale_by_learning_rate(learning_rate)
    return chain(moments, partition([("decayed", decayed, step), ("rest", everything_else, rest)], idle="allow"))


def stable_adamw(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-6,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-2,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """StableAdamW: AdamW that shortens a step its second moment was not ready for.

    See `scale_by_stable_adam`. The decay has the whole learning rate; in the paper it is shortened too.
    """
    return chain(
        scale_by_stable_adam(b1, b2, eps, mu_dtype),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def cautious_adamw(
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
    floor: ScalarOrSchedule = 1e-3,
    where: Any = None,
) -> Transform:
    """C-AdamW: AdamW that does not step where its momentum and the gradient disagree.

    u = −γ (cautious(Adam)(g) + λp): see `cautious`.
    """
    return chain(
        cautious(scale_by_adam(b1, b2, eps, eps_root, mu_dtype, nesterov=nesterov), floor),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def cautious_lion(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    mu_dtype: Any = None,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
    *,
    floor: ScalarOrSchedule = 1e-3,
    where: Any = None,
) -> Transform:
    """C-Lion: Lion that does not step where its momentum and the gradient disagree.

    u = −γ (cautious(Lion)(g) + λp): see `cautious`.
    """
    return chain(
        cautious(scale_by_lion(b1, b2, mu_dtype), floor),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )
