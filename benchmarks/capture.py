"""Which classifiers of torchvision and timm have a graph: `python benchmarks/capture.py [--only NAME ...]`.

Prints a row for each model and writes benchmarks/results/ghn-capture.json. A model counts as handled when
every parameter that its forward pass uses, and every batch-norm statistic, belongs to a node. Needs
torchvision and timm, which the package itself never does; models are made on the meta device where they
allow it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weightloom.architectures.capture import capture_graph
from weightloom.errors import UnsupportedLayerError, WeightloomError
from weightloom.io import write_json

RESULTS = Path(__file__).parent / "results"

# One small member of each family: the members of a family differ in widths and depths.
_NAMES = """
bat_resnext26ts beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 cait_xxs24_224 coat_tiny
coatnet_0_rw_224 convformer_s18 convit_tiny convmixer_768_32 convnext_atto convnextv2_atto cs3darknet_s
cspresnet50 davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224 deit3_small_patch16_224
densenet121 dla34 dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 efficientnet_b0
efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 focalnet_tiny_srf gcresnet33ts
gcvit_xxtiny gernet_s ghostnet_100 halonet26t hardcorenas_a hgnet_tiny hrnet_w18_small
inception_next_tiny inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_050
legacy_senet154 levit_128s maxvit_tiny_rw_224 mixer_s16_224 mixnet_s mnasnet_050 mobilenetv2_050
mobilenetv3_small_050 mobilenetv4_conv_small mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_tiny
nasnetalarge nest_tiny nf_regnet_b0 nfnet_f0 pit_ti_224 pnasnet5large poolformer_s12 poolformerv2_s12
pvt_v2_b0 regnetx_002 regnety_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resmlp_12_224
resnest14d resnet18 resnet50 resnetv2_50 resnext50_32x4d rexnet_100 selecsls42 semnasnet_050 seresnet18
skresnet18 spnasnet_100 swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 tinynet_e tiny_vit_5m_224
tnt_s_patch16_224 tresnet_m twins_pcpvt_small vgg11 visformer_tiny vit_tiny_patch16_224 vitamin_small_224
volo_d1_224 wide_resnet50_2 xception41 xcit_nano_12_p16_224 starnet_s1 hiera_tiny_224 mambaout_femto
"""
TIMM = _NAMES.split()


def _make(build: Any) -> nn.Module:
    """The model on the meta device, or on the CPU where its constructor reads numbers."""
    try:
        with torch.device("meta"):
            return build()
    except (RuntimeError, NotImplementedError):
        return build()


def models(only: set[str]) -> Any:
    """(library, name, input, constructor) of every model."""
    try:
        library = torch.library.Library(
            "torchvision", "DEF"
        )  # a CPU-only torch lacks what its wheel asks for
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    except RuntimeError:
        pass
    import timm
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        if not only or name in only:
            side = 299 if name == "inception_v3" else 224

            def build(name: str = name) -> nn.Module:
                extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
                return torchvision.models.get_model(name, weights=None, **extra)

            yield "torchvision", name, (3, side, side), build
    for name in TIMM:
        if not only or name in only:
            size = (
                timm.get_pretrained_cfg(name).input_size if timm.is_model_pretrained(name) else (3, 224, 224)
            )
            yield "timm", name, tuple(size), lambda name=name: timm.create_model(name, pretrained=False)


def measure(build: Any, shape: tuple[int, ...]) -> dict[str, Any]:
    """One row of the table."""
    module = _make(build)
    start = time.perf_counter()
    try:
        graph = capture_graph(module, shape)
    except UnsupportedLayerError as error:
        return {"handled": False, "why": sorted({f"{kind}: {why}" for _, kind, why in error.layers})}
    except WeightloomError as error:
        return {"handled": False, "why": [str(error)]}
    seconds = time.perf_counter() - start
    statistics_of = {n for n, _ in module.named_buffers() if n.endswith(("running_mean", "running_var"))}
    wanted = {n for n, _ in module.named_parameters()} - set(graph.unused)
    missing = sorted((wanted - graph.owner.keys()) | {
        n for n in statistics_of - graph.owner.keys()
        if f"{n.rpartition('.')[0]}.weight" not in graph.unused
    })  # fmt: skip
    return {
        "handled": not missing,
        "why": [f"no node holds {name}" for name in missing[:3]],
        "nodes": len(graph),
        "edges": len(graph.edges),
        "heads": len(graph.heads),
        "unused": len(graph.unused),
        "how": graph.how,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=RESULTS / "ghn-capture.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: dict[str, Any] = {}
    for library, name, shape, build in models(set(options.only)):
        try:
            row = measure(build, shape)
        except Exception as error:  # the constructor's own trouble is a row too, and no fault of the capture
            row = {
                "handled": None,
                "why": [f"cannot be made here: {type(error).__name__}: {str(error)[:200]}"],
            }
        rows[f"{library}/{name}"] = row
        gc.collect()
        told = f"{row['nodes']} nodes, {row['seconds']:.2f} s" if row["handled"] else "; ".join(row["why"])
        print(f"{library:12} {name:36} {row['handled']!s:6} {told}", flush=True)
    made = [row for row in rows.values() if row["handled"] is not None]
    good = [row for row in made if row["handled"]]
    summary = {
        "models": len(made),
        "handled": len(good),
        "share": len(good) / max(len(made), 1),
        "median_seconds": statistics.median(row["seconds"] for row in good) if good else None,
        "by_export": sum(row["how"] != "recorded" for row in good),
        "not_made": len(rows) - len(made),
    }
    print(summary)
    if not options.only:
        write_json(options.out, {"summary": summary, "models": rows})


if __name__ == "__main__":
    main()
