"""What a terminal shows: lines that come while somebody types, coloured where rich is installed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Generator
from types import ModuleType
from typing import Any, Final, final

from trio_wskit._core.envelope import ABSENT, Envelope
from trio_wskit.errors import ServerError

__all__ = ["Screen", "as_json", "explained"]

_COLOURS: Final = {"<": "cyan", ">": "green", "!": "bold red", "*": "yellow"}
_UNSEEN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_CLEAR_LINE: Final = "\r\x1b[K"


def as_json(envelope: Envelope) -> dict[str, Any]:
    """An envelope as it was on the wire, but for what readers leave out."""
    found: dict[str, Any] = {"type": envelope.type, "meta": envelope.meta}
    if envelope.payload is not ABSENT:
        found["payload"] = envelope.payload
    return found


def explained(error: Exception) -> str:
    """An error with all that it knows."""
    text = str(error)
    if isinstance(error, ServerError):
        if error.details:
            text += f" {json.dumps(error.details, ensure_ascii=False)}"
        if error.retry_after is not None and error.retryable:
            text += f" (try again in {error.retry_after:g} s)"
    return text


def _visible(text: str) -> str:
    """Without what would steer the terminal: the text is the server's."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@final
class Screen:
    """Prints lines, each with a mark: what came is ``<``, what we do ``>``, a mistake ``!``, a change ``*``.

    Attributes:
        is_interactive: somebody types, and sees what we print.
    """

    def __init__(self) -> None:
        self.is_interactive: bool = sys.stdin.isatty() and sys.stdout.isatty()
        self._is_typing = False
        self._readline: ModuleType | None = None
        self._paint = _painter()
        if self.is_interactive:
            with contextlib.suppress(ImportError):
                import readline  # gives input() a history, and keys to edit with

                self._readline = readline

    def say(self, mark: str, what: object) -> None:
        """Print a line, above the one that is being typed."""
        text = _visible(what if isinstance(what, str) else json.dumps(what, ensure_ascii=False))
        if self._is_typing:
            sys.stdout.write(_CLEAR_LINE)
        if self._paint is None:
            sys.stdout.write(f"{mark} {text}\n")  # at once: a thread may be about to write its prompt
            sys.stdout.flush()
        else:
            self._paint(mark, text, not isinstance(what, str))
        if self._is_typing:
            typed = "" if self._readline is None else self._readline.get_line_buffer()
            sys.stdout.write(f"> {typed}")
            sys.stdout.flush()

    def read_line(self) -> str:
        """Wait for a line; called in a thread.

        Raises:
            EOFError: there is none any more.
        """
        self._is_typing = self.is_interactive
        try:
            return input("> " if self.is_interactive else "")
        finally:
            self._is_typing = False

    @contextlib.contextmanager
    def kept(self) -> Generator[None]:
        """Put the terminal back at the end as it was: a thread that still waits for a line has changed it."""
        try:
            import termios
        except ImportError:  # Windows has nothing to put back
            yield
            return
        if not self.is_interactive:
            yield
            return
        before = termios.tcgetattr(sys.stdin.fileno())
        try:
            yield
        finally:
            if self._is_typing:
                sys.stdout.write(_CLEAR_LINE)
                sys.stdout.flush()
            termios.tcsetattr(sys.stdin.fileno(), termios.TCSADRAIN, before)


def _painter() -> Callable[[str, str, bool], None] | None:
    """A printer with colours; None where rich is not installed, or where nobody would see them."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return None
    try:
        from rich.console import Console
        from rich.highlighter import JSONHighlighter
        from rich.text import Text
    except ImportError:
        return None
    console = Console(soft_wrap=True)
    highlight = JSONHighlighter()

    def paint(mark: str, text: str, is_json: bool) -> None:
        line = Text(text)
        if is_json:
            highlight.highlight(line)
        console.print(Text(mark, style=_COLOURS.get(mark, "")), line)

    return paint
