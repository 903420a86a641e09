"""A thousand connections, each on twenty topics: they come, they hear, they go, and nothing is left of them."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from typing import Final

from trio.testing import MockClock

from tests.sessions import Client, Said, open_house, settle
from trio_wskit.pubsub import MemoryPubSub, TopicPattern, conflate
from trio_wskit.transports.memory import memory_link

CLIENTS: Final = 1000
TOPICS: Final = 20  # of each client
ROOMS: Final = 200  # topics in all


async def test_a_thousand_on_twenty_topics_each_subscribe_receive_and_leave_with_nothing_left(
    autojump_clock: MockClock,
) -> None:
    driver = MemoryPubSub()
    async with open_house(pubsub=driver) as house:
        clients = [house.start(Client(*memory_link())) for _ in range(CLIENTS)]
        await settle()
        for n, session in enumerate(house.app.sessions):
            mine = [f"room:{(n + k * 7) % ROOMS}" for k in range(TOPICS - 1)]
            await session.topics.subscribe_many(mine)
            await session.topics.subscribe(TopicPattern("all:*"), gaps=n % 2 == 0, overflow=conflate())
            assert len(session.topics) == TOPICS
        delivered = 0
        for room in range(ROOMS):
            result = await house.app.publish(f"room:{room}", Said(str(room)))
            assert result.delivered == result.matched_local
            delivered += result.delivered
        assert delivered == CLIENTS * (TOPICS - 1)
        assert (await house.app.publish("all:1", Said("all"))).delivered == CLIENTS
        await settle()
        heard = 0
        for n, client in enumerate(clients):
            if n % 100 == 0:
                texts = await client.texts()
                assert len(texts) == TOPICS
                assert texts[-1] == "all"
                heard += 1
        assert heard == CLIENTS // 100
        for client in clients:
            client.peer.close()
        for client in clients:
            await client.served.wait()
        assert house.app.sessions == ()
        assert driver.list_topics() == ()
        hub = house.app._hub
        assert (len(hub), len(hub._terms), hub._turns._lots, hub.budget.used) == (0, 0, {}, 0)
        assert (hub._terms.gaps, hub._terms.conflating) == (0, 0)
        house.clients.clear()
