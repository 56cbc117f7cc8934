from __future__ import annotations

import json

import pytest
import torch

from weightloom.cli.main import app
from weightloom.errors import CheckpointError, InputError, SpecError, UnsupportedRequestError
from weightloom.evaluation import AuditSettings, audit
from weightloom.evaluation.audit import MIXTURES
from weightloom.generators import Validity
from weightloom.generators.zoo_index import ZooIndex, ZooIndexGroup
from weightloom.io import dump_json
from weightloom.plots import draw_audit
from weightloom.zoo import Zoo


def audited(known, zoo, how, **options):
    task = zoo.records(split="train")[0].task
    return audit(known(how, task), zoo, AuditSettings(samples=8, task=task, **options))


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ("copy", "retrieves"),
        ("noise", "retrieves"),
        ("average", "interpolates"),
        ("real", "novel"),
        ("random", "fails"),
    ],
)
def test_generators_whose_novelty_is_known_are_told_apart(known, zoo, how, wanted, rng_untouched):
    report = audited(known, zoo, how)
    own = [row["verdict"] for row in report.networks if row["group"] == "generated"]
    assert report.verdict == wanted and own.count(wanted) == len(own) == 8
    assert report.shares[wanted] == 1.0
    assert f"known-{how}" in report.sentence() and wanted in report.sentence()


def test_the_report_holds_every_group_measured_alike(known, zoo):
    seen = []
    task = zoo.records(split="train")[0].task
    settings = AuditSettings(samples=4, task=task)
    report = audit(
        known("copy", task), zoo, settings, progress=lambda what, done, total: seen.append((done, total))
    )
    groups = [row["group"] for row in report.summary()]
    assert groups == ["generated", "training", *MIXTURES]
    for row in report.networks:
        assert 0 <= row["accuracy"] <= 1 and row["nearest"]
        if row["group"] != "training":
            assert row["verdict"] and row["distance"] <= row["distance_before"] + 1e-6
    by = {row["group"]: row for row in report.summary()}
    assert by["generated"]["distance"] < 1e-3 < by["generated"]["distance_before"]
    assert by["generated"]["overlap"] == pytest.approx(1.0)
    assert by["averaged"]["verdicts"]["novel"] == 0
    assert by["noise"]["verdicts"]["retrieves"] == 1.0
    assert by["aligned interpolation"]["accuracy"] >= by["interpolated"]["accuracy"]
    assert seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    written = json.loads(dump_json(report.to_json()))
    assert written["verdict"] == report.verdict and len(written["networks"]) == len(report.networks)


def test_a_baseline_as_good_and_as_new_is_named(known, zoo):
    """Copies have errors that overlap wholly: whatever is as accurate overlaps less."""
    report = audited(known, zoo, "copy")
    by = {row["group"]: row for row in report.summary()}
    wanted = [g for g in MIXTURES if by[g]["accuracy"] >= by["generated"]["accuracy"]]
    assert report.beaten_by == [g for g in wanted if by[g]["overlap"] <= by["generated"]["overlap"]]


def test_the_same_seed_gives_the_same_report(known, zoo):
    a, b = (audited(known, zoo, "noise", seed=3).to_json() for _ in range(2))
    assert a == b
    assert a["networks"] != audited(known, zoo, "noise", seed=4).to_json()["networks"]


class Killed(Exception):
    pass


def test_an_interrupted_audit_goes_on_to_the_same_report(known, zoo, tmp_path):
    """Stopped again and again; what was done is not done anew."""
    task = zoo.records(split="train")[0].task
    settings = AuditSettings(samples=3, tasks=2)
    model = known("noise", task)
    whole = audit(model, zoo, settings)
    made, real = [], model.generate_many

    def counted(*arguments, **options):
        made.append(arguments)
        return real(*arguments, **options)

    model.generate_many = counted
    for stop in range(20, 1000, 20):

        def progress(what, done, total, stop=stop):
            if done >= stop:
                raise Killed

        try:
            found = audit(model, zoo, settings, work=tmp_path, progress=progress)
            break
        except Killed:
            continue
    else:
        pytest.fail("it never ended")
    assert stop > 40 and found.to_json() == whole.to_json()
    calls = len(made)
    assert audit(model, zoo, settings, work=tmp_path).to_json() == whole.to_json()
    assert len(made) == calls, "everything was kept"
    other = audit(model, zoo, AuditSettings(samples=3, tasks=2, seed=5), work=tmp_path)
    assert len(made) > calls and other.networks != whole.networks
    for broken in ("[]", "{"):
        for cell in tmp_path.iterdir():
            cell.write_text(broken)
        with pytest.raises(CheckpointError, match="remove it to measure it again"):
            audit(model, zoo, settings, work=tmp_path)


