"""Wrappers: functions from transform to transform."""

from jopt.wrap.accumulate import accumulate
from jopt.wrap.averages import average_params, ema
from jopt.wrap.guards import nonfinite_report, skip_nonfinite
from jopt.wrap.monitor import monitor, monitored

__all__ = [
    "accumulate",
    "average_params",
    "ema",
    "monitor",
    "monitored",
    "nonfinite_report",
    "skip_nonfinite",
]
