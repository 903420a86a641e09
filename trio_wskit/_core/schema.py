"""Message classes: `@message`, `Rpc[Reply]`, and the `MessageSpec` that is compiled for each of them.

    @message("JOIN_ROOM")
    class JoinRoom:
        room_id: str            # "roomId" on the wire
        limit: int = 50

    @message("GET_USER")
    class GetUser(Rpc[User]):   # User is a message too
        id: UUID

A spec is compiled when the class is defined. Only a class whose annotations name something that does not exist yet
waits, until it is first asked for (`spec_of`: when a router, a client or a send meets it).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import (
    Any,
    ForwardRef,
    Generic,
    Protocol,
    Self,
    TypeVar,
    cast,
    dataclass_transform,
    final,
    get_args,
    get_origin,
)

import attrs

from trio_wskit._core.annotations import Rename, camel_case
from trio_wskit._core.compiling import Compiled, Options, Unresolved, compile_class, read_or_explain
from trio_wskit._core.envelope import ABSENT, RESERVED_META, Envelope, is_reserved
from trio_wskit._core.explaining import TOO_DEEP, expected_of
from trio_wskit._core.json_text import dumps, is_json
from trio_wskit._core.straight import Accept, Encode, GivesUp
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
        reply = cast("MessageSpec", spec_of(cls).reply)  # a message that is an Rpc has one
        return cls, reply.cls


class RpcType(Protocol[Q_co, R_co]):
    """A class of requests Q with replies R, as a value: what `router.rpc(GetUser)` takes.

    `type[Q]` cannot say that Q is an `Rpc[R]` and give R; a class object that fits this protocol says both, to mypy
    and to pyright. (A protocol with `__call__` giving Q does so for mypy alone: pyright takes the metaclass's, which
    gives Any.)
    """

    def __wskit_rpc__(self) -> tuple[type[Q_co], type[R_co]]: ...


def _gives_up(*_: Any) -> Any:
    """Stands where there is no generated function: always asks the slow path."""
    raise GivesUp


@final
class MessageSpec:
    """One message class, compiled.

    Attributes:
        type: the name on the wire.
        cls: the class.
        is_compiled: False while an annotation names what does not exist yet.
        accept: makes the instance of a payload, or raises anything at all: then `structure` has to look.
    """

    __slots__ = ("_encode", "_knows_reply", "_reply", "_state", "accept", "cls", "is_compiled", "type")

    def __init__(self, type_name: str, cls: type[Any], state: Options | Compiled) -> None:
        self.type: str = type_name
        self.cls: type[Any] = cls
        self._state = state
        self.accept: Accept = _gives_up
        self._encode: Encode = _gives_up
        self._reply: MessageSpec | None = None
        self._knows_reply = False
        self.is_compiled: bool = False

    @property
    def reply(self) -> MessageSpec | None:
        """The spec of the answer, if the class is an `Rpc`."""
        if not self._knows_reply:
            reply = self.ready().reply
            self._reply = None if reply is None else spec_of(reply)
            self._knows_reply = True
        return self._reply

    def with_type(self, new_type: str) -> MessageSpec:
        """The same message under another name, as `mount(prefix, …)` needs it. Its reply keeps its own name.

        Raises:
            ConfigError: the name is empty or reserved.
        """
        _check_type_name(new_type, self.cls.__qualname__)
        spec = MessageSpec(new_type, self.cls, self.ready())
        spec.compile()
        return spec

    def structure(self, envelope: Envelope) -> Any:
        """Make the instance that an envelope carries.

        A class without fields takes no payload, null and {}.

        Raises:
            PayloadInvalid: with every issue. What a validator raises that is neither ValueError nor TypeError is a
                bug of the application, and comes out as it is.
        """
        try:
            return self.accept(envelope.payload)
        except Exception:  # whatever it is, the slow path finds it again, and says what it means
            return self._structure_slowly(envelope)

    def encode(self, instance: Any, meta: dict[str, Any]) -> bytes:
        """Write the whole envelope, keys in the order type, meta, payload. Without fields there is no payload key.

        Raises:
            PayloadInvalid: see `unstructure`; or the meta is not JSON, or not what the message declared.
        """
        try:
            return self._encode(instance, self.type, meta)
        except Exception:
            return self._encode_slowly(instance, meta)

    def unstructure(self, instance: Any) -> Any:
        """Make the payload, as plain JSON values, of an instance of this class.

        Raises:
            PayloadInvalid: a value is not of its field's type, or JSON cannot carry it; with every issue.
        """
        compiled = self.ready()
        try:
            payload = compiled.write(instance)
        except RecursionError:
            issues = [{"path": "", "message": TOO_DEEP}]
        else:
            issues = compiled.check(payload)
            if not issues:
                return payload
        raise PayloadInvalid(self.type, issues)

    def _structure_slowly(self, envelope: Envelope) -> Any:
        compiled = self.ready()
        payload = envelope.payload
        issues = compiled.meta_issues(envelope.meta)
        if not issues:
            with suppress(Exception):
                return compiled.accept(payload)
        if not compiled.shape.fields and (payload is None or payload is ABSENT):
            payload = {}
        instance = None
        if payload is ABSENT:
            issues.append({"path": "", "message": f"missing: expected {expected_of(compiled.shape)}"})
        else:
            instance, found = read_or_explain(compiled.read, payload, compiled.shapes)
            issues += found
        if issues:
            raise PayloadInvalid(self.type, issues)
        return instance

    def _encode_slowly(self, instance: Any, meta: dict[str, Any]) -> bytes:
        compiled = self.ready()
        issues = compiled.meta_issues(meta)
        if not is_json(meta):
            issues.append({"path": "meta", "message": "expected JSON"})
        if issues:
            raise PayloadInvalid(self.type, issues)
        with suppress(Exception):
            return compiled.encode(instance, self.type, meta)
        envelope = {"type": self.type, "meta": meta, "payload": self.unstructure(instance)}
        if not compiled.shape.fields:
            del envelope["payload"]
        try:
            return dumps(envelope)
        except TypeError:  # everything else has been looked for
            raise PayloadInvalid(self.type, [{"path": "", "message": TOO_DEEP}]) from None

    def compile(self) -> Compiled:
        """Read the annotations and build what reads and writes, if that has not been done.

        Raises:
            Unresolved: an annotation names what does not exist.
            ConfigError: the definition is wrong.
        """
        if isinstance(self._state, Options):
            names = {**self._state.frame.f_locals, self.cls.__name__: self.cls}
            self._state = compile_class(self.cls, self._state, names, _reply_of(self.cls, names))
        compiled = self._state
        self.is_compiled = True
        if not compiled.meta:  # what is declared there is looked at by the slow path
            self.accept, self._encode = compiled.accept, compiled.encode
        return compiled

    def ready(self) -> Compiled:
        """As `compile`, but what does not exist is a ConfigError too: for when the class is used."""
        try:
            return self.compile()
        except Unresolved as error:
            raise ConfigError(f"{error}, which does not exist at run time") from error.__cause__


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def message(
    type_name: str,
    *,
    rename: Rename | None = camel_case,
    forbid_extra: bool = True,
    meta: Mapping[str, Any] | None = None,
) -> Callable[[type[T]], type[T]]:
    """Make a class a message: frozen, slotted, and compiled for the wire.

    The class becomes an attrs class, and `attrs.field` works in it with defaults, validators and converters; a class
    that is an attrs class already is taken as it is. Validators that fail on input (ValueError, TypeError) are issues
    of the message. Fields with `init=False` are not part of the payload.

    Fields may be str, bool, int (of 64 bits), float, None; datetime (ISO 8601, always with an offset), date, UUID,
    Decimal (all strings in JSON); Literal and Enum (of str and int); list, tuple, dict with str keys; attrs classes;
    Any; and unions that JSON can tell apart: several classes by a Literal field that each of them has. Nothing is
    coerced, neither on the way in nor on the way out, but that an int will do for a float. A field whose default is
    None is left out when it is None.

    Args:
        type_name: what stands under `type` on the wire; not empty, and not starting with "__" or "$".
        rename: from a field's name to its key on the wire, for the classes in the fields too; camelCase unless given;
            None keeps the names.
        forbid_extra: refuse payloads with unknown keys, in the message and in the classes in its fields.
        meta: keys that a peer must send in the meta, as they are on the wire, each with its type; `NotRequired[type]`
            for those that may be absent. Handlers find the plain JSON values in `ctx.meta`.

    Raises:
        ConfigError: the definition is wrong; the text names the class and the field. Raised here, or by the first use
            of the class if an annotation names something that is defined later.
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
        # The names that a class inside a function can see.
        frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        spec = MessageSpec(type_name, cls, Options(rename or _same_name, forbid_extra, dict(meta or {}), frame))
        with suppress(Unresolved):  # `spec_of` looks again for what is defined further down
            spec.compile()
        cls.__wskit_spec__ = spec  # type: ignore[attr-defined]
        return cls

    return decorate


