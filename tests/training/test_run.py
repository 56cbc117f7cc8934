"""From a recipe and a zoo to a generator: stages, refusals, and runs that are killed on the way."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

import weightloom.training.igpg as room
from weightloom.errors import (
    CheckpointError,
    DataUnavailableError,
    InputError,
    SpecError,
    UnknownNameError,
)
from weightloom.generators import Validity
from weightloom.io import read_json, write_json
from weightloom.tasks import parse_task
from weightloom.tokenizers import architecture_key
from weightloom.training.igpg import check_recipe, make_igpg, train_generator
from weightloom.training.recipe import GeneratorRecipe
from weightloom.training.run import train_recipe
from weightloom.training.stages import (
    VALIDATION_FIRST,
    make_zoo_index,
    train_tokenizer,
    validation_probe,
    validation_tasks,
    zero_shot_probe,
    zoo_tasks,
)
from weightloom.zoo import Zoo

LOOP = {"log_every": 2, "save_every": 2}
RECIPE = {
    "kind": "generator",
    "generator": "igpg",
    "name": "tiny",
    "encoder": {
        "tasks": {3: 2},
        "tasks_at_once": 1,
        "shots": 2,
        "queries": 8,
        "loop": {"steps": 5, **LOOP},
    },
    "tokenizer": {
        "config": {"chunk": 32, "codes": 4, "vocabulary": 5, "width": 16, "depth": 1},
        "networks": 3,
        "images": 8,
        "loop": {"steps": 5, **LOOP},
    },
    "prior": {
        "config": {
            "width": 16,
            "depth": 1,
            "heads": 2,
            "image_features": 8,
            "image_width": 8,
            "channels": 1,
        },
        "objective": {"networks": 2, "queries": 8},
        "fresh": {3: 2, 4: 2},
        "wordings": 2,
        "supports": 2,
        "loop": {"steps": 5, **LOOP},
    },
}


def recipe_of(**changes):
    """The tiny recipe with some values changed, by dotted name."""
    made = copy.deepcopy(RECIPE)
    for name, value in changes.items():
        *path, last = name.split("__")
        at = made
        for key in path:
            at = at[key]
        at[last] = value
    return GeneratorRecipe(**made)


def quiet(*_):
    pass


def files_of(out):
    return {p.relative_to(out): p.read_bytes() for p in sorted(out.rglob("*.safetensors"))}


@pytest.fixture(scope="module")
def trained(zoo, tmp_path_factory, text_encoder):
    """A generator that was trained without an interruption, and its folder."""
    out = tmp_path_factory.mktemp("trained") / "tiny"
    return train_generator(recipe_of(), zoo, out, quiet), out


# ------------------------------------------------------------------------------------ the stages


def test_the_generator_says_what_it_is_valid_for(trained, zoo, populations):
    model, out = trained
    assert model.name == "tiny" and not model.training
    assert model.validity.architectures == tuple(sorted({architecture_key(p.spec) for p in populations}))
    assert (model.validity.min_classes, model.validity.max_classes) == (3, 4)
    assert model.validity.input == (1, 8, 8) and model.validity.tasks == ("digits",)
    held = read_json(out / "config.json")
    assert held["kind"] == "igpg" and held["config"]["image_width"] == 8
    assert {p.name for p in (out / "work").iterdir()} == {"encoder", "tokenizer", "prior"}


def test_its_zoo_index_is_the_final_checkpoints(trained, populations):
    model, _ = trained
    assert {spec: len(group.rows) for spec, group in model.zoo_index.groups.items()} == {
        p.spec: sum(r.final for r in p.records) for p in populations
    }
    for population in populations:
        group = model.zoo_index.groups[population.spec]
        finals = [(r, f) for r, f in zip(population.records, population.flats, strict=True) if r.final]
        assert torch.equal(group.flats, torch.stack([flat for _, flat in finals]).half().float())
        for row, described, (record, _) in zip(group.rows, group.classes, finals, strict=True):
            assert (row["id"], row["task"], row["dataset"]) == (record.id, record.task, "digits")
            assert row["accuracy"] == pytest.approx(record.accuracy, abs=1e-4)
            support = record.parsed_task().support(16, seed=0).images
            assert torch.equal(described, model.images.describe(support).half().float())


def test_what_is_trained_is_what_is_used(trained):
    """The encoder and the tokenizer in the generator are those that the first two stages made."""
    model, out = trained
    log = read_json(out / "work" / "prior" / "state.json")["log"]
    assert log[-1]["step"] == 5 and {"seen_ratio", "validation_sample"} <= log[-1].keys()
    log = read_json(out / "work" / "tokenizer" / "state.json")["log"]
    assert {"perplexity", "dead_codes", "zoo_rebuilt"} <= log[-1].keys()
    assert not any(p.requires_grad for part in (model.images, model.tokenizer) for p in part.parameters())


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("dataset encoder", 3),
        ("weight tokenizer", 3),
        ("task bank", 2),
        ("prior", 1),
        ("prior", 4),
    ],
)
def test_a_killed_training_ends_where_the_whole_one_did(trained, zoo, tmp_path, stage, step):
    def kill(what, done, total):
        if (what, done) == (stage, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generator(recipe_of(), zoo, tmp_path / "tiny", kill)
    assert not (tmp_path / "tiny" / "config.json").exists(), "no generator is there before it is whole"
    train_generator(recipe_of(), zoo, tmp_path / "tiny", quiet)
    assert files_of(tmp_path / "tiny") == files_of(trained[1])


def test_a_finished_tokenizer_is_taken_as_its_stage_left_it(trained, populations):
    """With gradients torch takes other kernels, and checkpoints would be coded otherwise."""
    again = train_tokenizer(recipe_of(), populations, trained[1] / "work" / "tokenizer", quiet)
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())


def test_a_folder_that_holds_another_generator_is_refused(trained, zoo, tmp_path):
    file = tmp_path / "recipe.yaml"
    for changes in ({"name": "other"}, {"generator": "diffusion"}):
        file.write_text(yaml.safe_dump({**RECIPE, **changes}))
        before = files_of(trained[1])
        with pytest.raises(InputError, match="holds 'tiny', a 'igpg' generator, and not"):
            train_recipe(file, zoo.path, trained[1], quiet)
        assert files_of(trained[1]) == before


def test_a_zoo_that_is_broken_is_not_learned_from(zoo, tmp_path):
    shutil.copytree(zoo.path, tmp_path / "zoo")
    shard = next((tmp_path / "zoo" / "shards").glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(CheckpointError, match="its checksum differs; `weightloom zoo repair` drops"):
        train_recipe(tmp_path / "recipe.yaml", tmp_path / "zoo", tmp_path / "out", quiet)


def test_the_callers_random_stream_is_left_alone(zoo, tmp_path, text_encoder, rng_untouched):
    train_generator(recipe_of(), zoo, tmp_path / "tiny", quiet)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"prior__config": {"widht": 16}}, SpecError, "widht"),
        ({"prior__config": {"width": "wide", "channels": 1}}, SpecError, "prior"),
        ({"prior__config": {"width": 16, "heads": 3, "channels": 1}}, SpecError, "3 heads"),
        ({"prior__config": {"image_width": 12, "channels": 1}}, SpecError, "multiple of 8"),
        ({"prior__config": {"channels": 3}}, SpecError, "images of 3 channels, the zoo has 1"),
        ({"prior__config": {"channels": 1, "backbone": {"kind": "lstm"}}}, SpecError, "lstm"),
        ({"prior__objective": {"qeries": 8}}, SpecError, "qeries"),
        ({"prior__objective": {"queries": 1}}, SpecError, "queries"),
        ({"tokenizer__config": {"chnk": 8}}, SpecError, "chnk"),
        ({"tokenizer__config": {"vocabulary": 4}}, SpecError, "odd"),
        ({"tokenizer__kind": "fqs"}, UnknownNameError, "did you mean 'fsq'"),
    ],
)
def test_a_recipe_that_makes_no_sense_costs_no_time(zoo, tmp_path, changes, error, words):
    """Every stage is checked before the first one starts."""

    def never(*_):
        raise AssertionError("something was trained")

    with pytest.raises(error, match=words):
        train_generator(recipe_of(**changes), zoo, tmp_path / "out", never)
    assert not (tmp_path / "out").exists()


def test_a_missing_sentence_encoder_costs_no_time(zoo, tmp_path, monkeypatch):
    def missing(texts):
        raise DataUnavailableError("reading instructions needs the sentence encoder")

    monkeypatch.setattr(room, "encode_text", missing)
    with pytest.raises(DataUnavailableError, match="sentence encoder"):
        train_generator(recipe_of(), zoo, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_the_tiny_recipe_makes_sense(zoo):
    check_recipe(recipe_of(), zoo.about()["recipe"])


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder__tasks": {}},
        {"encoder__tasks": {1: 5}},
        {"encoder__tasks": {3: 0}},
        {"prior__fresh": {65: 1}},
        {"prior__fresh": {3: -1}},
        {"name": "../tiny"},
        {"kind": "zoo"},
        {"prior__steps": 3},
        {"tokenizer__networks": 0},
        {"encoder__loop": {"steps": 0}},
        {"encoder__loop": {"steps": 5, "log_every": 0}},
    ],
)
def test_recipes_are_checked_as_they_are_read(changes):
    with pytest.raises(ValueError):
        recipe_of(**changes)


def test_a_zoo_without_a_recipe_is_refused(tmp_path):
    with pytest.raises(InputError, match="not built from a recipe"):
        train_generator(recipe_of(), Zoo(tmp_path / "zoo", create=True), tmp_path / "out", quiet)


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"seed": 1}, "encoder"),
        ({"encoder__shots": 3}, "encoder"),
        ({"tokenizer__loop": {"steps": 6}}, "tokenizer"),
        ({"tokenizer__config": {"chunk": 64}}, "tokenizer"),
        ({"prior__objective": {"networks": 3}}, "prior"),
    ],
)
def test_a_folder_of_another_recipe_is_refused(trained, zoo, changes, stage):
    """A stage of another recipe would be taken for this one's, and nothing would say so."""
    before = files_of(trained[1])
    with pytest.raises(InputError, match=f"{stage} is of another recipe or zoo"):
        train_generator(recipe_of(**changes), zoo, trained[1], quiet)
    assert files_of(trained[1]) == before


