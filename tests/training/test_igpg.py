"""What the prior minimises: codes of real checkpoints, and the loss of the networks that it makes itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from weightloom.errors import SpecError
from weightloom.fitting import run_networks
from weightloom.seeding import torch_generator
from weightloom.training import LoopSettings, run_loop
from weightloom.training.bank import banked_condition
from weightloom.training.igpg import PriorObjective, PriorSettings
from weightloom.weights import layout_of

SMALL = {"networks": 3, "queries": 8}


@pytest.fixture
def prior(model, banks, populations):
    """Make a model and its objective."""

    def make(kind="fsq", *, seed=0, with_fresh=True, **settings):
        made = model(kind)
        bank, fresh = banks(made)
        wanted = PriorSettings(**{**SMALL, **settings})
        return made, PriorObjective(made, populations, bank, fresh if with_fresh else {}, wanted, seed=seed)

    return make


# ------------------------------------------------------------------------------ expected networks


def test_expected_networks_have_a_gradient(prior, banks, populations, kind):
    made, objective = prior(kind)
    bank, _ = banks(made)
    population = populations[0]
    tasks = [bank[record.task] for record in population.records[:3]]
    condition = banked_condition(tasks, torch_generator("test", 0))
    flats = objective.expected(population.spec, condition)
    assert flats.shape == (3, population.flats.shape[1]) and bool(torch.isfinite(flats).all())
    images = torch.stack([one.data.batch(torch.arange(16))[0] for one in tasks])
    run_networks(population.spec, flats, images, training=True).square().mean().backward()
    learning = made.shift if made.tokenizer.ordered else made.out
    assert float(learning.weight.grad.norm()) > 0


def test_an_expected_network_is_the_hard_one_of_a_prior_that_is_sure(
    prior, banks, populations, kind, monkeypatch
):
    """The softer the prior, the nearer to the middle; a prior that has no doubt decodes its one answer."""
    made, objective = prior(kind)
    bank, _ = banks(made)
    population = populations[0]
    tasks = [bank[record.task] for record in population.records[:2]]
    condition = banked_condition(tasks, torch_generator("test", 0))
    codes = made.tokenizer.encode(population.spec, population.flats[:2])
    sure = 100.0 * F.one_hot(codes, made.tokenizer.vocabulary).float()
    monkeypatch.setattr(made, "forward", lambda *_: sure)
    found = objective.expected(population.spec, condition)
    assert torch.allclose(found, made.tokenizer.decode(population.spec, codes), atol=1e-4)


# ------------------------------------------------------------------------------------- the steps


def test_zoo_steps_learn_codes_and_behaviour(prior, kind):
    _, objective = prior(kind, fresh_share=0.0, code_weight=0.5, functional_weight=2.0)
    for step in range(3):
        loss, numbers = objective(step)
        assert numbers.keys() == {"code_nats", "zoo_loss", "zoo_accuracy"}
        wanted = 0.5 * numbers["code_nats"] + 2 * numbers["zoo_loss"]
        assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)
        assert 0 <= numbers["zoo_accuracy"] <= 1


def test_fresh_steps_learn_behaviour(prior, kind):
    _, objective = prior(kind, fresh_share=1.0, functional_weight=2.0)
    for step in range(3):
        loss, numbers = objective(step)
        assert numbers.keys() == {"fresh_loss", "fresh_accuracy"}
        assert float(loss.detach()) == pytest.approx(2 * numbers["fresh_loss"], rel=1e-4)


def test_what_is_not_shown_is_learned_from_all_the_same(prior):
    """Without examples in the condition the trunk is made from words; a head shows what it is worth."""
    _, objective = prior(fresh_share=0.0, drop_dataset=1.0)
    assert objective(0)[1].keys() == {"code_nats", "zoo_loss", "zoo_accuracy"}


def test_the_head_of_what_it_makes_does_not_matter_to_behaviour(prior, banks, populations, monkeypatch):
    """Only the trunk is the prior's: what it says of the head's tokens is replaced by the closed form."""
    made, objective = prior()
    _, fresh = banks(made)
    spec = populations[0].spec
    tasks = fresh[spec.classes][:2]
    condition = banked_condition(tasks, torch_generator("test", 0))
    trunk = layout_of(spec).trunk_size
    real = objective.expected

    def loss(spoil):
        monkeypatch.setattr(objective, "expected", lambda *arguments: spoil(real(*arguments)))
        found, _ = objective._with_closed_heads(spec, condition, tasks, torch_generator("q", 1))
        return float(found.detach())

    def head(flats):
        return torch.cat([flats[:, :trunk], torch.randn(len(flats), flats.shape[1] - trunk)], dim=1)

    def body(flats):
        return torch.cat([flats[:, :trunk] + 0.3 * torch.randn(len(flats), trunk), flats[:, trunk:]], dim=1)

    plain = loss(lambda flats: flats)
    assert loss(head) == pytest.approx(plain, rel=1e-5)
    assert loss(body) != pytest.approx(plain, rel=1e-3)


def test_both_come_in_their_share(prior):
    _, objective = prior(fresh_share=0.5)
    kinds = ["fresh_loss" in objective(step)[1] for step in range(40)]
    assert 10 <= sum(kinds) <= 30


def test_without_fresh_tasks_every_step_is_of_the_zoo(prior):
    _, objective = prior(with_fresh=False, fresh_share=1.0)
    assert all("zoo_loss" in objective(step)[1] for step in range(4))


def test_parts_without_weight_are_not_computed(prior):
    _, objective = prior(functional_weight=0.0, fresh_share=0.9)
    for step in range(6):
        loss, numbers = objective(step)
        assert numbers.keys() == {"code_nats"}, "a fresh task has no codes to learn"
        assert loss.requires_grad
    _, objective = prior(code_weight=0.0, fresh_share=0.0)
    assert objective(0)[1].keys() == {"zoo_loss", "zoo_accuracy"}


def test_fresh_steps_are_of_every_class_count_and_architecture(prior, monkeypatch):
    _, objective = prior(fresh_share=1.0)
    seen, real = set(), objective._with_closed_heads

    def spied(spec, *rest):
        seen.add((spec.family, spec.classes))
        return real(spec, *rest)

    monkeypatch.setattr(objective, "_with_closed_heads", spied)
    for step in range(24):
        objective(step)
    assert seen == {(family, classes) for family in ("cnn", "mlp") for classes in (3, 4)}


def test_a_step_depends_on_its_address_alone(prior, kind, rng_untouched):
    _, objective = prior(kind)

    def losses(steps, objective=objective):
        return {step: float(objective(step)[0].detach()) for step in steps}

    first = losses(range(5))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert losses(reversed(range(5))) == first
    assert losses(range(5), prior(kind, seed=1)[1]) != first


# ------------------------------------------------------------------------------------ gradients


def test_every_trainable_parameter_learns(prior, kind):
    """Within a few steps every one has had a gradient; what is frozen never does."""
    drops = {"drop_instruction": 0.3, "drop_dataset": 0.3, "drop_architecture": 0.3, "drop_all": 0.1}
    made, objective = prior(kind, **drops)
    frozen = {n: p.detach().clone() for n, p in made.named_parameters() if not p.requires_grad}
    assert all(name.startswith(("tokenizer.", "images.")) for name in frozen) and frozen
    optimiser = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], 1e-3)
    left = {n for n, p in made.named_parameters() if p.requires_grad}
    for step in range(16):
        loss, _ = objective(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        for name, p in made.named_parameters():
            if p.grad is not None:
                assert bool(torch.isfinite(p.grad).all()), name
                if float(p.grad.abs().sum()) > 0:
                    left.discard(name)
    assert not left, f"never had a gradient: {sorted(left)}"
    for name, p in made.named_parameters():
        if name in frozen:
            assert p.grad is None and torch.equal(p, frozen[name]), name


def test_the_architecture_is_left_out_at_its_rate(prior, monkeypatch):
    _, objective = prior(drop_architecture=0.5)
    plain = prior(drop_architecture=0.0)[1]
    told, real = [], objective._condition

    def spied(*arguments, **drops):
        condition = real(*arguments, **drops)
        told.append(condition.has_architecture)
        return condition

    monkeypatch.setattr(objective, "_condition", spied)
    for step in range(40):
        numbers = objective(step)[1]
        if told[-1] and step < 10:
            assert numbers == plain(step)[1], "a step that is told everything draws what it always drew"
    assert 10 <= sum(told) <= 30


def test_it_learns(prior, kind):
    """The codes of the zoo get likelier, and the networks that it makes of them better."""
    made, objective = prior(kind, fresh_share=0.0, code_weight=1.0, networks=4, queries=16)
    bits = [objective(step)[1]["code_nats"] for step in range(1000, 1006)]
    settings = LoopSettings(steps=40, learning_rate=0.01, warmup=5, log_every=10)
    log = run_loop("prior", made, objective, settings)
    assert log[-1]["loss"] < log[0]["loss"]
    after = [objective(step)[1]["code_nats"] for step in range(1000, 1006)]
    assert sum(after) < 0.9 * sum(bits), (bits, after)


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "bad",
    [
        {"networks": 0},
        {"networks": "many"},
        {"networks": True},
        {"networks": 2.5},
        {"queries": 1},
        {"code_weight": -1.0},
        {"code_weight": "1e-3"},
        {"functional_weight": float("nan")},
        {"code_weight": 0.0, "functional_weight": 0},
        {"fresh_share": 1.5},
        {"drop_instruction": 2},
        {"drop_dataset": -1},
        {"drop_architecture": None},
        {"drop_all": [0.5]},
    ],
)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(SpecError):
        PriorSettings(**bad)


@pytest.mark.parametrize("settings", [{"fresh_share": 0.0}, {"fresh_share": 1.0}])
def test_parts_of_a_step_add_up_to_it(prior, adds_up, halves_well, settings):
    made, objective = prior(networks=4, drop_dataset=0.5, **settings)
    assert objective.items == 4
    adds_up(made, objective)
    halves_well(made, objective)
