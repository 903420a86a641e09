"""Servers that both sides share; see tests/limiter/conftest.py."""

from __future__ import annotations

from tests.limiter.conftest import coredis_rubbish as coredis_rubbish
from tests.limiter.conftest import own_server as own_server
