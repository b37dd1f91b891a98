"""Rules: one family a file, each an update for one array and the factory that names its numbers."""

from jopt.rules.adagrad import scale_by_adadelta, scale_by_rms, scale_by_root_sum, scale_by_rss, scale_by_stddev
from jopt.rules.adam import (
    scale_by_adam,
    scale_by_adamax,
    scale_by_amsgrad,
    scale_by_nadam,
    scale_by_uncorrected_adam,
)
from jopt.rules.momentum import nesterov_trace, scale_by_ema, trace
from jopt.rules.muon import scale_by_muon, scale_by_shape
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
    "identity",
    "nesterov_trace",
    "normalize_by_update_norm",
    "scale",
    "scale_by_adadelta",
    "scale_by_adam",
    "scale_by_adamax",
    "scale_by_amsgrad",
    "scale_by_ema",
    "scale_by_learning_rate",
    "scale_by_lion",
    "scale_by_muon",
    "scale_by_nadam",
    "scale_by_rms",
    "scale_by_root_sum",
    "scale_by_rss",
    "scale_by_schedule",
    "scale_by_shape",
    "scale_by_sign",
    "scale_by_stddev",
    "scale_by_trust_ratio",
    "scale_by_uncorrected_adam",
    "set_to_zero",
    "trace",
]
