"""Splits and columns: which rows of a data set, and what they mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.errors import DataError
from submitrain.train.data.columns import Chat, Message, Pair, Sample, Text, Tokens, find_columns
from submitrain.train.data.sources import Split, parse_split


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("train", (0, 20)),
        ("train[:95%]", (0, 19)),
        ("train[95%:]", (19, 20)),
        ("train[5:7]", (5, 7)),
        ("train[-3:]", (17, 20)),
        ("train[:-10%]", (0, 18)),
        ("train[7:100]", (7, 20)),
        ("train[9:3]", (9, 9)),
    ],
)
def test_split_slices_as_in_datasets(text: str, bounds: tuple[int, int]) -> None:
    assert parse_split(text).bounds(20) == bounds


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_percent_slices_share_a_border_and_no_row(count: int, percent: int) -> None:
    first = Split("train", None, f"{percent}%").bounds(count)
    second = Split("train", f"{percent}%", None).bounds(count)
    assert (first[0], first[1], second[1]) == (0, second[0], count)


@pytest.mark.parametrize("text", ["train[:95%", "train[a:b]", "", "train[1.5:2]", "train[3]"])
def test_bad_split_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"dataset\.split: expected a split such as"):
        parse_split(text)


@pytest.mark.parametrize(
    ("row", "sample"),
    [
        ({"instruction": "i", "input": "c", "output": "o", "text": "t"}, Pair("i", "o", "c")),
        ({"instruction": "i", "context": "", "response": "r", "category": "x"}, Pair("i", "r")),
        ({"prompt": "p", "response": "r"}, Pair("p", "r")),
        ({"prompt": "p", "completion": "r"}, Pair("p", "r", verbatim=True)),
        ({"question": "q", "answer": "a"}, Pair("q", "a")),
        ({"text": "t"}, Text("t")),
        ({"input_ids": [1, 2, 3]}, Tokens((1, 2, 3), (True, True, True))),
        (
            {"input_ids": [1, 2, 3], "labels": [-100, -100, 3]},
            Tokens((1, 2, 3), (False, False, True)),
        ),
        (
            {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
            Chat((Message("user", "u"), Message("assistant", "a"))),
        ),
        (
            {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
            Chat((Message("user", "u"), Message("assistant", "a"))),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "u"}],
                "completion": [{"role": "assistant", "content": "a"}],
            },
            Chat((Message("user", "u"), Message("assistant", "a"))),
        ),
    ],
)
def test_columns_are_recognised_by_name(row: dict[str, Any], sample: Sample) -> None:
    assert find_columns(list(row), None, where="here").sample(row, where="here") == sample


@pytest.mark.parametrize(
    ("mapping", "sample"),
    [
        ({"prompt": "a", "response": "b"}, Pair("1", "2")),
        ({"instruction": "a", "input": "c", "output": "b"}, Pair("1", "2", "3")),
        ({"context": "c", "question": "a", "answer": "b"}, Pair("1", "2", "3")),
        ({"context": "a", "answer": "b"}, Pair("1", "2")),
        ({"text": "c"}, Text("3")),
    ],
)
def test_columns_are_mapped(mapping: dict[str, str], sample: Sample) -> None:
    row = {"a": "1", "b": "2", "c": "3"}
    assert find_columns(list(row), mapping, where="here").sample(row, where="here") == sample


@pytest.mark.parametrize(
    ("names", "mapping", "message"),
    [
        (["a", "b"], None, "cannot tell prompt from answer, got columns a, b"),
        (
            ["a"],
            {"prompt": "x", "response": "a"},
            r"column_mapping\.prompt: here has no column 'x'",
        ),
        (["a"], {"promt": "a"}, "unknown role 'promt'; allowed: messages"),
        (["a"], {"prompt": "a"}, "cannot tell prompt from answer"),
    ],
)
def test_unusable_columns_are_refused(
    names: list[str], mapping: dict[str, str] | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        find_columns(names, mapping, where="here")
