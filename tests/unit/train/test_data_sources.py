"""Reading samples: local files, folders, the standard library, the hub, a user's own class."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import ConfigError, DataError
from submitrain.train.data import stdlib
from submitrain.train.data.columns import Pair
from submitrain.train.data.sources import read_samples, source_key
from submitrain.train.data.stdlib import functions_in
from tests.data_parts import section, write_rows

ROWS = [{"prompt": f"p{i}", "response": f"r{i}"} for i in range(20)]


def prompts(samples: Any) -> list[str]:
    return [sample.prompt for sample in samples]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "p", "response": None},
            "row 1: column 'response': expected text, got NoneType",
        ),
        ({"prompt": "p"}, "row 1: the row has no column 'response'; it has prompt"),
    ],
)
def test_bad_row_is_named_by_number(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write_rows(tmp_path / "data.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=message):
        list(read_samples(section(dataset_name=str(path))))


@pytest.mark.parametrize(
    "turn", [{"role": "robot", "content": "x"}, {"role": "user", "content": 3}, "hello"]
)
def test_bad_message_is_refused(tmp_path: Path, turn: Any) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"messages": [turn]}])
    with pytest.raises(DataError, match="row 0: expected a message with role"):
        list(read_samples(section(dataset_name=str(path))))


def test_shifted_labels_of_a_user_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.jsonl", [{"input_ids": [5, 6, 7], "labels": [6, 7, -100]}])
    with pytest.raises(DataError, match=r"not shifted.*first difference at \[0\]"):
        list(read_samples(section(dataset_name=str(path))))


def write_parquet(path: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def write_array(path: Path) -> Path:
    path.write_text(json.dumps(ROWS, indent=1))
    return path


def write_gz(path: Path) -> Path:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in ROWS)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", lambda path: write_rows(path, ROWS)),
        ("a.json", lambda path: write_rows(path, ROWS)),
        ("a.json", write_array),
        ("a.parquet", write_parquet),
        ("a.jsonl.gz", write_gz),
    ],
)
def test_every_local_format_gives_the_same_samples(tmp_path: Path, name: str, write: Any) -> None:
    path = write(tmp_path / name)
    samples = read_samples(section(dataset_name=str(path), split="train[3:8]"))
    assert prompts(samples) == ["p3", "p4", "p5", "p6", "p7"]


def test_limit_counts_from_the_split(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    cfg = section(dataset_name=str(path), split="train[50%:]", num_samples_limit=3)
    samples = read_samples(cfg)
    assert (len(samples), prompts(samples)) == (3, ["p10", "p11", "p12"])


def test_folder_reads_files_in_order_of_their_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "part-1.jsonl", ROWS[10:])
    write_rows(tmp_path / "part-0.jsonl", ROWS[:10])
    samples = read_samples(section(dataset_name=str(tmp_path), split="train[8:12]"))
    assert prompts(samples) == ["p8", "p9", "p10", "p11"]


@pytest.mark.parametrize("name", ["val.jsonl", "validation/a.jsonl", "my-dev-00.jsonl"])
def test_folder_finds_validation_by_file_name(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS[:15])
    write_rows(tmp_path / name, ROWS[15:])
    found = {
        split: len(read_samples(section(dataset_name=str(tmp_path), split=split)))
        for split in ("train", "validation")
    }
    assert found == {"train": 15, "validation": 5}


def test_missing_split_of_a_folder_names_what_there_is(tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"no file for 'validation'; found train in train\.jsonl"):
        read_samples(section(dataset_name=str(tmp_path), split="validation"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset_name": "./no/such.jsonl"}, r"no file or folder './no/such\.jsonl'"),
        ({"dataset_name": "no-such.parquet"}, "no file or folder 'no-such.parquet'"),
        ({}, "dataset_name: missing; next: give a hub name"),
        ({"_target_": "python_stdlib", "split": "test"}, "has train and validation, got 'test'"),
    ],
)
def test_unusable_section_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_samples(section(**keys))


def test_hub_key_with_a_local_file_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"dataset\.revision: only data of the hub has that"):
        read_samples(section(dataset_name=str(path), revision="v1"))


def test_validation_of_a_single_file_needs_a_slice(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(DataError, match=r"has no split 'validation'; next: use train or a part"):
        read_samples(section(dataset_name=str(path), split="validation"))


@pytest.mark.parametrize(("rows", "split"), [([], "train"), (ROWS, "train[5:5]")])
def test_no_samples_is_an_error(tmp_path: Path, rows: list[Any], split: str) -> None:
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match="no samples in split"):
        read_samples(section(dataset_name=str(path), split=split))


def test_torn_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "p", "response": "r"}\n{"prompt": "p", "resp\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        list(read_samples(section(dataset_name=str(path))))


def test_changed_file_changes_the_key(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    before = source_key(section(dataset_name=str(path)))
    write_rows(path, ROWS[:-1])
    assert source_key(section(dataset_name=str(path))) != before


def test_standard_library_holds_whole_modules_out() -> None:
    train, held_out = (
        {(pair.prompt, pair.response) for pair in read_samples(section(_target_="python_stdlib"))},
        {
            (pair.prompt, pair.response)
            for pair in read_samples(section(_target_="python_stdlib", split="validation"))
        },
    )
    assert train.isdisjoint(held_out)
    assert len(train) > 2000
    assert 50 < len(held_out) < len(train) / 5


def test_standard_library_sample_is_code_after_its_docstring() -> None:
    source = (
        "class A:\n"
        "    def f(self,\n          x):\n"
        '        """Add one.\n\n        Really.\n        """\n\n'
        "        return x + 1\n"
        "    def no_docstring(self):\n        return 1\n"
        '    def no_code(self):\n        """Only talk."""\n'
    )
    assert functions_in(source) == [
        (
            'def f(self,\n      x):\n    """Add one.\n\n    Really.\n    """',
            "\n    return x + 1",
        )
    ]


def test_standard_library_is_read_in_order_and_what_does_not_parse_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        code = f'def f{number}():\n    """Number {number}."""\n    return {number}\n'
        package = tmp_path / f"package{number % 2}"
        package.mkdir(parents=True, exist_ok=True)
        (package / f"m{number}.py").write_text(code + code.replace("def f", "def g"))
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    monkeypatch.setattr(stdlib, "library_folder", lambda: tmp_path)
    stdlib._library.cache_clear()
    samples = read_samples(section(_target_="python_stdlib"))
    stdlib._library.cache_clear()
    found = [prompt.split("(")[0].removeprefix("def ") for prompt in prompts(samples)]
    assert found == ["f0", "g0", "f2", "g2", "f4", "g4", "f1", "g1", "f3", "g3"]


def test_hub_loader_reads_through_datasets(tmp_path: Path) -> None:
    """``json`` is a builder of the ``datasets`` library: the same call, without a network."""
    path = write_rows(tmp_path / "rows.jsonl", ROWS)
    cfg = section(
        dataset_name="json", data_files=str(path), split="train[4:6]", cache_dir=str(tmp_path / "c")
    )
    assert list(read_samples(cfg)) == [Pair("p4", "r4"), Pair("p5", "r5")]


def test_hub_without_network_says_what_to_do(tmp_path: Path) -> None:
    program = (
        "from tests.data_parts import section\n"
        "from submitrain.train.data.sources import read_samples\n"
        "from submitrain.errors import DataError\n"
        "try:\n    read_samples(section(dataset_name='tatsu-lab/alpaca'))\n"
        "except DataError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    assert "cannot load split 'train' of 'tatsu-lab/alpaca'" in lines[0]
    assert "HF_HUB_OFFLINE=1" in lines[0]


class Squares:
    """A user's own data set."""

    given: Any = None
    """The tokenizer of the newest one."""

    def __init__(self, count: int, split: str = "train", tokenizer: Any = None) -> None:
        self.count = count
        Squares.given = tokenizer

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> dict[str, str]:
        return {"prompt": f"{number} squared", "response": str(number**2)}


