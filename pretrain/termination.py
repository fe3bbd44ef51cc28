"""SIGTERM, as a machine that is taken back sends it: noted at once, heeded after the step that is being computed."""

from __future__ import annotations

import signal
from types import FrameType


class TerminationWatch:
    """While the `with` block lasts, SIGTERM only sets `requested`."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> TerminationWatch:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
