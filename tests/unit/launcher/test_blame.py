"""Whose fault an exception is."""

from __future__ import annotations

import inspect
import json

import pytest

from submitrain.errors import CheckpointError, ConfigError
from submitrain.launcher.worker.stacks import class_name, is_victim, where


@pytest.mark.parametrize(
    "message",
    [
        "[third_party/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.1.0.2]:4",
        "Connection reset by peer",
        "NCCL error: remote process exited or there was a network error, ncclRemoteError",
        "wait timeout after 1800000ms, keys: /ranks",
        "rendezvous: rank 0 published no address in /x",
    ],
)
def test_messages_of_a_dead_peer_make_a_victim(message: str) -> None:
    assert is_victim(RuntimeError(message))


def test_a_programs_own_exception_is_no_victim() -> None:
    assert not is_victim(ValueError("shapes (2, 3) and (4, 5) do not match"))


def test_a_victim_stays_one_when_the_exception_is_wrapped() -> None:
    try:
        try:
            raise RuntimeError("Connection closed by peer [10.1.0.2]:4")
        except RuntimeError as error:
            raise CheckpointError("the save failed") from error
    except CheckpointError as error:
        assert is_victim(error)


def test_the_frame_of_the_users_code_is_named_and_not_the_librarys() -> None:
    line = inspect.currentframe().f_lineno + 2  # type: ignore[union-attr]
    try:
        json.loads("{")
    except ValueError as error:
        assert where(error) == f"{__file__}:{line}"


def test_a_loader_workers_own_frame_is_nearer_to_the_fault() -> None:
    message = (
        "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        f'last):\n  File "{json.__file__}", line 5, in f\n'
        '  File "/home/me/data.py", line 12, in g\n'
    )
    try:
        raise ValueError(message)
    except ValueError as error:
        assert where(error) == "/home/me/data.py:12"


def test_an_exception_without_a_frame_of_ours_names_the_innermost_one() -> None:
    namespace: dict[str, object] = {}
    exec(compile("def f():\n    raise KeyError(1)", json.__file__, "exec"), namespace)
    try:
        raise_it = namespace["f"]
        assert callable(raise_it)
        raise_it()
    except KeyError as error:
        error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]
        assert where(error) == f"{json.__file__}:2"


def test_classes_are_named_with_their_module() -> None:
    assert class_name(ConfigError("x")) == "submitrain.errors.ConfigError"
    assert class_name(ValueError()) == "ValueError"
