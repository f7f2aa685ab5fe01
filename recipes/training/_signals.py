"""Ctrl-C and SIGTERM: a training ends after a whole step, with a checkpoint, instead of in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], object]


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; what it was doing can be gone on with.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number


class Request:
    """Whether a signal has asked a training to end."""

    def __init__(self) -> None:
        self.number: int | None = None

    def take(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second one ends the process at once, since whoever sends it doesn't want to wait."""
        if self.number is not None:
            raise Interrupted(number)
        self.number = number


@contextlib.contextmanager
def deferred() -> Iterator[Request]:
    """Note signals within the block, for it to end when it can."""
    request = Request()
    with _handled(request.take):
        yield request


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Let a signal raise `Interrupted` within the block, so that files and locks are left in order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    # Python lets no other thread handle signals.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handler)) for number in SIGNALS]
    try:
        yield
    finally:
        for number, old in before:
            # None: a handler that Python did not install, and can't.
            signal.signal(number, signal.SIG_DFL if old is None else old)
