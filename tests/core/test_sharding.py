from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trio_wskit._core.sharding import shard_of, slot_of, topic_hash
from trio_wskit.errors import ConfigError

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "data" / "shard-vectors.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=[ascii(vector["topic"])[:30] for vector in VECTORS])
def test_a_topic_has_the_shard_that_ws_kit_gives_it(vector: dict[str, Any]) -> None:
    topic = vector["topic"]
    assert topic_hash(topic) == vector["hash_uint32"]
    for count in (1, 10, 16, 128):
        assert shard_of(topic, count) == vector[f"shards_{count}"]
    assert shard_of(topic, 7, "rl") == vector["custom_prefix_7"]


def test_half_of_a_surrogate_pair_has_a_shard_too() -> None:
    assert topic_hash("\ud83d") == 0xD83D


@pytest.mark.parametrize("shards", [0, -1, True])
def test_there_is_at_least_one_shard(shards: int) -> None:
    with pytest.raises(ConfigError, match="at least 1 shard"):
        shard_of("t", shards)


@pytest.mark.parametrize(
    ("name", "slot"),
    # `CLUSTER KEYSLOT` of Valkey 9.1.2
    [("foo", 12182), ("{foo}bar", 12182), ("x{foo}y{bar}", 12182), ("foo{}", 5542), ("{", 4092), ("", 0)],
)
def test_a_slot_is_found_as_the_cluster_finds_it(name: str, slot: int) -> None:
    assert slot_of(name) == slot
