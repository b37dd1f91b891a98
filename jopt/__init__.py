"""jopt: a functional optimization library for JAX.

Compose gradient transformations into optimizers, under optax's protocol: `init(params)` and
`update(grads, state, params)`. Every number can be scheduled, read, set, swept by `vmap` and
differentiated. `fit` trains a model with one; `jopt.data`, `jopt.stopping` and `jopt.loggers` go with it.
"""

from jopt import data, schedules
from jopt.apply import apply_gradients, apply_updates
from jopt.clip import adaptive_grad_clip, centralize, clip, clip_by_block_rms, clip_by_global_norm, zero_nans
from jopt.explain import explain
from jopt.optimizers import (
    adadelta,
    adagrad,
    adam,
    adamax,
    adamaxw,
    adamw,
    amsgrad,
    lamb,
    lars,
    lion,
    momentum,
    muon,
    nadam,
    nadamw,
    nesterov,
    rmsprop,
    sgd,
    sign_sgd,
    signum,
)
from jopt.partition import chain, freeze, partition
from jopt.paths import Leaf, TreeMismatchError, everything_else, ndim, path
from jopt.plateau import reduce_on_plateau
from jopt.regularize import (
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
    identity,
    nesterov_trace,
    normalize_by_update_norm,
    scale,
    scale_by_adadelta,
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_ema,
    scale_by_learning_rate,
    scale_by_lion,
    scale_by_muon,
    scale_by_nadam,
    scale_by_rms,
    scale_by_root_sum,
    scale_by_rss,
    scale_by_schedule,
    scale_by_shape,
    scale_by_sign,
    scale_by_stddev,
    scale_by_trust_ratio,
    scale_by_uncorrected_adam,
    set_to_zero,
    trace,
)
from jopt.state import State, StateMismatchError, eval_params, hyperparams, set_hyperparams, sweep_axes
from jopt.train import loggers, stopping
from jopt.train.checkpoint import Checkpointer, CheckpointError, load, read_meta, save
from jopt.train.evaluate import evaluate, predict
from jopt.train.fit import Fit, NonFiniteError, fit
from jopt.train.losses import linen_loss, nnx_loss
from jopt.train.lr_find import LRFind, lr_find
from jopt.train.lr_sweep import LRSweep, lr_sweep
from jopt.transform import Transform, masked, rule, whole
from jopt.wrap import (
    accumulate,
    average_params,
    ema,
    monitor,
    monitored,
    nonfinite_report,
    skip_nonfinite,
)

__version__ = "0.1.0"
