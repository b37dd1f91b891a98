"""Ctrl-C and SIGTERM as a request that a loop reads between two chunks."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

REASONS = {signal.SIGINT: "interrupted by Ctrl-C", signal.SIGTERM: "stopped by SIGTERM"}


class Requests:
    """What has been asked for so far.

    Attributes:
        reason: the first request as a sentence, None without one.
        held: whether a second Ctrl-C has to wait, because buffers are changing hands.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.held = False
        self._pending = False

    def take(self, signum: int, frame: Any) -> None:
        """The handler: the first signal asks, a second Ctrl-C interrupts."""
        again = self.reason is not None
        self.reason = self.reason or REASONS[signal.Signals(signum)]
        if again and signum == signal.SIGINT:
            self._pending = self.held
            if not self.held:
                raise KeyboardInterrupt

    def hold(self) -> None:
        """From here until `release` no KeyboardInterrupt is raised."""
        self.held = True

    def release(self) -> None:
        """Raise what came in meanwhile."""
        self.held = False
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def requests() -> Iterator[Requests]:
    """Within the block signals only ask; afterwards the handlers are the ones from before.

    Only the main thread may set handlers: elsewhere signals go where they went. A signal that the process was
    started to ignore, as a shell starts a job in the background, stays ignored.
    """
    asked = Requests()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {}
    try:
        try:
            for signum in REASONS:
                if signal.getsignal(signum) is not signal.SIG_IGN:
                    before[signum] = signal.signal(signum, asked.take)
            yield asked
        finally:
            asked.hold()  # an interrupt in what follows would leave a handler behind
    finally:
        for signum, handler in reversed(before.items()):  # Ctrl-C, which may raise again, last
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
