"""The load generator in Python, for machines without a C compiler: the same options and output as load.c.

Its figures are of less worth: it is slower than the fast servers, which wait for it, and so get smaller batches.
"""

from __future__ import annotations

import argparse
import json
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Sequence

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455, section 1.3, and its answer
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = bytes.fromhex("37fa213d")
COUNTER = "########"
READ_MAX = 1 << 18


class Trouble(Exception):
    """The server did not do what it should."""


def server_clock(pid: int) -> int:
    """The id of another process's CPU clock (Linux: the bits of the inverted pid, then CPUCLOCK_SCHED)."""
    return (~pid << 3) | 2


def masked(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0xFE, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0xFF, size)
    return head + MASK + bytes(b ^ MASK[i & 3] for i, b in enumerate(payload))


class Client:
    """One WebSocket connection, never blocking once it is open."""

    def __init__(self, port: int, path: str, *, slow: bool = False) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if slow:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self.socket.settimeout(10)
        self.slow = slow
        self.closed = False
        self._in = b""
        self._out = b""
        self.socket.connect(("127.0.0.1", port))
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self.socket.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(4096)
            if not data:
                raise Trouble("the server closed during a handshake")
            head += data
        head, self._in = head.split(b"\r\n\r\n", 1)
        if not head.startswith(b"HTTP/1.1 101") or ACCEPT not in head:
            raise Trouble(f"the handshake was refused: {head[:80]!r}")

    def close(self) -> None:
        self.socket.close()
        self.closed = True

    def send(self, frames: bytes) -> None:
        self._out += frames
        while self._out:
            try:
                sent = self.socket.send(self._out)
            except (BlockingIOError, TimeoutError):
                select.select([], [self.socket], [], 1)
            else:
                self._out = self._out[sent:]

    def take(self) -> list[bytes]:
        """The text messages in what has been read so far."""
        data, at, messages = self._in, 0, list[bytes]()
        while len(data) - at >= 2:
            opcode, size, start = data[at] & 15, data[at + 1] & 127, at + 2
            if size > 125:
                width = 2 if size == 126 else 8
                if len(data) - start < width:
                    break
                size, start = int.from_bytes(data[start : start + width], "big"), start + width
            if len(data) - start < size:
                break
            payload, at = data[start : start + size], start + size
            if opcode == 8:
                self.close()
                break
            if opcode == 9:
                self.send(masked(10, payload))
            elif opcode < 8:
                messages.append(payload)
        self._in = data[at:]
        return messages

    def receive(self) -> list[bytes]:
        """Read once, and return the text messages that are whole."""
        try:
            data = self.socket.recv(READ_MAX)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            return []
        self._in += data
        return self.take()

    def exchange(self, text: str, answers: int) -> list[bytes]:
        """Send a message (unless it is empty) and wait for that many answers."""
        if text:
            self.send(masked(1, text.encode()))
        messages = self.take()
        while len(messages) < answers:
            messages += self.receive()
            if self.closed:
                raise Trouble(f"the server closed instead of answering {text!r}")
        return messages


