"""``weightloom generate``: words, examples and an architecture in, a network with measured accuracy out."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from weightloom.cli.choosing import AUTO, answer, compared_facts, limits_of
from weightloom.cli.consolidated import retrieve
from weightloom.cli.curves import curve_intervals, curves_of, draw
from weightloom.cli.folders import data_counts, data_facts, data_report
from weightloom.cli.inputs import (
    SMALL,
    DataFolder,
    Instruction,
    Json,
    SkipBroken,
    TaskName,
    calm_threads,
    check_out,
    check_shots,
    plain_text,
)
from weightloom.cli.naming import Classes, GeneratorOrNone, Shown, given_names
from weightloom.cli.output import (
    bar,
    emit,
    facts,
    measured,
    note,
    percent,
    progress,
    say,
    seconds_text,
    table,
    working,
)
from weightloom.cli.plots import MEASURES, PLOT_SUFFIXES
from weightloom.cli.reasons import show_reasons
from weightloom.errors import InputError

if TYPE_CHECKING:
    from weightloom.generators import Generator
    from weightloom.tasks import SupportSet, Task


SAMPLE_FACTS = ("support_accuracy", "support_interval", "support_images", "support_loss", "novelty")
"""Of a sample's report, what is told of each sample."""


_OF_WORDS = (
    "class_names", "unknown_names", "transform", "expected_accuracy", "instruction_lists", "unlabelled",
    "support_scores",
)  # fmt: skip
"""What the report of a network from words says of them, and of the pictures beside them."""


