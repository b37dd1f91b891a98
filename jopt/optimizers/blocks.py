"""Optimizers with little state: second moments by rows and columns, slices or blocks; and private ones."""

from typing import Any

import jax.numpy as jnp

from jopt.clip import clip_by_block_rms
from jopt.partition import chain, partition
from jopt.paths import everything_else, ndim, path
from jopt.privacy import differentially_private_aggregate
from jopt.regularize import add_decayed_weights
from jopt.rules import (
    scale,
    scale_by_adam_mini,
    scale_by_came,
    scale_by_ema,
    scale_by_factored_rms,
    scale_by_learning_rate,
    scale_by_param_block_rms,
    scale_by_shrinking_rate,
    scale_by_sm3,
    scale_by_trust_ratio,
    trace,
)
from jopt.scalars import ScalarOrSchedule
from jopt.transform import Transform

__all__ = ["adafactor", "adam_mini", "came", "dpsgd", "fromage", "sm3"]


def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: ScalarOrSchedule = 0.8,
    decay_offset: ScalarOrSchedule = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: ScalarOrSchedule | None = 1.0,
    momentum: ScalarOrSchedule | None = None,
    dtype_momentum: Any = jnp.float32,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: ScalarOrSchedule = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """Adafactor: second moments by rows and columns only, so that the state is far smaller than the model.

    See `scale_by_factored_rms`. By default the rate is relative to the size of each array, which
    `multiply_by_parameter_scale=False` undoes. The decay is not multiplied by the rate.
    """
    parts = [scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps)]
    parts += [] if clipping_threshold is None else [clip_by_block_rms(clipping_threshold)]
    parts += [scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate)]
    parts += [scale_by_param_block_rms()] if multiply_by_parameter_scale else []
    parts += [] if momentum is None else [scale_by_ema(momentum, False, dtype_momentum)]
    if weight_decay_rate is not None:
        decay = add_decayed_weights(weight_decay_rate, weight_decay_mask, where=where)
        parts += [scale(-1.0), decay, scale(-1.0)]
    return chain(*parts)


def came(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-30,
    eps_doubt: ScalarOrSchedule = 1e-16,
    threshold: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    where: Any = None,
) -> Transform:
    """CAME: Adafactor with momentum that goes slower where the momentum has often been wrong.

    u = −γ (CAME(g) + λp); see `scale_by_came`.
    """
    return chain(
        scale_by_came(b1, b2, b3, eps, eps_doubt, threshold),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def sm3(learning_rate: ScalarOrSchedule, momentum: ScalarOrSchedule = 0.9) -> Transform:
    """SM3: AdaGrad with one number for each row and each column; for large embeddings.

    See `scale_by_sm3`.
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))


def fromage(learning_rate: ScalarOrSchedule, min_norm: ScalarOrSchedule = 1e-6) -> Transform:
    """Fromage: every array turns by the same angle, whatever its size; one rate of about 0.01 for all.

    u = (p − γ g ‖p‖ / ‖g‖) / √(1 + γ²) − p
    """
    return chain(scale_by_trust_ratio(min_norm), scale_by_shrinking_rate(learning_rate))


def adam_mini(
    learning_rate: ScalarOrSchedule,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    heads: int | None = None,
    blocks: tuple[tuple[Any, int | tuple[int, ...] | None], ...] = (),
    where: Any = None,
) -> Transform:
    """Adam-mini: AdamW with one second moment for each block, which halves the state of Adam.

    The blocks of Flax models, by the names and shapes of parameters; `explain` shows who got which:

        biases, scales, other vectors     the whole array
        embeddings (tokens, d)            each row
        query, key (in, heads, d)         each head
        value (in, heads, d)              each output neuron
        all other arrays                  each output neuron, that is the last axis

    Args:
        heads: for kernels of queries and keys of two axes, (in, heads · d): how many heads. None
            takes each output neuron there.
        blocks: cases before these, ``((where, axis), ...)``, with the axes whose indices tell blocks
            apart: ``(("**/experts/kernel", (0, 2)),)``; None is one block.

    Reference: [zhang2025adammini].
    """

    def block(axis, parts=None):
        return scale_by_adam_mini(b1, b2, eps, axis, parts)

    vectors, agreeing = ndim(0, 1) | path("bias|scale"), path("query|key")
    cases = [(f"blocks_{i}", chooser, block(axis)) for i, (chooser, axis) in enumerate(blocks)]
    cases += [
        ("whole", vectors, block(None)),
        ("tokens", path("*embed*|*embedding*") & ndim(2), block(0)),
        ("heads", agreeing & ndim(3), block(1)),
        ("values", path("value") & ndim(3), block((1, 2))),
    ]
    cases += [] if heads is None else [("joined_heads", agreeing & ndim(2), block(-1, heads))]
    return chain(
        partition([*cases, ("neurons", everything_else, block(-1))], idle="allow"),
        add_decayed_weights(weight_decay, mask, where=where),
        scale_by_learning_rate(learning_rate),
    )


def dpsgd(
    learning_rate: ScalarOrSchedule,
    l2_norm_clip: ScalarOrSchedule,
    noise_multiplier: ScalarOrSchedule,
    seed: Any,
    momentum: ScalarOrSchedule | None = None,
    nesterov: bool = False,
) -> Transform:
    """DP-SGD: gradient descent on clipped and noisy gradients of single examples.

    Gradients have a leading axis of examples: see `differentially_private_aggregate`. `seed` is a
    seed or a random key.
    """
    memory = [] if momentum is None else [trace(momentum, nesterov)]
    private = differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed)
    return chain(private, *memory, scale_by_learning_rate(learning_rate))
