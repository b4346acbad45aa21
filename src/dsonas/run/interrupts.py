"""SIGINT and SIGTERM: a request to save and end, or an end at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ASKED = b"\nstopping after this step; once more stops at once, without saving\n"


class StopSignal:
    """Catches SIGINT and SIGTERM while the context is open.

    Until ``wait_for_step`` is called there is nothing to save, and a signal raises
    ``KeyboardInterrupt``. From then on the first one makes the object's value True, for the loop
    to poll after every step; the second raises.

    Example:
        >>> with StopSignal() as stop:
        ...     stop.wait_for_step()
        ...     before = stop()
        ...     signal.raise_signal(signal.SIGTERM)
        ...     before, stop(), stop.exit_code
        (False, True, 143)
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._waits = False
        self._owner = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self._number is not None

    def wait_for_step(self) -> None:
        """From now on let the first signal wait for the end of a step."""
        self._waits = True

    @property
    def exit_code(self) -> int:
        """As shells report it: 130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self._number or signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a data worker, which the terminal signals too
            return
        at_once = not self._waits or self._number is not None
        self._number = number
        if at_once:
            raise KeyboardInterrupt
        os.write(2, _ASKED)  # print is not safe inside a handler
