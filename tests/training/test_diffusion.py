"""What a latent diffusion minimises, and that its training goes through all stages and resumes."""

from __future__ import annotations

import json

import pytest
import torch
import yaml

from weightloom.errors import InputError, SpecError
from weightloom.fitting import accuracy
from weightloom.generators.diffusion import DiffusionConfig, LatentDiffusion
from weightloom.generators.load import load_generator
from weightloom.training import LoopSettings, run_loop
from weightloom.training.diffusion import DiffusionObjective, DiffusionSettings
from weightloom.training.run import train_recipe
from weightloom.training.tokenizer import TokenizerObjective

CONFIG = {"width": 16, "depth": 1, "steps": 3, "image_features": 8, "image_width": 8, "channels": 1}
RECIPE = {
    "kind": "generator",
    "generator": "diffusion",
    "name": "tiny-diffusion",
    "encoder": {"tasks": {3: 2}, "tasks_at_once": 1, "shots": 2, "queries": 8, "loop": {"steps": 2}},
    "tokenizer": {
        "kind": "fsq",
        "config": {"chunk": 32, "codes": 6, "vocabulary": 5, "width": 16, "depth": 1},
        "networks": 2,
        "images": 8,
        "input_noise": 0.01,
        "latent_noise": 0.05,
        "loop": {"steps": 4, "save_every": 2, "log_every": 1},
    },
    "denoiser": {
        "config": CONFIG,
        "objective": {"networks": 2, "functional_weight": 0.1, "queries": 4},
        "wordings": 1,
        "supports": 1,
        "loop": {"steps": 4, "save_every": 2, "log_every": 1},
    },
}


@pytest.fixture
def diffusion(model, banks, populations):
    """Make an untrained diffusion over the tiny zoo, and its objective."""

    def make(*, seed=0, **settings):
        base = model("fsq")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            made = LatentDiffusion(DiffusionConfig(**CONFIG), base.tokenizer, base.validity)
        made.images.load_state_dict(base.images.state_dict())
        made.images.requires_grad_(False)
        made.measure_latents({p.spec: p.flats for p in populations})
        wanted = DiffusionSettings(**{"networks": 4, "queries": 8, **settings})
        return made, DiffusionObjective(made, populations, banks(base)[0], wanted, seed=seed)

    return make


def test_a_step_depends_on_its_number_and_seed_alone(diffusion, rng_untouched):
    _, objective = diffusion(functional_weight=0.5, latent_noise=0.1)
    assert objective(3)[1] == objective(3)[1]
    assert objective(3)[1] != objective(4)[1]


def test_the_loss_falls(diffusion):
    made, objective = diffusion(networks=8)
    log = run_loop("test", made, objective, LoopSettings(steps=160, learning_rate=0.02, log_every=40))
    assert log[-1]["error"] < 0.95 * log[0]["error"] and log[-1]["error"] < 1.55


def test_the_functional_loss_reaches_the_denoiser(diffusion):
    made, objective = diffusion(functional_weight=1.0)
    loss, numbers = objective(0)
    assert numbers.keys() == {"error", "functional", "query_accuracy"}
    loss.backward()
    assert all(
        parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
        for parameter in made.denoiser.parameters()
    )
    alone = loss - diffusion()[1](0)[0]
    assert float(alone.detach()) == pytest.approx(numbers["functional"], rel=1e-4)


def test_what_is_dropped_is_dropped(diffusion):
    _, objective = diffusion(drop_instruction=1.0, drop_dataset=0.0, drop_all=0.0, drop_architecture=1.0)
    tasks = [next(iter(objective.bank.values()))] * 5
    spec = objective.populations[0].spec
    condition = objective.condition(spec, tasks, torch.Generator().manual_seed(0))
    assert not bool(condition.has_instruction.any()) and bool(condition.has_classes.all())
    assert bool(condition.has_initial.all())
    assert not condition.has_architecture
    _, objective = diffusion(drop_all=1.0)
    condition = objective.condition(spec, tasks, torch.Generator().manual_seed(0))
    assert not bool(condition.has_instruction.any()) and not bool(condition.has_classes.any())
    assert condition.initial is None


def test_it_learns_the_zoo_by_heart_where_it_can(diffusion, populations):
    """A denoiser that is trained long enough gives networks as good as those of one small population."""
    made, objective = diffusion(functional_weight=0.3)
    objective.populations, objective.latents = objective.populations[:1], objective.latents[:1]
    run_loop("test", made, objective, LoopSettings(steps=120, learning_rate=0.01))
    population = populations[0]
    made.eval()
    gained = []
    for record in {r.task: r for r in population.records}.values():
        task = record.parsed_task()
        samples = made.generate_many(population.spec, support=task.support(16), num_samples=4)
        flats = torch.stack([sample.flat for sample in samples])
        gained.append(float(accuracy(population.spec, flats, *task.data("test").all()).mean()))
    chance = 1 / population.spec.classes
    assert sum(gained) / len(gained) > chance + 0.25


