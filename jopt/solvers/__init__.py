"""Solvers for small problems: whole minimizations as one loop on the device."""

from jopt.solvers.minimize import minimize
from jopt.solvers.result import Minimum

__all__ = ["Minimum", "minimize"]
