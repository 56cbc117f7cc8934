"""Networks from class names and examples: what the prior sees, what counts how much, pictures without labels,
and many widths from one part.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError
from weightloom.fitting import (
    copies_of,
    discriminant,
    discriminant_left_out,
    discriminant_of_shares,
    left_out_residuals,
)
from weightloom.generators import examples_part
from weightloom.generators.choice import left_out_loss
from weightloom.generators.examples_part import ExamplesPart
from weightloom.generators.load import load_generator
from weightloom.generators.words_part import WordsConfig, WordsPart, Written
from weightloom.tasks import SupportSet, parse_task
from weightloom.weights import layout_of

pytestmark = pytest.mark.usefixtures("text_encoder")

SPECS = ("cnn(depth=3,width=6)", "mlp(depth=2,width=8)", "resnet(depth=8,width=4)", "cnn(depth=4,width=5)")
VIEWS = ("nothing", "one-pass", "unadapted", "codes", "activations")


def spec_of(text, classes=3):
    return parse_architecture(text).resolve(classes=classes, input=(1, 16, 16))


def shaken(module):
    """With parameters that are all other than zero."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def part_of(text="cnn(depth=3,width=6)", view="activations", **options):
    return shaken(ExamplesPart(WordsConfig(hidden=16, codes=4, view=view), spec_of(text), **options))


def pictures(*shape, seed=1):
    return torch.randn(*shape, 1, 16, 16, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def vectors(count=3, seed=2):
    return torch.randn(count, 768, generator=torch.Generator().manual_seed(seed)) / 20


@pytest.mark.parametrize("text", SPECS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_makes_a_whole_network_and_leaves_the_trunk_as_it_was(text, view):
    part = part_of(text, view)
    body = part._trunk[0]
    before = {name: value.shape for name, value in body.state_dict().items()}
    written = part.make(vectors(), None, pictures(3, 2))
    wanted = {s.name: s.shape for s in layout_of(spec_of(text)).slots if s.name.startswith("body.")}
    made = {**written.trunk, **written.statistics}
    missing = {name for name in wanted if name not in made}
    assert all(name.endswith("num_batches_tracked") for name in missing)
    assert all(made[name].shape == shape for name, shape in wanted.items() if name in made)
    assert {name: value.shape for name, value in body.state_dict().items()} == before
    assert not any(module._forward_pre_hooks for module in body.modules())


def test_the_trunk_is_whole_again_after_a_fault_on_the_way():
    part = part_of()
    before = part._trunk[0].state_dict().keys()
    with pytest.raises(RuntimeError):
        part.make(vectors(), None, torch.zeros(3, 2, 7, 16, 16))
    assert part._trunk[0].state_dict().keys() == before
    assert part.make(vectors(), None, pictures(3, 2)).codes.shape == (3, 4)


@pytest.mark.parametrize("view", ["one-pass", "codes", "unadapted", "activations"])
def test_only_a_view_of_activations_sees_examples_but_through_the_encoder(view):
    part = part_of(view=view)
    with torch.no_grad():
        part.seen.weight.zero_()
        part.seen.bias.zero_()
        for layer in getattr(part, "viewed", ()):  # codes are rounded: make what is seen count
            layer.weight.mul_(50)
    a, b = (part.make(vectors(), None, pictures(3, 2, seed=seed)).codes for seed in (3, 4))
    assert torch.equal(a, b) == (view in ("one-pass", "codes"))


def test_a_layer_is_written_in_view_of_what_the_layers_before_it_do():
    """Other weights of the first layer, with the same codes, change the codes of the second."""
    part, shown = part_of(), pictures(3, 2)
    before = part.make(vectors(), None, shown).codes
    with torch.no_grad():
        part.base[0].add_(torch.randn(part.base[0].shape, generator=torch.Generator().manual_seed(5)))
    after = part.make(vectors(), None, shown).codes
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1:], after[1:])
    blind = part_of(view="codes")
    before = blind.make(vectors(), None, shown).codes
    with torch.no_grad():
        blind.base[0].add_(1.0)
    assert torch.equal(before, blind.make(vectors(), None, shown).codes)


