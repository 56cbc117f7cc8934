"""Fixtures for the tests (what every test runs under is in the conftest.py of the root)."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """The test fails if anything in it moves torch's global random stream."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "the global random stream has moved"


@pytest.fixture(scope="session")
def text_encoder():
    """Tests that read instructions are skipped where the sentence encoder is not installed."""
    from weightloom.conditioning import encode_text
    from weightloom.errors import DataUnavailableError

    try:
        encode_text(["digits"])
    except DataUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def memory_growth() -> Callable[[int], AbstractContextManager[None]]:
    """``with memory_growth(20):`` fails if the process's peak grows by more than so many MiB inside."""

    @contextmanager
    def at_most(mebibytes: int) -> Iterator[None]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        yield
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown <= mebibytes, f"the peak of memory grew by {grown:.0f} MiB"

    return at_most


def find_ray(patch: pytest.MonkeyPatch) -> None:
    """Ray's workers start anew: they find the package where this process has it, and are not put last."""
    pytest.importorskip("ray")
    patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    patch.setenv("RAY_worker_niceness", "0")  # 15 otherwise: on a busy machine they would never come


@pytest.fixture
def ray_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test is skipped without Ray, and can start one with it."""
    find_ray(monkeypatch)
