"""Write the names of the 1,000 published classes of photographs, and their vectors.

    pip download --no-deps timm==1.0.31 && python benchmarks/names/photo_names.py timm-1.0.31-py3-none-any.whl

The names are WordNet's (its licence stands beside the lexicon), in the order of the published last layers;
the wheel of timm (Apache-2.0) lists them. The vectors are the sentence encoder's, of each class's first name.
"""

from __future__ import annotations

import sys
import zipfile

import torch

from weightloom.conditioning import encode_text
from weightloom.generators.load import BUNDLED
from weightloom.io import dump_json, save_tensors


def main(wheel: str) -> None:
    """Read the wheel and write the vectors with their names."""
    with zipfile.ZipFile(wheel) as archive:
        synsets = archive.read("timm/data/_info/imagenet_synsets.txt").decode().split()
        lines = archive.read("timm/data/_info/imagenet_synset_to_lemma.txt").decode().splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines)
    names = [lemmas[synset].split(",")[0].strip() for synset in synsets]
    vectors = torch.nn.functional.normalize(encode_text(names), dim=1).half()
    path = BUNDLED / "pretrained" / "names.safetensors"
    save_tensors(path, {"vectors": vectors}, {"names": dump_json(names)})
    print(path, tuple(vectors.shape))


if __name__ == "__main__":
    main(sys.argv[1])