def test_another_zoo_is_refused(trained, zoo, monkeypatch):
    about = zoo.about()
    changed = {**about, "recipe": {**about["recipe"], "salt": "other"}}
    monkeypatch.setattr(zoo, "about", lambda: changed)
    with pytest.raises(InputError, match="of another recipe or zoo"):
        train_generator(recipe_of(), zoo, trained[1], quiet)


def test_another_rhythm_of_logs_is_the_same_recipe(trained, zoo):
    loop = {"steps": 5, "log_every": 5, "save_every": 4}
    changes = {"prior__loop": loop, "prior__evaluate_every": 3, "encoder__loop": loop}
    before = files_of(trained[1])
    train_generator(recipe_of(**changes), zoo, trained[1], quiet)
    assert files_of(trained[1]) == before


# ---------------------------------------------------------------------------------------- pieces


def test_validity_spans_the_zoo_and_the_fresh_tasks(model, zoo, encoder):
    source = zoo.about()["recipe"]
    made = make_igpg(recipe_of(prior__fresh={2: 1, 7: 1}), source, model().tokenizer, encoder)
    assert (made.validity.min_classes, made.validity.max_classes) == (2, 7)
    made = make_igpg(recipe_of(prior__fresh={}), source, model().tokenizer, encoder)
    assert (made.validity.min_classes, made.validity.max_classes) == (3, 4), "held-out groups do not count"
    assert all(torch.equal(a, b) for a, b in zip(made.images.parameters(), encoder.parameters(), strict=True))


