"""Every published recipe is a test: it reads, it makes sense, and it runs from end to end at tiny size."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
import yaml

from weightloom.architectures import parse_architecture
from weightloom.cli.inputs import find_recipe
from weightloom.conditioning import encode_text
from weightloom.consolidation.catalogue import published
from weightloom.consolidation.compress import Settings
from weightloom.errors import DataUnavailableError
from weightloom.generators.load import load_generator
from weightloom.io import read_yaml
from weightloom.tasks import dataset_info, parse_task
from weightloom.training.ghn import make_ghn
from weightloom.training.igpg import check_recipe
from weightloom.training.recipe import (
    CarriedDiffusionRecipe,
    ConsolidatedRecipe,
    DiffusionRecipe,
    GeneratorRecipe,
    GHNRecipe,
    LayerwiseRecipe,
    LayerwiseSetRecipe,
    PlainRecipe,
    RewardRecipe,
    StaticHypernetworkRecipe,
    WordsRecipe,
)
from weightloom.training.reward import settings_of
from weightloom.training.run import train_recipe
from weightloom.zoo import ZooRecipe, build_zoo
from weightloom.zoo.build import _jobs

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
RAW = {file.stem: yaml.safe_load(file.read_text()) for file in FILES}
ZOOS = sorted(name for name, raw in RAW.items() if raw["kind"] == "zoo")
GENERATORS = sorted(name for name, raw in RAW.items() if raw["kind"] == "generator")
STAGED = [name for name in GENERATORS if RAW[name]["generator"] == "igpg"]
"""Priors that are trained stage by stage."""
STATIC = [name for name in GENERATORS if RAW[name]["generator"] == "static_hypernetwork"]
"""Generators that are trained on episodes."""
DIFFUSIONS = [n for n in GENERATORS if RAW[n]["generator"] == "diffusion" and "parts" not in RAW[n]]
"""Diffusions, trained stage by stage too."""
CARRIED = [n for n in GENERATORS if RAW[n]["generator"] == "diffusion" and "parts" in RAW[n]]
"""Diffusions over what another generator carries; tests/training/test_diffusion.py has them at tiny size."""
HYPERNETWORKS = [name for name in GENERATORS if RAW[name]["generator"] == "ghn"]
"""Generators that are trained on a task's images and need no zoo; the others make themselves from one."""
LAYERWISE = [name for name in GENERATORS if RAW[name]["generator"] == "layerwise"]
"""Generators of any depth and width, trained on episodes; they need no zoo."""
SETS = [name for name in GENERATORS if RAW[name]["generator"] == "layerwise-set"]
"""Several of them as one; tests/training/test_layerwise_set.py has one at tiny size."""
REWARDS = sorted(name for name, raw in RAW.items() if raw["kind"] == "reward")
"""Settings for steering a trained generator."""
WORDS = [name for name in GENERATORS if RAW[name]["generator"] == "words"]
"""Networks from words; tests/training/test_words.py trains one at tiny size."""
CONSOLIDATED = [name for name in GENERATORS if RAW[name]["generator"] == "consolidated"]
"""Published checkpoints; tests/training/test_consolidated.py has them at tiny size."""


def model_of(name):
    if name in LAYERWISE:
        return LayerwiseRecipe
    if name in SETS:
        return LayerwiseSetRecipe
    if name in REWARDS:
        return RewardRecipe
    if name in ZOOS:
        return ZooRecipe
    if name in STATIC:
        return StaticHypernetworkRecipe
    if name in DIFFUSIONS:
        return DiffusionRecipe
    if name in CARRIED:
        return CarriedDiffusionRecipe
    if name in HYPERNETWORKS:
        return GHNRecipe
    if name in WORDS:
        return WordsRecipe
    if name in CONSOLIDATED:
        return ConsolidatedRecipe
    return GeneratorRecipe if name in STAGED else PlainRecipe


