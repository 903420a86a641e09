"""Run the demo: ``python -m trio_wskit.demo [--host HOST] [--port PORT]``, until Ctrl-C."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from importlib.resources import files

import trio

from trio_wskit import ConfigError, Server, serve
from trio_wskit.demo.chat import app


async def main(host: str, port: int) -> None:
    """Serve the chat and its page until SIGINT or SIGTERM."""
    page = files("trio_wskit.demo").joinpath("page.html").read_bytes()
    async with trio.open_nursery() as nursery:
        start = partial(serve, app, host, port, http={"/": page}, handle_signals=True)
        server: Server = await nursery.start(start)
        print(f"http://{host}:{server.port}/ (Ctrl-C ends it)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m trio_wskit.demo", description="A chat server and its page.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="the port to listen on (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        trio.run(main, arguments.host, arguments.port)
    except* (OSError, ConfigError) as failures:  # most often, the port is taken
        print(f"{parser.prog}: {failures.exceptions[0]} (another --port?)", file=sys.stderr)
        status = 1
    else:
        status = 0
    sys.exit(status)
