"""The handwriting experiment of the paper on hypernetworks: `python benchmarks/strokes.py [--seeds 3]`.

LSTM, HyperLSTM, LayerNorm LSTM and LayerNorm HyperLSTM of equal size write Chinese characters stroke by
stroke; nats a step on held-out characters, and a picture of what two of them write by themselves.

Data: KanjiVG, characters drawn as curves, stroke by stroke in the order of writing (Ulrich Apel, CC BY-SA
3.0), as in the first sketch-rnn; no recordings of a pen. The output is that of Graves (arXiv 1308.0850,
section 4): a mixture of correlated normals for the next offset; and as in sketch-rnn (arXiv 1704.03477) three
states of the pen.

Every run is written to benchmarks/results/hypernetworks-strokes.json as it ends, and is not done again. The
networks behind the picture are kept in runs/strokes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypernetworks import CORES, HYPER, ROOT, Table, count, start_alike
from torch import Tensor, nn

from weightloom.io import cache_dir, load_tensors, save_tensors, sha256_of, write_bytes
from weightloom.seeding import seed_for, torch_generator

PACKAGE = "kanjivg==20260714"
SHA256 = "5190e7ec4eb513dbe6865b2ed52c58287fc10ea514b9409e4cf66ce7db41644d"
PICTURE = ROOT / "docs" / "assets" / "strokes.png"
WRITERS = ("LSTM", "HyperLSTM")
"""The cores in the picture."""
TEMPERATURE = 0.3
DOWN, LIFT, END = range(3)
"""What the pen does after a point: draws on to the next one, goes there in the air, or has done."""
CENTRE = 54.5
"""Of KanjiVG's square of 109 x 109; the pen starts there."""
TOLERANCE = 1.0
"""How far a polygon may be from its curve, in units of that square."""
NORMALS = 10
FLOOR = 0.02
"""Least standard deviation of a normal: some parts of characters were copied from one to another to the
last digit, and without a floor a density there has no bound."""
MOST_CORRELATION = 0.99
LONGEST = 100
"""Steps after which a character that is being written is broken off; the longest real one has 81."""


# ------------------------------------------------------------------------------------ drawings


def curve(path: str, points: int = 16) -> np.ndarray:
    """(n, 2) points along the ``d`` of an SVG path of cubic curves, ``points`` to a curve.

    Raises:
        ValueError: it has something else in it.
    """
    tokens = re.findall(r"[A-Za-z]|-?(?:\d+\.?\d*|\.\d+)", path)
    if not tokens or tokens[0] not in "Mm":
        raise ValueError(f"a path that does not begin with a move: {path!r}")
    at = handle = np.zeros(2)
    found: list[np.ndarray] = []
    s = np.linspace(0, 1, points + 1)[1:, None]
    command, place = "", 0
    while place < len(tokens):
        if tokens[place].isalpha():
            command, place = tokens[place], place + 1
        size = {"m": 2, "c": 6, "s": 4}.get(command.lower(), 0)
        if not size or (command in "Mm" and found):
            raise ValueError(f"a path that is not one line of curves: {path!r}")
        numbers = np.array([float(token) for token in tokens[place : place + size]]).reshape(-1, 2)
        place += size
        if command.islower():
            numbers = numbers + at
        if command in "Mm":
            at = handle = numbers[0]
            found.append(at[None])
            continue
        first = numbers[0] if command in "Cc" else 2 * at - handle
        handle, end = numbers[-2:]
        found.append(
            (1 - s) ** 3 * at + 3 * (1 - s) ** 2 * s * first + 3 * (1 - s) * s**2 * handle + s**3 * end
        )
        at = end
    return np.concatenate(found)


def simplify(points: np.ndarray, tolerance: float) -> np.ndarray:
    """The points that Ramer, Douglas and Peucker keep: no other is further than ``tolerance`` from them."""
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, -1]] = True
    parts = [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        along, inside = points[last] - points[first], points[first + 1 : last] - points[first]
        share = np.clip(inside @ along / max(float(along @ along), 1e-12), 0, 1)
        far = np.linalg.norm(inside - share[:, None] * along, axis=1)
        worst = int(far.argmax())
        if far[worst] > tolerance:
            middle = first + 1 + worst
            keep[middle] = True
            parts += [(first, middle), (middle, last)]
    return points[keep]


def steps_of(strokes: list[np.ndarray]) -> np.ndarray:
    """(T, 3): offset from the point before (at first from the centre), and what the pen does next."""
    points = np.concatenate(strokes)
    pen = np.full(len(points), DOWN)
    pen[np.cumsum([len(stroke) for stroke in strokes]) - 1] = LIFT
    pen[-1] = END
    offsets = np.diff(points, axis=0, prepend=[[CENTRE, CENTRE]])
    return np.concatenate([offsets, pen[:, None]], axis=1)


def strokes_of(steps: np.ndarray) -> list[np.ndarray]:
    """The way back; what comes after the end is left out."""
    ends = np.flatnonzero(steps[:, 2] == END)
    steps = steps[: ends[0] + 1] if len(ends) else steps
    points = CENTRE + np.cumsum(steps[:, :2], axis=0)
    return [part for part in np.split(points, np.flatnonzero(steps[:, 2] != DOWN) + 1) if len(part)]


def wheel() -> Path:
    """KanjiVG's package, fetched by pip once; none of its code is run."""
    path = cache_dir("corpora", f"{PACKAGE.replace('==', '-')}.whl")
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
            [found] = Path(folder).glob("*.whl")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, found.read_bytes())
    if sha256_of(path) != SHA256:
        raise SystemExit(f"{path} is not the {PACKAGE} that the figures were made from")
    return path


