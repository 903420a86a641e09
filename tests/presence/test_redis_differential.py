"""The script on the server and the table in memory do the same, whatever they are told."""

from __future__ import annotations

import random

import pytest
import trio

from tests.valkey import COREDIS_RUBBISH, Server
from trio_wskit._core.presence import PresenceTable
from trio_wskit.presence import PresenceAnswer, PresenceBeat, PresenceChange, TopicDiff
from trio_wskit.presence.redis import open_redis_presence

pytestmark = [pytest.mark.usefixtures("coredis_rubbish"), pytest.mark.filterwarnings(COREDIS_RUBBISH)]

NODES, TOPICS, PEOPLE = ("a", "b", "c"), ("t", "u:1"), ("ann", "bob", "cid", "1:x", "дан")


def seen(diffs: tuple[TopicDiff, ...]) -> list[tuple[object, ...]]:
    """All but the versions, which are each store's own."""
    return [(diff.topic, diff.previous == 0, diff.count, diff.joins, diff.leaves) for diff in diffs]


def facts(answer: PresenceAnswer) -> tuple[object, ...]:
    return answer.known, answer.held, answer.refused, seen(answer.diffs)


@pytest.mark.parametrize("seed", range(8))
async def test_both_answer_the_same(store: Server, seed: int) -> None:
    chance = random.Random(seed)
    table = PresenceTable()
    numbers = dict.fromkeys(NODES, 0)
    async with open_redis_presence(store.url, name=f"d{seed}", max_wait=20) as presence:
        for step in range(80):
            node = chance.choice(NODES)
            numbers[node] += 1
            changes: dict[tuple[str, str], bytes | None] = {}
            for _ in range(chance.randrange(5)):
                place = (chance.choice(TOPICS), chance.choice(PEOPLE))
                changes[place] = None if chance.random() < 0.4 else b'{"n":%d}' % chance.randrange(3)
            told: list[PresenceChange] = [(*place, state) for place, state in changes.items()]
            beat = PresenceBeat(
                node=node,
                number=numbers[node] - (chance.random() < 0.1),
                first=numbers[node] == 1,
                changes=told,
                doubtful=chance.random() < 0.2,
                max_members=4,
            )
            assert facts(await presence.beat(beat)) == facts(table.beat(beat, 1000 + step))
            topic = chance.choice(TOPICS)
            assert (await presence.members(topic)).members == table.members(topic, 1000).members
            assert await presence.count(topic) == table.count(topic, 1000)
            besides = chance.sample((*PEOPLE, "eve"), chance.randrange(4))
            assert await presence.count(topic, besides) == table.count(topic, 1000, besides)
        # One dies: what is left is the same.
        await presence.retire("a", 0)
        table.retire("a", 0, 2000)
        await trio.sleep(0.01)
        for topic in TOPICS:
            assert (await presence.members(topic)).members == table.members(topic, 2001).members
            assert await presence.count(topic) == table.count(topic, 2001)
            assert await presence.count(topic, PEOPLE) == table.count(topic, 2001, PEOPLE) == len(PEOPLE)
        last = PresenceBeat(node="b", number=1000, first=numbers["b"] == 0)
        left = {(diff.topic, who) for diff in (await presence.beat(last)).diffs for who in diff.leaves}
        assert left == {(diff.topic, who) for diff in table.beat(last, 2001).diffs for who in diff.leaves}
