"""One loop for everything that is trained here: optimiser, schedule, guards, checkpoints, logs.

The randomness of step s comes from the address (seed, s) alone, so a run that is stopped and resumed
draws what the uninterrupted run would have drawn. Knows nothing of tokenizers or generators.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from weightloom.errors import CheckpointError, SpecError, TrainingError
from weightloom.io import load_tensors, read_json, save_tensors, write_json

Progress = Callable[[str, int, int], None]
"""Called with what is being trained, steps done and steps in all."""

Objective = Callable[[int], tuple[Tensor, dict[str, float]]]
"""Loss of a step and the numbers worth logging."""


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

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.learning_rate <= 1 or self.warmup < 0 or self.clip <= 0:
            raise SpecError(
                "steps must be at least 1, learning_rate in (0, 1], warmup not negative, clip above 0"
            )


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

    With a ``folder`` the run keeps its state there (``state.safetensors``, ``state.json``, ``log.jsonl``)
    and goes on from it when called again.

    Raises:
        TrainingError: the loss or gradient was not finite ``max_bad_steps`` times in a row; the message
            names the step and where the last good state is.
        CheckpointError: the folder holds the state of another run.
    """
    parameters = {n: p for n, p in modules.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
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
    first = 0
    log: list[dict[str, float]] = []
    store = None if folder is None else Path(folder)
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        if (store / "state.json").is_file():
            first, log = _restore(store, parameters, optimiser, settings)
    bad, started, sums, counts = 0, time.perf_counter(), dict[str, float](), dict[str, int]()
    for step in range(first, settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * _rate(step, settings)
        loss, numbers = objective(step)
        optimiser.zero_grad(set_to_none=True)
        norm = torch.tensor(math.inf)
        if bool(torch.isfinite(loss)):
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters.values(), settings.clip)
        if bool(torch.isfinite(norm)):
            optimiser.step()
            bad = 0
            for name, value in {"loss": float(loss.detach()), **numbers}.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
        else:
            bad += 1
            if bad >= settings.max_bad_steps:
                where = f"the last good state is in {store}" if store else "nothing was kept"
                raise TrainingError(
                    f"{what}: loss or gradient not finite {bad} times up to step {step}; {where}"
                )
        done = step + 1
        if done % settings.log_every == 0 or done == settings.steps:
            entry = {"step": done, **{k: v / counts[k] for k, v in sums.items()}}
            entry["seconds"] = time.perf_counter() - started
            if (
                evaluate is not None
                and evaluate_every
                and (done % evaluate_every == 0 or done == settings.steps)
            ):
                entry |= evaluate(done)
            log.append(entry)
            sums, counts = {}, {}
            if store is not None:
                with (store / "log.jsonl").open("a") as stream:
                    stream.write(json.dumps(entry) + "\n")
        if store is not None and (done % settings.save_every == 0 or done == settings.steps):
            _keep(store, done, parameters, optimiser, log, settings)
        progress(what, done, settings.steps)
    return log


def _rate(step: int, settings: LoopSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    along = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, along)))


def _keep(
    store: Path,
    step: int,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    log: list[dict[str, float]],
    settings: LoopSettings,
) -> None:
    tensors = {f"weight.{n}": p.detach().contiguous() for n, p in parameters.items()}
    for name, p in parameters.items():
        for key, value in optimiser.state.get(p, {}).items():
            if value.dim():
                tensors[f"{key}.{name}"] = value.contiguous()
    # Two files by turns: a kill between the weights and the note of them leaves the older pair whole.
    file = (
        f"state-{step % 2 if step % settings.save_every else (step // settings.save_every) % 2}.safetensors"
    )
    save_tensors(store / file, tensors, {"step": str(step)})
    write_json(store / "state.json", {"step": step, "file": file, "steps": settings.steps, "log": log})


def _restore(
    store: Path,
    parameters: dict[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    settings: LoopSettings,
) -> tuple[int, list[dict[str, float]]]:
    state = read_json(store / "state.json")
    step = int(state["step"])
    if state["steps"] != settings.steps:
        raise CheckpointError(store, f"holds a run of {state['steps']} steps, not of {settings.steps}")
    tensors, metadata = load_tensors(store / str(state["file"]))
    if metadata.get("step") != str(step):
        raise CheckpointError(store, "the state and its note are of different steps")
    with torch.no_grad():
        for name, p in parameters.items():
            held = tensors.get(f"weight.{name}")
            if held is None or held.shape != p.shape:
                raise CheckpointError(store, f"holds another model: weight {name!r} does not fit")
            p.copy_(held)
            if f"exp_avg.{name}" in tensors:
                optimiser.state[p] = {
                    "step": torch.tensor(float(step)),
                    "exp_avg": tensors[f"exp_avg.{name}"].clone(),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].clone(),
                }
    return step, list(state["log"])