def spec_of(message: object) -> MessageSpec:
    """The spec of a message class, or of an instance's class, compiled.

    Raises:
        ConfigError: no message class (a subclass of one is none without its own decorator), or its definition is wrong.
    """
    spec = find_spec(message)
    if spec is None:
        cls = message if isinstance(message, type) else type(message)
        raise ConfigError(f'{cls.__qualname__} is not a message: decorate it with @message("TYPE")')
    return spec


def find_spec(message: object) -> MessageSpec | None:
    """The spec of a class, or of an instance's class; None if it is no message.

    Raises:
        ConfigError: its definition is wrong.
    """
    spec: MessageSpec | None = getattr(message, "__wskit_spec__", None)
    cls: object = spec and spec.cls
    if spec is None or (cls is not message and cls is not type(message)):
        return None
    if not spec.is_compiled:
        spec.ready()
    return spec


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
                    reply = _evaluated(reply.__forward_arg__, base, names)
                if not isinstance(reply, type) or getattr(reply, "__wskit_spec__", None) is None:
                    name = getattr(reply, "__qualname__", reply)
                    raise ConfigError(f"{cls.__qualname__}: its reply {name} is not a message")
                return reply
    raise ConfigError(f"{cls.__qualname__}: name the reply in brackets: class {cls.__name__}(Rpc[Reply])")


def _evaluated(name: str, base: type[Any], names: Mapping[str, Any]) -> Any:
    try:
        return eval(name, vars(sys.modules[base.__module__]), dict(names))
    except NameError as error:
        raise Unresolved(f"{base.__qualname__}: its reply is {error.name!r}") from error
