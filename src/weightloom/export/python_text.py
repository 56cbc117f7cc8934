"""The fixed parts of the Python file. Braces are doubled where they are the file's own.

The first two lines are fixed: Python reads there in which encoding a file is, which no stranger may say.
"""

HEAD = """# Written by Weightloom. Plain PyTorch: nothing but torch is needed, and Pillow for pictures.
#
{title}
#
#     python THIS_FILE picture.png        what is in a picture
#     load()                              the network, (B, *INPUT) -> logits (B, classes)

import base64
import json
import pathlib
import sys

import torch
import torch.nn.functional as F

ABOUT = {about}
CLASS_NAMES = {class_names}
INPUT = {input}  # channels, height, width
MEAN, SCALE = {mean!r}, {scale!r}  # (byte - MEAN) * SCALE is what the network reads
TEMPERATURE = {temperature!r}  # softmax(logits / TEMPERATURE) are probabilities

"""

INSIDE = '''
TENSORS = {table}


def weights():
    """Names to tensors."""
    raw = bytearray(base64.b85decode("".join(_WEIGHTS.split())))
    held, at = {{}}, 0
    for name, shape, kind in TENSORS:
        count = 1
        for side in shape:
            count *= side
        kind = getattr(torch, kind)
        held[name] = torch.frombuffer(raw, dtype=kind, count=count, offset=at).reshape(shape).clone()
        at += count * kind.itemsize
    return held


_WEIGHTS = """
{rows}
"""
'''

BESIDE = '''
FILE = pathlib.Path(__file__).with_name({name})


def weights():
    """Names to tensors, from the safetensors file beside this one."""
    kinds = {{"F32": torch.float32, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32}}
    raw = bytearray(FILE.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    held = {{}}
    for name, entry in json.loads(raw[8:start]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            kind = kinds[entry["dtype"]]
            count = (end - first) // kind.itemsize
            flat = torch.frombuffer(raw, dtype=kind, count=count, offset=start + first)
            held[name] = flat.reshape(entry["shape"]).clone()
    return held
'''

TAIL = '''{weights}
LEARNED = {learned}


class Network(torch.nn.Module):
    """Pictures (B, *INPUT) to logits (B, classes). Batch norms keep their statistics."""

    def __init__(self, tensors):
        super().__init__()
        for name, values in tensors.items():
            if name in LEARNED:
                self.register_parameter(name, torch.nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def forward(self, x):
{body}


def load():
    """The network with its weights."""
    return Network(weights()).eval()


def read(picture):
    """(1, *INPUT) from a Pillow image: upright, its central square, what is transparent on white."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if INPUT[0] == 1 else "RGB")
    wide, high = picture.size
    side = min(wide, high)
    box = ((wide - side) / 2, (high - side) / 2, (wide + side) / 2, (high + side) / 2)
    picture = picture.resize((INPUT[2], INPUT[1]), Image.Resampling.BILINEAR, box=box)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    pixels = pixels.reshape(1, INPUT[1], INPUT[2], INPUT[0]).permute(0, 3, 1, 2)
    return (pixels.float() - MEAN) * SCALE


def shown(text):
    """Text of others for a terminal: what it would obey is spelt out."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def main():
    """Say what is in each picture that is named."""
    from PIL import Image

    network = load()
    for name in sys.argv[1:]:
        with Image.open(name) as picture, torch.inference_mode():
            found = (network(read(picture)) / TEMPERATURE).softmax(1)[0]
        best = found.argsort(descending=True)[:3].tolist()
        said = ("%s (%.1f %%)" % (shown(CLASS_NAMES[i]), 100 * found[i]) for i in best)
        print(shown(name) + ": " + ", ".join(said))


if __name__ == "__main__":
    main()
'''
