"""``onnx``: torch's exporter, and for int8 the static quantisation of ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom import __version__
from weightloom.errors import UnsupportedRequestError
from weightloom.export.base import Job, NotChecked, Target, batches, needs_extra, targets
from weightloom.export.facts import NO_LICENCE, Facts
from weightloom.export.graph import exported, quiet

OPSET = 20
"""The version of ONNX's operators that is written; int8 weights for each channel need 13."""


class _WithProbabilities(nn.Module):
    def __init__(self, network: nn.Module, temperature: float | None) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature or 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(x)  # (B, classes)
        return logits, torch.softmax(logits / self.temperature, dim=1)


class _Onnx(Target):
    """A model with a free batch, from ``images`` to ``logits`` and, if asked for, ``probabilities``."""

    name, suffix = "onnx", ".onnx"
    rounds = calibrates = gives_probabilities = True

    def write(self, job: Job) -> list[Path]:
        for package in ("onnx", "onnxscript"):
            if find_spec(package) is None:
                raise needs_extra(package)
        if job.int8 and find_spec("onnxruntime") is None:
            raise needs_extra("onnxruntime")
        import onnx

        network = job.network
        if job.probabilities:
            network = _WithProbabilities(network, job.facts.temperature).eval()
        program = exported(network, job.facts.input)
        model = _model_of(program, ["logits", "probabilities"][: 1 + job.probabilities])
        if job.int8:
            assert job.calibration is not None
            model = _rounded(model, job.calibration, job.folder)
        _tidy(model)
        for key, value in _metadata(job.facts, int8=job.int8).items():
            model.metadata_props.add(key=key, value=value)
        model.producer_name, model.producer_version = "weightloom", __version__
        onnx.checker.check_model(model)
        onnx.save_model(model, job.file)
        return [job.file]

    def run(self, job: Job, images: Tensor) -> tuple[Tensor, str]:
        if find_spec("onnxruntime") is None:
            raise NotChecked("onnxruntime is not installed (pip install 'weightloom[export]')")
        import onnxruntime

        session = _session(job.file)
        parts = [session.run(["logits"], {"images": part.numpy()})[0] for part in batches(images)]
        return torch.cat([torch.from_numpy(part) for part in parts]), f"onnxruntime {onnxruntime.__version__}"

    def more(self, job: Job) -> dict[str, Any]:
        return {"opset": OPSET}


targets.register("onnx")(_Onnx())


def _model_of(program: Any, outputs: list[str]) -> Any:
    with quiet():
        try:
            made = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
        except Exception as error:  # the exporter's own kinds of errors are not part of its face
            first = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedRequestError(
                f"torch's ONNX exporter cannot write this network: {first}"
            ) from None
    assert made is not None
    return made.model_proto


def _tidy(model: Any) -> None:
    """Drop what torch's exporter noted for itself, and call the free axis ``batch``."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    for held in (model, graph, *graph.node, *graph.initializer, *values):
        del held.metadata_props[:]
    for value in values:
        for side in value.type.tensor_type.shape.dim:
            if side.HasField("dim_param"):
                side.dim_param = "batch"


def _metadata(facts: Facts, *, int8: bool) -> dict[str, str]:
    return {
        "weightloom": __version__,
        "architecture": facts.architecture,
        "class_names": json.dumps(list(facts.class_names)),
        "preprocessing": json.dumps(facts.preprocessing()),
        "licence": facts.licence or NO_LICENCE,
        "generator": facts.generator or "unknown",
        "temperature": "unknown" if facts.temperature is None else repr(facts.temperature),
        "weights": "int8 for each output channel, activations uint8" if int8 else "float32",
    }


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _rounded(model: Any, calibration: Tensor, folder: Path) -> Any:
    """The model with rounding steps (QDQ), weights int8 for each channel, ranges from ``calibration``."""
    import onnx

    with quiet():
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self._parts: Iterator[Tensor] = iter(calibration.split(64))

            def get_next(self) -> dict[str, Any] | None:
                part = next(self._parts, None)
                return None if part is None else {"images": part.numpy()}

        before, ready, after = (folder / f"{name}.onnx" for name in (".float", ".ready", ".int8"))
        onnx.save_model(model, before)
        quant_pre_process(str(before), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(after),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            op_types_to_quantize=["Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool", "AveragePool",
                                  "GlobalAveragePool", "ReduceMean", "Reshape", "Flatten", "Concat"],
            extra_options={"WeightSymmetric": True},
        )  # fmt: skip
        made = onnx.load(str(after))
    for file in (before, ready, after):
        file.unlink()
    return made