class Copyist:
    """A generator that hands out the zoo's own network of the task."""

    def __init__(self, populations):
        self.by_support = [
            (record, flat)
            for p in populations
            for record, flat in zip(p.records, p.flats, strict=True)
            if record.final
        ]

    def generate_many(self, spec, *, support):
        for record, flat in self.by_support:
            wanted = parse_task(record.task).support(16, seed=99).images
            if record.spec() == spec and torch.equal(wanted, support.images):
                return [SimpleNamespace(flat=flat)]
        raise AssertionError("asked for a task that the zoo does not have")


def test_the_probe_measures_against_the_zoo(populations):
    probed = zero_shot_probe(Copyist(populations), populations)
    assert probed.keys() == {"seen_ratio"}
    assert probed["seen_ratio"] == pytest.approx(1.0, abs=0.05)
    assert zero_shot_probe(Copyist(populations), populations) == probed
    assert zero_shot_probe(Copyist([]), []) == {"seen_ratio": 0.0}


def test_choices_are_made_on_tasks_that_nothing_learned_from(model, banks, populations, zoo):
    made = model()
    bank, _ = banks(made)
    made.zoo_index = make_zoo_index(populations, {name: task.supports[0] for name, task in bank.items()})
    source = zoo.about()["recipe"]
    tasks = zoo_tasks(source, {3: 2}, VALIDATION_FIRST)[3]
    probed = validation_probe(made, tasks, images=40)
    assert probed.keys() == {f"validation_{name}" for name in ("sample", "closed_form")}
    assert all(0 <= value <= 1 for value in probed.values())
    assert validation_probe(made, tasks, images=40) == probed


def test_validation_is_for_class_counts_that_the_generator_makes(zoo):
    source = zoo.about()["recipe"]

    def counts(least, most):
        validity = Validity(architectures=(), input=(1, 8, 8), min_classes=least, max_classes=most)
        return [task.num_classes for task in validation_tasks(source, validity)]

    assert (
        counts(2, 10) == [4] * 5 + [10] * 5 and counts(3, 5) == [4] * 5 + [5] * 5 and counts(3, 3) == [3] * 5
    )


def test_a_population_without_accuracies_has_a_zoo_index(model, banks, populations):
    made = model()
    bank, _ = banks(made)
    records = [replace(record, accuracy=None) for record in populations[0].records]
    described = {name: task.supports[0] for name, task in bank.items()}
    index = make_zoo_index([replace(populations[0], records=records)], described)
    assert all(row["accuracy"] == 0.0 for row in index.groups[populations[0].spec].rows)


def test_a_note_that_is_broken_is_told(trained, zoo, tmp_path):
    out = tmp_path / "out"
    write_json(out / "work" / "encoder" / "made-from.json", [])
    with pytest.raises(InputError, match="another recipe or zoo"):
        train_generator(recipe_of(), zoo, out, quiet)
