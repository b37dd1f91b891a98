"""Rules: one family a file, each an update for one array and the factory that names its numbers."""

from jopt.rules.adagrad import scale_by_adadelta, scale_by_rms, scale_by_root_sum, scale_by_rss, scale_by_stddev
from jopt.rules.adam import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_nadam,
    scale_by_uncorrected_adam,
)
from jopt.rules.cocob import (
    scale_by_cocob,
)
from jopt.rules.curvature import (
    gauss_newton_estimator_diag_hessian,
    hutchinson_estimator_diag_hessian,
    scale_by_sophia,
)
from jopt.rules.distance import (
    scale_by_distance_over_gradients,
    scale_by_dog,
    scale_by_dowg,
)
from jopt.rules.momentum import nesterov_trace, scale_by_ema, trace
from jopt.rules.muon import scale_by_muon, scale_by_shape
from jopt.rules.polyak import (
    scale_by_momo,
    scale_by_momo_adam,
    scale_by_polyak,
)
from jopt.rules.prodigy import (
    scale_by_dadapt_adamw,
    scale_by_prodigy,
)
from jopt.rules.scale import (
    identity,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
    set_to_zero,
)
from jopt.rules.sign import scale_by_lion, scale_by_sign
from jopt.rules.trust import normalize_by_update_norm, scale_by_trust_ratio

__all__ = [
    "gauss_newton_estimator_diag_hessian",
    "hutchinson_estimator_diag_hessian",
    "identity",
    "nesterov_trace",
    "normalize_by_update_norm",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_amsgrad",
    "scale_by_cocob",
    "scale_by_dadapt_adamw",
    "scale_by_distance_over_gradients",
    "scale_by_dog",
    "scale_by_dowg",
    "scale_by_ema",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_momo",
    "scale_by_momo_adam",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_polyak",
    "scale_by_prodigy",
    "scale_by_rms",
    "scale_by_root_sum",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_sophia",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_uncorrected_adam",
    "set_to_zero",
    "trace",
]
