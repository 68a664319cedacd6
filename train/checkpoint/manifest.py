"""What belongs to a checkpoint, and whether it is all there and whole. Imports no torch.

torch.distributed.checkpoint has no checksums: a flipped bit in one of its files loads silently.
Here every file's size and digest is recorded, and the manifest has a digest of itself. Launcher and
monitor ask here what can be resumed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

Json = str | int | float | bool | None


@dataclass(frozen=True)
class TrainState:
    """Progress at an optimizer-step boundary, all that is no tensor; the same on every rank.

    Data order, learning rate and random numbers are pure functions of these numbers, so nothing
    else has to be kept for an exact resume.
    """

    step: int
    """Finished optimizer steps."""
    position: int = 0
    """Units of data consumed or left out since the run began, over all epochs."""
    tokens: int = 0
    """Real tokens (no padding) that went through the model."""
    label_tokens: int = 0
    """Tokens that had a loss."""
    global_batch_size: int = 0
    """Units per optimizer step."""
    units_per_epoch: int = 0
    """Units in one pass over the data."""
    data_fingerprint: str = ""
    """What the data, tokenizer and packing were; another one makes ``position`` meaningless."""
    wandb_id: str | None = None
    """Run id at Weights & Biases, kept across requeues."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Whatever else the training function wants back."""

    @property
    def epochs_done(self) -> int:
        """Whole passes over the data so far."""
        return self.position // self.units_per_epoch if self.units_per_epoch else 0

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> TrainState:
        """From plain values; fields of a later version are ignored.

        Raises:
            ValueError: ``step`` is missing or no number.
        """
        if not isinstance(value.get("step"), int):
            raise ValueError(f"train state without a step: {dict(value)!r:.200}")
        known = {item.name for item in fields(cls)}
        return cls(**{key: item for key, item in value.items() if key in known})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Checkpoint:
    """Files that a user's function wrote, whole and verified; never write into ``folder``."""

    folder: Path
    step: int
    """Optimizer steps finished when it was made."""
    extra: Mapping[str, Json]
    """The plain values that were given to ``publish_checkpoint``."""


FORMAT_VERSION = 1
ALGORITHM = "sha256"
"""Measured on one core with SHA extensions: sha256 1330 MB/s, blake2b 588, sha512 644."""
MANIFEST = "manifest.json"
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint as it was when it was written."""

    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint consists of; ``files`` maps paths relative to its folder to records."""

    state: TrainState
    attempt: int
    world_size: int
    config_hash: str
    model_format: str
    """``safetensors`` or ``torch_save``: how ``model/`` is to be read."""
    adapter_only: bool
    """Whether ``model/`` holds a LoRA adapter and no base weights."""
    created_at: float
    """UTC seconds."""
    files: Mapping[str, FileRecord]

    @property
    def step(self) -> int:
        """Optimizer steps finished when this was saved."""
        return self.state.step

    @property
    def total_bytes(self) -> int:
        """Size of all files."""
        return sum(record.size for record in self.files.values())

    def text(self) -> str:
        """The file's content: JSON with a digest of itself."""
        body = {
            "version": FORMAT_VERSION,
            "algorithm": ALGORITHM,
            **asdict(replace(self, files=dict(sorted(self.files.items())))),
        }
        return json.dumps({**body, "self": _self_digest(body)}, indent=1)

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """Inverse of ``text``.

        Raises:
            ValueError: torn, altered, or of a version that this program does not know.
        """
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("not a JSON object")
        if value.get("version") != FORMAT_VERSION:
            raise ValueError(
                f"format version {value.get('version')!r}, this program reads {FORMAT_VERSION}"
            )
        if value.pop("self", None) != _self_digest(value):
            raise ValueError("its own digest does not match: the manifest was altered")
        known = {item.name: value[item.name] for item in fields(cls)}
        state = TrainState.from_json(known.pop("state"))
        files = {name: FileRecord(**record) for name, record in known.pop("files").items()}
        return cls(state=state, files=files, **known)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Manifest of the checkpoint in ``folder``.

        Raises:
            OSError: not there or not readable.
            ValueError: not a valid manifest.
        """
        return cls.parse((folder / MANIFEST).read_text())


def _self_digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def digest_file(path: Path) -> FileRecord:
    """Size and digest of a file's present content; hashing releases the interpreter lock."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, ALGORITHM).hexdigest()
        return FileRecord(file.tell(), digest)


def verify(folder: Path, *, contents: bool = True) -> list[str]:
    """Problems of the checkpoint in ``folder``, one line each; none means it can be loaded.

    Without ``contents`` only presence and sizes are compared, which is quick.
    """
    try:
        manifest = Manifest.read(folder)
    except (OSError, ValueError) as error:
        return [f"{MANIFEST}: {error}"]
    problems = stray_files(folder, manifest)
    for name, record in manifest.files.items():
        problems += verify_file(folder, name, record, contents=contents)
    return problems


def stray_files(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not name: a reader that takes all files would take them too."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return [f"{name}: not in the manifest" for name in sorted(found - {MANIFEST, *manifest.files})]


def verify_file(folder: Path, name: str, record: FileRecord, *, contents: bool) -> list[str]:
    """Problems of one file of a checkpoint."""
    path = folder / name
    try:
        size = path.stat().st_size
        if size != record.size:
            return [f"{name}: {size} bytes, expected {record.size}"]
        if contents and digest_file(path).digest != record.digest:
            return [f"{name}: content changed ({ALGORITHM} differs)"]
    except FileNotFoundError:
        return [f"{name}: missing"]
    except OSError as error:
        return [f"{name}: cannot be read: {error}"]
    return []


def step_of(folder: Path) -> int | None:
    """Step of a published checkpoint folder by its name; None for any other folder."""
    match = _STEP_FOLDER.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def list_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints in ``folder`` in step order; says nothing about their health."""
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [(step, entry) for entry in entries if (step := step_of(entry)) is not None]
    return [entry for _, entry in sorted(steps)]


def newest_verified(folder: Path, *, contents: bool = True) -> Path | None:
    """Newest checkpoint in ``folder`` without a problem, or None."""
    newest_first = reversed(list_checkpoints(folder))
    return next((path for path in newest_first if not verify(path, contents=contents)), None)
