"""Every family leaves by every target and answers as before; what a target lacks is one sentence."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tokenize
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from weightloom.architectures import architectures
from weightloom.errors import (
    DataUnavailableError,
    InputError,
    UnsupportedLayerError,
    UnsupportedRequestError,
    WeightloomError,
)
from weightloom.export import Facts, export_network, facts_of, targets
from weightloom.export.arena import in_place, placed
from weightloom.export.base import batches
from weightloom.export.c_code import rounded, source
from weightloom.export.compilers import found_compiler
from weightloom.export.steps import Steps
from weightloom.tasks.pictures import read_picture

NEEDS_C = pytest.mark.skipif(found_compiler() is None, reason="there is no C compiler")
ODD = ["end */ here", "trigraph ??/", 'quote " and \\', "naïve 猫", "two\nlines"]
EXAMPLES = [architectures.get(family).example_texts()[-1] for family in architectures]
FEW = ["cnn(depth=2,width=4)", "vit(depth=1,width=8,heads=2,pool=token)"]


class Odd(nn.Module):
    """What the families of others compute with: normalised input, depthwise layers, ReLU6, uneven padding."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.9, 0.8, 0.7]).reshape(1, 3, 1, 1))
        self.first = nn.Conv2d(3, 8, 3, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 5, padding="same", groups=8)
        self.before = nn.BatchNorm2d(8)
        self.pooled = nn.Conv2d(8, 8, 3, padding=1)
        self.after = nn.BatchNorm2d(8)
        self.turned = nn.Linear(8, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.std
        x = nn.functional.relu6(self.norm(self.first(nn.functional.pad(x, (0, 1, 0, 1)))), inplace=True)
        y = self.before(nn.functional.hardtanh(x, -0.5, 1.5))  # a batch norm with no convolution before it
        y = nn.functional.hardswish(self.deep(y)) * torch.sigmoid(x)
        x = torch.cat([x - y, torch.clamp(y, min=-0.2)], dim=1)
        y = y - self.after(nn.functional.max_pool2d(self.pooled(y), 1))
        x = nn.functional.max_pool2d(x, 3, 2, 1)[:, 2:10] + nn.functional.avg_pool2d(y, 3, 2, 1)
        x = self.after(nn.functional.max_pool2d(self.pooled(x), 2)).relu()
        x = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.head(nn.functional.dropout(self.turned(x), 0.5, self.training).tanh())


def odd() -> tuple[nn.Module, Facts]:
    torch.manual_seed(3)
    module = Odd()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 8, 8))
    return module.eval(), Facts(
        class_names=tuple(ODD), input=(3, 8, 8), architecture="Odd", licence="CC0-1.0"
    )


@NEEDS_C
@pytest.mark.parametrize("text", EXAMPLES)
def test_every_family_becomes_c(text, sample_of, tmp_path, monkeypatch):
    monkeypatch.setattr("weightloom.export.to_c.footprints", lambda file: {})
    sample = sample_of(text, (3, 16, 16))
    if sample.architecture.num_parameters() > 100_000:
        with pytest.raises(
            UnsupportedRequestError, match=r"up to 100,000 parameters; this one has \d{3},\d{3}"
        ):
            export_network(sample, tmp_path / "net.c")
        assert not list(tmp_path.iterdir())
        return
    done = export_network(sample, tmp_path / "net.c")
    assert done.difference < 1e-4 and done.checked and [f.name for f in tmp_path.iterdir()] == ["net.c"]


@pytest.mark.parametrize("text", FEW)
def test_programs_for_torch(text, sample_of, tmp_path):
    done = export_network(sample_of(text, class_names=ODD), tmp_path / "net.pt2")
    assert done.difference < 1e-6 and done.checked
    with zipfile.ZipFile(done.files[0]) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith("weightloom.json"))
        assert json.loads(archive.read(about))["class_names"] == ODD
        assert str(Path(__file__).parents[2]).encode() not in b"".join(map(archive.read, archive.namelist()))
    network = torch.export.load(done.files[0]).module()
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 5) and network(torch.zeros(7, 3, 8, 8)).shape == (
        7,
        5,
    )


def test_python_files(sample_of, tmp_path):
    done = export_network(sample_of(FEW[1], class_names=ODD), tmp_path / "net.py")
    assert done.difference < 1e-6 and "without Weightloom" in done.checked
    written = done.files[0].read_text("ascii")
    assert "weightloom" not in written.replace("Weightloom", "") and "torch.ops" not in written


