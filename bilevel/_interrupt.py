"""Ctrl-C during a run: the first asks for an end after the step that is being made, a second one raises."""

import contextlib
import signal
import sys
import threading
from typing import Any


class Interrupt:
    """A context in which the first SIGINT sets `asked`, and the next ones raise KeyboardInterrupt.

    Python lets only the main thread handle signals: elsewhere nothing changes, nor where SIGINT is ignored (as for a
    job in the background) or handled by something that is not Python and could not be put back. Python calls the
    handler between two of its own instructions, so one that comes while XLA compiles or computes waits for its end.
    """

    def __init__(self, tell: bool):
        self.asked, self.tell, self.previous = False, tell, None

    def __enter__(self) -> "Interrupt":
        previous = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(previous):
            # an interpreter inside another one has a main thread, and no signals
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, self._handle)
                self.previous = previous
        return self

    def __exit__(self, *_: Any) -> None:
        if self.previous is not None:
            signal.signal(signal.SIGINT, self.previous)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if self.tell:
            # stderr may be in the middle of a line of the bar's, and then refuses another
            with contextlib.suppress(RuntimeError, OSError):
                print("\nThis step is finished first; Ctrl-C once more ends the run at once.", file=sys.stderr)