def generate(
    instruction: Instruction = None,
    task: TaskName = None,
    data: DataFolder = None,
    skip_broken: SkipBroken = False,
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            "--unlabelled",
            metavar="FOLDER",
            help="More pictures of the same classes, in any folders, whose classes are not known: they are "
            "used beside the examples, or beside the names of --classes alone.",
        ),
    ] = None,
    arch: Annotated[
        str,
        typer.Option(
            "--arch",
            metavar="SPEC",
            help="The architecture, such as 'cnn(depth=3,width=16)' or 'efficientnet-lite(size=2)'; auto: "
            "the examples choose.",
        ),
    ] = AUTO,
    classes: Classes = None,
    generator: GeneratorOrNone = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", help="How many networks to generate: 4, or 1 where nothing is drawn."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same networks.")] = 0,
    shots: Annotated[
        int | None,
        typer.Option(
            "--shots",
            help="Examples of each class, from the training images, to look at. Left out: up to 2,000 in "
            "all, or 16 a class, as far as the budget reaches; 16 with --arch or --generator.",
        ),
    ] = None,
    budget: Annotated[
        str,
        typer.Option("--budget", metavar="TIME", help="What choosing may take, such as 60s or 5m."),
    ] = "60s",
    max_params: Annotated[
        int | None,
        typer.Option(
            "--max-params",
            help="Most parameters of the network: smaller ones are chosen, larger ones refused.",
        ),
    ] = None,
    target: Annotated[
        Literal["mcu", "edge", "any"],
        typer.Option(
            "--target", help="Where it is to run: mcu, at most 100,000 parameters; edge, 5 million."
        ),
    ] = "any",
    temperature: Annotated[
        float, typer.Option("--temperature", help="0 takes the likeliest code everywhere.")
    ] = 0.1,
    top_k: Annotated[int, typer.Option("--top-k", help="Draw from so many likeliest codes; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from codes of this share; 1: all.")] = 1.0,
    guidance: Annotated[
        float, typer.Option("--guidance", help="Classifier-free guidance; 1 is the plain distribution.")
    ] = 1.0,
    batch_norm: Annotated[
        Literal["support", "generated"],
        typer.Option(
            "--batch-norm",
            help="Measure batch-norm statistics anew on the examples (no labels), or keep those generated.",
        ),
    ] = "support",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Save the best network, as .safetensors."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Fine-tune and draw accuracy against steps (.png, .pdf, .svg)."
        ),
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Steps of fine-tuning that --plot draws.")] = 200,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare/--no-compare", help="Compare with random weights and with the training checkpoints."
        ),
    ] = True,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which part of the request drove the result: accuracy without each, nearest training "
            "checkpoints, attention. Needs --task or --data.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    r"""Generate the weights of a network.

    The best of the samples is the one with the lowest loss on the examples; test images are never used to
    choose. Without a task or a folder, name the classes: a network is made from their names alone.

    Examples:
        weightloom generate "Sort small photos" --classes 'cat, dog, truck' --out cdt.safetensors
        weightloom generate "Recognise handwritten digits" --task digits
        weightloom generate "Tell apart pictures of clothing" --task fashion-mnist \
            --arch 'resnet(depth=8,width=8)' --samples 8 --out clothing.safetensors
        weightloom generate --data photos/ --arch 'cnn(depth=5,width=24)' --plot photos.png
        weightloom generate --data photos/ --shots 1 --unlabelled camera-roll/
    """
    started = time.perf_counter()
    out = check_out(out, (".safetensors",), "--out")
    plot = check_out(plot, PLOT_SUFFIXES, "--plot")
    if plot is not None and task is None and data is None:
        raise InputError("--plot draws fine-tuning on real images, so it needs --task or --data")
    if explain and task is None and data is None:
        raise InputError("--explain measures on real images, so it needs --task or --data")
    if unlabelled is not None and task is None and data is None and classes is None:
        raise InputError(
            "--unlabelled gives more pictures, so it needs --classes, --task or --data beside it"
        )
    if shots is not None:
        check_shots(shots)
    limits = limits_of(budget, max_params, target)
    if not 1 <= steps <= MEASURES[-1]:
        raise InputError(f"--steps must be from 1 to {MEASURES[-1]:,}, not {steps}")

    from weightloom.conditioning.text import check_instruction
    from weightloom.generators import Sampling, best_of
    from weightloom.generators.consolidated import is_consolidated

    if instruction is not None:
        instruction = check_instruction(plain_text(instruction, "instruction"))
    names = given_names(classes)
    folder = None if generator is None else Path(plain_text(generator, "generator")).expanduser()
    if folder is not None and is_consolidated(folder):
        if task is not None or data is not None or plot is not None:
            raise InputError(
                "a consolidated checkpoint comes as it is; --task, --data and --plot are for generators"
            )
        retrieve(folder, instruction, out, as_json=as_json)
        return
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance)
    shown = Shown(
        task=task, data=data, unlabelled=unlabelled, skip_broken=skip_broken, shots=shots, seed=seed,
        batch_norm=batch_norm,
    )  # fmt: skip
    found = answer(arch, generator, names, instruction, shown, limits)
    model, spec, target_task, support, others = (
        found.model,
        found.spec,
        found.target,
        found.support,
        found.others,
    )
    for name, value in vars(sampling).items():
        if value != getattr(Sampling, name) and name not in model.heeds:
            note(f"note: --{name.replace('_', '-')} changes nothing of what {model.name} makes")
    shape = model.validity.input_for(spec)
    calm_threads(spec.resolve(classes=spec.classes or len(names or ()) or 10, input=shape).num_parameters())
    folder_report = data_report(target_task)
    if found.sample is not None and samples in (None, 1) and sampling == Sampling():
        made = [found.sample]
    else:
        with progress() as move:
            model.progress = lambda done, total: move("looking at pictures", done, total)
            made = model.generate_many(
                spec,
                instruction=instruction,
                classes=names,
                support=support,
                unlabelled=others,
                num_samples=samples if samples is not None else _samples(model, support),
                seed=seed,
                sampling=sampling,
                batch_norm=batch_norm,
            )
    seconds = sum(sample.report["seconds"] for sample in made)
    resolved = made[0].architecture
    chosen = best_of(made)
    best = next(i for i, sample in enumerate(made) if sample is chosen)

    from weightloom.fitting import counted

    accuracies: list[float | None] = [None] * len(made)
    images = None if target_task is None else len(target_task.data("test"))
    if target_task is not None:
        with progress() as move:
            model.progress = lambda done, total: move("measuring", done, total)
            accuracies = [*model.accuracies(made, target_task.data("test"))]
    from weightloom.cli.baselines import Baselines, baselines

    compared = Baselines()
    if compare and resolved.num_parameters() < SMALL:
        with working("comparing"):
            compared = baselines(model, made, target_task, support, seed)
    reasons = None
    if explain:
        assert target_task is not None
        from weightloom.evaluation.explain import explain as reasons_of

        with working("explaining"):
            pixels, labels = target_task.data("test").all()
            reasons = reasons_of(
                model,
                resolved,
                instruction=instruction,
                support=support,
                unlabelled=others,
                batch_norm=batch_norm,
                images=pixels,
                labels=labels,
                seed=seed,
                sampling=sampling,
            )
    curves = None
    if plot is not None:
        assert target_task is not None
        curves = curves_of(chosen, compared, target_task, steps, seed)
        draw(plot, curves, chosen, target_task, compared)
    if out is not None:
        extra = {
            "task": None if target_task is None else str(target_task),
            "data": data_counts(folder_report),
            **counted(accuracies[best], images),
        }
        replace(chosen, report={**chosen.report, **extra}).for_task(target_task, support).save(out)

    parameters = resolved.num_parameters()
    result = {
        "generator": model.name,
        "instruction": instruction,
        "generators_compared": found.losses or None,
        "compared": None if found.routed is None else found.routed.to_json(),
        **{name: chosen.report.get(name) for name in _OF_WORDS},
        "architecture": resolved.full_text(),
        "task": None if target_task is None else str(target_task),
        "data": folder_report,
        "num_parameters": parameters,
        "num_samples": len(made),
        "initial_codes": chosen.report.get("initial_codes"),
        "part": chosen.report.get("part"),
        "head": chosen.report.get("head"),
        "batch_norm": chosen.report.get("batch_norm"),
        "seed": seed,
        "seconds": seconds,
        "params_per_second": parameters * len(made) / max(seconds, 1e-9),
        "total_seconds": time.perf_counter() - started,
        "test_images": images,
        "samples": [
            {
                **counted(accuracies[i], images),
                **{name: sample.report.get(name) for name in SAMPLE_FACTS},
            }
            for i, sample in enumerate(made)
        ],
        "best": {"file": out, "sample": best, **counted(accuracies[best], images)},
        "baselines": compared.to_json(),
        "baseline_intervals": compared.intervals(images),
        "nearest": compared.nearest,
        "explanation": reasons,
        "curves": curves,
        "curve_intervals": None if curves is None else curve_intervals(curves, images),
        "plot": plot,
    }
    if as_json:
        emit(result)
    else:
        _show(result, target_task)
        # Where nothing is named, the sentence may have chosen the generator.
        if instruction is not None and not model.reads_words and (generator or arch != AUTO or support):
            note(f"{model.name} reads no words: the instruction has changed nothing")
        if names is not None and not model.reads_names:
            note(f"{model.name} reads no class names: they have changed nothing")
        if others is not None and not chosen.report.get("unlabelled"):
            note(f"the {len(others):,} pictures without labels are not used: answers are better without them")
        if support is None and len(made) == 1 and model.reads_names and (seed or temperature != 0.1):
            note("one network without examples is the likeliest: --seed and --temperature change nothing")
        if len(made) > 1 and not model.draws:
            note(f"{model.name} draws nothing: its samples are all alike")


def _samples(model: Generator, support: SupportSet | None) -> int:
    """How many networks are worth making: where nothing can choose among them, the likeliest alone."""
    if not model.draws or (model.reads_names and (support is None or support.shots == 1)):
        return 1
    return 4


def _show(result: dict[str, Any], task: Task | None) -> None:
    """The result for people."""
    from weightloom.conditioning.names import shown_names

    count, parameters, norms = result["num_samples"], result["num_parameters"], result["batch_norm"]
    say(
        f"{result['generator']} generated {count} network{'s' * (count > 1)} "
        f"of {parameters:,} parameters in {seconds_text(result['seconds'])} "
        f"({result['params_per_second']:,.0f} parameters a second)",
        style="bold",
    )
    facts(
        [
            ("instruction", result["instruction"]),
            ("loss on left-out examples", _losses(result["generators_compared"])),
            *compared_facts(result["compared"]),
            ("classes", None if result["class_names"] is None else shown_names(result["class_names"], 12)),
            ("architecture", result["architecture"]),
            ("task", None if task is None else f"{task}: {task.describe()}"),
            *data_facts(result["data"]),
            ("made by its part", result["part"]),
            ("starts from", result["initial_codes"]),
            ("last layer", result["head"]),
            ("pictures without labels", result["unlabelled"]),
            ("batch-norm statistics", norms if norms != "none" else None),
            ("pictures taken as", "they are" if result["transform"] == "id" else result["transform"]),
            ("accuracy to expect", _expected(result["expected_accuracy"])),
        ]
    )
    if result["instruction_lists"]:
        note(
            f"the instruction lists other classes ({shown_names(result['instruction_lists'])}); those above "
            "are used"
        )
    if result["unknown_names"]:
        told = "what the network answers there is a guess" if task is None else "only the examples tell"
        names = shown_names(result["unknown_names"])
        note(f"no word of {names} is known to {result['generator']}: {told}")
    if task is None and count == 1:  # nothing to measure it on, and nothing to choose
        _show_files(result)
        return
    say()
    best = result["best"]["sample"]
    rows = []
    compared = any(sample["novelty"] is not None for sample in result["samples"])
    for i, sample in enumerate(result["samples"]):
        far = sample["novelty"]
        near = (_distance(far), None if far is None else far.get("nearest_task") or far.get("nearest"))
        rows.append(
            (
                f"{i + 1}{' *' if i == best else ''}",
                measured(sample["support_accuracy"], sample["support_images"]),
                measured(sample["accuracy"], sample["num_images"]),
                *(near if compared else ()),
            )
        )
    columns = ["sample", "on the examples", "on test images"]
    columns += ["novelty", "nearest checkpoint's task"] if compared else []
    table(columns, rows, numbers=columns[1:4])
    if task is None:
        note("* the first one: without --task or --data there are no examples to choose by")
        lines = []
    else:
        say(
            f"* lowest loss on the {result['samples'][0]['support_images']:,} examples"
            + (f", {result['support_scores']}; " if result["support_scores"] else "; ")
            + ("novelty 1 = the zoo's own spacing; " if compared else "")
            + f"{result['test_images']:,} test images; in brackets: 95 % intervals"
        )
        say()
        against = result["baselines"]
        mean = sum(s["accuracy"] for s in result["samples"]) / count
        nearest = result["nearest"]
        lines = [
            ("generated, best", result["best"]["accuracy"], ""),
            ("generated, mean", mean, ""),
            ("nearest checkpoint", against["nearest_checkpoint"], _made_for(nearest)),
            ("trained", against["trained"], "mean of the zoo's own networks of this task"),
            ("random initialisation", against["random_init"], ""),
        ]
        images = result["test_images"]
        shown = [
            (name, percent(value) if name == "trained" else measured(value, images), bar(value), remark)
            for name, value, remark in lines
            if value is not None
        ]
        table(["network", "accuracy", "", ""], shown, numbers=["accuracy"])
    if result["explanation"] is not None:
        show_reasons(result["explanation"])
    _show_files(result)


def _expected(accuracy: float | None) -> str | None:
    """From words alone: a forecast, which is off by eight points on average."""
    if accuracy is None:
        return None
    return f"about {100 * accuracy:.0f} %, less where classes look alike (measure it: weightloom evaluate)"


def _show_files(result: dict[str, Any]) -> None:
    say()
    facts(
        [
            ("saved", result["best"]["file"]),
            ("curves", result["plot"]),
            ("time in all", seconds_text(result["total_seconds"])),
        ]
    )


def _distance(far: dict[str, Any] | None) -> str | None:
    """A sample's distance to the nearest checkpoint in units of the checkpoints' own spacing."""
    if far is None or not far.get("distance"):
        return None
    spacing = far.get("zoo_spacing") or 0
    return f"{far['distance'] / spacing:.2f}" if spacing > 0 else f"{far['distance']:.3f}"


def _losses(compared: dict[str, float] | None) -> str | None:
    """Why this generator answers."""
    if compared is None:
        return None
    return ", ".join(f"{name} {value:.2f}" for name, value in compared.items())


def _made_for(nearest: dict[str, Any] | None) -> str:
    return "" if nearest is None else f"trained for {nearest.get('task')}"
