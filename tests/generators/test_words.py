"""Networks from class names: sets of names, any number of them, sentences, examples, turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import CheckpointError, InputError, UnsupportedRequestError
from weightloom.generators import Sampling
from weightloom.generators.load import BUNDLED, load_generator, save_generator
from weightloom.generators.words import Words, words_validity
from weightloom.generators.words_part import WordsConfig, WordsPart, trunk_layers
from weightloom.io import read_json, write_json
from weightloom.tasks import SupportSet, parse_task
from weightloom.weights import layout_of

pytestmark = pytest.mark.usefixtures("text_encoder")

KEYS = (
    "cnn(depth=2,width=6,input=1x8x8)",
    "mlp(depth=1,width=8,input=1x8x8)",
    "cnn(depth=2,width=4,input=1x16x16)",
)


@pytest.fixture(scope="module")
def model():
    made = Words(WordsConfig(hidden=16, codes=4), words_validity(KEYS, ("digits",)), name="tiny")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)).copy_(parameter.half().float())
    return made.eval()


def head_of(sample):
    state = sample.state_dict
    return torch.cat([state["head.weight"], state["head.bias"][:, None]], 1)


@pytest.mark.parametrize("shots", [0, 1, 5])
@pytest.mark.parametrize("text", ["cnn(depth=2,width=6)", "mlp(depth=1,width=8)"])
def test_another_order_of_the_classes_gives_the_same_network_in_that_order_bit_for_bit(model, text, shots):
    names, order = ["zebra", "cat", "delivery truck", "apple"], [2, 0, 3, 1]
    images = torch.randn(4, max(shots, 1), 1, 8, 8, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)

    def made(places):
        chosen = [names[place] for place in places]
        support = SupportSet(images=images[list(places)], class_names=tuple(chosen)) if shots else None
        given = {"support": support} if shots else {"classes": chosen}
        options = {"num_samples": 2, "sampling": Sampling(temperature=0.5)}
        return model.generate_many(text, instruction="Sort pictures of things", **given, **options)

    for a, b in zip(made(range(4)), made(order), strict=True):
        assert torch.equal(head_of(a)[order], head_of(b))
        trunk = [name for name in a.state_dict if name.startswith("body.")]
        assert trunk and all(torch.equal(a.state_dict[name], b.state_dict[name]) for name in trunk)


@pytest.mark.parametrize("count", [2, 11, 400])
def test_any_number_of_classes(model, count):
    sample = model.generate("cnn(depth=2,width=6)", classes=[f"thing number {n}" for n in range(count)])
    assert sample.architecture.classes == count and sample.module(torch.zeros(1, 1, 8, 8)).shape == (1, count)


def test_names_and_the_sentence_change_the_network(model):
    flats = [
        model.generate("cnn(depth=2,width=6)", instruction=text, classes=names).flat
        for text, names in (
            (None, ["cat", "dog"]), (None, ["cat", "truck"]), ("Sort photos", ["cat", "dog"]),
            ("Sort photos, upside down", ["cat", "dog"]),
        )
    ]  # fmt: skip
    assert all(not torch.equal(a, b) for n, a in enumerate(flats) for b in flats[:n])


def test_a_sentence_that_lists_classes_is_read_for_them(model):
    sample = model.generate("cnn(depth=2,width=6)", instruction="Is it a 3, a 1 or a 7?")
    assert sample.report["class_names"] == ["3", "1", "7"]
    same = model.generate(
        "cnn(depth=2,width=6)", instruction="Is it a 3, a 1 or a 7?", classes=["3", "1", "7"]
    )
    assert torch.equal(sample.flat, same.flat)


def test_examples_bring_their_names_and_move_the_head(model):
    support = parse_task("digits[3,1,7]@8c1").support(4)
    alone = model.generate("cnn(depth=2,width=6)", classes=list(support.class_names))
    shown = model.generate("cnn(depth=2,width=6)", support=support)
    assert shown.report["class_names"] == ["3", "1", "7"] == alone.report["class_names"]
    assert not torch.equal(alone.flat, shown.flat)
    assert "examples" in shown.report["head"] and "generated, and re-estimated" in shown.report["batch_norm"]
    kept = model.generate("cnn(depth=2,width=6)", support=support, batch_norm="generated")
    means = [s.state_dict["body.0.norm.running_mean"] for s in (alone, kept, shown)]
    assert not torch.equal(means[1], means[2])


def test_the_same_architecture_at_two_sizes_follows_the_request(model):
    assert model.generate("cnn(depth=2,width=4)", classes=["a b", "c d"]).architecture.input == (1, 16, 16)
    assert model.generate("cnn(depth=2,width=6)", classes=["a b", "c d"]).architecture.input == (1, 8, 8)
    support = parse_task("digits[3,1]@16c1").support(2)
    assert model.generate("cnn(depth=2,width=4)", support=support).architecture.input == (1, 16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["cat", ""]}, "is empty"),
        ({"classes": ["cat", "cat"]}, "given twice"),
        ({"classes": "cat, dog"}, "a list of at least two texts"),
        ({"classes": [f"n{n}" for n in range(10_000)]}, "10,000 class names"),
        ({"classes": ["cat", 3]}, "number 2 is int"),
        ({}, "number of classes is not known"),
        ({"instruction": "Sort small photos"}, "number of classes is not known"),
    ],
)
def test_names_that_are_none_are_refused_in_one_sentence(model, options, message):
    with pytest.raises(InputError, match=message) as caught:
        model.generate("cnn(depth=2,width=6)", **options)
    assert "\n" not in str(caught.value)


def test_names_that_do_not_fit_are_refused(model):
    support = parse_task("digits[3,1,7]@8c1").support(2)
    with pytest.raises(InputError, match="not those of the examples"):
        model.generate("cnn(depth=2,width=6)", support=support, classes=["3", "7", "1"])
    with pytest.raises(InputError, match="4 classes, but 2 class names"):
        model.generate("cnn(depth=2,width=6,classes=4)", classes=["cat", "dog"])
    with pytest.raises(InputError, match="lists 2 classes"):
        model.generate("cnn(depth=2,width=6,classes=4)", instruction="tell cats from dogs")
    with pytest.raises(UnsupportedRequestError, match="it makes: cnn"):
        model.generate("cnn(depth=9,width=6)", classes=["cat", "dog"])


def test_every_part_of_a_config_is_checked(model, tmp_path):
    save_generator(model, tmp_path / "whole")
    kept = read_json(tmp_path / "whole" / "config.json")
    for change in (
        {"config": {"hidden": 0}},
        {"config": {"order": "x"}},
        {"validity": {}},
        {"config": {"no": 1}},
    ):
        write_json(tmp_path / "whole" / "config.json", {**kept, **change})
        (tmp_path / "whole" / "COMMIT.json").unlink(missing_ok=True)
        with pytest.raises(CheckpointError):
            load_generator(tmp_path / "whole")


def test_layers_cover_the_trunk_once():
    for text in (
        "cnn(depth=3,width=4)",
        "resnet(depth=8,width=4)",
        "mlp(depth=2,width=8)",
        "mobilenet(depth=3,width=4)",
    ):
        spec = parse_architecture(text).resolve(classes=3, input=(3, 16, 16))
        names = [slot.name for layer in trunk_layers(spec) for slot in layer.slots]
        wanted = [s.name for s in layout_of(spec).slots if not s.is_buffer and s.name.startswith("body.")]
        assert sorted(names) == sorted(wanted)


# ------------------------------------------------------------------------------------ the bundled one

BUNDLE = pytest.mark.skipif(not (BUNDLED / "words-small").is_dir(), reason="not bundled")


@pytest.fixture(scope="module")
def bundled():
    return load_generator("words-small")


@BUNDLE
def test_no_part_of_the_bundled_one_can_be_zeroed_without_changing_an_answer(bundled):
    """Each learned part with more than two in a hundred of its architecture's parameters is zeroed, and each
    smaller one replaced by noise.
    """
    assert isinstance(bundled, Words)
    task = parse_task("digits[3,1,7]")
    for key in bundled.validity.architectures:
        spec = parse_architecture(key)
        support = task.resized(spec.input[1], 3).support(2)

        def answers(shown_first, spec=spec, support=support):
            """The same requests, those with examples first or last, one at a time."""
            options = {"instruction": "Handwritten digits, upside down"}
            named = replace(support, class_names=("violin", "lighthouse", "broccoli"))
            one = replace(named, images=named.images[:, :1])
            told = [{"classes": ["cat", "dog", "truck"], **options}, {"classes": ["cat", "dog", "truck"]}]
            shown = [
                {"support": one, **options},
                {"support": one, "unlabelled": support.images.flatten(0, 1)},
                {"support": replace(support, class_names=("qwrtp", "zorp", "blick"))},
                {"support": named, **options},
            ]
            for request in [*shown, *told] if shown_first else [*told, *shown]:
                yield bundled.generate(spec, **request).flat

        before = {first: [*answers(first)] for first in (False, True)}
        part, seer = bundled.part(spec.resolve(classes=3)), bundled.seer(spec.resolve(classes=3))
        pieces = [(own, name) for own in (part, seer) for name, _ in own.named_children()]
        pieces += [(own, name) for own in (part, seer) for name, _ in own.named_parameters(recurse=False)]
        far = torch.Generator().manual_seed(0)
        for own, piece in [*pieces, (bundled, "turns")]:
            module = getattr(own, piece)
            parameters = [module] if isinstance(module, torch.nn.Parameter) else list(module.parameters())
            kept = [parameter.detach().clone() for parameter in parameters]
            small = sum(map(torch.numel, parameters)) < 0.02 * sum(map(torch.numel, own.parameters()))
            with torch.no_grad():
                for parameter in parameters:  # codes are rounded: a small part has to be moved far
                    noise = torch.randn(parameter.shape, generator=far)
                    parameter.copy_(noise if small else torch.zeros_like(noise))
                try:
                    changed = any(
                        not torch.equal(a, b)
                        for a, b in zip(before[own is seer], answers(own is seer), strict=True)
                    )
                finally:
                    for parameter, value in zip(parameters, kept, strict=True):
                        parameter.copy_(value)
            assert changed, (key, piece)


@BUNDLE
@pytest.mark.parametrize(
    ("sentence", "classes"),
    [
        ("Sort photos taken at night", ["sun", "moon"]),
        ("Tell a mirror from a window", ["mirror", "window"]),
        ("Classify road signs", ["stop sign", "speed limit"]),
    ],
)
def test_a_sentence_without_a_turn_turns_nothing(bundled, sentence, classes):
    sample = bundled.generate("cnn(depth=3,width=16)", instruction=sentence, classes=classes)
    assert sample.report["transform"] == "id"


@BUNDLE
@pytest.mark.parametrize("shots", [1, 16])
def test_examples_of_classes_that_no_word_names_turn_nothing(bundled, shots):
    images = parse_task("digits[0,1,2,3,4]").support(shots).images
    names = ("zorp", "blick", "dax", "wug", "fep")
    for text in ("cnn(depth=3,width=16)", "resnet(depth=8,width=8)"):
        sample = bundled.generate(text, support=SupportSet(images=images, class_names=names))
        assert sample.report["transform"] == "id" and len(sample.report["unknown_names"]) == 5


def test_a_ridge_by_examples_and_by_features_is_the_same(model):
    part = model.seer(parse_architecture(KEYS[1]).resolve(classes=3))
    generator = torch.Generator().manual_seed(1)
    written = part.make(torch.randn(3, 768, generator=generator), None, None)
    features = torch.randn(3, 3, 8, generator=generator)
    worth = torch.tensor([0.5, 3.0, 0.1, 4.0])
    few = part.with_examples(written, features, worth)  # 9 examples, 9 features
    twice = part.with_examples(written, features.repeat(1, 2, 1), worth * torch.tensor([1.0, 1.0, 2.0, 1.0]))
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(few, twice, strict=True))


def test_training_mode_draws_nothing(model, rng_untouched):
    model.train()
    try:
        a, b = (model.generate("cnn(depth=2,width=6)", classes=["cat", "dog"]).flat for _ in range(2))
    finally:
        model.eval()
    assert torch.equal(a, b)


@BUNDLE
def test_each_thing_that_a_request_says_is_encoded_once(bundled, monkeypatch):
    import weightloom.generators.words as words
    from weightloom.conditioning import names as name_room

    sentences: list[str] = []
    own = words.encode_text

    def counted(texts, *rest):
        sentences.extend(texts)
        return own(texts, *rest)

    monkeypatch.setattr(words, "encode_text", counted)
    monkeypatch.setattr(name_room, "encode_text", counted)
    bundled.generate_many(
        "cnn(depth=3,width=16)", instruction="Sort photos", classes=["cat", "dog", "truck"], num_samples=4
    )
    assert (
        len(sentences) == len(set(sentences)) == 7
    )  # each name with and without its definition, one sentence
    written: list[int] = []
    write = WordsPart.write
    monkeypatch.setattr(WordsPart, "write", lambda self, *rest: written.append(1) or write(self, *rest))
    bundled.generate_many("cnn(depth=3,width=16)", classes=["cat", "dog"], num_samples=3)
    assert len(written) == 3, "something is written to be thrown away"


@BUNDLE
@pytest.mark.parametrize(
    ("transform", "words"),
    [
        ("rot180", "upside down"),
        ("rot90+invert", "rotated by 90 degrees, as negatives"),
        ("flip", "mirrored"),
    ],
)
def test_a_turn_is_read_from_the_sentence_and_seen_in_examples(bundled, transform, words):
    sample = bundled.generate(
        "cnn(depth=3,width=16)", instruction=f"Handwritten digits, {words}", classes=list("0123456789")
    )
    plain = bundled.generate(
        "cnn(depth=3,width=16)", instruction="Handwritten digits", classes=list("0123456789")
    )
    assert (plain.report["transform"], sample.report["transform"]) == ("id", transform)
    task = parse_task(f"digits+{transform}")
    shown = bundled.generate(
        "cnn(depth=3,width=16)", instruction="Handwritten digits", support=task.support(8)
    )
    assert shown.report["transform"] == transform


@BUNDLE
def test_words_alone_reach_what_the_readme_says(bundled):
    """On the drawings of digits that come with scikit-learn, which training has not seen."""
    task = parse_task("digits")
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    sample = bundled.generate("cnn(depth=3,width=16)", instruction="Handwritten digits", classes=names)
    images, labels = task.data("test").all()
    with torch.no_grad():
        right = float((sample.module(images).argmax(1) == labels).float().mean())
    assert right > 0.5, right


def test_the_expected_shape_of_validity():
    limits = words_validity(KEYS, ("digits",))
    assert limits.input == (1, 8, 8) and limits.max_classes == 1000
    assert replace(limits).input_for(parse_architecture("cnn(depth=2,width=4)")) == (1, 16, 16)
