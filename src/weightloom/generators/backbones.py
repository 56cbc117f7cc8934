"""Backbones of autoregressive priors: our own small transformer, or any causal model of ``transformers``.

A backbone maps (B, S, W) embeddings to (B, S, W) hidden states, with or without a cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import DataUnavailableError, SpecError
from weightloom.nn import CausalTransformer


def build_backbone(choice: Mapping[str, Any], *, width: int, depth: int, heads: int) -> nn.Module:
    """The backbone that ``choice`` names.

    Raises:
        SpecError: an unknown kind or model type, or options that it does not take.
        DataUnavailableError: ``transformers`` is not installed.
    """
    options = dict(choice)
    kind = options.pop("kind", "native")
    if kind == "native":
        if options:
            raise SpecError(f"the native backbone takes no option {sorted(options)[0]!r}")
        return CausalTransformer(width=width, depth=depth, heads=heads)
    if kind == "transformers":
        return TransformersBackbone(options, width=width, depth=depth, heads=heads)
    raise SpecError(f"unknown backbone {kind!r}; known: native, transformers")


class _Cache:
    def __init__(self, cache: Any) -> None:
        self.cache = cache


class TransformersBackbone(nn.Module):
    """A causal decoder of the ``transformers`` library, made from its config; its own weights are random."""

    def __init__(self, options: Mapping[str, Any], *, width: int, depth: int, heads: int) -> None:
        super().__init__()
        try:
            from transformers import AutoConfig, AutoModel
        except ImportError:
            raise DataUnavailableError(
                "this backbone needs transformers: pip install 'weightloom[hf]'"
            ) from None
        options = dict(options)
        model_type = options.pop("model_type", "gpt2")
        sizes = {
            "hidden_size": width,
            "num_hidden_layers": depth,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "intermediate_size": 4 * width,
            "vocab_size": 1,
            "n_positions": 2048,
            # Dropout would draw from the global stream, and a resumed run would differ.
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "attention_dropout": 0.0,
            "hidden_dropout": 0.0,
        }
        try:
            config = AutoConfig.for_model(model_type, **{**sizes, **options})
            self.model = AutoModel.from_config(config)
        except (ValueError, KeyError, TypeError) as error:
            raise SpecError(f"transformers has no causal model for {model_type!r} ({error})") from None
        self.model.get_input_embeddings().requires_grad_(False)  # embeddings come in ready-made

    def new_cache(self, batch_size: int, limit: int) -> _Cache:
        """An empty cache; this library grows its own."""
        from transformers import DynamicCache

        return _Cache(DynamicCache(config=self.model.config))

    def forward(self, x: Tensor, cache: _Cache | None = None) -> Tensor:
        """(B, S, W) to (B, S, W)."""
        held = None if cache is None else cache.cache
        result = self.model(inputs_embeds=x, past_key_values=held, use_cache=cache is not None)
        hidden = result.last_hidden_state
        assert isinstance(hidden, torch.Tensor)
        return hidden
