"""Message classes: `@message`, `Rpc[Reply]`, and the `MessageSpec` that is compiled for each of them.

    @message("JOIN_ROOM")
    class JoinRoom:
        room_id: str            # "roomId" on the wire
        limit: int = 50

    @message("GET_USER")
    class GetUser(Rpc[User]):   # User is a message too
        id: UUID

A spec is compiled when the class is defined. Only a class whose annotations name something that does not exist yet waits, until
it is first asked for (`spec_of`: when a router, a client or a send meets it).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import (
    Any,
    Final,
    ForwardRef,
    Generic,
    NotRequired,
    Protocol,
    Self,
    TypeVar,
    dataclass_transform,
    final,
    get_args,
    get_origin,
)

import attrs
from cattrs.errors import BaseValidationError

from trio_wskit._core.envelope import ABSENT, RESERVED_META, Envelope, is_reserved
from trio_wskit._core.hooks import StrictHooks, expected_of
from trio_wskit._core.json_text import dumps, is_json
from trio_wskit._core.leaves import Read, Refused, Write
from trio_wskit._core.shapes import ClassShape, Rename, Shape, camel_case, shape_of_class, shape_of_type
from trio_wskit.errors import ConfigError, PayloadInvalid

__all__ = ["MessageSpec", "Rpc", "RpcType", "find_spec", "message", "spec_of"]

T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
Q_co = TypeVar("Q_co", covariant=True)


class Rpc(Generic[R_co]):
    """The base of a request: names the message that answers it.

        @message("GET_USER")
        class GetUser(Rpc[User]): ...

    `await client.request(GetUser(...))` is then a User, and so is what the handler must return.
    """

    __slots__ = ()

    @classmethod
    def __wskit_rpc__(cls) -> tuple[type[Self], type[R_co]]:
        """The class, and that of its reply: what type checkers read through `RpcType`."""
        reply = spec_of(cls).reply
        if reply is None:  # Rpc itself, which is no message, has been refused before
            raise ConfigError(f"{cls.__qualname__} names no reply")
        return cls, reply.cls


class RpcType(Protocol[Q_co, R_co]):
    """A class of requests Q with replies R, as a value: what `router.rpc(GetUser)` takes.

    `type[Q]` cannot say that Q is an `Rpc[R]` and give R; a class object that fits this protocol says both, to mypy and to
    pyright. (A protocol with `__call__` giving Q does so for mypy alone: pyright takes the metaclass's, which gives Any.)
    """

    def __wskit_rpc__(self) -> tuple[type[Q_co], type[R_co]]: ...


@final
@attrs.frozen
class _Options:
    """What `message` was given, until the class can be compiled."""

    rename: Rename
    forbid_extra: bool
    meta: Mapping[str, Any]
    frame: FrameType | None


@final
@attrs.frozen
class _Compiled:
    read: Read
    write: Write
    hooks: StrictHooks
    shape: ClassShape
    meta: Mapping[str, tuple[Shape, Read, bool]]
    reply: type[Any] | None


@final
class MessageSpec:
    """One message class, compiled.

    Attributes:
        type: the name on the wire.
        cls: the class.
    """

    __slots__ = ("_compiled", "_options", "cls", "type")

    def __init__(self, type_name: str, cls: type[Any], options: _Options) -> None:
        self.type = type_name
        self.cls = cls
        self._options: _Options | None = options
        self._compiled: _Compiled | None = None

    @property
    def reply(self) -> MessageSpec | None:
        """The spec of the answer, if the class is an `Rpc`."""
        reply = self._ready().reply
        return None if reply is None else spec_of(reply)

    def with_type(self, new_type: str) -> MessageSpec:
        """The same message under another name, as `mount(prefix, …)` needs it. Its reply keeps its own name.

        Raises:
            ConfigError: the name is empty or reserved.
        """
        _check_type_name(new_type, self.cls.__qualname__)
        spec = MessageSpec.__new__(MessageSpec)
        spec.type, spec.cls, spec._options, spec._compiled = new_type, self.cls, None, self._ready()
        return spec

    def structure(self, envelope: Envelope) -> Any:
        """Make the instance that an envelope carries.

        A class without fields takes no payload, null and {}.

        Raises:
            PayloadInvalid: with every issue. Also what a validator raises that is neither ValueError nor TypeError comes out, as
                it is: a bug of the application.
        """
        compiled = self._ready()
        payload = envelope.payload
        if payload is None or payload is ABSENT:
            payload = {} if not compiled.shape.fields else payload
        if payload is not ABSENT and not compiled.meta:
            try:
                return compiled.read(payload, None)
            except (BaseValidationError, Refused) as error:
                raise PayloadInvalid(self.type, list(compiled.hooks.issues(error))) from None
        issues = self._meta_issues(envelope.meta)
        instance = None
        if payload is ABSENT:
            issues.append({"path": "", "message": f"missing: expected {expected_of(compiled.shape)}"})
        else:
            try:
                instance = compiled.read(payload, None)
            except (BaseValidationError, Refused) as error:
                issues.extend(compiled.hooks.issues(error))
        if issues:
            raise PayloadInvalid(self.type, issues)
        return instance

    def unstructure(self, instance: Any) -> Any:
        """Make the payload, as plain JSON values, of an instance of this class.

        Raises:
            PayloadInvalid: the type of a field's value is not that of the field, or JSON cannot carry it; with every issue.
        """
        compiled = self._ready()
        try:
            payload = compiled.write(instance)
            compiled.read(payload, None)
        except (BaseValidationError, Refused) as error:
            raise PayloadInvalid(self.type, list(compiled.hooks.issues(error))) from None
        except RecursionError:
            raise PayloadInvalid(self.type, [{"path": "", "message": _TOO_DEEP}]) from None
        return payload

    def encode(self, instance: Any, meta: Mapping[str, Any]) -> bytes:
        """Write the whole envelope, keys in the order type, meta, payload. Without fields there is no payload key.

        Raises:
            PayloadInvalid: see `unstructure`; or the meta is not JSON, or does not fit what the message declared.
        """
        payload = self.unstructure(instance)
        compiled = self._ready()
        issues = self._meta_issues(meta) if compiled.meta else []
        if issues:
            raise PayloadInvalid(self.type, issues)
        envelope = {"type": self.type, "meta": meta, "payload": payload}
        if not compiled.shape.fields:
            del envelope["payload"]
        try:
            return dumps(envelope)
        except TypeError:
            issue = (
                {"path": "", "message": _TOO_DEEP} if is_json(meta) else {"path": "meta", "message": "expected JSON"}
            )
            raise PayloadInvalid(self.type, [issue]) from None

    def _meta_issues(self, meta: Mapping[str, Any]) -> list[dict[str, str]]:
        compiled = self._ready()
        issues: list[dict[str, str]] = []
        for key, (shape, read, optional) in compiled.meta.items():
            if key in meta:
                try:
                    read(meta[key], None)
                except (BaseValidationError, Refused) as error:
                    issues.extend(compiled.hooks.issues(error, f"meta.{key}"))
            elif not optional:
                issues.append({"path": f"meta.{key}", "message": f"missing: expected {expected_of(shape)}"})
        return issues

    def compile(self) -> None:
        """Read the annotations and build the hooks, if that has not been done.

        Raises:
            ConfigError: the definition is wrong, or an annotation names something that does not exist.
        """
        self._ready()

    def _ready(self) -> _Compiled:
        if self._compiled is None:
            try:
                self._compile()
            except NameError as error:
                raise ConfigError(
                    f"{self.cls.__qualname__}: an annotation names {error.name!r}, which does not exist at run time"
                ) from error
        assert self._compiled is not None
        return self._compiled

    def _compile(self) -> None:
        options = self._options
        assert options is not None
        names = {**(options.frame.f_locals if options.frame else {}), self.cls.__name__: self.cls}

        def resolve(cls: type[Any]) -> None:
            attrs.resolve_types(cls, localns={**names, cls.__name__: cls})

        known: dict[type[Any], ClassShape] = {}
        shape = shape_of_class(self.cls, options.rename, resolve, known)
        hooks = StrictHooks(forbid_extra=options.forbid_extra)
        meta: dict[str, tuple[Shape, Read, bool]] = {}
        for key, annotation in options.meta.items():
            optional = get_origin(annotation) is NotRequired
            where = f"{self.cls.__qualname__}: meta {key!r}"
            part = shape_of_type(
                get_args(annotation)[0] if optional else annotation, where, options.rename, resolve, known
            )
            meta[key] = (part, hooks.reader(part), optional)
        reply = _reply_of(self.cls, names)
        self._compiled = _Compiled(hooks.reader(shape), hooks.writer(shape), hooks, shape, meta, reply)
        self._options = None  # lets go of the frame


_TOO_DEEP: Final = "nested too deeply, or holds itself"


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def message(
    type_name: str,
    *,
    rename: Rename | None = camel_case,
    forbid_extra: bool = True,
    meta: Mapping[str, Any] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Make a class a message: frozen, slotted, and compiled for the wire.

    The class becomes an attrs class, and `attrs.field` works in it with defaults, validators and converters; a class that is
    an attrs class already is taken as it is. Validators that fail on input (ValueError, TypeError) are issues of the message.
    Fields with `init=False` are not part of the payload.

    Args:
        type_name: what stands under `type` on the wire; not empty, and not starting with "__" or "$".
        rename: from a field's name to its key on the wire, for the classes in the fields too; camelCase unless given; None keeps
            the names.
        forbid_extra: refuse payloads with unknown keys, in the message and in the classes in its fields.
        meta: keys that a peer must send in the meta, as they are on the wire, each with its type; `NotRequired[type]` for
            those that may be absent. Handlers find the plain JSON values in `ctx.meta`.

    Raises:
        ConfigError: the definition is wrong; the text names the class and the field. Raised here, or by the first use of the
            class if an annotation names something that is defined later.
    """

    def decorate(cls: type[T]) -> type[T]:
        if not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"message({type_name!r}) decorates a class, not {cls!r}")
        _check_type_name(type_name, cls.__qualname__)
        for key in meta or {}:
            if key in RESERVED_META:
                raise ConfigError(f"{cls.__qualname__}: the meta key {key!r} is reserved for the server")
        if "__wskit_spec__" in vars(cls):
            raise ConfigError(f"{cls.__qualname__} is a message already")
        if "__attrs_attrs__" not in vars(cls):
            try:
                cls = attrs.frozen(cls, auto_attribs=True)
            except (TypeError, ValueError, attrs.exceptions.UnannotatedAttributeError) as error:
                raise ConfigError(f"{cls.__qualname__} cannot be made a message: {error}") from error
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage] - the names that a class in a function can see
        spec = MessageSpec(type_name, cls, _Options(rename or _same_name, forbid_extra, dict(meta or {}), frame))
        try:
            spec._compile()  # pyright: ignore[reportPrivateUsage]
        except NameError:
            pass  # defined further down: `spec_of` tries again
        cls.__wskit_spec__ = spec  # type: ignore[attr-defined]
        return cls

    return decorate


