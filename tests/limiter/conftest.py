from __future__ import annotations

import gc
import warnings
from collections.abc import Generator

import pytest

from tests.valkey import BINARIES, Server, free_port


@pytest.fixture(scope="module")
def coredis_rubbish() -> Generator[None]:
    """A connection of coredis 6.9 that could not be made leaves memory streams of anyio open. Collect them here.

    Use it with `COREDIS_RUBBISH` in every module that has such connections, or a later test is blamed for them.
    """
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@pytest.fixture(scope="session", params=sorted(BINARIES))
def shared_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server for tests that leave it running: every kind that is here."""
    with Server(tmp_path_factory.mktemp("server"), request.param) as server:
        yield server


@pytest.fixture
def store(shared_server: Server) -> Server:
    """The shared server, empty."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A server to break."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    """A cluster of one, which minds slots as a large one does."""
    # The port of the cluster's own bus would be 10,000 above the other, which may be none.
    options = {"cluster_enabled": "yes", "cluster_port": str(free_port())}
    with Server(tmp_path_factory.mktemp("cluster"), **options) as server:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        server.wait_for_cluster()
        yield server
