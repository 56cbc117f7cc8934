"""Attention beside recurrence, as networks grow longer: `python benchmarks/long_networks.py`.

Denoisers of the sizes of recipes/diffusion-tiny.yaml, untrained, draw one perceptron of each width: tokens,
parameters, the processor's seconds and the memory that drawing adds. What the tokenizer adds by decoding is
measured apart; it is the same for both. Every cell is a process of its own. Prints a table and writes
benchmarks/results/long-networks.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from weightloom.architectures import parse_architecture
from weightloom.evaluation.measures import peak_mb
from weightloom.fitting import initial_flats
from weightloom.generators import Validity
from weightloom.generators.diffusion import MIXINGS, DiffusionConfig, LatentDiffusion
from weightloom.io import write_json
from weightloom.tokenizers import architecture_key
from weightloom.tokenizers.fsq import FSQTokenizer, FSQTokenizerConfig
from weightloom.weights import WeightStatistics, layout_of

RESULTS = Path(__file__).parent / "results"
WIDTHS = (64, 128, 256, 512, 1024)


def measure(mixing: str, width: int) -> dict[str, Any]:
    """One cell: draw the latents of ``mlp(depth=3)`` of this width, then decode them."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec = parse_architecture(f"mlp(depth=3,width={width})").resolve(classes=10, input=(3, 16, 16))
    statistics = WeightStatistics.measure([(layout_of(spec), initial_flats(spec, [0, 1]))])
    tokenizer = FSQTokenizer(
        FSQTokenizerConfig(chunk=288, codes=192, vocabulary=41, width=192, depth=1),
        {architecture_key(spec): statistics},
    )
    validity = Validity(
        architectures=(architecture_key(spec),), input=(3, 16, 16), min_classes=2, max_classes=10
    )
    config = DiffusionConfig(width=96, depth=2, steps=10, mixing=mixing)
    model = LatentDiffusion(config, tokenizer, validity).eval()
    condition = model.condition(spec, [None], [None])
    stream = torch.Generator().manual_seed(0)
    before = peak_mb(reset=True)
    start = time.process_time()
    latents = model.sample_latents(spec, condition, [stream])
    seconds, drawn = time.process_time() - start, peak_mb() - before
    before = peak_mb(reset=True)
    start = time.process_time()
    model.to_flats(spec, latents)
    return {
        "mixing": mixing, "width": width, "parameters": spec.num_parameters(), "tokens": latents.shape[1],
        "latents_mb": latents.nbytes / 2**20, "cpu_seconds": seconds, "mb": drawn,
        "decoding_cpu_seconds": time.process_time() - start, "decoding_mb": peak_mb() - before,
    }  # fmt: skip


def main() -> None:
    """All cells, one process each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cell", nargs="*", help="a mixing and a width, for one cell")
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(measure(options.cell[0], int(options.cell[1]))))
        return
    rows = []
    for width in WIDTHS:
        for mixing in MIXINGS:
            command = [sys.executable, __file__, mixing, str(width)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            rows.append(json.loads(done.stdout))
            row = rows[-1]
            drawing = f"{row['cpu_seconds']:8.2f} s {row['mb']:6.0f} MB"
            decoding = f"{row['decoding_cpu_seconds']:6.2f} s {row['decoding_mb']:6.0f} MB"
            size = f"{row['parameters']:>12,} values {row['tokens']:>7,} tokens"
            print(f"{size}  {mixing:10} {drawing}   decoding {decoding}", flush=True)
    write_json(RESULTS / "long-networks.json", {"rows": rows})


if __name__ == "__main__":
    main()
