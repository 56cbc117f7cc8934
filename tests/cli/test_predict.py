"""predict and evaluate --test-data: a saved network on a user's own pictures."""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from weightloom.architectures import parse_architecture
from weightloom.fitting import closed_form_network, initial_flats
from weightloom.generators import Sample
from weightloom.generators.module_sample import ModuleSample
from weightloom.io import save_tensors
from weightloom.tasks import FolderTask, NetworkCard
from weightloom.zoo.reading import load_network

NAMES = ("ants", "bees", "cats", "dogs")  # of the folder ``photos``, the darkest first


@pytest.fixture(scope="module")
def sample(photos):
    """A network that tells the four apart, with a closed-form head on a random trunk."""
    task = FolderTask(photos, size=16)
    spec = parse_architecture("mlp(depth=1,width=8)").resolve(classes=4, input=(3, 16, 16))
    flat = closed_form_network(spec, initial_flats(spec, [1])[0], task.support(4).images)
    made = Sample(spec, flat, {"generator": "test", "task": str(task)}).for_task(task, task.support(4))
    return replace(made, card=replace(made.card, made_by="a test"))


@pytest.fixture(scope="module")
def net(sample, tmp_path_factory):
    return sample.save(tmp_path_factory.mktemp("net") / "net.safetensors")


@pytest.fixture
def picture(photos):
    return photos / "cats" / "0.png"


def test_a_table_for_people(call, net, photos, picture):
    answer = call("predict", net, picture, photos / "ants")
    assert answer.code == 0 and "cats" in answer.out and "6 pictures" not in answer.err
    assert answer.out.count("ants/") == 6 and "ants (6), cats (1)" in answer.out
    assert "not calibrated" in answer.out, "four pictures are too few to measure how sure it is"
    alone = call("predict", net, picture, "--top", "1", "--reject", "1").out
    assert "none of these (likeliest: cats" in alone and "next" not in alone


def test_json(call, net, sample, photos):
    answer = call("predict", net, photos, "--json", "--reject", "0.5").json
    assert answer["num_pictures"] == len(answer["predictions"]) == 24
    assert answer["class_names"] == list(NAMES) and answer["named"] and answer["broken"] == []
    assert answer["calibrated"] is False and answer["temperature"] is None
    own = sample.predict([one["file"] for one in answer["predictions"]], top=3)
    for one, other in zip(answer["predictions"], own, strict=True):
        assert [entry["class"] for entry in one["top"]] == [name for name, _ in other.answers]
        assert one["probability"] == pytest.approx(other.probability, rel=1e-5)
        assert one["rejected"] == (one["probability"] < 0.5) == (one["class"] is None)
    right = [one["top"][0]["class"] == one["file"].split("/")[-2] for one in answer["predictions"]]
    assert sum(right) == 24


def test_csv(call, net, photos):
    answer = call("predict", net, photos / "bees", "--csv", "--top", "2", "--reject", "1")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    assert len(rows) == 6 and "not calibrated" in answer.err
    assert list(rows[0]) == [
        "file",
        "class",
        "rejected",
        "class_1",
        "probability_1",
        "class_2",
        "probability_2",
    ]
    assert {row["class_1"] for row in rows} == {"bees"} and {row["rejected"] for row in rows} == {"true"}
    assert {row["class"] for row in rows} == {""}


def test_a_calibrated_network_says_so(call, sample, tmp_path, picture):
    card = replace(sample.card, temperature=50.0, calibration="30 pictures")
    file = replace(sample, card=card).save(tmp_path / "calm.safetensors")
    answer = call("predict", file, picture, "--json").json
    assert (
        answer["calibrated"] and answer["temperature"] == 50 and answer["predictions"][0]["class"] == "cats"
    )
    assert answer["predictions"][0]["probability"] < 0.6
    assert "calibrated on 30 pictures" in call("predict", file, picture).out


def test_standard_input(call, net, picture, photos):
    listed = f"{picture}\r\n\n{photos / 'dogs'}\n".encode()
    answer = call("predict", net, "-", "--json", stdin=listed).json
    assert [one["class"] for one in answer["predictions"]] == ["cats"] + ["dogs"] * 6
    apart = b"\0".join(bytes(file) for file in sorted((photos / "ants").iterdir()))
    assert call("predict", net, "-", "--json", stdin=apart).json["num_pictures"] == 6
    for kind in ("png", "bmp", "tiff", "ppm", "webp", "jpeg"):
        content = io.BytesIO()
        Image.open(picture).save(content, kind)
        (one,) = call("predict", net, "-", "--json", stdin=content.getvalue()).json["predictions"]
        assert (one["file"], one["class"]) == ("-", "cats"), kind
    assert "standard input is empty" in call("predict", net, "-", stdin=b"\n").sentence(2)
    assert "read once" in call("predict", net, "-", "-", stdin=b"").sentence(2)
    assert "in memory: this image cannot be read" in call("predict", net, "-", stdin=b"\0\1\2").sentence(2)


