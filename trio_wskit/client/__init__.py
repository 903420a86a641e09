"""A client for any ws-kit or trio-wskit server: typed, reconnecting, cancellable."""

from trio_wskit._core.backoff import Backoff as Backoff
from trio_wskit.client._auth import Attach as Attach
from trio_wskit.client._auth import Handshake as Handshake
from trio_wskit.client._auth import TokenAuth as TokenAuth
from trio_wskit.client._calls import ClientCall as ClientCall
from trio_wskit.client._client import Client as Client
from trio_wskit.client._connect import Connector as Connector
from trio_wskit.client._connect import Opened as Opened
from trio_wskit.client._lifecycle import State as State
from trio_wskit.client._lifecycle import StateChange as StateChange
from trio_wskit.client._open import open_client as open_client
from trio_wskit.client._queue import QueueOptions as QueueOptions
from trio_wskit.client._reconnect import Reconnect as Reconnect
from trio_wskit.client._retry import Retry as Retry
from trio_wskit.client._stats import ClientStats as ClientStats
from trio_wskit.client._streams import Overflow as Overflow
from trio_wskit.client._streams import Stream as Stream
from trio_wskit.client._subscriptions import Gap as Gap
from trio_wskit.client._subscriptions import Subscribe as Subscribe
from trio_wskit.client._subscriptions import Subscribed as Subscribed
from trio_wskit.client._subscriptions import Unsubscribe as Unsubscribe
from trio_wskit.client._subscriptions import Unsubscribed as Unsubscribed