class Load:
    """All the connections of one run, and the loop that reads them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.give_up = time.monotonic() + options.timeout
        self.unexpected = 0
        self.count = 0
        self.expect = options.expect.encode()
        self.poll = select.epoll()
        self.by_fd: dict[int, Client] = {}

    def frames(self, count: int) -> bytes:
        if COUNTER not in self.options.message:
            return masked(1, self.options.message.encode()) * count
        made = b""
        for _ in range(count):
            self.count += 1
            made += masked(1, self.options.message.replace(COUNTER, str(10_000_000 + self.count)).encode())
        return made

    def open(self, *, publisher: bool = False, slow: bool = False) -> Client:
        client = Client(self.options.port, self.options.path, slow=slow)
        for text, answers in self.options.step[:1] if publisher else self.options.step:
            client.exchange(text, int(answers))
        client.socket.setblocking(False)
        self.by_fd[client.socket.fileno()] = client
        self.poll.register(client.socket, select.EPOLLIN)
        return client

    def ready(self) -> list[tuple[Client, int]]:
        """Wait, then say who got how many messages."""
        got: list[tuple[Client, int]] = []
        for fd, _ in self.poll.poll(1):
            client = self.by_fd[fd]
            messages = client.receive()
            if client.closed:
                raise Trouble("the server dropped a connection")
            if self.expect:
                self.unexpected += sum(self.expect not in message for message in messages)
            got.append((client, len(messages)))
        if time.monotonic() > self.give_up:
            raise Trouble(f"gave up after {self.options.timeout} s: the server does not answer any more")
        return got

    def echo(self, clients: Sequence[Client], total: int) -> int:
        sent = done = 0
        stop = time.monotonic() + self.options.seconds
        for client in clients:
            k = min(self.options.window, total - sent)
            sent += k
            client.send(self.frames(k))
        while done < sent:
            for client, got in self.ready():
                k = min(got, total - sent) if time.monotonic() < stop else 0
                done, sent = done + got, sent + k
                if k:
                    client.send(self.frames(k))
        return done

    def fanout(self, publisher: Client, fast: int, slow: int, total: int) -> list[float]:
        latencies: list[float] = []
        stop = time.monotonic() + self.options.seconds
        while len(latencies) < total and time.monotonic() < stop:
            fast_left, slow_left = fast * self.options.burst, slow * self.options.burst
            begun = ended = time.monotonic()
            publisher.send(self.frames(self.options.burst))
            while fast_left > 0 or slow_left > 0:
                for client, got in self.ready():
                    if client.slow:
                        slow_left -= got
                    elif client is not publisher and got:
                        fast_left -= got
                        if fast_left == 0:
                            ended = time.monotonic()
            latencies.append(ended - begun)
        return latencies

    def connects(self, total: int) -> int:
        stop = time.monotonic() + self.options.seconds
        done = 0
        while done < total and time.monotonic() < stop:
            client = Client(self.options.port, self.options.path)
            client.send(masked(8, b"\x03\xe8"))
            while not client.closed:
                client.receive()
            done += 1
        return done

    def idle(self) -> None:
        self.poll.register(0, select.EPOLLIN | select.EPOLLHUP)
        print("ready", flush=True)
        while True:
            for fd, _ in self.poll.poll(1):
                if fd == 0:
                    return
                self.by_fd[fd].receive()


def measure(options: argparse.Namespace) -> dict[str, float] | None:
    load = Load(options)
    tenths = options.clients // options.every if options.tenth else 0
    latencies: list[float] = []
    clients: list[Client] = []
    if options.mode == "connects":
        load.connects(options.warmup)
    else:
        clients = [load.open(slow=bool(options.tenth) and (i + 1) % options.every == 0) for i in range(options.clients)]
    if options.mode == "idle":
        load.idle()
        return None
    publisher = load.open(publisher=True) if options.mode == "fanout" else None
    if options.tenth == "stall":
        for client in clients:
            if client.slow:
                load.poll.unregister(client.socket)
    reading = 0 if options.tenth == "stall" else tenths
    if publisher:
        load.fanout(publisher, options.clients - tenths, reading, options.warmup)
    elif options.mode == "echo":
        load.echo(clients, options.warmup)
    clocks = [server_clock(pid) for pid in options.pid]
    cpu, wall, own = sum(map(time.clock_gettime_ns, clocks)), time.monotonic_ns(), time.process_time_ns()
    if publisher:
        latencies = load.fanout(publisher, options.clients - tenths, reading, options.messages)
        messages = len(latencies) * options.burst * (options.clients - tenths + reading)
    elif options.mode == "echo":
        messages = load.echo(clients, options.messages)
    else:
        messages = load.connects(options.messages)
    result: dict[str, float] = {
        "messages": messages,
        "server_cpu_ns": sum(map(time.clock_gettime_ns, clocks)) - cpu,
        "own_cpu_ns": time.process_time_ns() - own,
        "wall_ns": time.monotonic_ns() - wall,
        "unexpected": load.unexpected,
        "lost": 0,
    }
    if latencies:
        latencies.sort()
        for name, at in ("p50_us", len(latencies) // 2), ("p99_us", len(latencies) * 99 // 100), ("max_us", -1):
            result[name] = round(latencies[at] * 1e6, 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="load.py")
    parser.add_argument("mode", choices=["echo", "fanout", "connects", "idle"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, action="append", required=True)
    parser.add_argument("--path", default="/")
    parser.add_argument("--message", default="")
    parser.add_argument("--expect", default="")
    parser.add_argument("--tenth", choices=["read", "stall"])
    parser.add_argument("--step", nargs=2, action="append", default=[])
    for name, default in ("clients", 0), ("window", 1), ("burst", 1), ("every", 10), ("messages", 1000), ("warmup", 0):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name in "seconds", "timeout":
        parser.add_argument(f"--{name}", type=float, default=60)
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        result = measure(options)
    except (Trouble, OSError) as trouble:
        print(f"load: {trouble}", file=sys.stderr)
        return 1
    if result is None:
        return 0
    print(json.dumps(result))
    return 1 if result["unexpected"] else 0


if __name__ == "__main__":
    sys.exit(main())
