"""Calls of code that must not stop training: loggers, callbacks, displays."""

import warnings
from collections.abc import Callable
from typing import Any


class Fragile:
    """A call whose first exception is reported once, as a warning; from then on it does nothing.

    `KeyboardInterrupt` and `SystemExit` pass.

    Args:
        name: what the warning calls it, such as "the callback 'show'".
        call: any callable.
    """

    def __init__(self, name: str, call: Callable[..., Any]):
        self.name = name
        self.failed: Exception | None = None
        self._call = call

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """What the call returns; None where it fails or has failed before."""
        if self.failed is not None:
            return None
        try:
            return self._call(*args, **keywords)
        except Exception as error:
            self.failed = error
        # Outside of the handler, so that a warning made an error does not show two tracebacks.
        warnings.warn(
            f"{self.name} failed with {type(self.failed).__name__}: {self.failed}. It is switched off and training "
            f"goes on. Mend it and run again; a resumed run starts it anew.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def name_of(call: Any) -> str:
    """What a message calls a user's function or object."""
    return getattr(call, "__name__", None) or type(call).__name__