def test_a_real_pipe(net, photos):
    command = [sys.executable, "-m", "weightloom.cli", "predict", str(net), "-", "--csv", "--top", "1"]
    listed = "\n".join(map(str, sorted((photos / "dogs").iterdir())))
    done = subprocess.run(command, input=listed, capture_output=True, text=True, check=True)
    assert done.stdout.count(",dogs,false,dogs,") == 6, done


def test_broken_pictures(call, net, picture, tmp_path):
    folder = tmp_path / "mixed\x1b[31m"
    (folder / "deep").mkdir(parents=True)
    shutil.copy(picture, folder / "deep" / "a.png")
    (folder / "b.png").write_bytes(b"nothing")
    (folder / "c.txt").write_text("no picture")
    assert "1 of 2 pictures cannot be read" in call("predict", net, folder).sentence(2)
    answer = call("predict", net, folder, "--skip-broken", "--json").json
    assert answer["num_pictures"] == 1 and answer["passed_over"] == {"suffixes": {".txt": 1}}
    assert [one["file"].rpartition("/")[2] for one in answer["broken"]] == ["b.png"]
    shown = call("predict", net, folder, "--skip-broken")
    assert "left out: 1 that cannot be read" in shown.err and "\x1b" not in shown.out + shown.err
    none = call("predict", net, folder / "b.png", "--skip-broken").sentence(2)
    assert "none of the 1 pictures can be read" in none


def test_paths_that_no_system_can_look_up_are_broken_pictures(call, net, picture, tmp_path, monkeypatch):
    odd = ["~nosuchuser/x.png", "x" * 5_000, "a/" * 2_500 + "x.png"]
    for name in odd:
        assert "cannot be read" in call("predict", net, name).sentence(2)
    answer = call("predict", net, picture, *odd, "--skip-broken", "--json").json
    assert answer["num_pictures"] == 1 and len(answer["broken"]) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(picture, tmp_path / "a.png")
    assert call("predict", net, "~/a.png", "--json").json["num_pictures"] == 1
    listed = f"~/a.png\n{picture}\n~nosuchuser/x.png\n{'y' * 5_000}\n".encode()
    answer = call("predict", net, "-", "--skip-broken", "--json", stdin=listed).json
    assert answer["num_pictures"] == 1 and len(answer["broken"]) == 3, "a listed ~ is a name like others"


def test_csv_spells_a_class_in_one_way(call, sample, tmp_path, picture):
    names = tuple(f"a\n{name}\t" for name in NAMES)
    file = replace(sample, card=replace(sample.card, class_names=names)).save(tmp_path / "net.safetensors")
    (row,) = csv.DictReader(io.StringIO(call("predict", file, picture, "--csv").out))
    assert row["class"] == row["class_1"] == r"a\ncats\t"


def test_a_network_without_names(call, sample, tmp_path, picture, photos):
    card = replace(sample.card, class_names=None)
    file = Sample(sample.architecture, sample.flat, {}, card).save(tmp_path / "plain.safetensors")
    answer = call("predict", file, picture, "--top", "1")
    assert "class 2" in answer.out and "does not say what its classes are called" in answer.err
    state = tmp_path / "state.pt"
    torch.save(sample.state_dict, state)
    arch = sample.architecture.full_text()
    assert call("predict", state, picture, "--arch", arch, "--json").json["named"] is False
    assert "--arch" in call("predict", state, picture).sentence(2)
    # A folder of as many classes is measured in its order, which is said; of another number not at all.
    measured = call("evaluate", file, "--test-data", photos, "--json")
    assert measured.json["accuracy"] == 1 and "in this order" in measured.err
    assert "in this order" in call("evaluate", file, "--data", photos, "--json").err
    part = tmp_path / "part"
    shutil.copytree(photos / "ants", part / "ants")
    assert "cannot be matched" in call("evaluate", file, "--test-data", part).sentence(2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--top", "0"), "--top"),
        (("--reject", "2"), "--reject"),
        (("--reject", "nan"), "--reject"),
        (("--json", "--csv"), "--json or --csv"),
        (("--arch", "mlp(depth=3,width=8)"), "not mlp(depth=3"),
    ],
)
def test_refused_options(call, net, picture, options, said):
    assert said in call("predict", net, picture, *options).sentence(2)


