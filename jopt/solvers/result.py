"""What a minimization returns, and why it ended."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

RUNNING, CONVERGED, MAX_STEPS, STALLED, BAD_START = range(5)

REASONS = {
    RUNNING: "still running",
    CONVERGED: "no entry of the gradient is larger than tol",
    MAX_STEPS: "max_steps were taken",
    STALLED: "no step lowers the value any more: this is what the dtype can resolve, or fn is not smooth here",
    BAD_START: "fn or its gradient is not finite at x0",
}


class Minimum(NamedTuple):
    """Where a minimization ended; with ``starts=True`` every array has the leading axis of the starts.

    Attributes:
        x: the point, in the structure and dtypes of x0.
        value: fn there; half the sum of squares for least squares.
        grad_norm: the largest absolute entry of the gradient there.
        steps: int32, steps taken.
        evaluations: int32, calls of fn (with its gradient or Jacobian, or in place of one).
        status: int32, why it ended; `reason` says it in words.
    """

    x: Any
    value: Any
    grad_norm: Any
    steps: Any
    evaluations: Any
    status: Any

    @property
    def converged(self) -> Any:
        """Whether the gradient is within the tolerance: a boolean array."""
        return self.status == CONVERGED

    @property
    def reason(self) -> str | list[str]:
        """Why it ended, in words; a list for several starts. Outside of a trace."""
        status = np.asarray(self.status)
        return [REASONS[int(s)] for s in status] if status.ndim else REASONS[int(status)]

    def best(self) -> "Minimum":
        """Of several starts the one with the lowest value; one whose value is not a number loses.

        A single start is returned as it is.
        """
        if not jnp.ndim(self.value):
            return self
        value = jnp.where(jnp.isnan(self.value), jnp.inf, self.value)
        return jax.tree.map(lambda a: a[jnp.argmin(value)], self)

    def __repr__(self) -> str:
        fields = self._asdict()
        concrete = isinstance(self.status, jax.Array | np.ndarray) and not isinstance(self.status, jax.core.Tracer)
        if concrete and self.status.ndim < 2:
            del fields["status"]
            fields["reason"] = self.reason
        return f"Minimum({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
