"""What the stores on Redis have in common; what each makes of it is in its own tests, on real servers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from trio_wskit._redis_script import as_raised


@asynccontextmanager
async def a_room(*, fails: bool = False) -> AsyncGenerator[None]:
    async def fail() -> None:
        await trio.sleep(1)
        raise OSError("the room's own")

    async with trio.open_nursery() as nursery:
        if fails:
            nursery.start_soon(fail)
        yield
        nursery.cancel_scope.cancel()


async def test_what_the_block_raises_leaves_the_room_as_it_was_raised() -> None:
    for raised in (KeyError("mine"), ExceptionGroup("mine", [KeyError("a"), ExceptionGroup("b", [OSError("c")])])):
        with pytest.raises(type(raised)) as caught:
            async with as_raised(a_room()):
                raise raised
        assert caught.value is raised


async def test_what_the_room_raises_leaves_it_too(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="the room's own")):
        async with as_raised(a_room(fails=True)):
            await trio.sleep_forever()


async def test_where_both_fail_nothing_is_hidden(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(OSError, KeyError):
        async with as_raised(a_room(fails=True)):
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError("mine")


async def test_a_cancelled_block_is_just_cancelled() -> None:
    with trio.move_on_after(0) as scope:
        async with as_raised(a_room()):
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("module", ["presence.redis", "pubsub.redis_history"])
def test_without_coredis_the_import_says_what_to_install(module: str) -> None:
    package = module.partition(".")[0]
    code = f"import sys; sys.modules['coredis'] = None; import trio_wskit.{package}; import trio_wskit.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    says = "ImportError: The stores on Redis need coredis: pip install 'trio-wskit[redis]'"
    assert done.stderr.strip().endswith(says)
