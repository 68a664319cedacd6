"""From a row's columns to a sample: alpaca, prompt/response, question/answer, chats, text.

Which columns mean what is recognised by name, or said by ``dataset.column_mapping``. Imports
neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from submitrain.errors import DataError

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


@dataclass(frozen=True)
class Source:
    """Numbered rows, read lazily, so a data set need not fit in memory."""

    where: str
    """What it is, for messages: a path, a hub name, an import path."""
    count: int
    rows: Callable[[int, int], Iterator[Row]]
    """The rows from the first number to the second (not included), in order."""


_ANSWERS = ("response", "output", "answer", "completion")
_CONTEXTS = ("input", "context")
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "tool": "tool",
}
"""ShareGPT's and OpenAI's names of who speaks."""

ROLES = (
    *("messages", "instruction", "input", "output", "prompt", "response", "completion"),
    *("question", "context", "answer", "text"),
)
"""Keys of ``column_mapping``; context/question/answer are NeMo AutoModel's."""

FORMS = (
    "messages | conversations | instruction[, input], output | prompt, response | "
    "prompt, completion | question[, context], answer | text"
)


@dataclass(frozen=True)
class Columns:
    """Which column holds what; unused ones are None."""

    messages: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    text: str | None = None
    verbatim: bool = False
    tokens: bool = False

    def sample(self, row: Row, *, where: str) -> Sample:
        """The row as a sample.

        Raises:
            DataError: a column is missing or holds something else; names ``where``.
        """
        if self.tokens:
            return _tokens(row, where)
        if self.messages is not None:
            return Chat(_messages(_value(row, self.messages, where), where))
        if self.text is not None:
            return Text(_string(row, self.text, where))
        assert self.prompt is not None and self.response is not None
        if isinstance(row.get(self.prompt), list):
            parts = [_value(row, name, where) for name in (self.prompt, self.response)]
            return Chat(_messages([*parts[0], *parts[1]], where))
        context = "" if self.context is None else str(row.get(self.context) or "")
        prompt, response = (_string(row, name, where) for name in (self.prompt, self.response))
        return Pair(prompt, response, context, self.verbatim)


def find_columns(names: Sequence[str], mapping: Mapping[str, str] | None, *, where: str) -> Columns:
    """Recognise the columns ``names``, or take them from ``mapping`` (role to column).

    Raises:
        DataError: not recognised, unknown role, or a mapped column that is not there.
    """
    if mapping is None and "input_ids" in names:
        return Columns(tokens=True)
    if mapping is None:
        chat = next((name for name in ("messages", "conversations") if name in names), None)
        columns = _by_role({**{name: name for name in names}, "messages": chat})
    else:
        _check_mapping(names, mapping, where)
        columns = _by_role(mapping)
    if columns is None:
        given = f"column_mapping {dict(mapping)}" if mapping else f"columns {', '.join(names)}"
        raise DataError(
            f"dataset: {where}: cannot tell prompt from answer, got {given}; expected one of "
            f"{FORMS}; next: map your columns with dataset.column_mapping, "
            "for example {prompt: my_question, response: my_answer}"
        )
    return columns


def _by_role(column: Mapping[str, str | None]) -> Columns | None:
    if (messages := column.get("messages")) is not None:
        return Columns(messages=messages)
    answers = [column[role] for role in _ANSWERS if column.get(role)]
    contexts = [column[role] for role in _CONTEXTS if column.get(role)]
    for role in ("instruction", "prompt", "question", "context"):
        prompt = column.get(role)
        if prompt and answers:
            context = contexts[0] if contexts and contexts[0] != prompt else None
            verbatim = role == "prompt" and answers[0] == column.get("completion")
            return Columns(prompt=prompt, context=context, response=answers[0], verbatim=verbatim)
    if (text := column.get("text")) is not None:
        return Columns(text=text)
    return None


def _check_mapping(names: Sequence[str], mapping: Mapping[str, str], where: str) -> None:
    for role, name in mapping.items():
        if role not in ROLES:
            raise DataError(
                f"dataset.column_mapping: unknown role {role!r}; allowed: {', '.join(ROLES)}"
            )
        if name not in names and name.partition(".")[0] not in names:
            raise DataError(
                f"dataset.column_mapping.{role}: {where} has no column {name!r}; "
                f"it has {', '.join(names)}"
            )


def _value(row: Row, name: str, where: str) -> Any:
    """The value of a column, or one inside of it: ``answers.text.0``."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            raise DataError(
                f"dataset: {where}: the row has no column {name!r}; it has {', '.join(row)}"
            ) from None
    return value


def _string(row: Row, name: str, where: str) -> str:
    value = _value(row, name, where)
    if not isinstance(value, str):
        raise DataError(
            f"dataset: {where}: column {name!r}: expected text, got {type(value).__name__}"
        )
    return value


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = json.loads(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DataError(
            f"dataset: {where}: expected a list of messages, got {type(value).__name__}; "
            "next: give [{role: user, content: ...}, {role: assistant, content: ...}]"
        )
    return tuple(_message(turn, where) for turn in value)


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"dataset: {where}: expected a message with role and content, got {turn!r}")
    speaker, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    role = _ROLES.get(str(speaker))
    if role is None or not isinstance(content, str):
        raise DataError(
            f"dataset: {where}: expected a message with role ({', '.join(_ROLES)}) and text as "
            f"content, got role {speaker!r} and {type(content).__name__}"
        )
    return Message(role, content)


def _tokens(row: Row, where: str) -> Tokens:
    ids = tuple(int(token) for token in _value(row, "input_ids", where))
    labels = [int(token) for token in row.get("labels", ids)]
    wrong = [i for i, (a, b) in enumerate(zip(ids, labels, strict=False)) if b not in (a, -100)]
    if len(labels) != len(ids) or wrong:
        raise DataError(
            f"dataset: {where}: labels must be as long as input_ids and hold the same token or "
            f"-100 at every place (not shifted: the trainer shifts them); got {len(ids)} ids, "
            f"{len(labels)} labels, first difference at {wrong[:1] or 'the end'}"
        )
    return Tokens(ids, tuple(label != -100 for label in labels))
