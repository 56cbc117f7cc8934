"""What commands say of a folder of pictures, and how they take what is broken in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weightloom.io import read_header


@pytest.fixture
def messy(photos, tmp_path):
    """The photos with a broken one, one in two classes, a note, a system folder and one deeper down."""
    folder = tmp_path / "messy"
    shutil.copytree(photos, folder)
    (folder / "ants" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "bees" / "notes.txt").write_text("hello")
    (folder / "@eaDir").mkdir()
    (folder / "cats" / "far").mkdir()
    shutil.copy(folder / "cats" / "0.png", folder / "cats" / "far" / "again.png")
    shutil.copy(folder / "dogs" / "1.png", folder / "ants" / "dog.png")
    return folder


def parts(photos: Path, root: Path) -> Path:
    """The photos as a training part, and others as a test part."""
    shutil.copytree(photos, root / "train")
    for label, name in enumerate(("ants", "bees", "cats", "dogs")):
        (root / "test" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "test" / name / f"{number}.png")
    return root


def test_info_says_what_was_read_and_what_was_not(call, messy):
    found = call("info", messy, "--json").json
    assert found["classes"] == ["ants", "bees", "cats", "dogs"] and found["description"].startswith("colour")
    data = found["data"]
    assert data["pictures"] == {"train": sum(found["train"]), "test": sum(found["test"])}
    assert sum(data["pictures"].values()) == 26 and data["nested"] == {"cats": 1} and data["parts"] == {}
    assert data["passed_over"] == {"suffixes": {".txt": 1}, "system": {"@eaDir": 1}}
    assert [one["file"] for one in data["broken"]] == ["ants/broken.png"]
    assert data["repeated"]["in_two_classes"] == {"pictures": 1, "files": [["ants/dog.png", "dogs/1.png"]]}
    shown = call("info", messy)
    for words in (
        "1 of cats", "1 .txt, 1 @eaDir", "1 that cannot be read: ants/broken.png (it is no picture",
        "1 that networks cannot tell apart: ants/dog.png = dogs/1.png",
    ):  # fmt: skip
        assert words in shown.out, (words, shown.out)
    assert "unless --skip-broken" in shown.err


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--samples", "1", "--no-compare", "--arch", "cnn(depth=3,width=8)"),
        ("data", "show"),
        ("stream", "--arch", "cnn(depth=3,width=8)"),
        ("select", "--budget", "1s", "--arch", "cnn(depth=3,width=8)"),
    ],
    ids=lambda command: command[0],
)
def test_broken_pictures_are_refused_or_left_out(call, messy, tmp_path, command):
    out = ("--out", tmp_path / "out") if command[0] == "stream" else ()
    sentence = call(*command, *out, "--data", messy).sentence(2)
    assert "1 of 27 pictures cannot be read: ants/broken.png" in sentence and "--skip-broken" in sentence
    found = call(*command, *out, "--data", messy, "--skip-broken", "--json").json
    assert [one["file"] for one in found["data"]["broken"]] == ["ants/broken.png"]
    assert found["data"]["passed_over"]["suffixes"] == {".txt": 1}
    assert "--skip-broken belongs to --data" in call(*command, *out, "--skip-broken").sentence(2)


def test_networks_of_a_folder_are_measured_and_tuned_without_the_broken_ones(call, messy, tmp_path):
    made = tmp_path / "messy.safetensors"
    options = ("--arch", "cnn(depth=3,width=8)", "--samples", "1", "--no-compare", "--out", made)
    shown = call("generate", "--data", messy, "--skip-broken", *options)
    assert "1 .txt, 1 @eaDir" in shown.out and "ants/dog.png = dogs/1.png" in shown.out, shown.err
    kept = json.loads(read_header(made).metadata["report"])["data"]
    assert (
        kept["broken"] == 1
        and kept["repeated"]["in_two_classes"] == 1
        and kept["passed_over"]["suffixes"] == 1
    )
    assert "dog.png" not in json.dumps(kept), "a file that may be given away names pictures"
    for command in (("evaluate", made), ("finetune", made, "--steps", "2")):
        assert "1 of 27 pictures" in call(*command, "--data", messy).sentence(2)
        found = call(*command, "--data", messy, "--skip-broken", "--json").json
        assert len(found["data"]["broken"]) == 1
        assert "1 that cannot be read" in call(*command, "--data", messy, "--skip-broken").out
    two = call("evaluate", made, made, "--data", messy, "--skip-broken", "--workers", "2", "--json").json
    assert [one["images"] for one in two["networks"]] == [two["data"]["pictures"]["test"]] * 2
    assert "belong to --objective reward" in call(
        "train", "layerwise-tiny", "--out", tmp_path / "x", "--skip-broken"
    ).sentence(2)


def test_a_test_part_is_measured_on_as_a_whole(call, photos, tmp_path):
    root, made = parts(photos, tmp_path / "root"), tmp_path / "made.safetensors"
    options = ("--arch", "cnn(depth=3,width=8)", "--samples", "1", "--out", made, "--json")
    found = call("generate", "--data", root, *options).json
    assert found["test_images"] == 20 and found["data"]["parts"] == {"train": "train", "test": "test"}
    measured = call("evaluate", made, "--data", root, "--json").json
    assert measured["images"] == 20 and measured["accuracy"] == pytest.approx(found["best"]["accuracy"])
    assert [entry["num_images"] for entry in measured["by_class"].values()] == [5] * 4
    shown = call("evaluate", made, "--data", root)
    assert "24 to learn from, 20 to measure on, as its folders train and test say" in shown.out
    shutil.copy(root / "train" / "bees" / "3.png", root / "test" / "bees" / "copy.png")
    shown = call("evaluate", made, "--data", root)
    assert "1 that networks cannot tell apart: train/bees/3.png = test/bees/copy.png" in shown.out
    (root / "test" / "bees").rename(root / "test" / "wasps")
    for command in (("evaluate", made, "--data", root), ("info", root)):
        sentence = call(*command).sentence(2)
        assert "the same classes, but test lacks bees and train lacks wasps" in sentence
        assert "neither a zoo" not in sentence


def test_info_on_pictures_of_which_none_can_be_read(call, tmp_path):
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"broken")
    assert "2 of 2 pictures cannot be read: ants/1.png" in call("info", tmp_path).sentence(2)
    shutil.rmtree(tmp_path / "bees")
    assert "at least two classes" in call("info", tmp_path).sentence(2)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are UTF-8 there")
def test_names_that_are_no_text_are_spelt_out_everywhere(call, tmp_path, photos):
    folder = Path(os.fsdecode(bytes(tmp_path / "old-") + b"zip\xe9"))
    shutil.copytree(photos, folder)
    (folder / "dogs").rename(os.fsdecode(bytes(folder) + b"/\x1b[31m\xe9"))
    bad = os.fsdecode(bytes(folder) + b"/cats/\x07\xff.png")
    Path(bad).write_bytes(b"x")
    made = tmp_path / "made.safetensors"
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "weightloom.cli", "info", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr
    shown = call("info", folder)
    text = shown.out + shown.err + done.stdout.decode() + done.stderr.decode()
    assert "\x1b" not in text and "\x07" not in text and "\udce9" not in text, text
    assert (
        "folder:old-zip\\xe9" in shown.out and "\\x1b[31m\\xe9" in shown.out and "\\x07\\xff.png" in shown.out
    )
    found = json.loads(done.stdout)
    assert found["task"] == "folder:old-zip\\xe9" and "\\x1b[31m\\xe9" in found["classes"]
    assert found["data"]["broken"][0]["file"] == "cats/\\x07\\xff.png"
    options = ("--arch", "cnn(depth=3,width=8)", "--samples", "1", "--no-compare", "--out", made)
    refused = call("generate", "--data", folder, *options).sentence(2)
    assert "cats/\\x07\\xff.png (it is no picture" in refused and "\x07" not in refused
    assert call("generate", "--data", folder, "--skip-broken", *options, "--json").json["best"][
        "file"
    ] == str(made)
    measured = call("evaluate", made, "--data", folder, "--skip-broken", "--json").json
    assert "\\x1b[31m\\xe9" in measured["by_class"]
    assert "not text in UTF-8" in call("info", os.fsdecode(b"no\xe9where")).sentence(2)


def test_info_says_what_black_and_white_are(call, tmp_path):
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    for name in ("ants", "bees"):
        (tmp_path / name).mkdir()
        for number in range(2):
            image = Image.fromarray((ramp * (3000 + number + len(name))).astype(np.uint16))
            image.save(tmp_path / name / f"{name}{number}.png")
    found = call("info", tmp_path, "--json").json
    assert found["data"]["ranges"] == {"sixteen": [0, 4095]} and found["data"]["grey"]
    assert "grey-scale" in found["description"]
    assert "0 and 4095 (16 bits)" in call("info", tmp_path).out


def test_pictures_without_labels_lie_in_any_folders(call, photos, tmp_path):
    more = tmp_path / "camera"
    (more / "deep").mkdir(parents=True)
    for number, file in enumerate(sorted(photos.glob("*/*.png"))):
        shutil.copy(file, (more / "deep" if number % 2 else more) / f"{number}.png")
    count = len([*more.rglob("*.png")])
    asked = ("--shots", "1", "--samples", "1", "--arch", "cnn(depth=3,width=16)")
    common = ("generate", "--data", photos, *asked)
    plain = call(*common, "--out", tmp_path / "plain.safetensors", "--json").json
    found = call(*common, "--unlabelled", more, "--out", tmp_path / "more.safetensors", "--json").json
    held = found["data"]["pictures"]["test"]  # they are left out: what is measured on is never looked at
    assert held and plain["unlabelled"] is None and found["unlabelled"] == count - held
    assert (tmp_path / "plain.safetensors").read_bytes() != (tmp_path / "more.safetensors").read_bytes()
    assert f"pictures without labels  {count - held}" in call(*common, "--unlabelled", more).out
    named = ("generate", "--classes", "cat, dog", "--arch", "cnn(depth=3,width=16)")
    assert "beside examples: give --task or --data" in call(*named, "--unlabelled", more).sentence(2)
    assert "needs --classes, --task or --data" in call("generate", "--unlabelled", more).sentence(2)
    assert "no such folder of images" in call(*common, "--unlabelled", tmp_path / "none").sentence(2)
    assert "not a file" in call(*common, "--unlabelled", more / "0.png").sentence(2)
    refused = call(*common[:-1], "cnn(depth=3,width=8)", "--unlabelled", more).sentence(2)
    assert "it makes: cnn(depth=3,width=16)" in refused
    (tmp_path / "empty").mkdir()
    assert "no picture in this folder" in call(*common, "--unlabelled", tmp_path / "empty").sentence(2)
    refused = call(*common, "--unlabelled", more, "--generator", "layerwise-tiny").sentence(2)
    assert "does nothing with pictures without labels" in refused
    (more / "broken.png").write_bytes(b"broken")
    assert "1 of" in call(*common, "--unlabelled", more).sentence(2)
    assert call(*common, "--unlabelled", more, "--skip-broken", "--json").json["unlabelled"] == count - held
