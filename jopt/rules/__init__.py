"""Rules: one family a file, each an update for one array and the factory that names its numbers."""

from jopt.rules.adagrad import scale_by_adadelta, scale_by_rms, scale_by_root_sum, scale_by_rss, scale_by_stddev
from jopt.rules.adam import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_nadam,
    scale_by_uncorrected_adam,
)
from jopt.rules.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from jopt.rules.belief import (
    scale_by_acprop,
    scale_by_belief,
    scale_by_yogi,
)
from jopt.rules.blocks import scale_by_adam_mini
from jopt.rules.cocob import (
    scale_by_cocob,
)
from jopt.rules.curvature import (
    gauss_newton_estimator_diag_hessian,
    hutchinson_estimator_diag_hessian,
    scale_by_adahessian,
    scale_by_sophia,
)
from jopt.rules.difference import (
    scale_by_adan,
    scale_by_mars,
    scale_by_optimistic_gradient,
)
from jopt.rules.distance import (
    scale_by_distance_over_gradients,
    scale_by_dog,
    scale_by_dowg,
)
from jopt.rules.every import apply_every
from jopt.rules.factored import scale_by_came, scale_by_factored_rms
from jopt.rules.galore import scale_by_galore
from jopt.rules.kron import scale_by_kron
from jopt.rules.layerwise import layerwise_decay
from jopt.rules.lbfgs import scale_by_lbfgs
from jopt.rules.linesearch import (
    scale_by_backtracking_linesearch,
    scale_by_zoom_linesearch,
)
from jopt.rules.lmo import rms_lmo, sign_lmo, spectral_lmo
from jopt.rules.madgrad import scale_by_madgrad
from jopt.rules.momentum import nesterov_trace, scale_by_ema, trace
from jopt.rules.muon import scale_by_muon, scale_by_shape
from jopt.rules.normalized import (
    scale_by_adopt,
    scale_by_laprop,
    scale_by_novograd,
)
from jopt.rules.norms import (
    scale_by_hyperball_rate,
    scale_by_param_block_norm,
    scale_by_param_block_rms,
    scale_by_shrinking_rate,
)
from jopt.rules.normuon import scale_by_normuon
from jopt.rules.polyak import (
    scale_by_momo,
    scale_by_momo_adam,
    scale_by_polyak,
)
from jopt.rules.prodigy import (
    scale_by_dadapt_adamw,
    scale_by_prodigy,
)
from jopt.rules.qk_clip import qk_clip
from jopt.rules.radam import scale_by_radam
from jopt.rules.rprop import scale_by_rprop
from jopt.rules.scale import (
    identity,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
    scale_with_corrected_decay,
    set_to_zero,
)
from jopt.rules.shampoo import scale_by_shampoo
from jopt.rules.sign import (
    scale_by_lion,
    scale_by_refined_lion,
    scale_by_sign,
    scale_by_smooth_lion,
)
from jopt.rules.sm3 import scale_by_sm3
from jopt.rules.soap import scale_by_kl_soap, scale_by_soap
from jopt.rules.stable import scale_by_stable_adam
from jopt.rules.trust import normalize, normalize_by_update_norm, scale_by_trust_ratio

__all__ = [
    "apply_every",
    "gauss_newton_estimator_diag_hessian",
    "hutchinson_estimator_diag_hessian",
    "identity",
    "layerwise_decay",
    "nesterov_trace",
    "normalize",
    "normalize_by_update_norm",
    "qk_clip",
    "rms_lmo",
    "scale",
    "scale_by_acprop",
    "scale_by_adadelta",
    "scale_by_adahessian",
    "scale_by_adam",
    "scale_by_adam_mini",
    "scale_by_adamax",
    "scale_by_adan",
    "scale_by_ademamix",
    "scale_by_adopt",
    "scale_by_amsgrad",
    "scale_by_backtracking_linesearch",
    "scale_by_belief",
    "scale_by_came",
    "scale_by_cocob",
    "scale_by_dadapt_adamw",
    "scale_by_distance_over_gradients",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_ema",
    "scale_by_factored_rms",
    "scale_by_galore",
    "scale_by_hyperball_rate",
    "scale_by_kl_soap",
    "scale_by_kron",
    "scale_by_laprop",
    "scale_by_lbfgs",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_madgrad",
    "scale_by_mars",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_normuon",
    "scale_by_novograd",
    "scale_by_optimistic_gradient",
    "scale_by_param_block_norm",
    "scale_by_param_block_rms",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_radam",
    "scale_by_refined_lion",
    "scale_by_rms",
    "scale_by_root_sum",
    "scale_by_rprop",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shampoo",
    "scale_by_shape",
    "scale_by_shrinking_rate",
    "scale_by_sign",
    "scale_by_simplified_ademamix",
    "scale_by_sm3",
    "scale_by_smooth_lion",
    "scale_by_soap",
    "scale_by_sophia",
    "scale_by_stable_adam",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_uncorrected_adam",
    "scale_by_yogi",
    "scale_by_zoom_linesearch",
    "scale_with_corrected_decay",
    "set_to_zero",
    "sign_lmo",
    "spectral_lmo",
    "trace",
]