def test_refused_pictures_and_files(call, net, picture, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no picture in this folder" in call("predict", net, tmp_path / "empty").sentence(2)
    (tmp_path / "empty" / "a.txt").write_text("a")
    assert "(1 .txt passed over)" in call("predict", net, tmp_path / "empty").sentence(2)
    assert "does not exist" in call("predict", net, "nothing.png").sentence(2)
    assert "no picture of a kind" in call("predict", net, __file__).sentence(2)
    assert "is a text" in call("predict", __file__, picture).sentence(2)
    assert "is a folder" in call("predict", tmp_path, picture).sentence(2)
    assert "missing argument" in call("predict", net).sentence(2)
    spec = parse_architecture("mlp(depth=1,width=4,classes=2,input=3x8x9)")
    odd = Sample(spec, initial_flats(spec, [0])[0], {}).save(tmp_path / "odd.safetensors")
    assert "3x8x9" in call("predict", odd, picture).sentence(2)
    part = tmp_path / "part.safetensors"
    save_tensors(part, {"w": torch.ones(2)}, {"kind": "words"})
    assert "part of a generator or tokenizer" in call("predict", part, picture).sentence(2)


def test_a_module_of_ones_own_has_a_card_too(tmp_path, picture):
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    made = ModuleSample(module, None, {}, NetworkCard(class_names=("a", "b"), input=(3, 8, 8)))
    assert made.predict(picture)[0].name in ("a", "b")
    assert "weightloom" in str(made.save(tmp_path / "module.safetensors").read_bytes()[:400])


# -- measuring -------------------------------------------------------------------------------------


def test_every_picture_of_a_test_folder_is_measured(call, net, photos):
    answer = call("evaluate", net, "--test-data", photos, "--json").json
    assert answer["num_images"] == 24 and answer["accuracy"] == 1 and answer["missing_classes"] == []
    assert answer["interval"] == pytest.approx([0.862, 1], abs=1e-3)
    assert answer["class_names"] == list(NAMES) and set(answer["by_class"]) == set(NAMES)
    assert answer["by_class"]["bees"]["num_images"] == 6 and answer["by_class"]["bees"]["interval"][0] < 1
    assert answer["data"]["pictures"] == {"train": 0, "test": 24}
    shown = call("evaluate", net, "--test-data", photos)
    assert "100.0 % (86.2–100.0) of 24 test images right" in shown.out and "all that there are" in shown.out


def permuted(sample, order):
    """The same network with its outputs in another order."""
    state = sample.state_dict
    names = [name for name in state if name.startswith("head.")]
    state = {**state, **{name: state[name][list(order)] for name in names}}
    from weightloom.weights import layout_of

    flat = layout_of(sample.architecture).flatten(state)
    card = replace(sample.card, class_names=tuple(NAMES[place] for place in order))
    return Sample(sample.architecture, flat, {}, card)


@pytest.mark.parametrize("order", [(3, 1, 0, 2), (1, 0, 3, 2)])
def test_classes_are_matched_by_name(call, sample, photos, tmp_path, order):
    file = permuted(sample, order).save(tmp_path / "other.safetensors")
    names = [NAMES[place] for place in order]
    for option in ("--test-data", "--data"):
        answer = call("evaluate", file, option, photos, "--json").json
        assert answer["accuracy"] == 1 and answer["class_names"] == names, option
    out = tmp_path / "tuned.safetensors"
    tuned = call(
        "finetune", file, "--data", photos, "--steps", "1", "--lr", "1e-6", "--out", out, "--json"
    ).json
    assert tuned["start_accuracy"] == tuned["accuracy"] == 1
    said = call("predict", out, photos / "dogs", "--json").json
    assert said["class_names"] == names and {one["class"] for one in said["predictions"]} == {"dogs"}
    assert call("info", out, "--json").json["card"]["made_by"] == "finetune, 1 step, of a test"


def test_other_processes_match_by_name_too(call, sample, photos, tmp_path):
    file = permuted(sample, (3, 1, 0, 2)).save(tmp_path / "other.safetensors")
    answer = call("evaluate", file, file, "--test-data", photos, "--workers", "2", "--json").json
    assert [(one["accuracy"], one["num_images"]) for one in answer["networks"]] == [(1, 24)] * 2


def test_names_that_read_the_same_are_the_same(call, sample, photos, tmp_path):
    card = replace(sample.card, class_names=("Ants", "BEES", "cats", "dogs"))
    file = replace(sample, card=card).save(tmp_path / "net.safetensors")
    assert call("evaluate", file, "--test-data", photos, "--json").json["accuracy"] == 1


def test_some_classes_may_be_missing_and_none_may_be_new(call, net, photos, tmp_path):
    folder = tmp_path / "some"
    for name in ("bees", "dogs"):
        shutil.copytree(photos / name, folder / name)
    answer = call("evaluate", net, "--test-data", folder, "--json")
    assert answer.json["missing_classes"] == ["ants", "cats"] and answer.json["num_images"] == 12
    assert answer.json["by_class"]["ants"]["accuracy"] is None and answer.json["accuracy"] == 1
    assert "no pictures of ants, cats" in answer.err
    assert call("evaluate", net, "--test-data", folder).code == 0
    shutil.rmtree(folder / "bees")
    assert call("evaluate", net, "--test-data", folder, "--json").json["num_images"] == 6, "one is enough"
    shutil.copytree(photos / "bees", folder / "wasps")
    message = call("evaluate", net, "--test-data", folder).sentence(2)
    assert "no class 'wasps'" in message and "ants, bees, cats, dogs" in message


def test_a_folder_with_parts_is_taken_for_what_it_is(call, net, photos, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(photos, root / "train")
    shutil.copytree(photos, root / "test")
    for name in NAMES:
        (root / "test" / name / "0.png").unlink()
    answer = call("evaluate", net, "--data", root, "--json").json
    assert answer["num_images"] == 20 and answer["data"]["parts"] == {"train": "train", "test": "test"}
    assert f"give {root / 'test'}" in call("evaluate", net, "--test-data", root).sentence(2)
    assert call("evaluate", net, "--test-data", root / "test", "--json").json["num_images"] == 20


def test_refused_test_folders(call, net, photos, tmp_path):
    assert "one of --task" in call("evaluate", net, "--test-data", photos, "--data", photos).sentence(2)
    assert "no such folder" in call("evaluate", net, "--test-data", tmp_path / "nothing").sentence(2)
    (tmp_path / "flat").mkdir()
    assert "no sub-folder" in call("evaluate", net, "--test-data", tmp_path / "flat").sentence(2)
    pixels = np.zeros((4, 4), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "flat" / "a.png")
    assert "the 1 pictures" in call("evaluate", net, "--test-data", tmp_path / "flat").sentence(2)
    shutil.copytree(photos, tmp_path / "gap")
    shutil.rmtree(tmp_path / "gap" / "cats")
    (tmp_path / "gap" / "cats").mkdir()
    assert "this class has no images" in call("evaluate", net, "--test-data", tmp_path / "gap").sentence(2)
    (tmp_path / "gap" / "cats" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    shutil.copy(photos / "cats" / "0.png", tmp_path / "gap" / "cats" / "b.png")
    assert "1 of 20 pictures" in call("evaluate", net, "--test-data", tmp_path / "gap").sentence(2)
    skipped = call("evaluate", net, "--test-data", tmp_path / "gap", "--skip-broken", "--json").json
    assert skipped["num_images"] == 19 and len(skipped["data"]["broken"]) == 1


# -- cards -----------------------------------------------------------------------------------------


def test_every_command_that_saves_a_network_writes_its_card(call, generator, zoo, network, tmp_path):
    digits = tuple("0123456789")
    exported = load_network(network)
    assert exported.class_names == digits and exported.card.made_by.startswith("zoo zoo, checkpoint ")
    asked = ("--generator", generator, "--task", "digits", "--arch", "mlp(depth=1,width=4)", "--shots", "4")
    out = tmp_path / "net.safetensors"
    assert call("generate", *asked, "--out", out).code == 0
    made = load_network(out).card
    assert made.class_names == digits and made.made_by == "tiny-test, from 4 examples of each class"
    assert made.calibration == "1,000 training pictures that it was not made from" and "BSD" in made.licence
    assert made.input == (3, 8, 8) and made.temperature > 0
    assert call("select", *asked, "--budget", "2s", "--out", out).code == 0
    chosen = load_network(out).card
    assert chosen.class_names == digits and "held back to choose by" in chosen.calibration
    assert chosen.made_by.startswith("tiny-test, selected and trained for ") and chosen.temperature > 0
    assert (
        call("finetune", out, "--task", "digits[1,0,2,3,4,5,6,7,8,9]", "--steps", "1", "--out", out).code == 0
    )
    tuned = load_network(out).card
    assert tuned.class_names == digits and tuned.temperature is None and tuned.calibration is None
    assert tuned.made_by == f"finetune, 1 step, of {chosen.made_by}" and tuned.licence == chosen.licence
    shown = call("info", out).out
    assert "finetune, 1 step, of tiny-test" in shown and "BSD" in shown and "0, 1, 2" in shown