@NEEDS_C
@pytest.mark.parametrize("suffix", [".py", ".c", ".pt2"])
def test_what_other_families_compute_with(suffix, tmp_path):
    module, facts = odd()
    done = export_network(module, tmp_path / f"net{suffix}", facts=facts)
    assert done.difference < 1e-4 and done.checked
    if suffix != ".pt2":
        assert "licence of the weights: CC0-1.0" in done.files[0].read_text("ascii")


def test_large_weights_lie_beside_the_python_file_and_pictures_are_read(
    sample_of, tmp_path, monkeypatch, capsys
):
    from PIL import Image

    names = [*ODD[:4], "red\x1b[31m\u202e"]
    sample = sample_of("cnn(depth=1,width=4)", class_names=names)
    monkeypatch.setattr("weightloom.export.to_python.EMBEDDED", 100)
    done = export_network(sample, tmp_path / "large.py")
    assert [file.name for file in done.files] == [
        "large.py",
        "large.weights.safetensors",
    ] and done.difference < 1e-6
    picture = tmp_path / "x.png"
    Image.effect_noise((11, 9), 60).convert("RGB").save(picture)
    held = runpy.run_path(str(done.files[0]))
    read = held["read"](Image.open(picture))
    assert read.shape == (1, 3, 8, 8) and read.abs().max() <= 1
    pixels = torch.from_numpy(read_picture(picture, 8, 3)[0].copy())[None]
    assert torch.allclose(read, pixels / 127.5 - 1, atol=1e-6)
    monkeypatch.setattr(sys, "argv", ["large.py", str(picture)])
    held["main"]()
    best = names[int(sample.module(read).argmax())]
    said = capsys.readouterr().out
    assert said.startswith(f"{picture}: {held['shown'](best)} (")
    assert held["shown"]("".join(names)).endswith(r"猫red\x1b[31m\u202e")


def test_a_network_is_never_overwritten_by_what_it_becomes(sample_of, tmp_path):
    sample = sample_of("mlp(depth=1,width=1500)", (3, 16, 16))  # above 4 MiB
    file = sample.save(tmp_path / "net.safetensors")
    before = file.read_bytes()
    assert len(before) > 4 << 20
    done = export_network(file, tmp_path / "net.py")
    assert [one.name for one in done.files] == ["net.py", "net.weights.safetensors"]
    assert file.read_bytes() == before and done.difference < 1e-6
    done.files[0].unlink()
    again = file.rename(done.files[1])
    with pytest.raises(InputError, match="is the network that is exported"):
        export_network(again, tmp_path / "net.py")
    assert again.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [again.name]


def test_a_stranger_does_not_choose_the_encoding_of_the_python_file(sample_of, tmp_path):
    facts = Facts(class_names=tuple(ODD), input=(3, 8, 8), generator="coding: utf-7 +AAo-import nothing")
    done = export_network(sample_of("mlp(depth=1,width=4)").module, tmp_path / "net.py", facts=facts)
    with done.files[0].open("rb") as lines:
        assert tokenize.detect_encoding(lines.readline)[0] == "utf-8"


@pytest.mark.parametrize(("temperature", "divisor"), [(None, 1.0), (4.0, 4.0)])
def test_probabilities_are_divided_by_the_temperature(sample_of, tmp_path, capsys, temperature, divisor):
    from PIL import Image

    sample = sample_of("cnn(depth=1,width=4)")
    sample = replace(sample, card=replace(sample.card, temperature=temperature))
    said = "not measured: probabilities are not calibrated" if temperature is None else "4"
    done = export_network(sample, tmp_path / "net.py")
    assert f"# temperature: {said}\n" in done.files[0].read_text()
    held = runpy.run_path(str(done.files[0]))
    Image.effect_noise((8, 8), 60).convert("RGB").save(tmp_path / "x.png")
    share = (sample.module(held["read"](Image.open(tmp_path / "x.png"))) / divisor).softmax(1).max()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["net.py", str(tmp_path / "x.png")])
        held["main"]()
    assert f"({100 * share:.1f} %)" in capsys.readouterr().out.split(",")[0]
    assert f" * temperature: {said}\n" in source(sample.module, done.facts)
    program = export_network(sample, tmp_path / "net.pt2")
    with zipfile.ZipFile(program.files[0]) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith("weightloom.json"))
        assert json.loads(archive.read(about))["temperature"] == temperature
    onnxruntime = pytest.importorskip("onnxruntime")
    model = export_network(sample, tmp_path / "net.onnx", probabilities=True)
    session = onnxruntime.InferenceSession(str(model.files[0]))
    logits, shares = session.run(None, {"images": torch.randn(3, 3, 8, 8).numpy()})
    assert torch.allclose(
        (torch.from_numpy(logits) / divisor).softmax(1), torch.from_numpy(shares), atol=1e-6
    )
    told = session.get_modelmeta().custom_metadata_map["temperature"]
    assert told == ("unknown" if temperature is None else "4.0")


