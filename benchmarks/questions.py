"""The questions: what is asked of each server, and what is measured. One call of `measure` is one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from benchmarks.check import check_answers
from benchmarks.generator import Load, generate, holding
from benchmarks.machine import memory_kib
from benchmarks.process import running
from benchmarks.registry import Server
from benchmarks.work import Dialect, Exchange

__all__ = ["QUESTIONS", "Measured", "Question"]


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of one run: the figure the question asks for, and what else is worth keeping."""

    value: float
    detail: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    """Something to find out about each server."""

    name: str
    title: str
    unit: str
    mode: str
    """Of the server: "raw" or "routed"."""
    measure: Callable[[Server, float], Measured]
    """Server and seconds of load to what one run found."""
    main: bool = False
    """Part of `--quick`."""

    @property
    def is_cpu(self) -> bool:
        """Whether the figure is server CPU microseconds."""
        return self.unit.startswith("CPU µs")


def _steps(dialect: Dialect, *, join: bool) -> tuple[tuple[str, int], ...]:
    hello = dialect.hello or ("", 0)
    return (hello, (dialect.join().message, 1)) if join else (hello,)


def _load(mode: str, server: Server, exchange: Exchange, *, join: bool = False) -> Load:
    steps = _steps(server.dialect, join=join)
    return Load(mode, server.dialect.path, exchange.message, exchange.expect, steps)


def _cpu(measured: dict[str, float], *, seconds_too: bool = True) -> Measured:
    """CPU for each message; and how busy both cores were, which tells who waited for whom."""
    wall = measured["wall_ns"]
    detail = {
        "messages": measured["messages"],
        "server_busy": round(measured["server_cpu_ns"] / wall, 3),
        "generator_busy": round(measured["own_cpu_ns"] / wall, 3),
        "per_second": round(measured["messages"] / wall * 1e9),
    }
    detail |= {name: measured[name] for name in ("p50_us", "p99_us", "max_us") if name in measured}
    return Measured(round(measured["server_cpu_ns"] / measured["messages"] / 1000, 3), detail)


def _echo(mode: str, window: int, *, rpc: bool = False) -> Callable[[Server, float], Measured]:
    def measure(server: Server, seconds: float) -> Measured:
        exchange = server.dialect.rpc() if rpc else server.dialect.echo()
        load = _load("echo", server, replace(exchange, expect='"ECHO"') if mode == "raw" else exchange)
        load = replace(load, clients=50, window=window, messages=200_000, warmup=10_000, seconds=seconds)
        with running(server, mode) as (pid, port):
            check_answers(server, port, mode, exchange)
            return _cpu(generate(load, pid, port))

    return measure


def _fanout(subscribers: int, burst: int = 1) -> Callable[[Server, float], Measured]:
    def measure(server: Server, seconds: float) -> Measured:
        load = _load("fanout", server, server.dialect.say(), join=True)
        publishes = max(20, 400_000 // (subscribers * burst))
        load = replace(load, clients=subscribers, burst=burst, messages=publishes, warmup=max(3, publishes // 10))
        with running(server, "routed") as (pid, port):
            return _cpu(generate(replace(load, seconds=seconds), pid, port))

    return measure


def _stalled(every: int) -> Callable[[Server, float], Measured]:
    """The slow have small buffers in both halves; only in the second half do they not read.

    Messages of 4 KB fill those buffers after a few publishes, so that what the server then does is in the figures.
    """

    def measure(server: Server, seconds: float) -> Measured:
        load = _load("fanout", server, server.dialect.say(4000), join=True)
        load = replace(load, clients=1000, messages=1000, warmup=3, seconds=2 * seconds, timeout=20, every=every)
        halves: dict[str, dict[str, float]] = {}
        for tenth in ("read", "stall"):
            with running(server, "routed") as (pid, port):
                halves[tenth] = generate(replace(load, tenth=tenth), pid, port)
        return Measured(
            round(halves["stall"]["p99_us"] / halves["read"]["p99_us"], 3),
            {
                f"{name}_{'without' if tenth == 'read' else 'with'}": half[name]
                for tenth, half in halves.items()
                for name in ("p50_us", "p99_us", "max_us")
            },
        )

    return measure


def _connects(server: Server, seconds: float) -> Measured:
    load = Load("connects", server.dialect.path, window=16, messages=3000, warmup=200, seconds=seconds)
    with running(server, "routed") as (pid, port):
        return _cpu(generate(load, pid, port))


def _idle_memory(server: Server, seconds: float) -> Measured:
    """Base: after 50 connections have come, echoed and gone."""
    count = 5000
    warm = replace(_load("echo", server, server.dialect.echo()), clients=50, messages=500)
    with running(server, "routed") as (pid, port):
        generate(warm, pid, port)
        time.sleep(0.5)
        base = memory_kib(pid)
        with holding(
            Load("idle", server.dialect.path, steps=_steps(server.dialect, join=False), clients=count), pid, port
        ):
            time.sleep(1.0)
            held = memory_kib(pid)
    return Measured(round((held - base) / count, 2), {"base_kib": base, "held_kib": held})


_CPU, _DELIVERY = "CPU µs a message", "CPU µs a delivery"

QUESTIONS: dict[str, Question] = {
    question.name: question
    for question in (
        Question(
            "routed-echo-1",
            "Routed, validated echo, 50 connections, window 1",
            _CPU,
            "routed",
            _echo("routed", 1),
            True,
        ),
        Question(
            "routed-echo-16",
            "Routed, validated echo, 50 connections, window 16",
            _CPU,
            "routed",
            _echo("routed", 16),
            True,
        ),
        Question(
            "raw-echo-1", "Raw echo through the transport, 50 connections, window 1", _CPU, "raw", _echo("raw", 1), True
        ),
        Question(
            "raw-echo-16", "Raw echo through the transport, 50 connections, window 16", _CPU, "raw", _echo("raw", 16)
        ),
        Question("rpc", "RPC, 50 connections, window 16", _CPU, "routed", _echo("routed", 16, rpc=True)),
        Question("fanout-100", "Fan-out to 100, one publish at a time", _DELIVERY, "routed", _fanout(100)),
        Question("fanout-1000", "Fan-out to 1,000, one publish at a time", _DELIVERY, "routed", _fanout(1000), True),
        Question("fanout-5000", "Fan-out to 5,000, one publish at a time", _DELIVERY, "routed", _fanout(5000)),
        Question(
            "fanout-burst", "Fan-out to 1,000, 8 publishes in a burst", _DELIVERY, "routed", _fanout(1000, 8), True
        ),
        Question(
            "idle-memory", "Memory of an idle connection, 5,000 connections", "KiB a connection", "routed", _idle_memory
        ),
        Question(
            "stalled-tenth",
            "Fan-out to 1,000 of whom a tenth stall: publisher's p99, with against without",
            "ratio of p99",
            "routed",
            _stalled(10),
        ),
        Question(
            "stalled-one",
            "Fan-out to 1,000 of whom one stalls: the others' p99, with against without",
            "ratio of p99",
            "routed",
            _stalled(1000),
        ),
        Question("connects", "Connecting and closing, 16 at a time", "CPU µs a connection", "routed", _connects),
    )
}
