"""Training of weight tokenizers on real checkpoints, and how their round trip is measured."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import CheckpointError, InputError
from weightloom.fitting import accuracy, closed_form_network, recalibrate
from weightloom.tokenizers import architecture_key
from weightloom.tokenizers.gumbel import annealed_temperature
from weightloom.training import LoopSettings, run_loop
from weightloom.training.tokenizer import (
    TokenizerObjective,
    held_out_populations,
    load_populations,
    measure_statistics,
    round_trip,
    with_closed_forms,
)
from weightloom.weights import layout_of
from weightloom.zoo import Zoo


def objective_of(tokenizer, populations, **changes):
    return TokenizerObjective(tokenizer, populations, **{"networks": 4, "images": 8, "seed": 1, **changes})


# ------------------------------------------------------------------------------------ populations


def test_populations_are_the_training_checkpoints(zoo, populations):
    assert [str(p.spec).split("(")[0] for p in populations].count("cnn") == 2
    assert sorted((architecture_key(p.spec), p.spec.classes, len(p.records)) for p in populations) == [
        ("cnn(depth=1,width=4,input=1x8x8)", 3, 8),
        ("cnn(depth=1,width=4,input=1x8x8)", 4, 4),
        ("mlp(depth=1,width=4,input=1x8x8)", 3, 8),
        ("mlp(depth=1,width=4,input=1x8x8)", 4, 4),
    ]
    for population in populations:
        assert torch.equal(population.flats, zoo.load(population.records))
        assert {r.split for r in population.records} == {"train"}
        for record, data in zip(population.records, population.data, strict=True):
            assert torch.equal(data.labels, record.parsed_task().data("train").labels)
    finals = load_populations(zoo, final=True)
    assert [len(p.records) for p in finals] == [len(p.records) // 2 for p in populations]


def test_a_zoo_without_checkpoints_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoints of the split 'train'"):
        load_populations(Zoo(tmp_path / "zoo", create=True))
    with pytest.raises(CheckpointError, match="not a zoo"):
        load_populations(Zoo(tmp_path / "none"))


def test_statistics_are_of_all_class_counts(populations):
    statistics = measure_statistics(populations)
    assert sorted(statistics) == sorted({architecture_key(p.spec) for p in populations})
    for key, own in statistics.items():
        normalised = [
            own.bind(layout_of(p.spec)).normalise(p.flats).flatten()
            for p in populations
            if architecture_key(p.spec) == key
        ]
        assert float(torch.cat(normalised).square().mean()) < 1.5


def test_held_out_populations(zoo):
    held = held_out_populations(zoo)
    assert sorted(p.spec.family for p in held) == ["cnn", "mlp"]
    assert all(r.split == "held-out-order" and r.final for p in held for r in p.records)


def test_closed_forms_join_their_populations(populations, rng_untouched):
    grown = with_closed_forms(populations)
    statistics = measure_statistics(populations)
    for before, after in zip(populations, grown, strict=True):
        tasks = list(dict.fromkeys(record.task for record in before.records))
        assert len(before.records) == len(before.flats), "the populations handed in stay as they are"
        assert after.spec == before.spec
        assert torch.equal(after.flats[: len(before.flats)], before.flats)
        assert len(after.flats) == len(after.records) == len(after.data) == len(before.flats) + len(tasks)
        assert [record.task for record in after.records[len(before.records) :]] == tasks
        own = statistics[architecture_key(after.spec)]
        layout = layout_of(after.spec)
        centre = own.bind(layout).denormalise(torch.zeros(layout.size))
        for record, flat, data in list(zip(after.records, after.flats, after.data, strict=True))[
            len(before.records) :
        ]:
            task = record.parsed_task()
            support = task.support(16, seed=1).images
            rms = own.scales["head.weight"]
            wanted = closed_form_network(after.spec, centre, support, head_rms=rms)
            assert torch.equal(flat, wanted)
            assert torch.equal(data.labels, task.data("train").labels)
            score = float(accuracy(after.spec, flat[None], *task.data("test").all())[0])
            assert score > 1.5 / task.num_classes, "a closed-form head knows its task"


# -------------------------------------------------------------------------------------- objective


def test_the_loss_falls(tokenizer, populations, kind):
    made = tokenizer(kind)
    if kind == "fsq":  # its principal components are as good as they get: spoil them
        with torch.no_grad():
            for basis in made.bases.values():
                basis.mul_(0.3)
    before = [p.clone() for p in made.parameters()]
    settings = LoopSettings(steps=60, learning_rate=0.005, warmup=5, log_every=20)
    log = run_loop("tokenizer", made, objective_of(made, populations, steps=60), settings)
    assert {"loss", "weight_error", "divergence"} <= log[0].keys()
    assert log[-1]["loss"] < 0.9 * log[0]["loss"], log
    assert not made.training, "it is handed back as it is used"
    moved = [not torch.equal(a, b) for a, b in zip(before, made.parameters(), strict=True)]
    assert all(moved)


def test_a_step_depends_on_its_address_alone(tokenizer, populations, kind, rng_untouched):
    made = tokenizer(kind)

    def losses(steps, **changes):
        objective = objective_of(made, populations, **changes)
        return {step: float(objective(step)[0].detach()) for step in steps}

    first = losses(range(4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert losses(reversed(range(4))) == first
    assert len(set(first.values())) == 4
    assert losses(range(4), seed=2) != first


def test_the_temperature_follows_its_plan(tokenizer, populations):
    made = tokenizer("gumbel")
    objective = objective_of(made, populations, steps=40)
    for step in (0, 5, 9, 10, 39):
        objective(step)
        assert made.temperature == annealed_temperature(step, 40)


def test_the_functional_part_has_a_gradient(tokenizer, populations, kind):
    """Both with the statistics of the batch (even steps) and with those that are coded (odd ones)."""
    made = tokenizer(kind)
    parameters = list(made.decoder.parameters())
    for step in range(4):
        whole, numbers = objective_of(made, populations, functional_weight=2.0)(step)
        bare, fewer = objective_of(made, populations, functional_weight=0.0)(step)
        assert "divergence" in numbers and "divergence" not in fewer and numbers["divergence"] > 0
        assert float((whole - bare).detach()) == pytest.approx(2 * numbers["divergence"], rel=1e-3)
        gradients = torch.autograd.grad(whole - bare, parameters, allow_unused=True)
        total = sum(float(g.norm()) for g in gradients if g is not None)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
        assert total > 1e-4, step


# ------------------------------------------------------------------------------------- round trip


class Exact:
    """A tokenizer that loses nothing."""

    def encode(self, spec, flats):
        return flats

    def decode(self, spec, codes):
        return codes

    def bits_per_weight(self, spec):
        return 32.0


class Forgetful(Exact):
    """A tokenizer that loses everything."""

    def decode(self, spec, codes):
        return torch.zeros_like(codes)


def test_the_round_trip_of_an_exact_tokenizer(populations, rng_untouched):
    rows = round_trip(Exact(), populations, limit=3)
    assert len(rows) == 3 * len(populations)
    records = {r.id: (p, i) for p in populations for i, r in enumerate(p.records)}
    for row in rows:
        population, i = records[row["id"]]
        record = population.records[i]
        assert row["architecture"] == architecture_key(population.spec)
        assert row["dataset"] == "digits" and row["bits_per_weight"] == 32.0
        assert row["original"] == row["rebuilt_norms_as_coded"] == pytest.approx(record.accuracy, abs=1e-6)
        task = record.parsed_task()
        measured = recalibrate(population.spec, population.flats[i : i + 1], task.support(16).flat()[0])
        after = float(accuracy(population.spec, measured, *task.data("test").all())[0])
        assert row["rebuilt"] == pytest.approx(after, abs=1e-6)


def test_the_round_trip_tells_what_is_lost(populations):
    for row in round_trip(Forgetful(), populations, limit=2):
        assert row["rebuilt"] < row["original"]
    few = round_trip(Exact(), populations, limit=2, images=10)
    assert all(
        float(row["original"]) * 10 == pytest.approx(round(float(row["original"]) * 10)) for row in few
    )


def test_the_round_trip_of_a_real_one(tokenizer, populations, kind):
    made = tokenizer(kind)
    rows = round_trip(made, populations, limit=1, images=50)
    assert len(rows) == len(populations)
    for row, population in zip(rows, populations, strict=True):
        assert row["bits_per_weight"] == made.bits_per_weight(population.spec)
        assert all(0 <= float(row[key]) <= 1 for key in ("original", "rebuilt", "rebuilt_norms_as_coded"))


def test_parts_of_a_step_add_up_to_it(tokenizer, populations, adds_up, halves_well):
    made = tokenizer("fsq")
    objective = objective_of(made, populations)
    assert objective.items == 4
    adds_up(made, objective)
    halves_well(made, objective)


def test_a_step_that_draws_in_the_middle_is_one_part(tokenizer, populations):
    assert objective_of(tokenizer("gumbel"), populations).items == 1
    assert objective_of(tokenizer("fsq"), populations, latent_noise=0.1).items == 1
