"""Weightloom generates the weights of neural networks instead of training them.

The public face: every name below is imported when it is first used, so that ``import weightloom`` costs
nothing and brings no torch.

Example:
    >>> import weightloom as wl
    >>> spec = wl.parse_architecture("cnn(depth=3,width=16)")
    >>> spec.resolve(classes=10, input=(3, 16, 16)).num_parameters()
    5786
"""

from __future__ import annotations

__version__ = "0.1.0"

# By hand, and nothing imported above it: the command line cannot hear an interrupt before this file is read.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from weightloom.architectures import (
        ArchitectureSpec,
        architecture_families,
        architecture_from_json,
        parse_architecture,
    )
    from weightloom.architectures.capture import capture_graph
    from weightloom.errors import (
        BrokenPicturesError,
        CheckpointError,
        DataUnavailableError,
        InputError,
        SpecError,
        TrainingError,
        UnknownNameError,
        UnsupportedLayerError,
        UnsupportedRequestError,
        WeightloomError,
    )
    from weightloom.export import export_network
    from weightloom.fitting import FitSettings, accuracy, finetune
    from weightloom.generators import Generator, Sample, Sampling, Validity, best_of
    from weightloom.generators.load import load_generator
    from weightloom.tasks import (
        DatasetTask,
        FolderTask,
        NetworkCard,
        SupportSet,
        Task,
        TaskSampler,
        TorchTask,
        ValueRanges,
        dataset_names,
        fetch_dataset,
        parse_task,
    )
    from weightloom.tokenizers import WeightTokenizer, load_tokenizer
    from weightloom.weights import layout_of
    from weightloom.zoo import Record, Zoo, ZooRecipe, build_zoo
    from weightloom.zoo.importing import load_network

_HOME = {
    "ArchitectureSpec": "architectures",
    "architecture_families": "architectures",
    "architecture_from_json": "architectures",
    "parse_architecture": "architectures",
    "capture_graph": "architectures.capture",
    "BrokenPicturesError": "errors",
    "CheckpointError": "errors",
    "DataUnavailableError": "errors",
    "InputError": "errors",
    "SpecError": "errors",
    "TrainingError": "errors",
    "UnknownNameError": "errors",
    "UnsupportedLayerError": "errors",
    "UnsupportedRequestError": "errors",
    "WeightloomError": "errors",
    "export_network": "export",
    "FitSettings": "fitting",
    "accuracy": "fitting",
    "finetune": "fitting",
    "Generator": "generators",
    "Sample": "generators",
    "Sampling": "generators",
    "Validity": "generators",
    "best_of": "generators",
    "load_generator": "generators.load",
    "DatasetTask": "tasks",
    "FolderTask": "tasks",
    "NetworkCard": "tasks",
    "SupportSet": "tasks",
    "Task": "tasks",
    "TaskSampler": "tasks",
    "TorchTask": "tasks",
    "ValueRanges": "tasks",
    "dataset_names": "tasks",
    "fetch_dataset": "tasks",
    "parse_task": "tasks",
    "WeightTokenizer": "tokenizers",
    "load_tokenizer": "tokenizers",
    "layout_of": "weights",
    "Record": "zoo",
    "Zoo": "zoo",
    "ZooRecipe": "zoo",
    "build_zoo": "zoo",
    "load_network": "zoo.importing",
}
# Rooms that can be reached as attributes: ``weightloom.nn.CausalTransformer``.
_ROOMS = (
    "architectures", "conditioning", "errors", "evaluation", "export", "fitting", "generators", "io", "nn",
    "tasks", "tokenizers", "training", "weights", "zoo",
)  # fmt: skip

__all__ = [  # noqa: RUF022 - by room
    "__version__",
    "ArchitectureSpec",
    "architecture_families",
    "architecture_from_json",
    "parse_architecture",
    "capture_graph",
    "BrokenPicturesError",
    "CheckpointError",
    "DataUnavailableError",
    "InputError",
    "SpecError",
    "TrainingError",
    "UnknownNameError",
    "UnsupportedLayerError",
    "UnsupportedRequestError",
    "WeightloomError",
    "export_network",
    "FitSettings",
    "accuracy",
    "finetune",
    "Generator",
    "Sample",
    "Sampling",
    "Validity",
    "best_of",
    "load_generator",
    "DatasetTask",
    "FolderTask",
    "NetworkCard",
    "SupportSet",
    "Task",
    "TaskSampler",
    "TorchTask",
    "ValueRanges",
    "dataset_names",
    "fetch_dataset",
    "parse_task",
    "WeightTokenizer",
    "load_tokenizer",
    "layout_of",
    "Record",
    "Zoo",
    "ZooRecipe",
    "build_zoo",
    "load_network",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name in _ROOMS:
        try:
            value = importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
