"""Networks in the forms in which people hand them on: every one is read, or refused with what it is."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch
from tests.faults import checkpoint_tensors
from tests.faults.checkpoints import FORMS, state_of
from tests.faults.foreign_files import KINDS
from typer.testing import CliRunner

from weightloom.architectures import parse_architecture
from weightloom.cli.main import app
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.weights import layout_of
from weightloom.zoo.importing import load_network, plan_import
from weightloom.zoo.reading import read_checked
from weightloom.zoo.sources import find_networks

assert checkpoint_tensors  # whose forms are among FORMS
QUICK = ("cnn(depth=1,width=4,classes=3,input=1x8x8)",)
FULL_SIZE = (
    *QUICK,
    "mlp(depth=2,width=8,classes=4,input=3x8x8)",
    "resnet(depth=8,width=4,classes=3,input=3x16x16)",
    "vit(depth=1,width=16,classes=5,input=3x16x16)",
)
ADVICE = ("weights_only", "safe_globals", "trust", "pickle_module", "allowlist", "add_safe")
"""What torch says where it refuses a file: to read it in the unsafe way."""


@pytest.fixture(params=FULL_SIZE)
def architecture(request, full):
    if not full and request.param not in QUICK:
        pytest.skip("full size only")
    return request.param


def network_of(text):
    """A network of whose statistics and counters none has its first value."""
    spec = parse_architecture(text)
    net = spec.initialise(7)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.endswith("num_batches_tracked"):
                value.fill_(9)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2.0)
            else:
                value.add_(torch.randn_like(value) * 0.1)
    net.example = spec.input
    return spec, net.eval()


def test_every_form_is_read(architecture, tmp_path, record_property):
    spec, net = network_of(architecture)
    layout = layout_of(spec)
    images = torch.randn(5, *spec.input)
    wrong = {}
    for number, (name, make) in enumerate(FORMS.items()):
        place = tmp_path / str(number)
        place.mkdir()
        form = make(copy.deepcopy(net), place)
        weights = form.weights or {
            key: value.to(form.dtype).float() if value.is_floating_point() else value
            for key, value in state_of(net).items()
        }
        reference = spec.build()
        reference.load_state_dict(weights)
        try:
            reading = read_checked(form.path, spec, match=form.match, key=form.key)
            good = torch.equal(reading.flat, layout.flatten(weights))
            if form.match == "names":
                loaded = load_network(form.path, spec, key=form.key)
                with torch.no_grad():
                    good &= torch.equal(loaded(images), reference.eval()(images))
        except WeightloomError as error:
            good, reading = False, str(error)
        if not good:
            wrong[name] = str(reading)[:300]
    assert not wrong
    record_property("forms", len(FORMS))
    assert len(FORMS) >= 80


def test_every_other_file_is_called_what_it_is(tmp_path, record_property):
    text = QUICK[0]
    _, net = network_of(text)
    wrong = {}
    for number, (name, (make, words)) in enumerate(KINDS.items()):
        place = tmp_path / str(number)
        place.mkdir()
        path = make(copy.deepcopy(net), place)
        try:
            load_network(path, text)
            wrong[name] = "read"
        except CheckpointError as error:
            if not re.search(words, error.reason) or any(word in str(error) for word in ADVICE):
                wrong[name] = error.reason
        assert not (place / "ran").exists(), f"{name}: code of the file was run"
    assert not wrong
    record_property("kinds", len(KINDS))
    assert len(KINDS) >= 60


def test_the_commands_say_the_same(tmp_path, record_property, full):
    """`info`, `evaluate` and `zoo import` on every file of another kind: one sentence, code 2, no advice."""
    text = QUICK[0]
    spec, net = network_of(text)
    run, step = CliRunner(), 1 if full else 8
    for number, (name, (make, _)) in enumerate(list(KINDS.items())[::step]):
        place = tmp_path / str(number)
        place.mkdir()
        path = make(copy.deepcopy(net), place)
        with pytest.raises(CheckpointError) as caught:
            read_checked(path, spec)
        for command in (
            ["evaluate", str(path), "--arch", text, "--task", "digits[0,1,2]"],
            ["zoo", "import", str(tmp_path / "zoo"), str(path), "--arch", text],
        ):
            answer = run.invoke(app, command)
            assert isinstance(answer.exception, WeightloomError | SystemExit), (
                name,
                command,
                answer.exception,
            )
            assert not (tmp_path / "zoo").exists(), (name, command)
        answer = run.invoke(app, ["info", str(path), "--arch", text, "--json"])
        if answer.exit_code == 0:
            problem = json.loads(answer.stdout)["problem"]
            assert problem == caught.value.reason, name
        assert not (place / "ran").exists(), f"{name}: code of the file was run"
    record_property("kinds", len(KINDS) // step)


def test_a_folder_names_all_that_it_passes_over(tmp_path):
    spec, net = network_of(QUICK[0])
    root = tmp_path / "in"
    places = {}
    for number, (name, (make, _)) in enumerate(KINDS.items()):
        place = root / f"{number:03d}"
        place.mkdir(parents=True)
        make(copy.deepcopy(net), place)
        places[f"{number:03d}"] = name
    good = root / "good"
    good.mkdir()
    torch.save({"epoch": 1, "state_dict": state_of(net)}, good / "model_best.pth.tar")
    found = find_networks(root)
    plan = plan_import([found], architecture=spec)
    assert [network.candidate.name for network in plan.networks if "good" in network.candidate.name] == [
        "good/model_best.pth.tar"
    ]
    named = {entry.name for entry in plan.skipped} | {network.candidate.name for network in plan.networks}
    for path in root.rglob("*"):
        if path.is_file():
            above = {place.as_posix() for place in path.relative_to(root).parents}
            assert path.relative_to(root).as_posix() in named or above & named, f"nobody names {path}"
    assert all(len(entry.reason) > 5 for entry in plan.skipped)
    assert {name.partition("/")[0] for name in named} == set(places) | {"good"}
    assert not list(root.rglob("ran"))
