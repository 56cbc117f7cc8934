"""One loop for everything that is trained here: optimiser, schedule, guards, checkpoints, logs.

The randomness of step s comes from the address (seed, s) alone, so a run that is stopped and resumed
draws what the uninterrupted run would have drawn. Where several processes train together, each takes a part
of every step's batch, and their gradients are added up. Knows nothing of tokenizers or generators.

Source of the data-parallel step: Li et al. (arXiv 2006.15704), section 3.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from weightloom.defaults import with_plain_defaults
from weightloom.errors import CheckpointError, SpecError, TrainingError
from weightloom.io import load_tensors, make_folder, read_json, save_tensors, sweep, write_json, write_text
from weightloom.training import parallel
from weightloom.training.parallel import Divisible, Part
from weightloom.training.sharding import Sharded, whole
from weightloom.whole import whole_fields, whole_number

Progress = Callable[[str, int, int], None]
"""Called with what is being trained, steps done and steps in all."""

Objective = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Loss of a step and the numbers worth logging. One that is :class:`weightloom.training.parallel.Divisible`
too can be trained by several processes, or in parts one after another."""


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """How long and how fast. The learning rate warms up, then falls along a cosine to a twentieth."""

    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50
    clip: float = 1.0
    log_every: int = 50
    save_every: int = 500
    max_bad_steps: int = 5
    """Steps in a row with a loss or gradient that is not finite before the run gives up."""
    average: float = 0.0
    """How much of the running average of the weights stays in a step; 0 for none. Evaluations and the trained
    modules have the averaged weights. In the first steps less stays, so that the start is soon forgotten."""
    accumulate: int = 1
    """Parts that a process does one after another and adds up: less memory, the same step."""
    precision: Literal["float32", "bf16"] = "float32"
    """``bf16``: products of matrices in half the bits, where torch's autocast thinks it safe."""
    compile: bool = False
    """Whether the model's own forward pass goes through ``torch.compile``."""
    shard: bool = False
    """Whether several processes divide the trained weights, gradients and Adam's memory among them."""

    def __post_init__(self) -> None:
        counts = ("steps", "log_every", "save_every", "max_bad_steps")
        whole_fields(self, {**dict.fromkeys(counts, (1, 10**9)), "warmup": (0, 10**9)})
        if not 0 < self.learning_rate <= 1 or not self.clip > 0:
            raise SpecError("learning_rate must be in (0, 1], clip above 0")
        if whole_number(self.accumulate, "accumulate", error=SpecError) < 1 or self.precision not in (
            "float32",
            "bf16",
        ):
            raise SpecError("accumulate must be at least 1, and precision float32 or bf16")
        if self.shard and self.compile:
            raise SpecError("shard and compile are not for the same run")
        if not 0 <= self.average < 1:
            raise SpecError(f"average must be from 0 to below 1, not {self.average!r}")


@dataclass
class _State:
    """Where a run is, besides its weights: what ``state.json`` holds."""

    step: int = 0
    file: str = ""
    """Which file holds the weights of that step; none at first."""
    log: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    """Of the numbers since the last entry of the log, with their ``counts``."""
    counts: dict[str, int] = field(default_factory=dict)
    skipped: int = 0
    """Steps since the last entry whose loss or gradient was not finite."""
    bad: int = 0
    """Such steps in a row up to now."""
    seconds: float = 0.0


_FILES = ("state-0.safetensors", "state-1.safetensors")