@pytest.mark.parametrize("family", ["regression", "discriminant"])
def test_left_out_answers_are_those_of_heads_without_the_example(family, monkeypatch):
    """The head that is chosen is made again by hand from the other examples."""
    if family == "regression":
        monkeypatch.setattr(examples_part, "SHRINKAGES", ())
    else:
        monkeypatch.setattr(examples_part, "CLEAR", 1e9)
        monkeypatch.setattr(examples_part, "PENALTIES", (1.0,))
        monkeypatch.setattr(examples_part, "NAMES", (1.0,))
    part = part_of("mlp(depth=2,width=8)")
    features = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1))
    written = part.make(vectors(), None, pictures(3, 4))
    said = features.flatten(0, 1) @ written.rows.T + written.biases
    ones = torch.ones(12, dtype=torch.long)
    with torch.no_grad():
        fit = part.fit(written, features, ones)
        logits = features.flatten(0, 1) @ fit.rows.T + fit.biases
        if family == "regression":
            worth = part.weigh(4, 3, part.agreement(written, features))
            matched = []
            for penalty in examples_part.PENALTIES:
                for names in examples_part.NAMES:
                    own = worth * torch.tensor([names, 1.0, penalty, 1.0])
                    rows, biases = part.with_examples(written, features, own)
                    if torch.allclose(features.flatten(0, 1) @ rows.T + biases, logits, atol=1e-4):
                        matched.append(own)
            (worth,) = matched
            design, wanted, _, _ = part._regression(written, features, worth)
            for row in range(12):
                rest = [place for place in range(12) if place != row]
                gram = design[rest].T @ design[rest] + worth[2] * torch.eye(9)
                moved = torch.linalg.solve(gram, design[rest].T @ wanted[rest])
                own = design[row] @ moved + worth[0] * said[row]
                assert torch.allclose(own, fit.left_out[row], atol=2e-3), row
        else:
            found = [
                (shrinkage, scale)
                for shrinkage in examples_part.SHRINKAGES
                for scale in examples_part.SCALES
                if torch.allclose(
                    scale * discriminant_left_out(features, shrinkage) + fit.names * said,
                    fit.left_out,
                    atol=1e-5,
                )
            ]
            ((shrinkage, scale),) = found
            rows, biases = discriminant(features, shrinkage)
            assert torch.allclose(fit.rows, scale * rows + fit.names * written.rows, atol=1e-5)
            assert torch.allclose(fit.biases, scale * biases + fit.names * written.biases, atol=1e-5)


def test_a_left_out_discriminant_is_one_without_the_example():
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)) + torch.arange(3.0)[:, None, None]
    found, means = discriminant_left_out(x, 0.3), x.mean(1)
    spread = ((x - means[:, None]).flatten(0, 1).square().sum(0) / 12).mean()
    for number in range(15):
        label, keep = number // 5, [place for place in range(5) if place != number % 5]
        own = [x[label, keep] if k == label else x[k] for k in range(3)]
        middles = torch.stack([part.mean(0) for part in own])
        inner = torch.cat([part - middle for part, middle in zip(own, middles, strict=True)])
        inverse = torch.linalg.inv(0.7 * inner.T @ inner / 12 + 0.3 * spread * torch.eye(4))
        away = x.flatten(0, 1)[number] - middles
        assert torch.allclose(found[number], -0.5 * (away @ inverse * away).sum(1), atol=1e-4)


def test_copies_of_an_example_are_left_out_together():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    repeated = torch.cat([x, x[:, :1], x[:, :1], x[:, 1:2]], 1)  # (3, 7, 5)
    copies = copies_of(repeated)
    assert copies.unflatten(0, (3, 7)).tolist() == [[3, 2, 1, 1, 3, 3, 2]] * 3
    flat, labels = repeated.flatten(0, 1), torch.arange(3).repeat_interleave(7)
    wanted = F.one_hot(labels, 3).float()
    design = torch.cat([flat, torch.ones(21, 1)], 1)
    for penalty in (0.1, 3.0):
        found = left_out_residuals(design, wanted, copies)(torch.tensor(penalty))
        for row in range(21):
            rest = [k for k in range(21) if not torch.equal(flat[k], flat[row])]
            gram = design[rest].T @ design[rest] + penalty * torch.eye(6)
            own = wanted[row] - design[row] @ torch.linalg.solve(gram, design[rest].T @ wanted[rest])
            assert torch.allclose(own, found[row], atol=1e-3)
    # More features than examples: the other way to the same residuals.
    wide = torch.randn(9, 20, generator=torch.Generator().manual_seed(1))
    found = left_out_residuals(wide, wanted[:9], torch.ones(9))(torch.tensor(0.5))
    for row in range(9):
        rest = [k for k in range(9) if k != row]
        gram = wide[rest].T @ wide[rest] + 0.5 * torch.eye(20)
        own = wanted[row] - wide[row] @ torch.linalg.solve(gram, wide[rest].T @ wanted[:9][rest])
        assert torch.allclose(own, found[row], atol=1e-3)
    answers = discriminant_left_out(repeated, 0.3, copies)
    inner = (repeated - repeated.mean(1, keepdim=True)).flatten(0, 1)
    spread = (inner.square().sum(0) / 18).mean()
    for row in range(21):
        label = int(labels[row])
        kept = torch.stack([e for e in repeated[label] if not torch.equal(e, flat[row])])
        own = [kept if k == label else repeated[k] for k in range(3)]
        middles = torch.stack([part.mean(0) for part in own])
        within = torch.cat([part - middle for part, middle in zip(own, middles, strict=True)])
        inverse = torch.linalg.inv(0.7 * within.T @ within / 18 + 0.3 * spread * torch.eye(5))
        away = flat[row] - middles
        assert torch.allclose(answers[row], -0.5 * (away @ inverse * away).sum(1), atol=1e-3)


