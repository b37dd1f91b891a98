"""jopt: a functional optimization library for JAX.

Compose gradient transformations into optimizers, under optax's protocol: `init(params)` and
`update(grads, state, params)`. Every number can be scheduled, read, set, swept by `vmap` and
differentiated. `fit` trains a model with one; `jopt.data`, `jopt.stopping` and `jopt.loggers` go with it.
"""

from jopt import data, schedules
from jopt.apply import apply_gradients, apply_updates
from jopt.clip import (
    adaptive_grad_clip,
    centralize,
    clip,
    clip_by_block_rms,
    clip_by_global_norm,
    unitwise_clip,
    unitwise_norm,
    zero_nans,
)
from jopt.explain import explain
from jopt.migrate import OptaxStateError, from_optax
from jopt.optimizers import (
    acprop,
    adabelief,
    adadelta,
    adafactor,
    adagrad,
    adam,
    adam_mini,
    adamax,
    adamaxw,
    adamc,
    adamw,
    adan,
    ademamix,
    adopt,
    amsgrad,
    came,
    cautious_adamw,
    cautious_lion,
    dpsgd,
    fromage,
    gpa_adamw,
    lamb,
    laprop,
    lars,
    lbfgs,
    lion,
    madgrad,
    mars,
    momentum,
    muon,
    nadam,
    nadamw,
    nesterov,
    noisy_sgd,
    novograd,
    optimistic_adam_v2,
    optimistic_gradient_descent,
    radam,
    rmsprop,
    rprop,
    schedule_free_adamw,
    schedule_free_sgd,
    sgd,
    shampoo,
    sign_sgd,
    signum,
    simplified_ademamix,
    sm3,
    soap,
    stable_adamw,
    yogi,
)
from jopt.partition import chain, freeze, multi_transform, named_chain, partition, selective_transform
from jopt.paths import Leaf, TreeMismatchError, everything_else, ndim, path
from jopt.plateau import reduce_on_plateau
from jopt.privacy import (
    differentially_private_aggregate,
    per_example_global_norm_clip,
    per_example_layer_norm_clip,
)
from jopt.regularize import (
    add_cautious_decay,
    add_decayed_weights,
    add_l1_subgradient,
    add_noise,
    clip_params,
    keep_params_nonnegative,
    max_norm_constraint,
    soft_threshold,
)
from jopt.rule import Own, Rule, Whole
from jopt.rules import (
    apply_every,
    identity,
    layerwise_decay,
    nesterov_trace,
    normalize,
    normalize_by_update_norm,
    scale,
    scale_by_acprop,
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adam_mini,
    scale_by_adamax,
    scale_by_adan,
    scale_by_ademamix,
    scale_by_adopt,
    scale_by_amsgrad,
    scale_by_backtracking_linesearch,
    scale_by_belief,
    scale_by_came,
    scale_by_ema,
    scale_by_factored_rms,
    scale_by_hyperball_rate,
    scale_by_laprop,
    scale_by_lbfgs,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_madgrad,
    scale_by_mars,
    scale_by_muon,
    scale_by_nadam,
    scale_by_novograd,
    scale_by_optimistic_gradient,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_radam,
    scale_by_refined_lion,
    scale_by_rms,
    scale_by_root_sum,
    scale_by_rprop,
    scale_by_rss,
    scale_by_schedule,
    scale_by_shampoo,
    scale_by_shape,
    scale_by_shrinking_rate,
    scale_by_sign,
    scale_by_simplified_ademamix,
    scale_by_sm3,
    scale_by_smooth_lion,
    scale_by_soap,
    scale_by_stable_adam,
    scale_by_stddev,
    scale_by_trust_ratio,
    scale_by_uncorrected_adam,
    scale_by_yogi,
    scale_by_zoom_linesearch,
    scale_with_corrected_decay,
    set_to_zero,
    trace,
)
from jopt.rules.linesearch import value_and_grad_from_state
from jopt.solvers import Minimum, minimize
from jopt.state import State, StateMismatchError, eval_params, hyperparams, set_hyperparams, sweep_axes
from jopt.storage import store
from jopt.train import loggers, stopping
from jopt.train.checkpoint import Checkpointer, CheckpointError, load, read_meta, save
from jopt.train.evaluate import evaluate, predict
from jopt.train.fit import Fit, NonFiniteError, fit
from jopt.train.losses import linen_loss, nnx_loss
from jopt.train.lr_find import LRFind, lr_find
from jopt.train.lr_sweep import LRSweep, lr_sweep
from jopt.transform import Transform, masked, rule, whole
from jopt.wrap import (
    MultiSteps,
    accumulate,
    apply_if_finite,
    asam,
    average_params,
    cautious,
    compensate,
    ema,
    gpa,
    hyperball,
    conditionally_mask,
    conditionally_transform,
    ema,
    gpa,
    inject_hyperparams,
    lawa,
    lookahead,
    measure_with_ema,
    monitor,
    monitored,
    nonfinite_report,
    round_stochastically,
    sam,
    scale_by_adaptive_sharpness,
    schedule_free,
    schedule_free_eval_params,
    skip_large_updates,
    skip_nonfinite,
    skip_not_finite,
    snapshot,
    swa,
)

__version__ = "0.1.0"