@with_plain_defaults
def run_loop(
    what: str,
    modules: nn.Module,
    objective: Objective,
    settings: LoopSettings,
    *,
    folder: str | Path | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    progress: Progress = lambda *_: None,
) -> list[dict[str, float]]:
    """Train the parameters of ``modules`` that require gradients; returns the log.

    A step whose loss or gradient is not finite is left out; the log says how many were (``skipped``).
    ``evaluate`` adds its numbers to the log every ``evaluate_every`` steps and at the end.

    Source of the average: Polyak and Juditsky (1992), "Acceleration of stochastic approximation by
    averaging", as an exponential one.

    With a ``folder`` the run keeps its state there (``state.json``, the weights beside it, ``log.jsonl``)
    and goes on from it when called again, by however many processes. Only the first one reads and writes.

    Raises:
        TrainingError: the loss or gradient was not finite ``max_bad_steps`` times in a row; the message
            names the step and where the last good state is.
        CheckpointError: the folder holds the state of another run.
        SpecError: a batch of the objective cannot be divided among the processes.
    """
    parallel.check_divisible(what, objective, parallel.count() * settings.accumulate)
    for number, other in enumerate(parallel.gather([what, settings.steps])):
        if other != [what, settings.steps]:
            raise TrainingError(f"process {number} is at {other[0]}, this one at {what}")
    parameters = {n: p for n, p in modules.named_parameters() if p.requires_grad}
    optimiser = _optimiser(parameters, settings)
    averages = {n: p.detach().clone() for n, p in parameters.items()} if settings.average else {}
    state = _State()
    store = None if folder is None or parallel.rank() > 0 else Path(folder)
    if store is not None:
        make_folder(store)
        sweep(store)
        if (store / "state.json").is_file():
            state = _restore(store, parameters, optimiser, averages, settings)
        # Lines beyond the kept state are of steps that are done again.
        write_text(store / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in state.log))
    state = _handed_on(state, parameters, optimiser, averages)
    started = time.perf_counter() - state.seconds
    batch = _Batch(modules, objective, settings)
    if batch.sharded is not None:
        parameters, optimiser, averages = _divided(batch.sharded, optimiser, averages, settings)
    for step in range(state.step, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings)
        optimiser.zero_grad(set_to_none=True)
        loss, numbers, finite = batch.gradient(step)
        norm = torch.tensor(math.inf)
        if finite:
            norm = batch.clip(parameters)
        if bool(torch.isfinite(norm)):
            optimiser.step()
            stays = min(settings.average, (step + 1) / (step + 10))
            for name, average in averages.items():
                average.lerp_(parameters[name].detach(), 1 - stays)
            state.bad = 0
            for name, value in {"loss": loss, **numbers}.items():
                state.sums[name] = state.sums.get(name, 0.0) + value
                state.counts[name] = state.counts.get(name, 0) + 1
        else:
            state.bad += 1
            state.skipped += 1
            if state.bad >= settings.max_bad_steps:
                where = "nothing was kept"
                if state.file:
                    where = f"the last good state, of step {state.step}, is in {store or 'its folder'}"
                batch.close()  # all processes are here
                raise TrainingError(
                    f"{what}: loss or gradient not finite {state.bad} times up to step {step + 1}; {where}"
                )
        done = step + 1
        last = done == settings.steps
        probed = evaluate is not None and evaluate_every > 0 and (last or done % evaluate_every == 0)
        if last or probed or done % settings.log_every == 0:
            entry = {"step": done, **{k: v / state.counts[k] for k, v in state.sums.items()}}
            if state.skipped:
                entry["skipped"] = state.skipped
            entry["seconds"] = time.perf_counter() - started
            if probed:
                assert evaluate is not None
                with _swapped(parameters, averages), batch.gathered():
                    entry |= evaluate(done)
            state.log.append(entry)
            state.sums, state.counts, state.skipped = {}, {}, 0
            if store is not None:
                with (store / "log.jsonl").open("a") as stream:
                    stream.write(json.dumps(entry) + "\n")
        if last or done % settings.save_every == 0:
            state.step, state.seconds = done, time.perf_counter() - started
            tensors = _tensors(parameters, optimiser, averages)
            if store is not None:
                _keep(store, state, tensors, settings)
        progress(what, done, settings.steps)
    with torch.no_grad():
        for name, average in averages.items():
            parameters[name].copy_(average)
    batch.close()
    return state.log