class Streaming:
    """Not map-style."""

    def __iter__(self) -> Iterator[int]:
        return iter([])


class Bare(Squares):
    """Items that are no dicts."""

    def __getitem__(self, number: int) -> Any:
        return [1, 2, 3]


OWN = f"{__name__}.Squares"


def test_own_class_is_called_with_its_keys_and_the_tokenizer() -> None:
    cfg = section(_target_=OWN, count=4, split="train[1:3]", max_length=64)
    samples = read_samples(cfg, tokenizer="the tokenizer")
    assert list(samples) == [Pair("1 squared", "1"), Pair("2 squared", "4")]
    assert sys.modules[__name__].Squares.given == "the tokenizer"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"_target_": OWN, "count": 3, "size": 4}, "does not take size; it takes count, split"),
        ({"_target_": f"{__name__}.Streaming"}, "gave a Streaming without __len__"),
        ({"_target_": f"{__name__}.Bare", "count": 3}, "item 0: expected a dict with input_ids"),
        ({"_target_": f"{__name__}.Nothing"}, "has no 'Nothing'"),
        ({"_target_": "no_such_package.Nothing"}, "got 'no_such_package.Nothing'"),
    ],
)
def test_unusable_own_class_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises((DataError, ConfigError), match=message):
        list(read_samples(section(**keys)))
