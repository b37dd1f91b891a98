"""Wrappers: functions from transform to transform."""

from jopt.wrap.accumulate import accumulate
from jopt.wrap.averages import average_params, ema
from jopt.wrap.guards import nonfinite_report, skip_nonfinite
from jopt.wrap.monitor import monitor, monitor_gradients, monitor_updates, monitored

__all__ = [
    "accumulate",
    "average_params",
    "ema",
    "monitor",
    "monitor_gradients",
    "monitor_updates",
    "monitored",
    "nonfinite_report",
    "skip_nonfinite",
]