def test_onnx_files(sample_of, tmp_path):
    pytest.importorskip("onnxruntime")
    import onnx

    done = export_network(
        sample_of("cnn(depth=2,width=4)", class_names=ODD), tmp_path / "net.onnx", probabilities=True
    )
    assert done.difference < 1e-4 and done.checked.startswith("onnxruntime")
    model = onnx.load(done.files[0])
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["class_names"]) == ODD and said["licence"].startswith("unknown")
    told = json.loads(said["preprocessing"])
    assert (0 - told["mean"]) * told["scale"] == -1 and (255 - told["mean"]) * told["scale"] == 1
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).parents[2]).encode() not in done.files[0].read_bytes()


@NEEDS_C
def test_c_files_compile_without_a_warning_and_need_no_heap(sample_of, tmp_path):
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wtrigraphs", "-DWEIGHTLOOM_MAIN"]
    file = tmp_path / "net.c"
    for text in (FEW[1], "resnet(depth=8,width=4,norm=group,activation=silu)"):
        sample = sample_of(text)
        facts = Facts(class_names=tuple(ODD), input=(3, 8, 8), architecture="/* */ ??/", licence="ends in \\")
        for int8 in (False, True):
            file.write_text(source(sample.module, facts, int8=int8), "ascii")
            command = [found_compiler(), *strict, "-c", file, "-o", tmp_path / "net.o"]
            subprocess.run(command, check=True, timeout=60)
            assert "malloc" not in file.read_text("ascii")


@NEEDS_C
def test_the_smallest_network_fits_a_small_controller(sample_of, tmp_path):
    sample = sample_of("cnn(depth=3,width=8)", (3, 16, 16), classes=10)
    for int8 in (False, True):
        done = export_network(sample, tmp_path / "net.c", int8=int8)
        for sizes in done.more["footprint"].values():
            assert sizes["flash"] <= 32 << 10 and sizes["ram"] <= 32 << 10


def test_values_that_live_together_lie_apart(sample_of):
    for text in ("resnet(depth=8,width=4)", "vit(depth=2,width=8,heads=2)", "deepnet(index=7)"):
        sample = sample_of(text)
        steps = Steps(sample.module, sample.architecture.input)
        in_place(steps)
        offsets, floats = placed(steps)
        held: dict[int, object] = {}
        for step in steps.steps:  # what is written must be there still when it is read
            for read in step.reads:
                root = getattr(read, "root", None)
                if root in offsets:
                    assert all(held[at] is root for at in range(offsets[root], offsets[root] + root.size))
            root = step.out.root
            if root in offsets:
                assert offsets[root] + root.size <= floats
                held.update(dict.fromkeys(range(offsets[root], offsets[root] + root.size), root))


def test_int8_weights_are_within_half_a_step():
    weight = torch.randn(5, 3, 3, 3)
    weight[2] = 0
    held, scale = rounded(weight)
    back = held.float() * scale.reshape(-1, 1, 1, 1)
    assert held.dtype == torch.int8 and (back - weight).abs().amax() <= scale.max() / 2 * 1.001


class Spectrum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x, dim=-1).real.mean(dim=(1, 2))


def test_what_a_target_lacks_is_named(tmp_path):
    facts = Facts(class_names=tuple(ODD), input=(3, 8, 8))
    with pytest.raises(UnsupportedLayerError, match=r"^c lacks fft_rfft|^c lacks .*fft") as caught:
        source(Spectrum().eval(), facts)
    assert "\n" not in str(caught.value)