def zoo_of(name):
    """The zoo that a generator's recipe says it needs, in a comment for its reader."""
    found = re.search(r"recipes/([a-z0-9._-]+)\.yaml", (FOLDER / f"{name}.yaml").read_text())
    assert found, f"{name} does not say which recipe makes its zoo"
    return found[1]


def test_there_are_recipes():
    assert ZOOS and GENERATORS and {"zoo-tiny", "igpg-tiny", "layerwise-tiny"} <= RAW.keys()


# ------------------------------------------------------------------------------ as they are published


@pytest.mark.parametrize("name", sorted(RAW))
def test_it_reads_and_is_found_by_its_name(name):
    file = FOLDER / f"{name}.yaml"
    recipe = read_yaml(file, model_of(name))
    assert recipe.name == name, "the file is called as the recipe is"
    assert find_recipe(name).read_bytes() == file.read_bytes()
    assert file.read_text().startswith("# "), "it says what it is for"


@pytest.mark.parametrize("name", ZOOS)
def test_a_zoo_recipe_can_be_built(name):
    """Every group has its tasks and every architecture its classes; no image is read for it."""
    recipe = read_yaml(FOLDER / f"{name}.yaml", ZooRecipe)
    recipe.fit.settings()
    jobs = list(_jobs(recipe))
    assert {text for text, *_ in jobs} == set(recipe.architectures)
    for _, group, _, tasks, steps in jobs:
        assert tasks and steps >= 1 and len({task.num_classes for task in tasks}) == 1
        if group != "start":
            assert len(tasks) <= recipe.members_at_once
    for text in recipe.architectures:
        shape = (recipe.channels, recipe.size, recipe.size)
        assert parse_architecture(text).resolve(classes=10, input=shape).num_parameters() > 0
    for dataset in recipe.datasets:
        assert dataset_info(dataset).num_classes >= 2


@pytest.mark.parametrize("name", STAGED)
def test_a_generator_recipe_makes_sense_on_its_zoo(name):
    recipe = read_yaml(FOLDER / f"{name}.yaml", GeneratorRecipe)
    zoo = read_yaml(FOLDER / f"{zoo_of(name)}.yaml", ZooRecipe)
    check_recipe(recipe, zoo.model_dump(mode="json"))
    trained = {group.classes for group in zoo.groups if group.split == "train"}
    assert trained & recipe.encoder.tasks.keys(), "its dataset encoder sees the class counts of the zoo"


def test_the_parts_of_the_layerwise_set_hold_out_what_its_zoo_does():
    recipe = read_yaml(FOLDER / "layerwise-tiny.yaml", LayerwiseSetRecipe)
    zoo = read_yaml(FOLDER / "zoo-tiny.yaml", ZooRecipe)
    for part in recipe.parts:
        held = read_yaml(FOLDER / f"{part}.yaml", LayerwiseRecipe)
        assert (held.salt, held.datasets, held.size) == (zoo.salt, list(zoo.datasets), zoo.size)


@pytest.mark.parametrize("name", HYPERNETWORKS)
def test_a_hypernetwork_recipe_makes_sense(name):
    recipe = read_yaml(FOLDER / f"{name}.yaml", GHNRecipe)
    model, settings = make_ghn(recipe, parse_task(recipe.task))
    assert sum(p.numel() for p in model.parameters()) > 10_000 and settings.meta_batch >= 1
    assert model.validity.tasks == (str(parse_task(recipe.task)),)


@pytest.mark.parametrize("name", CONSOLIDATED)
def test_a_recipe_of_published_checkpoints_makes_sense(name):
    recipe = read_yaml(FOLDER / f"{name}.yaml", ConsolidatedRecipe)
    assert len(set(recipe.checkpoints)) == len(recipe.checkpoints) >= 20
    assert all(published(checkpoint).wordings for checkpoint in recipe.checkpoints)
    assert Settings(**recipe.settings).target <= 0.01


# -------------------------------------------------------------------------------------- at tiny size