def _optimiser(parameters: dict[str, nn.Parameter], settings: LoopSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [
            {
                "params": [p for p in parameters.values() if p.dim() > 1],
                "weight_decay": settings.weight_decay,
            },
            {"params": [p for p in parameters.values() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.98),
    )


def _divided(
    sharded: Sharded, old: torch.optim.Optimizer, averages: dict[str, Tensor], settings: LoopSettings
) -> tuple[dict[str, nn.Parameter], torch.optim.AdamW, dict[str, Tensor]]:
    """This process's share of parameters, of what the optimiser knows of them, and of averages."""
    parameters = sharded.parameters()
    optimiser = _optimiser(parameters, settings)
    # Groups list the parameters in the order of their names, before and after.
    names = {parameter: name for name, parameter in parameters.items()}
    for before, after in zip(old.param_groups, optimiser.param_groups, strict=True):
        for one, other in zip(before["params"], after["params"], strict=True):
            for key, value in old.state.get(one, {}).items():
                held = value if key == "step" else sharded.divided(names[other], value)
                optimiser.state[other][key] = held
    return parameters, optimiser, {n: sharded.divided(n, average) for n, average in averages.items()}


class _Step(nn.Module):
    """The objective as a module around the trained ones, which is what data parallelism takes."""

    def __init__(self, modules: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.modules_, self.objective = modules, objective
        self.numbers: dict[str, float] = {}
        self.sharded: Sharded | None = None

    def forward(self, step: int, part: Part) -> Tensor:
        """The loss of a part; its numbers are left in ``numbers``."""
        if part.count == 1:
            loss, self.numbers = self.objective(step)
            return loss
        assert isinstance(self.objective, Divisible)
        loss, self.numbers = self.objective(step, part)
        if self.sharded is not None:
            return self.sharded.joined(loss)
        if not loss.requires_grad:  # nothing of this part teaches anything, but the others wait for it
            loss = loss + 0.0 * next(p for p in self.parameters() if p.requires_grad).flatten()[0]
        return loss


class _Batch:
    """Loss and gradient of a step's whole batch, part by part, over all processes."""

    def __init__(self, modules: nn.Module, objective: Objective, settings: LoopSettings) -> None:
        self.modules, self.settings = modules, settings
        self.local = _Step(modules, objective)
        self.shared: DistributedDataParallel | None = None
        self.sharded: Sharded | None = None
        if parallel.count() > 1 and settings.shard:
            self.sharded = self.local.sharded = Sharded(self.local, modules)
        elif parallel.count() > 1:
            # Which weights have a part in a step differs from step to step, and from part to part.
            self.shared = DistributedDataParallel(self.local, find_unused_parameters=True)
            self.shared.register_comm_hook(None, lambda _, bucket: parallel.added_up(bucket))
        if settings.compile:
            modules.compile()

    def gradient(self, step: int) -> tuple[float, dict[str, float], bool]:
        """The loss and its numbers; whether it is finite, and its gradient therefore in the weights."""
        processes, accumulate = parallel.count(), self.settings.accumulate
        device = next(self.modules.parameters()).device.type
        run = self.shared or self.local
        total, numbers, finite = 0.0, dict[str, float](), True
        for turn in range(accumulate):
            part = Part(parallel.rank() * accumulate + turn, processes * accumulate)
            last = turn == accumulate - 1
            # Gradients travel with the last part.
            alone = nullcontext() if self.shared is None or last else self.shared.no_sync()
            if self.sharded is not None:
                self.sharded.begin(last)
            with alone:
                with torch.autocast(device, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                    loss = run(step, part)
                total += float(loss.detach())
                for name, value in self.local.numbers.items():
                    numbers[name] = numbers.get(name, 0.0) + value
                if last:
                    total, numbers = _added(parallel.gather([total, numbers]))
                finite = math.isfinite(total)
                # All processes or none: each waits for the others' gradients. Shards are given back by it.
                if finite or not last or self.sharded is not None:
                    loss.backward()
        if self.sharded is not None:
            self.sharded.finish()
        return total, numbers, finite

    def clip(self, parameters: dict[str, nn.Parameter]) -> Tensor:
        """Shorten the gradient to the settings' length; its length before."""
        if self.sharded is not None:
            return self.sharded.clip(self.settings.clip)
        return nn.utils.clip_grad_norm_(parameters.values(), self.settings.clip)

    def gathered(self) -> AbstractContextManager[None]:
        """The weights as a whole in the modules, for as long as this lasts."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    def close(self) -> None:
        """Leave the modules as they were."""
        self.shared = None
        if self.sharded is not None:
            self.sharded.close()
        if self.settings.compile:
            self.modules._compiled_call_impl = None


def _added(told: list[tuple[float, dict[str, float]]]) -> tuple[float, dict[str, float]]:
    """Losses and numbers of all processes together.

    Example:
        >>> _added([(1.0, {"a": 1.0}), (2.0, {"a": 1.0, "b": 3.0})])
        (3.0, {'a': 2.0, 'b': 3.0})
    """
    numbers: dict[str, float] = {}
    for _, own in told:
        for name, value in own.items():
            numbers[name] = numbers.get(name, 0.0) + value
    return sum(total for total, _ in told), numbers


def _handed_on(
    state: _State,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    averages: dict[str, Tensor],
) -> _State:
    """The state of the first process, with its weights and what the optimiser knows, for all."""
    if parallel.count() == 1:
        return state
    known = [n for n, p in parameters.items() if p in optimiser.state]
    said, known = parallel.from_first([asdict(state), known])
    state = _State(**said)
    for name in known:
        p = parameters[name]
        if p not in optimiser.state:
            optimiser.state[p] = {
                "step": torch.zeros(()),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    with torch.no_grad():
        parallel.copy_from_first(p.data for p in parameters.values())
        parallel.copy_from_first(iter(averages.values()))
        for name in known:
            held = optimiser.state[parameters[name]]
            parallel.copy_from_first(held[key] for key in ("step", "exp_avg", "exp_avg_sq"))
    return state


@contextmanager
def _swapped(parameters: dict[str, nn.Parameter], averages: dict[str, Tensor]) -> Iterator[None]:
    """The averaged weights in the place of the current ones, for a while."""
    kept = {name: parameters[name].detach().clone() for name in averages}
    try:
        with torch.no_grad():
            for name, average in averages.items():
                parameters[name].copy_(average)
        yield
    finally:
        with torch.no_grad():
            for name, current in kept.items():
                parameters[name].copy_(current)


def _rate(step: int, settings: LoopSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    along = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


def _tensors(
    parameters: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer, averages: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What a state keeps, as a whole: every process has to take part where they are divided."""
    tensors = {f"weight.{n}": whole(p.detach()).contiguous() for n, p in parameters.items()}
    tensors |= {f"average.{n}": whole(average).contiguous() for n, average in averages.items()}
    for name, p in parameters.items():
        # Adam counts a parameter's own steps: it has none where a step gave that parameter no gradient.
        for key, value in optimiser.state.get(p, {}).items():
            tensors[f"{key}.{name}"] = whole(value).contiguous()
    return tensors


def _keep(store: Path, state: _State, tensors: dict[str, Tensor], settings: LoopSettings) -> None:
    # Never the file that the note names: a kill between the weights and the note leaves the older pair whole.
    state.file = _FILES[0] if state.file == _FILES[1] else _FILES[1]
    save_tensors(store / state.file, tensors, {"step": str(state.step)})
    write_json(store / "state.json", {"steps": settings.steps, **asdict(state)})


def _restore(
    store: Path,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    averages: dict[str, Tensor],
    settings: LoopSettings,
) -> _State:
    note = read_json(store / "state.json")
    state = _read_note(store / "state.json", note)
    if note["steps"] != settings.steps:
        raise CheckpointError(store, f"holds a run of {note['steps']} steps, not of {settings.steps}")
    tensors, metadata = load_tensors(store / state.file)
    if metadata.get("step") != str(state.step):
        raise CheckpointError(store, "the state and its note are of different steps")
    held = {name.removeprefix("weight.") for name in tensors if name.startswith("weight.")}
    for name in sorted(held ^ parameters.keys()):
        raise CheckpointError(store, f"holds another model: weight {name!r} is in one of the two only")
    with torch.no_grad():
        for name, p in parameters.items():
            if tensors[f"weight.{name}"].shape != p.shape:
                raise CheckpointError(store, f"holds another model: weight {name!r} does not fit")
            p.copy_(tensors[f"weight.{name}"])
            if name in averages:
                if f"average.{name}" not in tensors:
                    raise CheckpointError(store, "holds a run without averaged weights")
                averages[name].copy_(tensors[f"average.{name}"])
            if f"exp_avg.{name}" in tensors:
                optimiser.state[p] = {
                    "step": tensors.get(f"step.{name}", torch.tensor(float(state.step))),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(p.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(p.device),
                }
    return state


def _read_note(path: Path, note: Any) -> _State:
    try:
        state = _State(**{name: value for name, value in note.items() if name != "steps"})
        fits = 0 < state.step <= note["steps"] and state.file in _FILES
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(path, f"not the note of a training run ({error})") from None
    if not fits:
        raise CheckpointError(path, "not the note of a training run")
    return state