@pytest.mark.parametrize(
    "bad",
    [
        {"networks": 0},
        {"queries": 0},
        {"latent_noise": -1},
        {"functional_weight": -1},
        {"drop_all": 1.5},
        {"drop_dataset": -0.1},
    ],
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(SpecError):
        DiffusionSettings(**bad)


# ------------------------------------------------------------------------------ the autoencoder's noise


def test_noise_on_what_is_encoded_and_decoded(tokenizer, populations, kind):
    """Clean tokens are what is to be rebuilt; without noise nothing is drawn."""
    made, population = tokenizer(kind), populations[0]
    stream = torch.Generator().manual_seed(0)
    plain = made(population.spec, population.flats[:3])
    assert torch.equal(plain.rebuilt, made(population.spec, population.flats[:3], stream=stream).rebuilt)
    noisy = made(population.spec, population.flats[:3], latent_noise=0.5, stream=stream)
    assert torch.equal(noisy.tokens, plain.tokens) and not torch.allclose(noisy.rebuilt, plain.rebuilt)
    seen = made(population.spec, population.flats[:3], input_noise=2.0, stream=stream)
    assert torch.equal(seen.tokens, plain.tokens) and not torch.equal(seen.codes, plain.codes)


def test_the_tokenizers_objective_hands_its_noise_on(tokenizer, populations):
    losses = []
    for noise in (0.0, 0.5):
        made = tokenizer()
        objective = TokenizerObjective(made, populations, networks=2, images=8, latent_noise=noise)
        losses.append(objective(0)[1]["weight_error"])
        assert objective(1)[1] == objective(1)[1]
    assert losses[0] != losses[1]


# ------------------------------------------------------------------------------ all stages


@pytest.fixture
def recipe(tmp_path, text_encoder):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({**RECIPE, **changes}))
        return path

    return write


def test_it_is_trained_and_comes_back(zoo, recipe, tmp_path, rng_untouched):
    model = train_recipe(recipe(), zoo.path, tmp_path / "out")
    assert isinstance(model, LatentDiffusion) and model.zoo_index is not None
    again = load_generator(tmp_path / "out")
    record = zoo.records(split="train", final=True)[0]
    spec, support = record.spec(), record.parsed_task().support(4)
    a, b = (m.generate(spec, support=support) for m in (model, again))
    assert torch.equal(a.flat, b.flat)
    log = [
        json.loads(line)
        for line in (tmp_path / "out" / "work" / "tokenizer" / "log.jsonl").read_text().splitlines()
    ]
    assert 0 < log[-1]["zoo_rebuilt"] < 3, "the accuracy of rebuilt networks is logged"
    log = [
        json.loads(line)
        for line in (tmp_path / "out" / "work" / "denoiser" / "log.jsonl").read_text().splitlines()
    ]
    assert {"error", "functional", "seen_ratio", "validation_sample"} <= log[-1].keys()


def test_an_interrupted_training_goes_on(zoo, recipe, tmp_path):
    whole = train_recipe(recipe(), zoo.path, tmp_path / "whole")
    calls = []

    def stop(what, done, total):
        calls.append(what)
        if what == "denoiser" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(recipe(), zoo.path, tmp_path / "parts", stop)
    resumed = train_recipe(recipe(), zoo.path, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_denoiser_is_trained_over_what_another_generator_carries(zoo, recipe, tmp_path):
    """No zoo is needed: encoder, tokenizer and checkpoints are those of the other one."""
    base = train_recipe(recipe(), zoo.path, tmp_path / "base")
    about = zoo.about()["recipe"]
    (tmp_path / "own-zoo.yaml").write_text(yaml.safe_dump(about))
    held = {
        "kind": "generator", "generator": "diffusion", "name": "over", "parts": str(tmp_path / "base"),
        "zoo": "own-zoo", "denoiser": RECIPE["denoiser"],
    }  # fmt: skip
    path = tmp_path / "over.yaml"
    path.write_text(yaml.safe_dump(held))
    model = train_recipe(path, None, tmp_path / "out")
    assert model.zoo_index is not None and model.zoo_index.groups.keys() == base.zoo_index.groups.keys()
    again = load_generator(tmp_path / "out")
    record = zoo.records(split="train", final=True)[0]
    spec, support = record.spec(), record.parsed_task().support(4)
    a, b = (m.generate(spec, support=support) for m in (model, again))
    assert torch.equal(a.flat, b.flat)
    with pytest.raises(InputError, match="leave --zoo out"):
        train_recipe(path, zoo.path, tmp_path / "other")
    wide = {**RECIPE["denoiser"], "config": {**CONFIG, "image_features": 16}}
    path.write_text(yaml.safe_dump({**held, "denoiser": wide}))
    with pytest.raises(SpecError, match="not those of the encoder"):
        train_recipe(path, None, tmp_path / "wide")


def test_what_makes_no_sense_is_refused_before_any_work(zoo, recipe, tmp_path):
    def refused(match, error=SpecError, **changes):
        with pytest.raises(error, match=match):
            train_recipe(recipe(**changes), zoo.path, tmp_path / "out")

    denoiser = RECIPE["denoiser"]
    refused("channels", denoiser={**denoiser, "config": {**CONFIG, "channels": 3}})
    refused("known: flow", denoiser={**denoiser, "config": {**CONFIG, "schedule": "cosine"}})
    refused("the recipe's options", denoiser={**denoiser, "config": {**CONFIG, "wide": 3}})
    refused("networks", denoiser={**denoiser, "objective": {"networks": 0}})
    assert not (tmp_path / "out").exists()
    train_recipe(recipe(), zoo.path, tmp_path / "out")
    refused("another recipe or zoo", InputError, seed=4)


def test_parts_of_a_step_add_up_to_it(diffusion, adds_up, halves_well):
    made, objective = diffusion(functional_weight=0.5, latent_noise=0.1)
    assert objective.items == 4
    adds_up(made, objective)
    halves_well(made, objective)
