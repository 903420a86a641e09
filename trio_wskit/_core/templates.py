"""Families of topics that differ in a part of their name."""

from __future__ import annotations

import re
from typing import Final, final

from trio_wskit._core.patterns import TopicPattern, pattern_fault
from trio_wskit.errors import ConfigError, PubSubError

__all__ = ["TopicTemplate", "topic"]

_FIELD: Final = re.compile(r"\{([^{}]*)\}")


@final
class TopicTemplate:
    """A family of topics; made by `topic`.

    Attributes:
        template: what it was made of.
        fields: the names of its parts, in order.
        pattern: matches every topic of the family, and a few more where a segment has more than the part alone.
    """

    def __init__(self, template: str) -> None:
        segments = template.split(":")
        self.template: str = template
        self.fields: tuple[str, ...] = tuple(_FIELD.findall(template))
        plain = _FIELD.sub("", template)
        if not self.fields or "{" in plain or "}" in plain or "*" in plain:
            raise ConfigError(
                f"topic() takes a name with parts in braces, such as 'room:{{room_id}}', not {template!r}"
            )
        if len(set(self.fields)) < len(self.fields) or not all(name.isidentifier() for name in self.fields):
            raise ConfigError(f"the parts of {template!r} need names of their own that are Python's")
        self.pattern: TopicPattern = TopicPattern(
            ":".join("*" if _FIELD.search(segment) else segment for segment in segments)
        )
        fault = pattern_fault(self.pattern)
        if fault is not None:
            raise ConfigError(f"{fault}, {template!r} has {len(segments)}")
        self._regex = re.compile(
            "".join(
                f"(?P<{piece}>[^:]+?)" if odd % 2 else re.escape(piece)
                for odd, piece in enumerate(_FIELD.split(template))
            )
        )

    def __repr__(self) -> str:
        return f"topic({self.template!r})"

    def __call__(self, **values: object) -> str:
        """The topic with these parts, each as `str` gives it: ``Room(room_id=7)`` is ``"room:7"``.

        Raises:
            TypeError: a part is missing, or is not in the template.
            PubSubError: INVALID_TOPIC: a part is empty, or has a colon, a star or a brace in it. So no client's text
                can lead to a topic of another family.
        """
        if values.keys() != set(self.fields):
            raise TypeError(f"{self!r} takes {', '.join(self.fields)}, not {', '.join(values) or 'nothing'}")
        name = self.template
        for field in self.fields:
            text = str(values[field])
            if not text or any(letter in text for letter in ":*{}"):
                raise PubSubError("INVALID_TOPIC", f"{field} cannot be {text!r} in {self.template}", {"why": "pattern"})
            name = name.replace(f"{{{field}}}", text)
        return name

    def parse(self, name: str) -> dict[str, str] | None:
        """The parts of a topic of this family; None for any other topic."""
        match = self._regex.fullmatch(name)
        return match.groupdict() if match is not None else None


def topic(template: str) -> TopicTemplate:
    """Name a family of topics once.

    Example:
        >>> Room = topic("room:{room_id}")
        >>> Room(room_id=7)
        'room:7'

    Args:
        template: a topic's name with parts in braces.

    Raises:
        ConfigError: it has no parts, a part's name is no Python name or comes twice, or a star is in it.
    """
    return TopicTemplate(template)
