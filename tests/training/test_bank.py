"""Tasks encoded beforehand: what a bank holds, and what of it a condition is told."""

from __future__ import annotations

import pytest
import torch

from weightloom.conditioning import encode_text
from weightloom.seeding import torch_generator
from weightloom.tasks import parse_task
from weightloom.training.bank import banked_condition, build_bank, initial_codes_of

TASKS = ("digits[3,1,7]@8c1", "digits[0,2,4]+invert@8c1")


@pytest.fixture
def chosen(model, banks, populations):
    """A model, an architecture and four banked tasks for it."""
    made = model()
    bank, _ = banks(made)
    population = next(p for p in populations if p.spec.classes == 3)
    tasks = [bank[record.task] for record in population.records]
    return made, population.spec, [tasks[i] for i in (0, 2, 4, 6)]


# ------------------------------------------------------------------------------------ the bank


@pytest.mark.usefixtures("text_encoder")
def test_a_bank_holds_its_tasks_encoded(encoder, rng_untouched):
    tasks = [parse_task(text) for text in (*TASKS, TASKS[0])]
    told = []
    bank = build_bank(
        encoder, tasks, wordings=3, supports=4, shots=(5, 2), seed=7, progress=lambda *step: told.append(step)
    )
    assert list(bank) == list(TASKS), "a task that is named twice is encoded once"
    assert told == [("task bank", 1, 2), ("task bank", 2, 2)]
    for name, banked in bank.items():
        assert str(banked.task) == name
        assert banked.wordings.shape == (3, 384) and banked.supports.shape == (4, 3, 16)
        written = banked.task.instructions(3, seed=7, misspelt=0.25)
        assert torch.allclose(banked.wordings, encode_text(written), atol=1e-5)
        assert [images.shape[1] for images in banked.images] == [5, 2, 5, 2]
        for number, images in enumerate(banked.images):
            assert torch.equal(images, banked.task.support((5, 2)[number % 2], seed=7 + number).images)
            assert torch.allclose(banked.supports[number], encoder.describe(images).detach(), atol=1e-6)
        assert not banked.supports.requires_grad
        assert torch.equal(banked.data.labels, banked.task.data("train").labels)


@pytest.mark.usefixtures("text_encoder")
def test_a_bank_is_the_same_for_the_same_seed(encoder):
    tasks = [parse_task(text) for text in TASKS]
    one, same, other = (build_bank(encoder, tasks, supports=2, shots=(3,), seed=seed) for seed in (1, 1, 2))
    for name in TASKS:
        assert torch.equal(one[name].wordings, same[name].wordings)
        assert torch.equal(one[name].supports, same[name].supports)
        assert not torch.equal(one[name].supports, other[name].supports)
    assert not torch.equal(one[TASKS[0]].supports[0], one[TASKS[0]].supports[1])


# ---------------------------------------------------------------------------------- conditions


def test_a_condition_says_what_the_bank_holds(chosen, rng_untouched):
    _, _, tasks = chosen
    condition = banked_condition(tasks, torch_generator("test", 0))
    assert len(condition) == 4 and condition.num_classes == 3
    assert bool(condition.has_instruction.all()) and bool(condition.has_classes.all())
    assert condition.has_architecture
    for row, banked in enumerate(tasks):
        assert any(torch.equal(condition.instruction[row], words) for words in banked.wordings)
        drawn = [j for j in range(2) if torch.equal(condition.classes[row], banked.supports[j])]
        assert len(drawn) == 1
        assert torch.equal(condition.supports[row], banked.images[drawn[0]])


def test_wordings_and_support_sets_are_drawn_anew(chosen):
    _, _, tasks = chosen
    drawn = [banked_condition(tasks, torch_generator("test", seed)) for seed in range(8)]
    assert len({tuple(c.instruction[:, 0].tolist()) for c in drawn}) > 2
    assert len({tuple(c.classes[:, 0, 0].tolist()) for c in drawn}) > 2
    again = banked_condition(tasks, torch_generator("test", 3))
    for part in ("instruction", "has_instruction", "classes", "has_classes"):
        assert torch.equal(getattr(again, part), getattr(drawn[3], part)), part


@pytest.mark.parametrize(
    ("drops", "words", "pictures"),
    [
        ({"drop_instruction": 1.0}, False, True),
        ({"drop_dataset": 1.0}, True, False),
        ({"drop_all": 1.0}, False, False),
        ({"drop_instruction": 1.0, "drop_dataset": 1.0}, False, False),
    ],
)
def test_parts_are_left_out(chosen, drops, words, pictures):
    _, _, tasks = chosen
    condition = banked_condition(tasks, torch_generator("test", 0), **drops)
    assert condition.has_instruction.tolist() == [words] * 4
    assert condition.has_classes.tolist() == [pictures] * 4
    assert bool(condition.instruction.any()) is words and bool(condition.classes.any()) is pictures
    assert [images is not None for images in condition.supports] == [pictures] * 4


def test_parts_are_left_out_at_their_rates(chosen):
    _, _, tasks = chosen
    generator = torch_generator("test", 1)
    rates = {"drop_instruction": 0.5, "drop_dataset": 0.25, "drop_all": 0.2}
    made = [banked_condition(tasks, generator, **rates) for _ in range(250)]
    words = torch.cat([c.has_instruction for c in made]).float().mean()
    pictures = torch.cat([c.has_classes for c in made]).float().mean()
    assert float(words) == pytest.approx(0.8 * 0.5, abs=0.05)
    assert float(pictures) == pytest.approx(0.8 * 0.75, abs=0.05)


def test_leaving_parts_out_changes_nothing_else_that_is_drawn(chosen):
    _, _, tasks = chosen
    whole = banked_condition(tasks, torch_generator("test", 2))
    some = banked_condition(
        tasks, torch_generator("test", 2), drop_instruction=0.5, drop_dataset=0.5, drop_all=0.1
    )
    assert 0 < int(some.has_instruction.sum()) < 4 or 0 < int(some.has_classes.sum()) < 4
    for row in range(4):
        if some.has_instruction[row]:
            assert torch.equal(some.instruction[row], whole.instruction[row])
        if some.has_classes[row]:
            assert torch.equal(some.classes[row], whole.classes[row])
            assert torch.equal(some.supports[row], whole.supports[row])


def test_initial_codes_are_made_once_for_each_architecture_and_told(chosen):
    """They are those of the support set that was drawn, and none without examples."""
    _, spec, tasks = chosen
    made = []

    class Model:
        def training_codes(self, spec, support, classes):
            made.append((spec, len(support)))
            return torch.full((5, 2), support.shape[1])

    for seed in range(4):
        initial = initial_codes_of(Model(), spec, tasks[:1])
        told = banked_condition(tasks[:1], torch_generator("test", seed), initial=initial)
        assert told.has_initial.tolist() == [True]
        assert told.initial[0].unique().tolist() == [told.supports[0].shape[1]]
    assert made == [(spec, 3)] * len(tasks[0].images)
    bare = banked_condition(tasks[:1], torch_generator("test", 0), initial=initial, drop_dataset=1.0)
    assert bare.initial is None
