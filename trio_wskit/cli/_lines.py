"""Lines of a pipe, read in a thread that may be left alone."""

from __future__ import annotations

import os
from typing import Final, final

__all__ = ["Lines"]

_CHUNK: Final = 65536


@final
class Lines:
    """Reads a file descriptor, by default the standard input, line by line.

    `input()` holds a lock of Python's own while it waits, and a process that ends meanwhile is aborted for it.
    """

    def __init__(self, fd: int = 0) -> None:
        self._fd = fd
        self._data = b""

    def read_line(self) -> str:
        """Wait for a line; called in a thread.

        Raises:
            EOFError: there is none any more.
        """
        while b"\n" not in self._data:
            more = os.read(self._fd, _CHUNK)
            if not more and not self._data:
                raise EOFError
            self._data += more or b"\n"
        line, _, self._data = self._data.partition(b"\n")
        return line.decode(errors="replace")