def spec_of(message_class: type[Any]) -> MessageSpec:
    """The spec of a message class, compiled.

    Raises:
        ConfigError: no message class (a subclass of one is none without its own decorator), or its definition is wrong.
    """
    spec = find_spec(message_class)
    if spec is None:
        name = getattr(message_class, "__qualname__", repr(message_class))
        raise ConfigError(f'{name} is not a message: decorate it with @message("TYPE")')
    spec.compile()
    return spec


def find_spec(cls: type[Any]) -> MessageSpec | None:
    """The spec of a class, or None if it is no message."""
    spec: MessageSpec | None = getattr(cls, "__wskit_spec__", None)
    return spec if spec is not None and spec.cls is cls else None


def _same_name(name: str) -> str:
    return name


def _check_type_name(type_name: object, owner: str) -> None:
    if type(type_name) is not str or not type_name:
        raise ConfigError(f"{owner}: a message type is a non-empty str, not {type_name!r}")
    if is_reserved(type_name):
        raise ConfigError(f'{owner}: message types that start with "__" or "$" are reserved: {type_name!r}')


def _reply_of(cls: type[Any], names: Mapping[str, Any]) -> type[Any] | None:
    if not issubclass(cls, Rpc):
        return None
    for base in cls.__mro__:
        for origin in getattr(base, "__orig_bases__", ()):
            if get_origin(origin) is Rpc:
                (reply,) = get_args(origin)
                if isinstance(reply, ForwardRef):
                    reply = eval(reply.__forward_arg__, vars(sys.modules[base.__module__]), dict(names))
                if not isinstance(reply, type) or find_spec(reply) is None:
                    name = getattr(reply, "__qualname__", reply)
                    raise ConfigError(f"{cls.__qualname__}: its reply {name} is not a message")
                return reply
    raise ConfigError(f"{cls.__qualname__}: name the reply in brackets: class {cls.__name__}(Rpc[Reply])")
