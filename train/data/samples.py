"""What a data set's row can be, before it is tokenized. Imports neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Row = Mapping[str, Any]
"""A row as it is read: column names to values."""


@dataclass(frozen=True)
class Pair:
    """A prompt and the answer to learn.

    ``verbatim``: the answer follows the prompt as they are (prompt/completion data); otherwise
    they are put into the chat template, or into the plain one where there is none.
    """

    prompt: str
    response: str
    context: str = ""
    verbatim: bool = False


@dataclass(frozen=True)
class Message:
    """One turn of a chat; ``role`` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Chat:
    """A conversation; every assistant turn is learned."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Text:
    """Running text; every token is learned."""

    text: str


@dataclass(frozen=True)
class Tokens:
    """Already tokenized by the user's own data set; ``is_label`` marks the tokens to learn."""

    ids: tuple[int, ...]
    is_label: tuple[bool, ...]


Sample = Pair | Chat | Text | Tokens


class Source(Protocol):
    """Something with numbered rows. Reads lazily, so a data set need not fit in memory."""

    @property
    def where(self) -> str:
        """What it is, for messages: a path, a hub name, an import path."""
        ...

    def count(self) -> int:
        """Number of rows."""
        ...

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """The rows ``start`` to ``stop`` (not included), in order."""
        ...