def test_a_picture_is_drawn(known, zoo, tmp_path):
    report = audited(known, zoo, "average")
    assert draw_audit(report, tmp_path / "audit.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="ends in"):
        draw_audit(report, tmp_path / "audit.txt")


@pytest.mark.parametrize(
    ("change", "noted"),
    [({}, None), ({"id": "elsewhere"}, "holds none"), ({"task": "digits[9,8,7,6]@8c1"}, "holds none")],
)
def test_a_generator_of_another_zoo_is_noted(known, zoo, change, noted):
    """By tasks as well: zoos of one shape number their checkpoints alike."""
    model = known("copy")
    ((spec, records),) = zoo.by_architecture(split="train", final=True)
    row = {"id": records[0].id, "task": records[0].task} | change
    group = ZooIndexGroup(spec, torch.zeros(1, 1), torch.zeros(1, 4, 2), [row])
    model.zoo_index = ZooIndex([group])
    report = audit(model, zoo, AuditSettings(samples=2, tasks=1, task=model.task))
    about = [text for text in report.notes if "was trained on" in text]
    assert not about if noted is None else noted in about[0]


def test_what_cannot_be_audited_is_refused(known, zoo, tmp_path):
    model = known("copy")
    with pytest.raises(InputError, match="no training checkpoints"):
        audit(model, Zoo(tmp_path / "empty", create=True))
    with pytest.raises(InputError, match="for task 'mnist'"):
        audit(model, zoo, AuditSettings(task="mnist"))
    with pytest.raises(InputError, match="no training checkpoints of vgg"):
        audit(model, zoo, AuditSettings(architecture="vgg(depth=2)"))
    records = zoo.records(split="train")[:2]
    small = Zoo(tmp_path / "small", create=True)
    small.add(records[0].shard, records[0].spec(), zoo.load(records), records)
    with pytest.raises(InputError, match="too few training checkpoints"):
        audit(model, small)
    model.validity = Validity(architectures=("x",), input=(3, 9, 9), min_classes=2, max_classes=3)
    with pytest.raises(UnsupportedRequestError, match="makes none of the networks"):
        audit(model, zoo)
    for bad in ({"samples": 0}, {"tasks": 1.5}, {"images": -1}, {"shots": True}):
        with pytest.raises(SpecError):
            AuditSettings(**bad)


def test_the_command(known, zoo, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    task = zoo.records(split="train")[0].task
    monkeypatch.setattr("weightloom.generators.load.load_generator", lambda name: known("average", task))
    out, plot = tmp_path / "audit.json", tmp_path / "audit.png"
    words = ["audit", "mine", "--zoo", str(zoo.path), "--samples", "4", "--task", task]
    shown = CliRunner().invoke(app, [*words, "--out", str(out), "--plot", str(plot)])
    assert shown.exit_code == 0, shown.output
    assert "known-average interpolates" in shown.stdout and "aligned interpolation" in shown.stdout
    assert json.loads(out.read_text())["verdict"] == "interpolates" and plot.stat().st_size > 1000
    answer = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(answer.stdout)["verdict"] == "interpolates"
    for bad in (
        ["--samples", "0"], ["--out", "x.txt"], ["--arch", "cnnn"], ["--zoo", str(tmp_path)],
        ["--work", str(out)],
    ):  # fmt: skip
        refused = CliRunner().invoke(app, [*words, *bad])
        assert refused.exit_code == 2, bad