@NEEDS_C
@pytest.mark.parametrize("text", ["MIT *\\ int x; \\*", "*é", "?\\?/", "MIT ??/", "* / */ int x; /*", "\\"])
def test_text_of_others_stays_within_the_comment_and_the_strings(text, sample_of, tmp_path):
    names = (text, f"{text}x", f'"{text}"', f"{text}\n", "\ud800")
    facts = Facts(class_names=names, input=(3, 8, 8), licence=text, architecture=text, generator=text)
    written = source(sample_of("mlp(depth=1,width=4)").module, facts)
    comment, code = written.split("*/\n", 1)
    assert code.startswith("#include") and not set(comment[2:]) & set("/\\?")
    (tmp_path / "net.c").write_text(written, "ascii")
    ask = (
        "#include <stdio.h>\nint main(void) { for (int i = 0; i < 4; i++) puts(weightloom_class_names[i]); }"
    )
    (tmp_path / "ask.c").write_text('#include "net.c"\n' + ask + "\n")
    strict = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-Wtrigraphs"]
    command = [found_compiler(), *strict, tmp_path / "ask.c", "-o", tmp_path / "ask", "-lm"]
    subprocess.run(command, check=True, timeout=60)
    said = subprocess.run([tmp_path / "ask"], check=True, capture_output=True, timeout=60).stdout
    assert said.decode() == "".join(f"{name}\n" for name in names[:4])


@NEEDS_C
def test_int8_that_answers_otherwise_is_refused_without_pictures_too(sample_of, tmp_path, monkeypatch):
    sample = sample_of("mlp(depth=1,width=4)")
    assert export_network(sample, tmp_path / "net.c", int8=True).difference < 1
    (tmp_path / "net.c").unlink()
    run = type(targets.get("c")).run
    for spoil in (lambda got: got * -9, lambda got: got * torch.nan):
        monkeypatch.setattr(type(targets.get("c")), "run", lambda *a, s=spoil: (s(run(*a)[0]), "cc"))
        with pytest.raises(WeightloomError, match="answers otherwise than the network"):
            export_network(sample, tmp_path / "net.c", int8=True)
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_fit_are_refused(sample_of, tmp_path):
    sample = sample_of("mlp(depth=1,width=4)")
    for out, options, words in (
        ("net.txt", {}, "must end in"),
        ("net.c", {"to": "onnx"}, "must end in .onnx"),
        ("net.pt2", {"int8": True}, "pt2 has no int8; c and onnx have"),
        ("net.onnx", {"int8": True}, "calibrated on examples"),
        ("net.c", {"probabilities": True}, "c gives logits alone"),
        ("net.c", {"facts": Facts(class_names=("one",), input=(3, 8, 8))}, "5 classes, but 1 names"),
    ):
        with pytest.raises(InputError, match=words):
            export_network(sample, tmp_path / out, **options)
    with pytest.raises(InputError, match="facts="):
        export_network(sample.module, tmp_path / "net.c")
    assert not list(tmp_path.iterdir())


def test_a_file_that_answers_otherwise_is_not_put_in_its_place(sample_of, tmp_path, monkeypatch):
    (tmp_path / "net.pt2").write_bytes(b"the old one")
    run = type(targets.get("pt2")).run
    monkeypatch.setattr(type(targets.get("pt2")), "run", lambda *a: (run(*a)[0] + 0.01, "torch"))
    with pytest.raises(WeightloomError, match="answers otherwise than the network"):
        export_network(sample_of("mlp(depth=1,width=4)"), tmp_path / "net.pt2")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"the old one"]


def test_without_a_compiler_the_file_is_written_and_not_called_checked(sample_of, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = export_network(sample_of("mlp(depth=1,width=4)"), tmp_path / "net.c")
    assert done.checked is None and "C compiler" in done.unchecked and done.difference is None
    assert done.files[0].exists() and done.more == {"footprint": {}}


def test_a_missing_extra_is_one_sentence(sample_of, tmp_path, monkeypatch):
    monkeypatch.setattr("weightloom.export.to_onnx.find_spec", lambda name: None)
    with pytest.raises(
        DataUnavailableError, match=r"onnx is not installed: pip install 'weightloom\[export\]'"
    ):
        export_network(sample_of("mlp(depth=1,width=4)"), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_large_pictures_go_a_few_at_a_time():
    assert [len(part) for part in batches(torch.zeros(60, 3, 224, 224))] == [27, 27, 6]
    assert len(batches(torch.zeros(600, 1, 8, 8))) == 3


def test_facts_are_read_from_a_header(sample_of):
    spec = sample_of("mlp(depth=1,width=4)", classes=10).architecture
    assert facts_of({"report": '{"task": "digits"}'}, spec).class_names[3] == "3"
    assert facts_of({"report": "["}, spec).class_names[9] == "class 9"
    assert facts_of({"report": '{"licence": "MIT\\nMIT"}'}, spec).licence == "MIT MIT"
