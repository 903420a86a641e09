"""A WebSocket framework for Trio: schema-first routing, RPC, pub/sub and rate limiting, with structured concurrency."""

from trio_wskit._app import App as App
from trio_wskit._app import open_app as open_app
from trio_wskit._context import Context as Context
from trio_wskit._core.handshake import HttpResponse as HttpResponse
from trio_wskit._core.handshake import Request as Request
from trio_wskit._core.options import Limits as Limits
from trio_wskit._core.publishing import PublishResult as PublishResult
from trio_wskit._core.schema import Rpc as Rpc
from trio_wskit._core.schema import message as message
from trio_wskit._router import Router as Router
from trio_wskit._serve import Server as Server
from trio_wskit._serve import run as run
from trio_wskit._serve import serve as serve
from trio_wskit._session import Session as Session
from trio_wskit.errors import CloseError as CloseError
from trio_wskit.errors import ConfigError as ConfigError
from trio_wskit.errors import ConnectionClosed as ConnectionClosed
from trio_wskit.errors import PubSubError as PubSubError
from trio_wskit.errors import Reject as Reject
from trio_wskit.errors import WsKitError as WsKitError
