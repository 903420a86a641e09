"""Run the demo: ``python -m trio_wskit.demo [--host HOST] [--port PORT]``. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files

from trio_wskit import ConfigError, Server, run
from trio_wskit.demo.chat import app


def main() -> None:
    """Serve the chat and its page until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m trio_wskit.demo", description="A chat server, and its page.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    page = files("trio_wskit.demo").joinpath("page.html").read_bytes()

    def announce(server: Server) -> None:
        print(f"http://{arguments.host}:{server.port}/ (Ctrl-C ends it)", flush=True)

    try:
        run(app, arguments.host, arguments.port, http={"/": page}, drain_seconds=1.0, on_started=announce)
    except (OSError, ConfigError) as error:  # most often, the port is taken
        sys.exit(f"{parser.prog}: {error} (another --port?)")


if __name__ == "__main__":
    main()
