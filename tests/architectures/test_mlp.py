"""``mlp``: from a linear classifier to deep and normalised."""

from __future__ import annotations

from weightloom.architectures import parse_architecture


def count(text: str) -> int:
    return parse_architecture(text).resolve(classes=10, input=(3, 16, 16)).num_parameters()


def test_counts() -> None:
    assert count("mlp(depth=0)") == 768 * 10 + 10
    assert count("mlp") == (768 * 32 + 32) + (32 * 32 + 32) + (32 * 10 + 10) == 25_994
    # A norm's shift replaces the bias; its scale comes on top.
    assert count("mlp(norm=batch)") == count("mlp(norm=layer)") == count("mlp") + 2 * 32
