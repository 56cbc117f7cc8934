"""What a torch dataset says of itself: the names of its classes, and which part of an item is what.

Knows datasets by their attributes, and no images.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeGuard

from torch.utils.data import ConcatDataset, Subset

from weightloom.errors import InputError

IMAGE_KEYS = ("image", "img")
LABEL_KEYS = ("label", "labels", "target", "targets")
"""What an item that is a dictionary may call its image and its label, one of each."""

_SHOWN = 8


def class_names_of(dataset: Any, what: str) -> list[str] | None:
    """Names in label order, where ``dataset`` has them; else None.

    They are its ``classes`` (torchvision's datasets have them), or those that its ``features`` give a label
    (Hugging Face's do). A ``Subset``, of which ``random_split`` makes some, keeps the labels of the dataset
    that it is taken from, so it has that one's names; a ``ConcatDataset`` has those of its parts.

    Raises:
        InputError: parts that are put together have different names: their labels mean different things.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> whole = TensorDataset(torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]))
        >>> whole.classes = ["cat", "dog"]
        >>> class_names_of(Subset(Subset(whole, [0, 1, 3]), [1, 2]), "pets")
        ['cat', 'dog']
    """
    names = getattr(dataset, "classes", None)
    if _are_names(names):
        return [str(name) for name in names]
    features = getattr(dataset, "features", None)
    if isinstance(features, Mapping):
        for key in LABEL_KEYS:
            names = getattr(features.get(key), "names", None)
            if _are_names(names):
                return [str(name) for name in names]
    if isinstance(dataset, Subset):
        return class_names_of(dataset.dataset, what)
    if isinstance(dataset, ConcatDataset):
        return agreed_names([class_names_of(part, what) for part in dataset.datasets], what)
    return None


def agreed_names(parts: Sequence[list[str] | None], what: str) -> list[str] | None:
    """The names that all ``parts`` have in common; None where one has none.

    Raises:
        InputError: two have different ones.
    """
    known = [names for names in parts if names is not None]
    other = next((names for names in known if names != known[0]), None)
    if other is not None:
        raise InputError(
            f"parts of dataset {what!r} have different classes ({_listed(known[0])}; {_listed(other)}), so "
            "that one label means two things; give class_names if it does not"
        )
    return known[0] if known and len(known) == len(parts) else None


def image_and_label(item: Any, where: str) -> tuple[Any, Any]:
    """The two parts of a dataset's item: a pair, or a dictionary with one of :data:`IMAGE_KEYS` and one of
    :data:`LABEL_KEYS`; what else it holds is left out.

    Raises:
        InputError: it is neither; the sentence names a dictionary's keys.

    Example:
        >>> image_and_label({"img": "pixels", "label": 3, "id": 17}, "item 0")
        ('pixels', 3)
        >>> image_and_label({"x": "pixels", "y": 3}, "item 0")
        Traceback (most recent call last):
        ...
        weightloom.errors.InputError: item 0 is a dictionary of 'x', 'y': it must have ...
    """
    if isinstance(item, Mapping):
        images, labels = ([key for key in keys if key in item] for keys in (IMAGE_KEYS, LABEL_KEYS))
        if len(images) != 1 or len(labels) != 1:
            raise InputError(
                f"{where} is a dictionary of {_listed(list(item))}: it must have one of "
                f"{', '.join(IMAGE_KEYS)} and one of {', '.join(LABEL_KEYS)}, or be a pair of an image and "
                "an integer label"
            )
        return item[images[0]], item[labels[0]]
    if isinstance(item, (str, bytes)):
        raise InputError(f"{where} is not a pair of an image and an integer label but text")
    try:
        image, label = item
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is not a pair of an image and an integer label") from error
    return image, label


def _are_names(value: Any) -> TypeGuard[Collection[Any]]:
    plain = isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Collection)
    return not plain and len(value) > 0


def _listed(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(str(name)[:40]) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown or "nothing"
