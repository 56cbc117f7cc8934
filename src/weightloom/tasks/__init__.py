"""Tasks: datasets and how they are fetched, class subsets, transforms, support sets, folders of images."""

from __future__ import annotations

from weightloom.registry import discover
from weightloom.tasks import datasets as _datasets_package
from weightloom.tasks.card import NetworkCard
from weightloom.tasks.data import SupportSet, TaskData
from weightloom.tasks.depth import ValueRanges
from weightloom.tasks.folder import FolderTask
from weightloom.tasks.pictures import PictureSet, read_picture, read_pictures
from weightloom.tasks.sampler import TASK_SPLITS, TaskSampler
from weightloom.tasks.store import DatasetInfo, FetchReport, Source, cache_folder, fetch_dataset
from weightloom.tasks.store import datasets as _registry
from weightloom.tasks.task import DatasetTask, Task, parse_task
from weightloom.tasks.torchdata import TorchTask
from weightloom.tasks.transforms import transform_names
from weightloom.tasks.words import misspell

discover(_datasets_package)


def dataset_names() -> list[str]:
    """Names of all known datasets, sorted."""
    return _registry.names()


def dataset_info(name: str) -> DatasetInfo:
    """What is known of dataset ``name``. Raises UnknownNameError with the nearest names."""
    return _registry.get(name)


__all__ = [
    "TASK_SPLITS",
    "DatasetInfo",
    "DatasetTask",
    "FetchReport",
    "FolderTask",
    "NetworkCard",
    "PictureSet",
    "Source",
    "SupportSet",
    "Task",
    "TaskData",
    "TaskSampler",
    "TorchTask",
    "ValueRanges",
    "cache_folder",
    "dataset_info",
    "dataset_names",
    "fetch_dataset",
    "misspell",
    "parse_task",
    "read_picture",
    "read_pictures",
    "transform_names",
]
