"""Fixtures for the tests (what every test runs under is in the conftest.py of the root)."""

from __future__ import annotations

import resource
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
