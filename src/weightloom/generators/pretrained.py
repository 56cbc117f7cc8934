"""Networks for photographs: a published trunk as it is, and a last layer from names, examples or both.

The last layer is written in closed form. Names give each class a row: the mean of the published rows of 1,000
kinds of objects, weighted by how alike the names are. Examples begin from it
(:mod:`weightloom.fitting.heads`); how much of it is taken is what answers left-out examples best. Pictures
without labels move the rows to where the pictures lie. Nothing is trained, nothing is drawn.

Shapes: C classes, N examples, U pictures without labels, H features, K published classes, P values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.conditioning.lexicon import define
from weightloom.conditioning.names import without_numbers
from weightloom.conditioning.text import TEXT_WIDTH, encode_text, reads_text
from weightloom.errors import CheckpointError
from weightloom.fitting import copies_of, interval_of
from weightloom.fitting.calibration import FEWEST
from weightloom.fitting.heads import Fitted, Head, Labelled, fit_head, spread_to
from weightloom.generators.base import (
    Generator,
    Request,
    Validity,
    generators,
    merge_reports,
)
from weightloom.generators.choice import LEFT_OUT
from weightloom.generators.class_names import told_names
from weightloom.generators.sample import Sample
from weightloom.generators.trunks import CHUNK, Trunk, features_of, trunk_of
from weightloom.io import dump_json, load_tensors, parse_json, read_json, save_tensors, write_json
from weightloom.tasks import TaskData
from weightloom.weights import layout_of

LIKENESS = 0.12
"""Temperature of the weights of published rows: of the cosine of two names."""

NAMES_FILE = "names.safetensors"


@generators.register("pretrained")
class Pretrained(Generator):
    """Finishes published trunks; ``vectors`` (K, E) are those of the published classes' names."""

    kind: ClassVar[str] = "pretrained"
    draws: ClassVar[bool] = False
    reads_names: ClassVar[bool] = True
    reads_unlabelled: ClassVar[bool] = True
    unlabelled_alone: ClassVar[bool] = True
    makes_statistics: ClassVar[bool] = True

    def __init__(
        self, vectors: Tensor, known: tuple[str, ...], validity: Validity, *, name: str = "pretrained"
    ) -> None:
        self.vectors, self.known, self.validity, self.name = vectors, known, validity, name

    @torch.no_grad()
    def sample_flats(self, request: Request) -> tuple[Tensor, list[dict[str, Any]]]:
        """(M, P), all alike.

        Raises:
            InputError: nothing names the classes and there are no examples.
            DataUnavailableError: the package with the trunk is not installed, or the sentence encoder where
                there are only names.
        """
        spec = request.architecture
        trunk = trunk_of(spec)
        told = told_names(request, self.name)
        names = tuple(told["class_names"])
        # In alphabetical order, and back at the end: sums do not depend on the order that was given.
        order = sorted(range(len(names)), key=lambda place: (names[place].casefold(), names[place]))
        shown = None if request.support is None else self._labelled(request, order)
        others = None
        if request.unlabelled is not None:
            others = features_of(spec, request.unlabelled, self.progress)
        rows, unknown = None, _unknown(names)
        # Beside one example a class nothing tells whether a name that is no word helps.
        told_all = not unknown or (shown is not None and shown.can_judge and len(unknown) < len(names))
        if shown is None or (told_all and reads_text()):
            rows = self.rows_of([names[place] for place in order], trunk)
        head, own = self._head(trunk, rows, shown, others)
        told |= {
            "batch_norm": "of the published network",
            "trunk": trunk.published.name,
            "trunk_package": trunk.published.package,
            "licence": f"trunk {trunk.published.name}: {trunk.published.licence}",
            "unknown_names": unknown,
        }
        if rows is not None:
            told["most_alike"] = self.most_alike(names)
        back = torch.argsort(torch.tensor(order))
        state = {**trunk.body, "head.weight": head.weight[back], "head.bias": head.bias[back]}
        flat = layout_of(spec).flatten(state)
        count = request.num_samples
        return flat.expand(count, -1).clone(), merge_reports(count, {**told, **own})

    def rows_of(self, names: list[str], trunk: Trunk) -> Head:
        """What the names say: rows of length 1, without biases. Raises DataUnavailableError without the
        sentence encoder.

        Source: means of known classifiers weighted by likeness, ConSE, Norouzi et al. (arXiv 1312.5650); here
        of the rows, each scaled to length 1.
        """
        vectors = F.normalize(encode_text(without_numbers(names)), dim=1)  # (C, E)
        weights = (vectors @ self.vectors.T / LIKENESS).softmax(1)  # (C, K)
        rows = F.normalize(weights @ trunk.rows, dim=1)  # (C, H)
        return Head(rows, rows.new_zeros(len(rows)))

    def most_alike(self, names: Sequence[str]) -> dict[str, str]:
        """Of each name, the published kind of object that is most like it."""
        found = (encode_text(without_numbers(list(names))) @ self.vectors.T).argmax(1)
        return {name: self.known[place] for name, place in zip(names, found.tolist(), strict=True)}

    def accuracies(self, samples: Sequence[Sample], data: TaskData) -> list[float]:
        """As every generator's; the pictures go through the trunk once, and what is kept of them is used."""
        heads = [Head(s.state_dict["head.weight"], s.state_dict["head.bias"]) for s in samples]
        right = [0] * len(heads)
        for start in range(0, len(data), CHUNK):
            images, labels = data.batch(torch.arange(start, min(start + CHUNK, len(data))))
            found = features_of(samples[0].architecture, images)
            for place, head in enumerate(heads):
                right[place] += int((head(found).argmax(1) == labels.cpu()).sum())
            if self.progress is not None:
                self.progress(min(start + CHUNK, len(data)), len(data))
        return [hits / len(data) for hits in right]

    def _labelled(self, request: Request, order: list[int]) -> Labelled:
        """The examples' features, with the classes in ``order``."""
        assert request.support is not None
        images = request.support.images[order]  # (C, S, 3, side, side)
        classes, shots = images.shape[:2]
        return Labelled(
            features=features_of(request.architecture, images.flatten(0, 1), self.progress),
            labels=torch.arange(classes).repeat_interleave(shots),
            classes=classes,
            copies=copies_of(images).cpu(),
        )

    def _head(
        self, trunk: Trunk, rows: Head | None, shown: Labelled | None, others: Tensor | None
    ) -> tuple[Head, dict[str, Any]]:
        """The last layer, and what the report says of it."""
        if shown is None:
            assert rows is not None
            if others is None:
                return rows.scaled(SURE), {"head": "from the names"}
            start = spread_to(rows.standardised(others, each=True), others, None)
            return start, {
                "head": "from the names and the pictures without labels",
                "unlabelled": len(others),
            }
        starts: list[tuple[str, Head]] = []
        if rows is not None:
            seen = shown.features if others is None else torch.cat([shown.features, others])
            starts.append(("the names", rows.standardised(seen, each=others is not None)))
            if others is not None:
                moved = spread_to(starts[0][1], others, None).standardised(seen, each=False)
                starts.append(("the names and the pictures without labels", moved))
        if others is not None and not shown.can_judge:
            # One example of a class: nothing to choose by, so that what helps on average is done.
            begin = starts[0][1] if starts else None
            moved = spread_to(begin, others, shown)
            what = "from the examples and the pictures without labels"
            said = {"head": what + (", and the names" if starts else ""), "unlabelled": len(others)}
            return moved, said | _scores(moved, shown)
        fitted = fit_head(shown, trunk.metric, [head for _, head in starts])
        begun = "nothing" if fitted.start is None else starts[fitted.start][0]
        said = {
            "head": f"ridge regression on the examples, from {begun}", "penalty": fitted.penalty,
            "share_of_start": fitted.share,
        }  # fmt: skip
        if others is not None:
            said["unlabelled"] = 0 if fitted.start is None else len(others)
        return fitted.head, said | _scores(fitted.head, shown, fitted)

    # ---------------------------------------------------------------- files

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and vectors; the trunks stay in their packages."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(
            folder / "config.json", {"kind": self.kind, "name": self.name, "validity": asdict(self.validity)}
        )
        save_tensors(
            folder / NAMES_FILE, {"vectors": self.vectors.half()}, {"names": dump_json(list(self.known))}
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Pretrained:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            CheckpointError: something is missing or broken.
        """
        folder = Path(folder)
        config = read_json(folder / "config.json")
        path = folder / NAMES_FILE
        tensors, metadata = load_tensors(path)
        names = parse_json("names", metadata.get("names", "[]"))
        vectors = tensors.get("vectors")
        if (
            vectors is None
            or vectors.ndim != 2
            or vectors.shape[1] != TEXT_WIDTH
            or len(vectors) != len(names)
        ):
            raise CheckpointError(path, "does not hold one vector for each of its names")
        try:
            validity = Validity.from_json(config["validity"])
            return cls(vectors.float(), tuple(names), validity, name=str(config["name"]))
        except (KeyError, TypeError) as error:
            raise CheckpointError(folder / "config.json", f"misses {error}") from error


def _scores(head: Head, shown: Labelled, fitted: Fitted | None = None) -> dict[str, Any]:
    """How the examples are answered: each by a head made without it, where there are several of its class."""
    said: dict[str, Any] = {}
    if fitted is not None and fitted.loss is not None:
        loss, hit, count = fitted.loss, fitted.accuracy, fitted.judged
        how = "each answered by a last layer that was fitted without it"
        said = {LEFT_OUT: how, "calibration": None}
        if count >= FEWEST:  # the outputs are scaled already
            said["calibration"] = {"temperature": 1.0, "on": f"{count:,} examples, {how}"}
    else:
        logits, count = head(shown.features), shown.pictures()
        loss = float(F.cross_entropy(logits, shown.labels))
        hit = float((logits.argmax(1) == shown.labels).float().mean())
    return said | {
        "support_loss": loss, "support_accuracy": hit, "support_interval": interval_of(hit, count),
        "support_images": count,
    }  # fmt: skip


SURE = 25.0
"""What the cosines of pictures to the names' rows are multiplied by to be logits."""


def _unknown(names: tuple[str, ...]) -> list[str]:
    """Names of which the dictionary knows no word."""
    known = without_numbers(names)
    return [
        name for name, bare in zip(names, known, strict=True) if not any(map(_word, [bare, *bare.split()]))
    ]


@lru_cache(maxsize=4096)
def _word(text: str) -> bool:
    return define(text) is not None
