"""A WebSocket framework for Trio: schema-first routing, RPC, pub/sub and rate limiting, with structured concurrency."""

from ._app import App as App
from ._app import open_app as open_app
from ._context import Context as Context
from ._core.handshake import HttpResponse as HttpResponse
from ._core.handshake import Request as Request
from ._core.options import Limits as Limits
from ._core.publishing import PublishResult as PublishResult
from ._core.schema import Rpc as Rpc
from ._core.schema import message as message
from ._router import Router as Router
from ._serve import Server as Server
from ._serve import run as run
from ._serve import serve as serve
from ._session import Session as Session
from .errors import CloseError as CloseError
from .errors import ConfigError as ConfigError
from .errors import ConnectionClosed as ConnectionClosed
from .errors import PubSubError as PubSubError
from .errors import Reject as Reject
from .errors import WsKitError as WsKitError
