"""Wrappers: functions from transform to transform."""

from jopt.wrap.accumulate import accumulate
from jopt.wrap.averages import average_params, ema
from jopt.wrap.guards import nonfinite_report, skip_nonfinite
from jopt.wrap.monitor import monitor, monitored
from jopt.wrap.rounding import compensate, round_stochastically

__all__ = [
    "accumulate",
    "average_params",
    "compensate",
    "ema",
    "monitor",
    "monitored",
    "nonfinite_report",
    "round_stochastically",
    "skip_nonfinite",
]
