from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightloom.seeding import numpy_generator, seed_for, torch_generator

addresses = st.lists(st.one_of(st.text(max_size=5), st.integers(-3, 300)), max_size=4).map(tuple)


@given(addresses, addresses)
def test_a_seed_depends_on_every_part_of_its_address(
    one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    assert 0 <= seed_for(*one) < 2**63
    assert (seed_for(*one) == seed_for(*other)) == (one == other)


def test_a_number_is_not_its_text() -> None:
    assert (
        len({seed_for("a", 1), seed_for("a", "1"), seed_for("a1"), seed_for(1, "a"), seed_for("a", 1, "")})
        == 5
    )


def test_seeds_never_change() -> None:
    # A seed that moves would silently move every held-out split that has ever been published.
    assert seed_for("tasks", "train", 0) == 9111955342961523613


def test_streams_are_private_and_repeatable(rng_untouched: None) -> None:
    state = np.random.get_state()[1].copy()
    assert torch.equal(
        torch.randn(4, generator=torch_generator("a", 1)), torch.randn(4, generator=torch_generator("a", 1))
    )
    assert np.array_equal(numpy_generator("a").normal(size=4), numpy_generator("a").normal(size=4))
    assert not np.array_equal(numpy_generator("a").normal(size=4), numpy_generator("b").normal(size=4))
    assert np.array_equal(state, np.random.get_state()[1])
