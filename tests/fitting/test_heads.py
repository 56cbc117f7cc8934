"""Last layers in closed form: left-out answers are those of refitting, starts are taken where they help."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weightloom.fitting import copies_of, heads
from weightloom.fitting.calibration import fit_temperature
from weightloom.fitting.heads import Head, Labelled, fit_head, spread_to
from weightloom.tasks import parse_task


def digits(shots: int, *names: int, seed: int = 0) -> Labelled:
    """Pixels of real digits as features (C * S, 64)."""
    task = parse_task(f"digits[{','.join(map(str, names or range(10)))}]@8c1")
    images = task.support(shots, seed).images
    classes = len(images)
    return Labelled(
        features=images.flatten(0, 1).flatten(1),
        labels=torch.arange(classes).repeat_interleave(shots),
        classes=classes,
        copies=copies_of(images),
    )


def without(shown: Labelled, kept: torch.Tensor) -> Labelled:
    return Labelled(
        features=shown.features[kept],
        labels=shown.labels[kept],
        classes=shown.classes,
        copies=torch.ones(int(kept.sum()), dtype=torch.int64),
    )


def ridge(design, wanted, penalty):
    """The regression by its textbook formula, in double precision."""
    design, wanted = design.double(), wanted.double()
    inner = design.T @ design + penalty * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(inner, design.T @ wanted)


def brute_force(shown: Labelled, metric, penalty: float, start: Head | None = None, share: float = 0.0):
    """(N', C) fitted labels of each example by a regression without it and its copies.

    The middle, the length of the constant and the penalty's unit are those of all examples.
    """
    inner = (shown.features - shown.features.mean(0)) @ metric
    size = inner.square().sum(1).mean()
    design = torch.cat([inner, size.sqrt().expand(len(inner), 1)], 1)
    wanted = F.one_hot(shown.labels, shown.classes).float() - 1 / shown.classes
    begun = torch.zeros_like(wanted)
    if start is not None:
        logits = start(shown.features)
        begun = share * (logits - logits.mean(1, keepdim=True))
    found = []
    for place in range(len(wanted)):
        same = (shown.features == shown.features[place]).all(1) & (shown.labels == shown.labels[place])
        rows = ridge(design[~same], (wanted - begun)[~same], float(size) * penalty)
        found.append(design[place].double() @ rows + begun[place].double())
    return torch.stack(found)


@pytest.mark.parametrize("shots", [3, 12])  # fewer examples than features, and more
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("begin", [False, True])
def test_left_out_scores_are_those_of_refitting(shots, repeated, begin, monkeypatch):
    monkeypatch.setattr(heads, "PENALTIES", (0.7,))
    monkeypatch.setattr(heads, "SHARES", (0.2,))
    shown = digits(shots)
    if repeated:  # the first class has one picture fewer than it has places
        features, copies = shown.features.clone(), shown.copies.clone()
        features[1], copies[:2] = features[0], 2
        shown = Labelled(features=features, labels=shown.labels, classes=10, copies=copies)
    metric = torch.eye(64) + 0.1 * torch.randn(64, 64)
    start = None
    if begin:
        start = Head(
            F.one_hot(shown.labels).float().T @ shown.features, torch.linspace(-1, 1, 10)
        ).standardised(shown.features, each=False)
        monkeypatch.setattr(heads, "SHARES", (0.2,))
    found = fit_head(shown, metric, [] if start is None else [start])
    wanted = brute_force(shown, metric, 0.7, start if found.start == 0 else None, found.share)
    judged = shown.judged
    hits = (wanted.argmax(1) == shown.labels)[judged].float().mean()
    scale = 1 / fit_temperature(wanted[judged], shown.labels[judged])
    loss = float(F.cross_entropy(scale * wanted[judged], shown.labels[judged]))
    assert found.judged == shown.pictures(judged)
    assert found.accuracy == pytest.approx(float(hits), abs=1e-6)
    assert found.loss == pytest.approx(loss, rel=1e-3)
    if begin:
        assert found.start == 0 and found.share == 0.2


@pytest.mark.parametrize("shots", [3, 12])
def test_the_head_is_the_regression_on_all(shots, monkeypatch):
    monkeypatch.setattr(heads, "PENALTIES", (0.7,))
    shown, metric = digits(shots), torch.eye(64)
    found = fit_head(shown, metric)
    inner = shown.features - shown.features.mean(0)
    size = inner.square().sum(1).mean()
    design = torch.cat([inner, size.sqrt().expand(len(inner), 1)], 1)
    rows = ridge(design, F.one_hot(shown.labels).float() - 0.1, float(size) * 0.7)
    wanted = design.double() @ rows
    made = found.head(shown.features).double()
    scale = (made * wanted).sum() / wanted.square().sum()
    assert float(scale) > 0
    assert torch.allclose(made, scale * wanted, atol=1e-3 * float(made.abs().max()))


def test_a_start_of_noise_does_no_harm_where_there_are_many_examples():
    """It is left alone, or it is little of it and left-out examples are answered no worse."""
    shown, (images, labels) = digits(40), parse_task("digits@8c1").data("test").all()
    images = images.flatten(1)
    plain = fit_head(shown, torch.eye(64))
    alone, moved = 0, []
    for seed in range(6):
        rows = torch.randn(10, 64, generator=torch.Generator().manual_seed(seed))
        noise = Head(rows, torch.zeros(10)).standardised(shown.features, each=False)
        offered = fit_head(shown, torch.eye(64), [noise])
        assert offered.loss <= plain.loss
        alone += offered.start is None
        if offered.start is None:
            assert offered.share == 0 and torch.equal(offered.head.weight, plain.head.weight)
        moved.append(
            right_of(offered.head, images.flatten(1), labels)
            - right_of(plain.head, images.flatten(1), labels)
        )
    assert alone >= 2 and sum(moved) / 6 > -0.01 and min(moved) > -0.02, (alone, moved)


def test_a_good_start_is_taken_and_helps_where_there_are_few():
    others = digits(30, seed=1)
    good = fit_head(others, torch.eye(64)).head.standardised(others.features, each=False)
    noise = Head(torch.randn(10, 64), torch.zeros(10)).standardised(others.features, each=False)
    shown, asked = digits(2, seed=2), parse_task("digits@8c1").data("test").all()
    plain, begun = fit_head(shown, torch.eye(64)), fit_head(shown, torch.eye(64), [noise, good])
    assert begun.start == 1 and begun.share in heads.SHARES

    def right(head):
        return float((head(asked[0].flatten(1)).argmax(1) == asked[1]).float().mean())

    assert right(begun.head) > right(plain.head) + 0.05


def test_one_example_a_class_cannot_be_left_out():
    shown = digits(1)
    start = Head(torch.eye(10, 64), torch.zeros(10))
    plain, begun = fit_head(shown, torch.eye(64)), fit_head(shown, torch.eye(64), [start, start])
    assert plain.loss is None and plain.accuracy is None and plain.judged == 0 and plain.start is None
    assert begun.start == 1 and begun.share == heads.ONE_SHARE
    assert bool((plain.head(shown.features).argmax(1) == shown.labels).all())
    # A class that is one picture many times is no more than that.
    images = parse_task("digits@8c1").support(1).images.expand(-1, 3, -1, -1, -1)
    copies = Labelled(
        features=images.flatten(0, 1).flatten(1), labels=torch.arange(10).repeat_interleave(3), classes=10,
        copies=copies_of(images),
    )  # fmt: skip
    assert fit_head(copies, torch.eye(64)).judged == 0


def test_the_order_of_the_classes_does_not_matter():
    shown = digits(6, 3, 1, 7)
    back = torch.tensor([2, 0, 1])
    turned = Labelled(features=shown.features, labels=back[shown.labels], classes=3, copies=shown.copies)
    a, b = (fit_head(one, torch.eye(64)) for one in (shown, turned))
    assert a.penalty == b.penalty and a.loss == pytest.approx(b.loss, abs=1e-6)
    assert torch.allclose(a.head.weight, b.head.weight[back], atol=1e-4)


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_pictures_without_any_content(shots):
    """All alike: nothing can be told, and nothing is infinite."""
    shown = Labelled(
        features=torch.zeros(2 * shots, 8), labels=torch.arange(2).repeat_interleave(shots), classes=2,
        copies=torch.full((2 * shots,), shots),
    )  # fmt: skip
    found = fit_head(shown, torch.eye(8))
    assert bool(torch.isfinite(found.head.weight).all()) and bool(torch.isfinite(found.head.bias).all())
    moved = spread_to(Head(torch.zeros(2, 8), torch.zeros(2)), torch.zeros(3, 8), shown)
    assert bool(torch.isfinite(moved.weight).all()) and bool(torch.isfinite(moved.bias).all())


def test_heads_can_be_scaled_summed_and_standardised():
    head = Head(torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([0.5, -0.5]))
    x = torch.randn(50, 2)
    assert torch.allclose(head.scaled(2.0)(x), 2 * head(x))
    factors = torch.tensor([1.0, -3.0])
    assert torch.allclose(head.scaled(factors)(x), factors * head(x))
    assert torch.allclose(head.plus(head.scaled(0.5))(x), 1.5 * head(x), atol=1e-5)
    each, whole = head.standardised(x, each=True)(x), head.standardised(x, each=False)(x)
    assert torch.allclose(each.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(each.std(0, correction=0), torch.ones(2), atol=1e-5)
    assert float(whole.std(0, correction=0).mean()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(whole.mean(0), torch.zeros(2), atol=1e-5)
    one = Head(torch.ones(2, 2), torch.zeros(2)).standardised(x[:1], each=True)  # no spread at all
    assert bool(torch.isfinite(one(x)).all())


def right_of(head: Head, images, labels) -> float:
    return float((head(images).argmax(1) == labels).float().mean())


def test_pictures_without_labels_move_a_start_to_where_they_lie():
    data = parse_task("digits[0,1,6]@8c1").data("train").all()
    images, labels = data[0].flatten(1), data[1]
    weak = digits(1, 0, 1, 6, seed=5)
    start = fit_head(weak, torch.eye(64)).head.standardised(images, each=True)
    moved = spread_to(start, images, None)
    assert right_of(moved, images, labels) > right_of(start, images, labels)
    assert right_of(moved, images, labels) > 0.95


def test_pictures_without_labels_beside_one_example_a_class():
    data = parse_task("digits[0,1,6]@8c1").data("train").all()
    images, labels = data[0].flatten(1), data[1]
    shown = digits(1, 0, 1, 6, seed=5)
    plain, moved = fit_head(shown, torch.eye(64)).head, spread_to(None, images, shown)
    assert right_of(moved, images, labels) > right_of(plain, images, labels)
    assert right_of(moved, shown.features, shown.labels) == 1


def test_spreading_does_not_depend_on_the_order_of_pictures_or_classes():
    images = parse_task("digits[0,1,6]@8c1").data("train").all()[0].flatten(1)[:60]
    shown, back = digits(2, 0, 1, 6), torch.tensor([2, 0, 1])
    start = fit_head(shown, torch.eye(64)).head.standardised(images, each=True)
    turned = Labelled(features=shown.features, labels=back[shown.labels], classes=3, copies=shown.copies)
    other = Head(torch.empty(3, 64).index_copy(0, back, start.weight), start.bias.new_empty(3))
    other = Head(other.weight, other.bias.index_copy(0, back, start.bias))
    a = spread_to(start, images, shown)
    b = spread_to(other, images.flip(0), turned)
    assert torch.allclose(a.weight, b.weight[back], atol=1e-4)
    assert torch.allclose(a.bias, b.bias[back], atol=1e-3)