class Drawings:
    """Characters of the splits ``train``, ``validation`` and ``held-out``, offsets divided by ``spread``.

    A character's split follows from a hash of its number, a tenth each for validation and held-out. Only
    CJK ideographs, and each in its main form: other forms of a character would leak.
    """

    def __init__(self) -> None:
        self.splits: dict[str, list[Tensor]] = {"train": [], "validation": [], "held-out": []}
        with zipfile.ZipFile(wheel()) as archive:
            for name in sorted(archive.namelist()):
                match = re.fullmatch(r"kanji/([0-9a-f]{5})\.svg", name)
                if match is None or not 0x4E00 <= int(match[1], 16) <= 0x9FFF:
                    continue
                paths = re.findall(r'<path\b[^>]*\sd="([^"]+)"', archive.read(name).decode("utf8"))
                drawn = steps_of([simplify(curve(path), TOLERANCE) for path in paths])
                part = {0: "held-out", 1: "validation"}.get(seed_for("strokes", match[1]) % 10, "train")
                self.splits[part].append(torch.from_numpy(drawn).float())
        offsets = torch.cat([steps[:, :2] for steps in self.splits["train"]])
        self.spread = float(offsets.square().mean().sqrt())  # one for both axes: shapes stay
        for drawings in self.splits.values():
            for steps in drawings:
                steps[:, :2] /= self.spread


def batches(lengths: list[int], size: int, draw: torch.Generator) -> Iterator[list[int]]:
    """Without end: numbers of drawings of about equal length, so that little is padding."""
    while True:
        order = torch.randperm(len(lengths), generator=draw).tolist()
        pools = [order[at : at + 16 * size] for at in range(0, len(order), 16 * size)]
        cut = []
        for pool in pools:
            pool.sort(key=lambda number: lengths[number])
            cut += [pool[at : at + size] for at in range(0, len(pool), size)]
        for number in torch.randperm(len(cut), generator=draw).tolist():
            yield cut[number]