def shrunk_zoo(name):
    """The same zoo over one small dataset: the same architectures, kinds of groups and way of training."""
    raw = copy.deepcopy(RAW[name])
    raw["datasets"] = ["digits"]
    raw["members_at_once"] = 2
    raw["start"] = {**raw.get("start", {}), "tasks": 2, "steps": 2, "batch_size": 8}
    raw["start"]["classes"] = min(raw["start"].get("classes", 10), 10)
    raw["start"] |= {"dataset_tasks": min(raw["start"].get("dataset_tasks", 0), 2), "dataset_steps": 2}
    fit = raw.setdefault("fit", {})
    fit |= {"steps": 4, "batch_size": 8, "snapshots": [2] if fit.get("snapshots") else []}
    for group in raw["groups"]:
        group |= {"tasks": 1, "repeats": min(2, group.get("repeats", 1))}
        most = 8 if group.get("split") == "held-out-subset" else 10  # all ten digits are no subset
        group["classes"] = min(group["classes"], most)
    return raw


def shrunk_generator(name):
    """The same stages and sizes of models, with next to no tasks, steps or images."""
    raw = copy.deepcopy(RAW[name])
    loop = {"steps": 2, "log_every": 1, "save_every": 2}
    if name in STATIC:
        tasks = {classes: 1 for classes in raw["tasks"] if classes <= 10}
        return {**raw, "tasks": tasks, "shots": 2, "queries": 8, "loop": {**raw["loop"], **loop}}
    if name not in STAGED + DIFFUSIONS:
        return raw
    raw["encoder"] |= {"tasks_at_once": 1, "shots": 2, "queries": 8}
    raw["tokenizer"] |= {"networks": 2, "images": 8}
    if name in DIFFUSIONS:
        raw["denoiser"] |= {"wordings": 1, "supports": 1, "evaluate_every": 2}
        raw["denoiser"].setdefault("objective", {}).update({"networks": 2, "queries": 4})
        raw["encoder"]["tasks"] = {classes: 1 for classes in raw["encoder"]["tasks"] if classes <= 10}
        for part in ("encoder", "tokenizer", "denoiser"):
            raw[part]["loop"] = {**raw[part]["loop"], **loop}
        return raw
    raw["prior"] |= {"wordings": 1, "supports": 1, "evaluate_every": 2}
    raw["prior"].setdefault("objective", {}).update({"networks": 2, "queries": 4})
    for part, field in (("encoder", "tasks"), ("prior", "fresh")):
        counts = raw[part].get(field, {})
        raw[part][field] = {classes: 1 for classes in counts if classes <= 10}
    for part in ("encoder", "tokenizer", "prior"):
        raw[part]["loop"] = {**raw[part]["loop"], **loop}
    return raw


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Make the shrunk zoo of a recipe, once."""
    made = {}

    def build(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            (folder / "recipe.yaml").write_text(yaml.safe_dump(shrunk_zoo(name)))
            made[name] = build_zoo(read_yaml(folder / "recipe.yaml", ZooRecipe), folder / "zoo")
        return made[name]

    return build


@pytest.mark.parametrize("name", ZOOS)
def test_a_zoo_is_built(built, name):
    zoo, raw = built(name), shrunk_zoo(name)
    assert zoo.verify() == []
    trained = [record for record in zoo.records() if record.split != "start"]
    repeats = sum(group["repeats"] for group in raw["groups"])
    snapshots = 1 + len(raw["fit"]["snapshots"])
    assert len(trained) == len(raw["architectures"]) * repeats * snapshots
    assert {record.split for record in trained} == {group.get("split", "train") for group in raw["groups"]}
    assert all(record.dataset == "digits" and 0 <= record.accuracy <= 1 for record in trained)


def train_shrunk_hypernetwork(name, folder):
    """At tiny size; one that goes on from another trains that one first, by its recipe."""
    raw = copy.deepcopy(RAW[name]) | {"task": "digits@8c1", "evaluate_every": 2, "evaluate_networks": 1}
    raw["objective"] |= {"networks": 2, "meta_batch": 1, "images": 8}
    raw["config"] |= {"width": 16, "block": 8, "kernel": 3}
    raw["loop"] |= {"steps": 2, "log_every": 1, "save_every": 2}
    if "start" in raw:
        first = Path(raw["start"]).name
        before = RAW[first]
        assert raw["first_step"] == before.get("first_step", 0) + before["loop"]["steps"]
        train_shrunk_hypernetwork(first, folder / first)
        raw["start"] = str(folder / first / "generator")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(raw))
    train_recipe(folder / "recipe.yaml", None, folder / "generator")


@pytest.mark.parametrize("name", HYPERNETWORKS)
def test_a_hypernetwork_is_trained_and_predicts(name, tmp_path):
    train_shrunk_hypernetwork(name, tmp_path)
    generator = load_generator(tmp_path / "generator")
    task = parse_task("digits@8c1")
    sample = generator.generate("vit(depth=1,width=8)", support=task.support(4))
    assert sample.module(task.data("test").batch(torch.arange(8))[0]).shape == (8, 10)


@pytest.mark.parametrize("name", LAYERWISE)
def test_a_layerwise_generator_is_trained_and_generates(name, tmp_path):
    try:
        encode_text(["digits"])
    except DataUnavailableError as error:
        pytest.skip(str(error))
    raw = copy.deepcopy(RAW[name]) | {"datasets": ["digits"], "evaluate_every": 5, "classes": [4, 5]}
    loop = {"steps": 2, "log_every": 1, "save_every": 2}
    raw["encoder"] |= {"tasks": {4: 1}, "tasks_at_once": 1, "shots": 2, "queries": 8}
    raw["encoder"]["loop"] = {**raw["encoder"]["loop"], **loop}
    raw["objective"] |= {"tasks": 1, "shots": [2], "queries": 2}
    raw["architectures"] = raw["architectures"][:2]
    if raw["config"].get("experts"):
        raw["config"]["experts"] = 1  # one for each dataset
    raw["loop"] = {**raw["loop"], **loop}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    train_recipe(recipe, None, tmp_path / "generator")
    generator = load_generator(tmp_path / "generator")
    support = parse_task("digits[1,2,3,4]").support(4)
    texts = raw["architectures"][:1]
    if raw["config"].get("any_size", True):
        texts.append("cnn(depth=3,width=7)")
    for text in texts:
        sample = generator.generate(text, instruction="Read digits", support=support)
        assert sample.module(support.images[:, 0]).shape == (4, 4)


@pytest.mark.parametrize("name", REWARDS)
def test_the_settings_of_steering_make_sense(name):
    recipe = read_yaml(FOLDER / f"{name}.yaml", RewardRecipe)
    assert settings_of(recipe).rounds >= 1
    for text in recipe.architectures:
        assert parse_architecture(text).resolve(classes=10, input=(3, 16, 16)).num_parameters() > 0


WITHOUT_ZOO = HYPERNETWORKS + LAYERWISE + SETS + CONSOLIDATED + CARRIED + WORDS


@pytest.mark.parametrize("name", [name for name in GENERATORS if name not in WITHOUT_ZOO])
def test_a_generator_is_trained_and_generates(built, name, tmp_path):
    try:
        encode_text(["digits"])
    except DataUnavailableError as error:
        pytest.skip(str(error))
    zoo = built(zoo_of(name))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(shrunk_generator(name)))
    train_recipe(recipe, zoo.path, tmp_path / "generator")
    generator = load_generator(tmp_path / "generator")
    assert generator.name == name
    task = next(r for r in zoo.records(split="train", final=True)).parsed_task()
    for text in generator.validity.architectures:
        sample = generator.generate(text, instruction=task.describe(), support=task.support(4))
        images, labels = task.data("test").batch(torch.arange(8))
        assert sample.module(images).shape == (len(labels), task.num_classes)
