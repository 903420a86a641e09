"""What reading and writing one message costs, for each JSON library and each way to validate: the table of ADR 0001.

    python -m benchmarks.serialisation

Every candidate reads JSON text into attrs instances, strictly, and writes an instance back; each is checked to give the
same instance and the same JSON first. Rounds are interleaved: each figure is the best of the rounds, in microseconds,
and stands beside its ratio to what the package does.
"""

from __future__ import annotations

import gc
import json
import platform
import timeit
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import msgspec
import orjson

from trio_wskit._core import straight
from trio_wskit._core.annotations import Shapes, camel_case
from trio_wskit._core.codec import decode
from trio_wskit._core.schema import MessageSpec, message, spec_of
from trio_wskit._core.writing import Writers

ROUNDS = 80
SECONDS = 0.004  # for each candidate in each round
META: dict[str, Any] = {"timestamp": 1_700_000_000_000, "correlationId": "c-17"}


@message("SAY")
class Say:
    room_id: str
    text: str


@attrs.frozen
class Item:
    sku: str
    unit_price: float
    quantity: int
    tags: list[str]
    note: str | None = None


@attrs.frozen
class Address:
    full_name: str
    street: str
    city: str
    post_code: str
    country: str


@message("ORDER")
class Order:
    order_id: str
    customer: Address
    items: list[Item]
    status: Literal["open", "paid", "sent"]
    totals: dict[str, float]
    is_gift: bool = False


