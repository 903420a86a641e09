from __future__ import annotations

from tests.limiter.conftest import cluster as cluster
from tests.limiter.conftest import coredis_rubbish as coredis_rubbish
from tests.limiter.conftest import own_server as own_server
from tests.limiter.conftest import shared_server as shared_server
from tests.limiter.conftest import store as store