def pad(drawings: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (T, B, 5), the steps they are to foretell (T, B, 3), and which of those are real (T, B)."""
    lengths = torch.tensor([len(steps) for steps in drawings])
    targets = nn.utils.rnn.pad_sequence(drawings)
    real = torch.arange(len(targets))[:, None] < lengths
    return as_inputs(targets), targets, real


def as_inputs(targets: Tensor) -> Tensor:
    """(T, B, 3) to (T, B, 5): the step before, its pen one-hot; zeros before the first."""
    seen = torch.cat([targets[..., :2], F.one_hot(targets[..., 2].long(), 3).float()], dim=-1)
    return F.pad(seen, (0, 0, 0, 0, 1, 0))[:-1]


# ------------------------------------------------------------------------------------ model


class StrokeModel(nn.Module):
    """A recurrent core and a mixture density: 6 numbers for each normal, 3 for the pen."""

    def __init__(self, core: str, hidden: int) -> None:
        super().__init__()
        self.core, self.out = CORES[core](5, hidden), nn.Linear(hidden, 6 * NORMALS + 3)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(T, B, 5) to (T, B, 6 M + 3) and the state."""
        y, state = self.core(x, state)
        return self.out(y), state


def mixture(raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Logarithms of the shares (..., M), means and scales (..., M, 2), correlations, the pen's logits."""
    normals = raw[..., :-3].unflatten(-1, (6, -1))  # (..., 6 M) -> (..., 6, M)
    share, x, y, scale_x, scale_y, slant = normals.unbind(-2)
    scale = FLOOR + torch.stack([scale_x, scale_y], -1).exp()
    mean = torch.stack([x, y], -1)
    return F.log_softmax(share, -1), mean, scale, MOST_CORRELATION * slant.tanh(), raw[..., -3:]


def log_density(raw: Tensor, steps: Tensor) -> Tensor:
    """Logarithm of the density of each step (..., 3), in nats.

    Source: Graves, arXiv 1308.0850, equations 23 to 26; the pen has three states instead of two.
    """
    share, mean, scale, slant, pen = mixture(raw)
    u, v = ((steps[..., None, :2] - mean) / scale).unbind(-1)  # (..., M)
    rest = 1 - slant.square()
    square = (u.square() + v.square() - 2 * slant * u * v) / rest
    normal = -square / 2 - math.log(2 * math.pi) - scale.log().sum(-1) - rest.log() / 2
    states = F.log_softmax(pen, -1).gather(-1, steps[..., 2:].long())[..., 0]
    return torch.logsumexp(share + normal, -1) + states


def draw_step(raw: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """One step (B, 3) from each of (B, 6 M + 3).

    As in sketch-rnn, the temperature divides the logits and multiplies the variances.
    """
    share, mean, scale, slant, pen = mixture(raw)
    which = torch.multinomial((share / temperature).softmax(-1), 1, generator=draw)  # (B, 1)
    mean, scale = (part.gather(1, which[..., None].expand(-1, 1, 2))[:, 0] for part in (mean, scale))
    slant = slant.gather(1, which)
    noise = torch.randn(mean.shape, generator=draw, dtype=mean.dtype)
    u, v = noise.split(1, -1)
    both = torch.cat([u, slant * u + (1 - slant.square()).sqrt() * v], -1)  # correlated by slant
    state = torch.multinomial((pen / temperature).softmax(-1), 1, generator=draw)
    return torch.cat([mean + math.sqrt(temperature) * scale * both, state.to(mean.dtype)], -1)


@torch.no_grad()
def write(model: StrokeModel, number: int, temperature: float, draw: torch.Generator) -> list[Tensor]:
    """``number`` drawings (T, 3), each begun from nothing."""
    x, state, found = torch.zeros(1, number, 5), None, []
    for _ in range(LONGEST):
        raw, state = model(x, state)
        found.append(draw_step(raw[0], temperature, draw))
        x = torch.cat([found[-1][:, :2], F.one_hot(found[-1][:, 2].long(), 3).float()], -1)[None]
    return list(torch.stack(found, 1))


def of_size(core: str, budget: int) -> int:
    """The most hidden units with which the model has at most ``budget`` parameters."""
    hidden = 8
    with torch.device("meta"):
        while count(StrokeModel(core, hidden + 1)) <= budget:
            hidden += 1
    return hidden


# ------------------------------------------------------------------------------------ runs


@torch.no_grad()
def nats(model: StrokeModel, drawings: list[Tensor]) -> float:
    """Negative log-likelihood a step, over all steps of all drawings."""
    total, steps = 0.0, 0
    order = sorted(drawings, key=len)
    for at in range(0, len(order), 128):
        x, targets, real = pad(order[at : at + 128])
        total -= float(log_density(model(x)[0], targets)[real].double().sum())
        steps += int(real.sum())
    return total / steps


def fit(
    core: str, settings: dict[str, Any], rate: float, seed: str | int, data: Drawings
) -> tuple[StrokeModel, dict[str, Any]]:
    """Train one model with Adam and a cosine, characters stretched at random; nats on validation."""
    train = data.splits["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("strokes", "start", seed))
        model = StrokeModel(core, of_size(core, settings["budget"]))
        start_alike(model)
    draw = torch_generator("strokes", "batches", seed)
    numbers = batches([len(steps) for steps in train], settings["batch"], draw)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings["steps"])
    losses = []
    for _ in range(settings["steps"]):
        _, targets, real = pad([train[number] for number in next(numbers)])
        # The paper's augmentation: each axis longer or shorter by up to a tenth.
        stretch = 0.9 + 0.2 * torch.rand(targets.shape[1], 2, generator=draw)
        targets = torch.cat([targets[..., :2] * stretch, targets[..., 2:]], -1)
        loss = -log_density(model(as_inputs(targets))[0], targets)[real].mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise FloatingPointError(f"{core} at rate {rate}: the loss is {losses[-1]}")
    last = losses[-max(1, len(losses) // 20) :]
    return model.eval(), {
        "hidden": model.out.in_features,
        "parameters": count(model),
        "rate": rate,
        "last_training": sum(last) / len(last),
        "validation": nats(model, data.splits["validation"]),
    }


def tune(core: str, settings: dict[str, Any], rate: float, data: Drawings) -> dict[str, Any]:
    """A row that chooses the rate, from a start that no other row has; held-out characters are not seen."""
    try:
        return fit(core, settings, rate, "tuning", data)[1]
    except FloatingPointError:
        return {"rate": rate, "validation": None}


def chosen(rows: dict[str, dict[str, Any]], core: str) -> float:
    """The rate with the least loss on the validation split."""
    tried = [
        row
        for key, row in rows.items()
        if key.startswith(f"tuning {core}, ") and row["validation"] is not None
    ]
    return min(tried, key=lambda row: row["validation"])["rate"]


def kept(core: str, settings: dict[str, Any], rate: float) -> Path:
    """Where the network of the first seed is kept for the picture."""
    name = seed_for("strokes", core, json.dumps(settings, sort_keys=True), str(rate))
    return ROOT / "runs" / "strokes" / f"{name:016x}.safetensors"


def fit_and_keep(
    core: str, settings: dict[str, Any], rate: float, seed: int, data: Drawings
) -> dict[str, Any]:
    """A row of measuring; of the cores in the picture the first seed's network is kept."""
    model, row = fit(core, settings, rate, seed, data)
    if core in WRITERS and seed == 0:
        path = kept(core, settings, rate)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, model.state_dict())
    return {**row, "held_out": nats(model, data.splits["held-out"])}


def picture(settings: dict[str, Any], rates: dict[str, float], data: Drawings) -> bytes:
    """Two rows of held-out characters, and two of what each of the writers writes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns, number = 16, 32
    held = data.splits["held-out"]
    # In their order one radical after the other: evenly from all.
    rows = {"real, held out": held[:: len(held) // number][:number]}
    for core in WRITERS:
        path = kept(core, settings, rates[core])
        if not path.exists():
            fit_and_keep(core, settings, rates[core], 0, data)
        model = StrokeModel(core, of_size(core, settings["budget"]))
        model.load_state_dict(load_tensors(path)[0])
        made = write(model, number, TEMPERATURE, torch_generator("strokes", "picture"))
        rows[f"written by {core}, temperature {TEMPERATURE}"] = made
    figure = Figure(figsize=(columns * 0.62, 2 * len(rows) * 0.62 + 0.9), layout="constrained")
    for band, (name, drawings) in zip(
        figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows.items(), strict=True
    ):
        band.suptitle(name, fontsize=9, x=0.01, ha="left")
        for axes, steps in zip(band.subplots(2, columns).flat, drawings, strict=True):
            offsets = steps.numpy().astype(float) * [data.spread, data.spread, 1]
            strokes = strokes_of(offsets)
            # What leaves the square is shown smaller, not cut off.
            reach = max(CENTRE, *(float(np.abs(stroke - CENTRE).max()) for stroke in strokes)) + 4
            for stroke in strokes:
                axes.plot(*stroke.T, color="#222222", linewidth=0.9, solid_capstyle="round")
            axes.set(xlim=(CENTRE - reach, CENTRE + reach), ylim=(CENTRE + reach, CENTRE - reach))
            axes.set_aspect("equal")
            axes.axis("off")
    return png(FigureCanvasAgg(figure))


def png(canvas: Any) -> bytes:
    """In 16 greys, and without a date or a version inside: the same numbers give the same bytes."""
    from PIL import Image

    canvas.draw()
    drawn = io.BytesIO()
    Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]).convert("L").quantize(16).save(drawn, "png")
    return drawn.getvalue()


def main() -> None:
    """Read the command line, tune, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--budget", type=int, default=100_000, help="parameters of a model")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[0.003, 0.01, 0.03, 0.06], help="Adam's, to choose from"
    )
    options = parser.parse_args()
    data = Drawings()
    settings = {
        "steps": options.steps, "batch": options.batch, "budget": options.budget, **HYPER,
        "rates": options.rates, "data": PACKAGE, "tolerance": TOLERANCE, "spread": data.spread,
        "normals": NORMALS, "floor": FLOOR,
        "drawings": {name: len(drawings) for name, drawings in data.splits.items()},
        "data_steps": {name: sum(map(len, drawings)) for name, drawings in data.splits.items()},
    }  # fmt: skip
    table = Table("strokes", settings)
    rates = {}
    for core in CORES:
        for rate in options.rates:
            table.add(
                f"tuning {core}, rate {rate}",
                lambda c=core, r=rate: tune(c, settings, r, data),
            )
        rates[core] = chosen(table.rows, core)
    for seed in range(options.seeds):
        for core in CORES:
            table.add(
                f"{core}, seed {seed}",
                lambda c=core, s=seed: fit_and_keep(c, settings, rates[c], s, data),
            )
    write_bytes(PICTURE, picture(settings, rates, data))


if __name__ == "__main__":
    main()
