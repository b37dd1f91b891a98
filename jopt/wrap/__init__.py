"""Wrappers: functions from transform to transform."""

from jopt.wrap.accumulate import accumulate
from jopt.wrap.averages import average_params, ema, lawa, swa
from jopt.wrap.cautious import cautious
from jopt.wrap.conditional import apply_if_finite, conditionally_mask, conditionally_transform
from jopt.wrap.guards import nonfinite_report, skip_nonfinite
from jopt.wrap.hyperball import hyperball
from jopt.wrap.inject import inject_hyperparams
from jopt.wrap.interpolate import gpa, schedule_free, schedule_free_eval_params
from jopt.wrap.lookahead import lookahead
from jopt.wrap.measures import measure_with_ema, snapshot
from jopt.wrap.mechanic import (
    mechanize,
)
from jopt.wrap.monitor import monitor, monitored
from jopt.wrap.multi_steps import MultiSteps, skip_large_updates, skip_not_finite
from jopt.wrap.rounding import compensate, round_stochastically
from jopt.wrap.sam import asam, sam, scale_by_adaptive_sharpness

__all__ = [
    "MultiSteps",
    "accumulate",
    "apply_if_finite",
    "asam",
    "average_params",
    "cautious",
    "compensate",
    "conditionally_mask",
    "conditionally_transform",
    "ema",
    "gpa",
    "hyperball",
    "inject_hyperparams",
    "lawa",
    "lookahead",
    "measure_with_ema",
    "mechanize",
    "monitor",
    "monitored",
    "nonfinite_report",
    "round_stochastically",
    "sam",
    "scale_by_adaptive_sharpness",
    "schedule_free",
    "schedule_free_eval_params",
    "skip_large_updates",
    "skip_nonfinite",
    "skip_not_finite",
    "snapshot",
    "swa",
]
