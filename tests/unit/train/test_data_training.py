"""The data of a run: prepared once for all ranks, found again, and counted honestly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import structlog

from submitrain.config import RunConfig
from submitrain.errors import DataError
from submitrain.train.data.prepare import DataContext, prepare_tokenizer
from submitrain.train.data.training import TrainingData, prepare_data
from tests.data_parts import write_rows

ROWS = [
    {
        "instruction": f"Please count carefully from zero to {i % 13}, without a pause.",
        "output": ", then ".join(map(str, range(i % 13 + 1))),
    }
    for i in range(90)
]


def make_config(folder: Path, **sections: Any) -> RunConfig:
    path = folder / "rows.jsonl"
    if not path.exists():
        write_rows(path, ROWS)
    values: dict[str, Any] = {
        "seed": 5,
        "model": {"config": {"model_type": "llama"}, "train_tokenizer_vocab_size": 350},
        "dataset": {"dataset_name": str(path), "max_length": 128},
        "step_scheduler": {"local_batch_size": 2, "global_batch_size": 6},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return RunConfig.model_validate(values)


def prepare(folder: Path, rank: int = 0, world: int = 1, **sections: Any) -> TrainingData:
    config = make_config(folder, **sections)
    place = DataContext(rank, world, folder / "cache")
    return prepare_data(config, prepare_tokenizer(config, place), place)


def all_docs(data: TrainingData, position: int = 0) -> list[int]:
    return [d for step in data.step_batches(position) for batch in step for d in batch.doc_ids]


def test_one_epoch_by_default_with_every_sample(tmp_path: Path) -> None:
    data = prepare(tmp_path)
    assert sorted(all_docs(data)) == list(range(90))
    assert data.total_steps == -(-data.units_per_epoch // 6)


def test_packing_makes_fewer_units_than_documents(tmp_path: Path) -> None:
    packed = prepare(tmp_path)
    single = prepare(tmp_path, packed_sequence={"enabled": False})
    assert packed.units_per_epoch < single.units_per_epoch == single.documents == 90


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [({"max_steps": 7}, 7), ({"num_epochs": 2}, 30), ({"num_epochs": 2, "max_steps": 7}, 7)],
)
def test_total_steps(tmp_path: Path, scheduler: dict[str, int], steps: int) -> None:
    off = {"enabled": False}
    data = prepare(tmp_path, step_scheduler=scheduler, packed_sequence=off)
    assert data.total_steps == steps


def test_last_step_of_the_last_epoch_is_short(tmp_path: Path) -> None:
    scheduler = {"global_batch_size": 40}
    data = prepare(tmp_path, step_scheduler=scheduler, packed_sequence={"enabled": False})
    sizes = [sum(len(batch.doc_ids) for batch in step) for step in data.step_batches(0)]
    assert sizes == [40, 40, 10]


def test_second_run_reads_the_cache(tmp_path: Path) -> None:
    prepare(tmp_path)
    with structlog.testing.capture_logs() as logs:
        prepare(tmp_path)
    assert [entry["event"] for entry in logs] == ["data.ready"]


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": {"max_length": 64}},
        {"dataset": {"answer_only_loss_mask": False}},
        {"dataset": {"split": "train[:50%]"}},
        {"dataset": {"num_samples_limit": 10}},
        {"dataset": {"column_mapping": {"prompt": "output", "response": "instruction"}}},
        {"dataset": {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}},
        {"model": {"train_tokenizer_vocab_size": 300}},
        {"packed_sequence": {"enabled": False}},
        {"seed": 6},
    ],
)
def test_fingerprint_sees_what_changes_the_stream(tmp_path: Path, change: dict[str, Any]) -> None:
    before = prepare(tmp_path).fingerprint
    seed = change.pop("seed", None)
    config = make_config(tmp_path, **change)
    if seed is not None:
        config = config.model_copy(update={"seed": seed})
    place = DataContext(0, 1, tmp_path / "cache")
    assert prepare_data(config, prepare_tokenizer(config, place), place).fingerprint != before


def test_touched_file_is_the_same_data(tmp_path: Path) -> None:
    before = prepare(tmp_path).fingerprint
    (tmp_path / "rows.jsonl").touch()
    assert prepare(tmp_path).fingerprint == before


def test_tokenizing_processes_do_not_change_the_fingerprint(tmp_path: Path) -> None:
    alone = prepare(tmp_path).fingerprint
    cfg = {"num_workers": 2, "cache_dir": str(tmp_path / "other")}
    assert prepare(tmp_path, dataset=cfg).fingerprint == alone


PROGRAM = """
import sys
from pathlib import Path
from tests.unit.train.test_data_training import prepare
data = prepare(Path(sys.argv[1]), rank=int(sys.argv[2]), world=2)
print(data.fingerprint, [d for step in data.step_batches(0) for b in step for d in b.doc_ids])
"""


def test_one_rank_tokenizes_and_all_agree(tmp_path: Path) -> None:
    """The builder starts last: the other has to wait for it."""
    make_config(tmp_path)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), str(rank)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    outputs = [rank.communicate(timeout=300)[0] for rank in ranks]
    tokenizing = ["data.tokenizing" in output for output in outputs]
    answers = [output.splitlines()[-1].split(" ", 1) for output in outputs]
    assert tokenizing == [False, True]
    assert len({fingerprint for fingerprint, _ in answers}) == 1
    assert sorted(doc for _, docs in answers for doc in json.loads(docs)) == list(range(90))


def test_trained_tokenizer_knows_prompts_and_answers_of_large_data(tmp_path: Path) -> None:
    """Only a part is learned from, but of every sample in that part all of it."""
    row = {"instruction": "question " * 9, "output": "solution " * 9}
    rows = [{key: f"{text}{i}" for key, text in row.items()} for i in range(2500)]
    write_rows(tmp_path / "rows.jsonl", rows)
    config = make_config(tmp_path)
    tokenizer = prepare_tokenizer(config, DataContext(0, 1, tmp_path / "cache"))
    for word in ("question", "solution"):
        assert len(tokenizer(word)["input_ids"]) == 1


def test_dropped_samples_are_reported(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [*ROWS, {"instruction": "long " * 99, "output": "x"}])
    with structlog.testing.capture_logs() as logs:
        data = prepare(tmp_path)
    warnings = [entry for entry in logs if entry["log_level"] == "warning"]
    assert [(entry["event"], entry["dropped"]) for entry in warnings] == [
        ("data.samples_dropped", 1)
    ]
    assert (data.documents, data.train.store.meta.truncated) == (90, 1)


def test_validation_equal_to_training_warns(tmp_path: Path) -> None:
    same = {"dataset_name": str(tmp_path / "rows.jsonl")}
    with structlog.testing.capture_logs() as logs:
        prepare(tmp_path, validation_dataset=same)
    assert "data.validation_equals_training" in [entry["event"] for entry in logs]


def test_held_out_validation_is_one_exact_pass(tmp_path: Path) -> None:
    path = str(tmp_path / "rows.jsonl")
    held_out = {"dataset_name": path, "split": "train[90%:]"}
    data = prepare(tmp_path, dataset={"split": "train[:90%]"}, validation_dataset=held_out)
    assert data.validation is not None
    docs = [doc for batch in data.validation.batches() for doc in batch.doc_ids]
    assert sorted(docs) == list(range(9))
    assert len(list(data.validation.batches())) == len(data.validation)


def test_error_in_validation_data_names_its_section(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^validation_dataset\.dataset_name: no file"):
        prepare(tmp_path, validation_dataset={"dataset_name": "./no-such.jsonl"})


def test_longer_validation_samples_get_longer_sequences(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "long.jsonl", [{"prompt": "p", "response": "long " * 99}])
    validation = {"dataset_name": str(path), "max_length": 400}
    data = prepare(tmp_path, validation_dataset=validation)
    assert data.validation is not None
    assert [batch.tokens for batch in data.validation.batches()] == [400]


def test_padded_batches_have_one_shape(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    place = DataContext(0, 1, tmp_path / "cache")
    data = prepare_data(config, prepare_tokenizer(config, place), place, pad_to_fixed=True)
    shapes = {tuple(batch.input_ids.shape) for step in data.step_batches(0) for batch in step}
    assert shapes == {(1, 2 * 128)}


def test_tokenizing_can_be_given_up_and_leaves_nothing(tmp_path: Path) -> None:
    class StopAskedError(Exception):
        pass

    def give_up() -> None:
        raise StopAskedError

    config = make_config(tmp_path)
    tokenizer = prepare_tokenizer(config, DataContext(0, 1, tmp_path / "cache"))
    with pytest.raises(StopAskedError):
        prepare_data(config, tokenizer, DataContext(0, 1, tmp_path / "other", poll=give_up))
    assert list((tmp_path / "other").iterdir()) == []
