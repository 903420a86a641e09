"""trio-wskit, its trio-websocket transport."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.servers.chat import app
from benchmarks.servers.raw import RawEcho
from trio_wskit import run


def main(mode: str, port: int) -> None:
    served: Any = RawEcho() if mode == "raw" else app
    run(served, "127.0.0.1", port, transport="trio_websocket")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
