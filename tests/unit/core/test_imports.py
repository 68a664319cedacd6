"""Importing without the garbage collector leaves it as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from submitrain.imports import gc_paused


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


@pytest.mark.parametrize("enabled", [True, False])
def test_collector_is_off_inside_and_as_before_afterwards(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    with gc_paused():
        assert not gc.isenabled()
    assert gc.isenabled() == enabled


def test_collector_is_back_after_an_import_that_fails() -> None:
    gc.enable()
    with pytest.raises(ImportError), gc_paused():
        raise ImportError
    assert gc.isenabled()


def test_what_was_imported_is_never_looked_at_again() -> None:
    gc.unfreeze()
    with gc_paused():
        made = [[]]
    assert gc.get_freeze_count() > 0
    assert not any(found is made for found in gc.get_objects())
