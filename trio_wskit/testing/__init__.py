"""Proof for what you build on this package: contract suites, models, and fakes that are held to the same suites."""

from __future__ import annotations

from trio_wskit.testing.brokers import BrokerFactory as BrokerFactory
from trio_wskit.testing.brokers import BrokerPeer as BrokerPeer
from trio_wskit.testing.brokers import check_broker_consumer as check_broker_consumer
from trio_wskit.testing.history import HistoryFactory as HistoryFactory
from trio_wskit.testing.history import check_history as check_history
from trio_wskit.testing.limiter import RateLimiterFactory as RateLimiterFactory
from trio_wskit.testing.limiter import check_rate_limiter as check_rate_limiter
from trio_wskit.testing.limiter_history import RateLimiterHistory as RateLimiterHistory
from trio_wskit.testing.limiter_model import ManualClock as ManualClock
from trio_wskit.testing.limiter_model import ModelRateLimiter as ModelRateLimiter
from trio_wskit.testing.presence import PresenceStoreFactory as PresenceStoreFactory
from trio_wskit.testing.presence import check_presence as check_presence
from trio_wskit.testing.pubsub import PubSubDriverFactory as PubSubDriverFactory
from trio_wskit.testing.pubsub import check_pubsub_driver as check_pubsub_driver
from trio_wskit.testing.transports import LinkFactory as LinkFactory
from trio_wskit.testing.transports import TransportPeer as TransportPeer
from trio_wskit.testing.transports import check_transport as check_transport