class SayStruct(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    room_id: str
    text: str


class ItemStruct(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    sku: str
    unit_price: float
    quantity: int
    tags: list[str]
    note: str | None = None


class AddressStruct(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    full_name: str
    street: str
    city: str
    post_code: str
    country: str


class OrderStruct(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    order_id: str
    customer: AddressStruct
    items: list[ItemStruct]
    status: Literal["open", "paid", "sent"]
    totals: dict[str, float]
    is_gift: bool = False


class RawEnvelope(msgspec.Struct):
    type: str
    meta: dict[str, Any] = {}
    payload: msgspec.Raw = msgspec.Raw()


def say_from_struct(found: SayStruct) -> Say:
    return Say(found.room_id, found.text)


def order_from_struct(found: OrderStruct) -> Order:
    who = found.customer
    return Order(
        found.order_id,
        Address(who.full_name, who.street, who.city, who.post_code, who.country),
        [Item(item.sku, item.unit_price, item.quantity, item.tags, item.note) for item in found.items],
        found.status,
        found.totals,
        found.is_gift,
    )


SAY = Say("lobby", "Hello, who is coming along to the harbour tonight?")
ORDER = Order(
    "o-2024-000017",
    Address("Grace Brewster Hopper", "3 Harbour Street", "Hoboken", "07030", "US"),
    [
        Item(f"sku-{number:04}", 19.5 + number, number, ["blue", "large", "fragile"], "gift" if number % 3 else None)
        for number in range(1, 10)
    ],
    "paid",
    {"net": 220.5, "tax": 41.9, "gross": 262.4},
)

Step = Callable[[], object]


def _use_dumps(dumps: Callable[[Any], bytes]) -> None:
    """Have the encoders that are generated from here on write with another library."""
    straight.__dict__["dumps"] = dumps


def candidates(
    spec: MessageSpec, instance: Any, struct: type[Any], from_struct: Callable[[Any], Any]
) -> dict[str, tuple[Step, Step]]:
    """Name to (read, write) of one message, each from text to instance, or back, with its envelope."""
    text = spec.encode(instance, META)
    found: dict[str, tuple[Step, Step]] = {
        "the package: orjson, generated code": (
            lambda: spec.structure(decode(text)),
            lambda: spec.encode(instance, META),
        )
    }
    compiled = spec.ready()
    libraries: dict[str, tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = {
        "orjson": (orjson.loads, orjson.dumps),
        "msgspec": (msgspec.json.decode, msgspec.json.encode),
        "json": (json.loads, lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()),
    }
    for name, (loads, dumps) in libraries.items():
        _use_dumps(dumps)
        shape = Shapes(camel_case, lambda _: None).of_class(spec.cls)
        encode = straight.straight_encoder(shape, Writers().writer)
        _use_dumps(orjson.dumps)

        def read_straight(loads: Any = loads) -> object:
            return compiled.accept(loads(text)["payload"])

        def write_straight(encode: Any = encode) -> object:
            return encode(instance, spec.type, META)

        def read_cattrs(loads: Any = loads) -> object:
            return compiled.read(loads(text)["payload"], None)

        def write_cattrs(dumps: Any = dumps) -> object:
            payload = compiled.write(instance)
            compiled.read(payload, None)
            return dumps({"type": spec.type, "meta": META, "payload": payload})

        found[f"{name} alone, generated code"] = read_straight, write_straight
        found[f"{name} alone, strict cattrs"] = read_cattrs, write_cattrs

    envelope_decoder, payload_decoder = msgspec.json.Decoder(RawEnvelope), msgspec.json.Decoder(struct)
    encoder = msgspec.json.Encoder()
    as_struct = payload_decoder.decode(envelope_decoder.decode(text).payload)

    def read_struct() -> object:
        return payload_decoder.decode(envelope_decoder.decode(text).payload)

    def read_struct_to_attrs() -> object:
        return from_struct(payload_decoder.decode(envelope_decoder.decode(text).payload))

    def write_struct() -> object:
        return encoder.encode({"type": spec.type, "meta": META, "payload": as_struct})

    found["msgspec Structs, made into attrs (write: unchecked)"] = read_struct_to_attrs, write_struct
    found["msgspec Structs alone: no attrs, write unchecked"] = read_struct, write_struct
    for name, (read, write) in found.items():
        if "Structs alone" not in name and read() != instance:
            raise AssertionError(f"{name} does not read the same")
        if "Structs" not in name and orjson.loads(write()) != orjson.loads(text):  # type: ignore[arg-type]
            raise AssertionError(f"{name} does not write the same")
    return found


def measure(steps: dict[str, Step]) -> dict[str, float]:
    """Microseconds for each step: the best of interleaved rounds."""
    timers = {name: timeit.Timer(step) for name, step in steps.items()}
    counts = {name: max(1, int(SECONDS / max(timer.timeit(20) / 20, 1e-9))) for name, timer in timers.items()}
    best = dict.fromkeys(steps, float("inf"))
    gc.disable()
    for _ in range(ROUNDS):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(counts[name]) / counts[name] * 1e6)
    gc.enable()
    return best


def table(title: str, figures: Mapping[str, tuple[float, ...]], columns: tuple[str, ...]) -> str:
    """One table in Markdown; the ratio is of the sums, to the first row."""
    lines = [f"\n### {title}\n", f"| | {' | '.join(columns)} | ratio |", "|---" * (len(columns) + 2) + "|"]
    first = sum(next(iter(figures.values())))
    for name, row in figures.items():
        shown = " | ".join(f"{figure:.2f}" for figure in row)
        lines.append(f"| {name} | {shown} | {sum(row) / first:.2f} |")
    return "\n".join(lines)


def main() -> None:
    for title, spec, instance, struct, from_struct in (
        ("A chat message", spec_of(Say), SAY, SayStruct, say_from_struct),
        ("An order of nested classes", spec_of(Order), ORDER, OrderStruct, order_from_struct),
    ):
        size = len(spec.encode(instance, META))
        found = candidates(spec, instance, struct, from_struct)
        reads = measure({name: read for name, (read, _) in found.items()})
        writes = measure({name: write for name, (_, write) in found.items()})
        rows = {name: (reads[name], writes[name]) for name in found}
        print(table(f"{title}, {size} bytes: µs to read, to write", rows, ("read", "write")))
    text = spec_of(Say).encode(SAY, META)
    struct_decoder = msgspec.json.Decoder(RawEnvelope)
    envelopes = measure(
        {
            "the package: decode": lambda: decode(text),
            "orjson alone": lambda: orjson.loads(text),
            "msgspec alone": lambda: msgspec.json.decode(text),
            "msgspec to a Struct with a raw payload": lambda: struct_decoder.decode(text),
            "json alone": lambda: json.loads(text),
        }
    )
    rows_of_one = {name: (figure,) for name, figure in envelopes.items()}
    print(table(f"The envelope of the chat message, {len(text)} bytes", rows_of_one, ("µs",)))
    print(f"\nCPython {platform.python_version()}, orjson {orjson.__version__}, msgspec {msgspec.__version__}")


if __name__ == "__main__":
    main()