def test_names_that_examples_deny_are_not_believed():
    part = part_of("mlp(depth=2,width=8)")
    noise = 0.4 * torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(1))
    features = F.one_hot(torch.arange(3), 8).float()[:, None] + noise
    right = 9 * F.one_hot(torch.arange(3), 8).float()
    written = part.make(vectors(), None, None)
    wrong = replace(written, rows=right.roll(1, 0), biases=torch.zeros(3))
    with torch.no_grad():
        learned = part.weigh(6, 3, part.agreement(wrong, features))
        fit = part.fit(wrong, features, torch.ones(18, dtype=torch.long))
    assert fit.names < learned[0]
    assert (fit.left_out.argmax(1) == torch.arange(3).repeat_interleave(6)).float().mean() > 0.8


def test_a_head_from_shares_is_the_linear_discriminant_of_whole_ones():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(30, 4, generator=generator) + torch.arange(3.0).repeat_interleave(10)[:, None]
    shares = F.one_hot(torch.arange(3).repeat_interleave(10), 3).float()
    rows, biases = discriminant_of_shares(features, shares, torch.tensor(0.0))
    means = features.unflatten(0, (3, 10)).mean(1)
    inner = (features.unflatten(0, (3, 10)) - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / 30
    within = within + 1e-3 * within.diagonal().mean() * torch.eye(4)
    inverse = torch.linalg.inv(within)
    distance = torch.stack([((features - mean) @ inverse * (features - mean)).sum(1) for mean in means], 1)
    logits = features @ rows.T + biases
    gaps = (logits - logits[:, :1]) - (distance[:, :1] - distance) / 2
    assert gaps.abs().max() < 1e-3


def test_pictures_without_labels_move_the_head_to_where_the_classes_are():
    """One odd example a class: the clusters of the others say where the border runs."""
    part = part_of("mlp(depth=2,width=8)")
    with torch.no_grad():  # unlabelled pictures alone count
        part.unlabelled[-1].weight.zero_()
        part.unlabelled[-1].bias.copy_(torch.tensor([1.0, 1.0, -2.0, 4.0, 6.0]))
    generator = torch.Generator().manual_seed(1)
    centres = torch.zeros(2, 8)
    centres[0, 0], centres[1, 0] = -2.0, 2.0
    seen = centres[:, None].clone()
    seen[0, 0, 0], seen[1, 0, 0] = -0.4, 3.5  # the middle of the two is at 1.55
    others = (centres[:, None] + 0.4 * torch.randn(2, 60, 8, generator=generator)).flatten(0, 1)
    nothing = Written(torch.zeros(2, 4), {}, {}, torch.zeros(2, 8), torch.zeros(2))
    point = torch.zeros(1, 8)
    point[0, 0] = 1.0
    with torch.no_grad():
        for rows, biases, answer in ((*part.head(nothing, seen), 0), (*part.head(nothing, seen, others), 1)):
            assert int((point @ rows.T + biases).argmax()) == answer


def test_it_begins_as_the_part_for_words():
    words = shaken(WordsPart(WordsConfig(hidden=16, codes=4), spec_of("cnn(depth=3,width=6)")))
    part = part_of()
    part.begin_as(words)
    own, other = part.make(vectors(), None, None), words.write(vectors(), None)
    assert torch.equal(own.codes, other.codes) and torch.equal(own.rows, other.rows)


# ------------------------------------------------------------------------------------ the bundled one


@pytest.fixture(scope="module")
def bundled():
    return load_generator("words-small")


def support_of(text, shots, seed=0):
    return parse_task(text).resized(16, 3).support(shots, seed)


def test_words_that_know_the_task_answer_and_words_that_do_not_are_left_out(bundled):
    arch = "cnn(depth=3,width=16)"
    known = bundled.generate(arch, instruction="Handwritten digits", support=support_of("digits[0,1,4]", 1))
    assert known.report["head"] in ("from the names", "from the names and the examples")
    odd = replace(support_of("digits[0,1,4]", 8), class_names=("wug", "blick", "dax"))
    report = bundled.generate(arch, support=odd).report
    assert report["head"] == "from the examples"
    assert report["support_scores"] == "each when it is left out"
    assert 0.5 < report["support_accuracy"] <= 1
    swapped = replace(support_of("digits[0,1,4]", 16), class_names=("violin", "lighthouse", "broccoli"))
    images, labels = parse_task("digits[0,1,4]").resized(16, 3).data("test").all()
    module = bundled.generate(arch, support=swapped).module
    with torch.no_grad():
        right = float((module(images).argmax(1) == labels).float().mean())
    assert right > 0.9


def test_pictures_without_labels_are_used_and_checked(bundled):
    arch, support = "cnn(depth=3,width=16)", support_of("digits[0,1,4]", 1, seed=3)
    support = replace(support, class_names=("wug", "blick", "dax"))
    more = parse_task("digits[0,1,4]").resized(16, 3).data("train").all()[0][:60]
    plain = bundled.generate(arch, support=support)
    sample = bundled.generate(arch, support=support, unlabelled=more)
    assert not torch.equal(plain.flat, sample.flat)
    assert sample.report["unlabelled"] == 60 and "without labels" in sample.report["head"]
    for wrong, words in (
        (more[:, :1], "images of 3x16x16"),
        (more.double(), "float32"),
        (more[:0], "are none"),
        (more[None], "U, channels, height, width"),
        ([more], "one tensor"),
        (more * 100, r"\[-1, 1\]"),
    ):
        with pytest.raises(InputError, match=words):
            bundled.generate(arch, support=support, unlabelled=wrong)
    with pytest.raises(InputError, match="beside examples"):
        bundled.generate(arch, classes=["cat", "dog"], unlabelled=more)
    with pytest.raises(InputError, match="does nothing with pictures without labels"):
        load_generator("layerwise-tiny").generate(arch, support=support, unlabelled=more)


def test_scores_on_repeated_examples_are_of_pictures_that_differ(bundled):
    """Noise cannot be learned, however often it is repeated."""
    images = torch.rand(5, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = ("wug", "blick", "dax", "zorp", "fep")
    few = SupportSet(images=images, class_names=names)
    many = SupportSet(images=images.repeat(1, 8, 1, 1, 1), class_names=names)
    for support in (few, many):
        report = bundled.generate("cnn(depth=3,width=16)", support=support).report
        assert report["support_accuracy"] < 0.7 and report["support_images"] == 10
        assert left_out_loss(bundled.generate("cnn(depth=3,width=16)", support=support), support) > 0.8
    same = SupportSet(images=images[:, :1].repeat(1, 16, 1, 1, 1), class_names=names)
    sample = bundled.generate("cnn(depth=3,width=16)", support=same)
    assert "support_scores" not in sample.report and left_out_loss(sample, same) == math.inf


def test_of_names_that_no_one_knows_nothing_is_forecast_but_chance(bundled):
    names = ["wug", "blick", "dax", "zorp"]
    report = bundled.generate("cnn(depth=3,width=16)", classes=names).report
    assert report["unknown_names"] == names and report["expected_accuracy"] == 0.25


def test_pictures_of_something_else_do_no_harm(bundled):
    support = replace(support_of("digits", 8), class_names=tuple(f"zzq{n}" for n in range(10)))
    noise = torch.rand(300, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images, labels = parse_task("digits").resized(16, 3).data("test").all()
    reached = []
    for more in (None, noise):
        sample = bundled.generate("cnn(depth=3,width=16)", support=support, unlabelled=more)
        with torch.no_grad():
            reached.append(float((sample.module(images).argmax(1) == labels).float().mean()))
    assert reached[1] > reached[0] - 0.05, reached


def test_threads_share_a_generator(bundled):
    """Each puts its own tensors into the one module that trunks run through."""
    tasks = [support_of("digits[0,1,4]", 2, seed) for seed in range(6)]
    wanted = [bundled.generate("cnn(depth=3,width=16)", support=task).flat for task in tasks]
    with ThreadPoolExecutor(3) as pool:
        found = list(
            pool.map(lambda task: bundled.generate("cnn(depth=3,width=16)", support=task).flat, tasks * 4)
        )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted * 4, strict=True))
