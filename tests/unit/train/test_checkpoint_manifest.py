"""The manifest tells a whole checkpoint from anything else, and is light enough for a launcher."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.fence import Fence
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    TrainState,
    digest_file,
    list_checkpoints,
    newest_verified,
    verify,
)


def manifest(folder: Path, step: int = 5) -> Manifest:
    files = {
        str(path.relative_to(folder)): digest_file(path)
        for path in folder.rglob("*")
        if path.is_file()
    }
    return Manifest(
        state=TrainState(step=step, position=40, wandb_id="abc", extra={"skipped": 3}),
        attempt=2,
        world_size=4,
        config_hash="c0ffee",
        model_format="safetensors",
        adapter_only=False,
        created_at=1.5,
        files=files,
    )


def make_checkpoint(root: Path, step: int) -> Path:
    """A published checkpoint with two files of rubbish."""
    folders = CheckpointFolders(root, Fence(1))
    folder = folders.begin(step)
    (folder / "model").mkdir()
    (folder / "model/weights").write_bytes(b"w" * 100)
    (folder / "numbers").write_bytes(b"n" * 10)
    folders.seal(folder, manifest(folder, step).text())
    return folders.publish(step)


def test_a_manifest_survives_its_text(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    before = manifest(tmp_path)
    assert Manifest.parse(before.text()) == before


@given(position=st.integers(0), replacement=st.characters(codec="ascii"))
def test_any_changed_character_is_noticed(position: int, replacement: str) -> None:
    text = Manifest(TrainState(3), 1, 2, "hash", "torch_save", True, 9.25, {}).text()
    index = position % len(text)
    changed = text[:index] + replacement + text[index + 1 :]
    try:
        parsed = Manifest.parse(changed)
    except ValueError:
        return
    assert parsed.text() == text


@given(length=st.integers(0, 400))
def test_a_cut_manifest_is_noticed(length: int) -> None:
    text = Manifest(TrainState(3), 1, 2, "hash", "torch_save", True, 9.25, {}).text()
    if length < len(text):
        with pytest.raises(ValueError):
            Manifest.parse(text[:length])


@given(
    st.builds(
        TrainState,
        step=st.integers(0),
        position=st.integers(0),
        data_fingerprint=st.text(),
        wandb_id=st.none() | st.text(),
        extra=st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()),
    )
)
def test_a_train_state_survives_json(state: TrainState) -> None:
    assert TrainState.from_json(asdict(state)) == state


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert TrainState.from_json({"step": 3, "from_the_future": 1}) == TrainState(3)


def test_a_whole_checkpoint_has_no_problems(tmp_path: Path) -> None:
    assert verify(make_checkpoint(tmp_path, 5)) == []


def test_every_kind_of_damage_is_named(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 5)
    (checkpoint / "model/weights").write_bytes(b"w" * 99 + b"x")
    (checkpoint / "numbers").unlink()
    (checkpoint / "stray").touch()
    assert verify(checkpoint) == [
        "stray: not in the manifest",
        "model/weights: content changed (sha256 differs)",
        "numbers: missing",
    ]


def test_a_quick_look_compares_sizes_only(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path, 5)
    (checkpoint / "model/weights").write_bytes(b"x" * 100)
    assert verify(checkpoint, contents=False) == []
    (checkpoint / "numbers").write_bytes(b"n" * 11)
    assert verify(checkpoint, contents=False) == ["numbers: 11 bytes, expected 10"]


def test_checkpoints_are_listed_by_step_and_nothing_else_is(tmp_path: Path) -> None:
    for step in (100, 20, 123456789):
        make_checkpoint(tmp_path, step)
    for name in ("step-00000300.tmp-1", "step-00000300.old-1", "step-3", "latest", "other"):
        (tmp_path / name).mkdir()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["step-00000020", "step-00000100", "step-123456789"]


def test_a_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "none") == []


def test_the_newest_verified_is_not_the_newest_when_that_is_damaged(tmp_path: Path) -> None:
    good, bad = make_checkpoint(tmp_path, 5), make_checkpoint(tmp_path, 6)
    (bad / MANIFEST).unlink()
    assert newest_verified(tmp_path) == good


def test_reading_manifests_does_not_import_torch() -> None:
    code = (
        "import sys; import submitrain.train.checkpoint.manifest; "
        "import submitrain.train.checkpoint.folders; "
        "print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
