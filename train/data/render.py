"""From samples to text with known spans to learn: chat templates, and the plain template.

The plain template, for tokenizers that have no chat template::

    ### Instruction:
    {prompt}

    ### Input:          (only where the sample has a context)
    {context}

    ### Response:
    {response}<eos>
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from submitrain.errors import DataError
from submitrain.train.data.columns import Chat, Message, Pair, Sample, Text, Tokens

Span = tuple[int, int]
"""First character and the one after the last."""

_HEADINGS = {"system": "System", "user": "Instruction", "tool": "Tool", "assistant": "Response"}


@dataclass(frozen=True)
class Rendered:
    """Text, the spans of it to learn, and whether BOS comes before and a learned EOS after it."""

    text: str
    spans: tuple[Span, ...]
    add_bos: bool = True
    close: bool = True

    def parts(self) -> Iterator[tuple[str, bool]]:
        """The text cut at the spans' borders, and whether each part is learned."""
        at = 0
        for start, stop in (*self.spans, (len(self.text), len(self.text))):
            for part, learned in ((self.text[at:start], False), (self.text[start:stop], True)):
                if part:
                    yield part, learned
            at = stop


@dataclass(frozen=True)
class Renderer:
    """Renders samples for one tokenizer; ``template`` replaces the tokenizer's own. Pickles."""

    tokenizer: Any
    template: str | None = None

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template in use, or None for the plain one."""
        if self.template is not None:
            return self.template
        try:
            return None if not self.tokenizer.chat_template else self.tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                f"dataset.chat_template: the tokenizer has several templates: {error}; next: give "
                "the one to use as dataset.chat_template"
            ) from error

    def render(self, sample: Sample) -> list[Rendered]:
        """The sample as one or more pieces of text, to be joined after tokenizing."""
        assert not isinstance(sample, Tokens)
        if isinstance(sample, Text):
            return [Rendered(sample.text, ((0, len(sample.text)),))]
        if isinstance(sample, Pair) and sample.verbatim:
            return [_answered(sample.prompt, sample.response)]
        template = self.chat_template
        if template is not None:
            return [self._chat(_turns(sample, "\n\n"), template)]
        return _plain(_turns(sample, "\n\n### Input:\n"))

    def _chat(self, messages: tuple[Message, ...], template: str) -> Rendered:
        text = self._apply(messages, template)
        spans: list[Span] = []
        closed = True
        for start, stop in self._spans(messages, text, template):
            answer = text[start:stop].rstrip()
            closed = answer.endswith(self._special)
            spans.append((start, start + len(answer)) if closed else (start, stop))
        return Rendered(text, tuple(spans), add_bos=False, close=not closed)

    def _spans(self, messages: tuple[Message, ...], text: str, template: str) -> Iterator[Span]:
        """Where each assistant turn is: by the template's own markers, or prefix by prefix."""
        if "{% generation %}" in template or "{%- generation" in template:
            yield from self._marked_spans(messages, text, template)
            return
        for number, message in enumerate(messages):
            if message.role != "assistant":
                continue
            before = self._apply(messages[:number], template, prompting=True)
            after = self._apply(messages[: number + 1], template)
            if not text.startswith(after) or not after.startswith(before):
                before, after = self._around(messages, number, text, template)
            yield len(before), len(after)

    def _marked_spans(
        self, messages: tuple[Message, ...], text: str, template: str
    ) -> Iterator[Span]:
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, spans = render_jinja_template(
            conversations=[_dicts(messages)],
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        assert rendered[0] == text
        yield from ((start, stop) for start, stop in spans[0])

    def _around(
        self, messages: tuple[Message, ...], number: int, text: str, template: str
    ) -> tuple[str, str]:
        """Find a turn in a template that renders the last turn unlike the others (Qwen3).

        The same chat is rendered with another content of that turn: what both texts have before
        and after it is not the turn. The end-of-turn token that follows is the answer's.
        """
        mark = "\u2063submitrain\u2063"
        turn = replace(messages[number], content=mark)
        other = (*messages[:number], turn, *messages[number + 1 :])
        head, found, tail = self._apply(other, template).partition(mark)
        if not found or not text.startswith(head) or not text.endswith(tail):
            raise DataError(
                f"dataset.chat_template: cannot tell where assistant turn {number} begins and "
                "ends: the template changes earlier text when later turns follow; next: give a "
                "dataset.chat_template with {% generation %} ... {% endgeneration %} around the "
                "assistant's text"
            )
        end = next((token for token in self._special if tail.startswith(token)), "")
        return head, text[: len(text) - len(tail) + len(end)]

    @cached_property
    def _special(self) -> tuple[str, ...]:
        """Special tokens as text; one of them ends a turn."""
        return tuple(str(token) for token in self.tokenizer.added_tokens_decoder.values())

    def _apply(
        self, messages: tuple[Message, ...], template: str, *, prompting: bool = False
    ) -> str:
        if not messages:
            return ""
        try:
            text = self.tokenizer.apply_chat_template(
                _dicts(messages),
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompting,
            )
        except Exception as error:  # jinja raises whatever the template's author chose
            roles = ", ".join(message.role for message in messages)
            raise DataError(
                f"dataset.chat_template: the template refused a chat of turns {roles}: {error}"
            ) from error
        return str(text)


def read_template(value: str | None) -> str | None:
    """``dataset.chat_template``: a Jinja text, or the path of a file that holds one."""
    if value is None or "{" in value or "\n" in value:
        return value
    try:
        return Path(value).expanduser().read_text()
    except OSError as error:
        raise DataError(
            f"dataset.chat_template: expected a Jinja template or the path of one, got {value!r}: "
            f"{error.strerror}"
        ) from error


def _turns(sample: Pair | Chat, before_context: str) -> tuple[Message, ...]:
    if isinstance(sample, Chat):
        return sample.messages
    prompt = sample.prompt + (before_context + sample.context if sample.context else "")
    return Message("user", prompt), Message("assistant", sample.response)


def _answered(prompt: str, response: str) -> Rendered:
    return Rendered(prompt + response, ((len(prompt), len(prompt) + len(response)),))


def _plain(messages: tuple[Message, ...]) -> list[Rendered]:
    """One piece for every assistant turn, with what was said before it."""
    pieces, asked = [], ""
    for message in messages:
        heading = f"### {_HEADINGS[message.role]}:\n"
        if message.role == "assistant":
            pieces.append(_answered(asked + heading, message.content))
            asked = ""
        else:
            asked += f"{heading}{message.content}\n\n"
    return pieces or [Rendered(asked, (), close=False)]


def _dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
