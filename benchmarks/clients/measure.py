"""How a client measures itself: requests, seconds, and CPU seconds of its process, after a second to get warm."""

from __future__ import annotations

import json
import sys
import time

__all__ = ["Meter", "arguments"]


def arguments() -> tuple[int, int, float]:
    """Port, window, seconds."""
    return int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])


class Meter:
    """Counts requests. Each of the client's workers asks `goes_on()` before its next one."""

    def __init__(self, seconds: float) -> None:
        self.asked = 0
        self._begin = time.monotonic() + min(1.0, seconds)
        self._end = self._begin + seconds
        self._before: tuple[int, float, float] | None = None

    def goes_on(self) -> bool:
        now = time.monotonic()
        if self._before is None and now >= self._begin:
            self._before = self.asked, now, time.process_time()
        self.asked += 1
        return now < self._end

    def report(self) -> None:
        """Print what was measured."""
        assert self._before is not None
        asked, now, cpu = self._before
        found = {"requests": self.asked - asked, "wall": time.monotonic() - now, "cpu": time.process_time() - cpu}
        print(json.dumps(found))
