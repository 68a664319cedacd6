"""What is installed: a wheel, in an environment of its own, used from an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.paths import REPOSITORY
from tests.tiny import tiny_config

PACKAGES = ("submitrain", "launcher", "train", "monitor")
INSTALLED = {"submitrain", "launcher", "monitor"}
"""Names that may be imported; nothing of ours claims ``train`` or ``tests``."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(REPOSITORY))
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and with what the wheel needs from the tests' own.

    The tests' folder of packages is on the path as a plain folder: Python reads no ``.pth`` file
    there, so the editable install of this source tree is not seen.
    """
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip("--python", str(folder / "bin/python"), "install", "--no-deps", "--no-index", str(wheel))
    [packages] = folder.glob("lib/python3*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def pip(*arguments: str) -> None:
    """Run pip without a network."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(environment: Path, folder: Path, *command: str) -> str:
    """Output of a program of the environment in ``folder``, with nothing else on the path."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "bin" / command[0], *command[1:]],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def test_the_wheel_claims_three_names(wheel: Path) -> None:
    names = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == INSTALLED


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    listed = ["git", "ls-files", "-co", "--exclude-standard", "-z", "--", *PACKAGES]
    files = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [Path(name) for name in files.stdout.split("\0") if name]
    paths = [path for path in paths if (REPOSITORY / path).is_file()]
    inside = {
        path if path.parts[0] == "submitrain" else Path("submitrain", path)
        for path in paths
        if not (REPOSITORY / path).is_symlink()
    }
    packed = {Path(name) for name in zipfile.ZipFile(wheel).namelist()}
    assert inside <= packed
    assert {path.suffix for path in inside} >= {".py", ".typed", ".json", ".j2"}


def test_an_editable_install_offers_what_the_wheel_does() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    [folder] = settings["dev-mode-dirs"]
    links = {path.name: path.resolve() for path in (REPOSITORY / folder).iterdir()}
    assert links == {name: REPOSITORY / name for name in INSTALLED}


def test_an_installed_wheel_is_imported_from_an_empty_folder(
    environment: Path, tmp_path: Path
) -> None:
    code = (
        "import importlib.util, launcher, monitor, submitrain\n"
        "from launcher import launch\n"
        "assert launch is submitrain.launch\n"
        "assert launcher is submitrain.launcher and monitor is submitrain.monitor\n"
        "print(submitrain.__file__)\n"
        "print([n for n in ('train', 'tests', 'configs') if importlib.util.find_spec(n)])\n"
    )
    path, found = run(environment, tmp_path, "python", "-c", code).splitlines()
    assert Path(path).is_relative_to(environment)
    assert found == "[]"


def test_an_installed_wheel_plans_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    for door in (("python", "-m", "launcher"), ("python", "-m", "monitor"), ("submitrain",)):
        assert "commands:" in run(environment, tmp_path, *door, "--help")
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(tiny_config(tmp_path)))
    plan = run(environment, tmp_path, "python", "-m", "launcher", "plan", "cfg.yaml")
    assert "tiny" in plan
    assert '"$schema"' in run(environment, tmp_path, "submitrain", "schema")
