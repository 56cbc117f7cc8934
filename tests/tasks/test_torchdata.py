from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, random_split

from weightloom.errors import InputError
from weightloom.tasks import TorchTask, ValueRanges, read_pictures

GREY = np.zeros((8, 8), np.uint8)


class Pairs(Dataset):
    def __init__(self, pairs: list) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple:
        return self.pairs[index]


def tensors(count: int = 30, low: float = 0.0) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 20, 20, generator=generator) * (1 - low) + low
    return TensorDataset(images, torch.arange(count) % 3)


def test_a_torch_dataset_is_a_task():
    task = TorchTask(tensors(), name="mine")
    assert task.class_names == ["class 0", "class 1", "class 2"] and task.num_classes == 3
    assert len(task.data("train")) + len(task.data("test")) == 30 and len(task.data("test")) > 0
    assert str(task) == "torch:mine" and task.support(4).images.shape == (3, 4, 3, 16, 16)
    assert "class 1" in task.describe()


def test_given_test_images_are_the_test_images():
    task = TorchTask(tensors(30), tensors(9), class_names=["a", "b", "c"], size=20)
    assert (len(task.data("train")), len(task.data("test"))) == (30, 9)
    images, _ = task.data("test").all()
    assert torch.allclose(images, tensors(9).tensors[0] * 2 - 1, atol=0.01)


def test_floats_from_minus_one_are_understood():
    images, _ = TorchTask(tensors(30, -1.0), tensors(6, -1.0), size=20).data("train").all()
    assert torch.allclose(images, tensors(30, -1.0).tensors[0], atol=0.01)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (9, 7), "white"),
        Image.new("RGBA", (9, 7), "white"),
        Image.new("L", (9, 7), 255),
        np.full((7, 9), 255, np.uint8),
        np.full((7, 9, 3), 255, np.uint8),
        np.full((7, 9, 1), 255, np.uint8),
        torch.full((7, 9), 255, dtype=torch.uint8),
        torch.full((1, 7, 9), 255, dtype=torch.uint8),
        torch.full((4, 7, 9), 255, dtype=torch.uint8),
        torch.ones(3, 7, 9, dtype=torch.float64),
    ],
    ids=str,
)
def test_every_kind_of_image(image):
    dark = np.zeros((7, 9), np.uint8)
    task = TorchTask(Pairs([(image, 0), (dark, 1)]), Pairs([(image, 0)]))
    images, labels = task.data("train").all()
    assert images.shape == (2, 3, 16, 16) and (images[0] == 1).all() and (images[1] == -1).all()
    assert labels.tolist() == [0, 1]


class Files(Dataset):
    """Pictures as torchvision's folders give them, or opened and not decoded yet."""

    def __init__(self, files: list, decode: bool = False) -> None:
        self.files, self.decode = files, decode

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple:
        image = Image.open(io.BytesIO(self.files[index].read_bytes()))
        if self.decode:
            image.load()
        return image, index % 2


@pytest.mark.parametrize("decode", [False, True])
def test_pil_images_become_what_their_files_become_in_a_folder(tmp_path, decode):
    ramp = np.tile(np.linspace(0, 1, 30), (20, 1))
    colours = np.stack([ramp, 1 - ramp, ramp**2, ramp], -1)
    colour = Image.fromarray((colours * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = colour.convert("RGB").quantize(8)
    images = {
        "rgba.png": (colour, {}), "turned.jpg": (colour.convert("RGB"), {"exif": exif}),
        "la.png": (colour.convert("LA"), {}), "palette.png": (palette, {"transparency": 2}),
        "inks.tif": (colour.convert("CMYK"), {}), "bits.png": (colour.convert("1"), {}),
        "deep.png": (Image.fromarray((ramp * 4000).astype(np.uint16)), {}),
        "float.tif": (Image.fromarray(ramp.astype(np.float32)), {}),
        "signed.tif": (Image.fromarray((ramp * 2000 - 1000).astype(np.int32)), {}),
    }  # fmt: skip
    for name, (image, options) in images.items():
        image.save(tmp_path / name, **options)
    files = [tmp_path / name for name in images]
    task = TorchTask(Files(files, decode), Files(files[:2], decode))
    found = ((task.data("train").all()[0] + 1) * 127.5).round().to(torch.uint8).numpy()
    wanted = read_pictures(files, 16, 3)
    assert (found == wanted.pixels).all() and task.ranges == wanted.ranges
    assert task.ranges == ValueRanges(sixteen=(0, 4095), integers=(-1024, 1023), floats=(0, 1))


def test_test_images_are_scaled_as_the_training_images_are(tmp_path):
    ramp = np.tile(np.linspace(0, 1, 16), (16, 1))
    for name, most in (("a", 3000), ("b", 4000), ("c", 900), ("d", 9000)):
        Image.fromarray((ramp * most).astype(np.uint16)).save(tmp_path / f"{name}.png")
    train = Files([tmp_path / "a.png", tmp_path / "b.png"])
    images, _ = TorchTask(train, Files([tmp_path / "c.png"])).data("test").all()
    assert round((float(images.max()) + 1) * 127.5) == round(900 / 4095 * 255)
    with pytest.raises(InputError, match=r"item 0 of the test images .* from 0 to 9000, outside the range"):
        TorchTask(train, Files([tmp_path / "d.png"])).data("test")


def test_images_that_cannot_be_read_are_one_sentence(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 30), dtype=np.uint8)).save(good)
    for name, content, words in (
        (
            "x.png",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
            "EPS file, which is not read",
        ),
        ("y.png", b"hello", "cannot be read .*cannot identify"),
        ("z.png", good.read_bytes()[:-200], "truncated"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"item 1 of the train images of dataset 'custom' .*{words}"):
            TorchTask(Files([good, tmp_path / name])).data("train")


def test_grey_images_are_not_called_colour():
    pairs = [(Image.fromarray(GREY + 9 * i), i % 2) for i in range(6)]
    assert TorchTask(Pairs(pairs)).describe().startswith("grey-scale pictures")
    pairs.append((Image.new("RGB", (8, 8), "red"), 0))
    assert TorchTask(Pairs(pairs)).describe().startswith("colour pictures")


def test_classes_of_the_dataset_are_its_names():
    pairs = Pairs([(np.zeros((8, 8), np.uint8), 0), (np.ones((8, 8), np.uint8), 1)])
    pairs.classes = ["zero", "one"]
    assert TorchTask(pairs).class_names == ["zero", "one"]


def named(*names: str, count: int = 30) -> TensorDataset:
    dataset = tensors(count)
    dataset.classes = list(names)
    return dataset


def test_names_survive_subsets_and_put_together_datasets():
    whole, names = named("cat", "dog", "eel"), ["cat", "dog", "eel"]
    inner = Subset(whole, range(20))
    halves = random_split(whole, [21, 9], generator=torch.Generator().manual_seed(0))
    for dataset in (inner, Subset(inner, range(12)), halves[0], ConcatDataset([whole, inner])):
        assert TorchTask(dataset).class_names == names
        assert TorchTask(dataset).support(2).class_names == tuple(names)
    assert TorchTask(Subset(tensors(), range(9))).class_names == ["class 0", "class 1", "class 2"]
    assert TorchTask(ConcatDataset([whole, tensors()])).class_names == ["class 0", "class 1", "class 2"]
    assert TorchTask(halves[0], halves[1]).class_names == names
    assert TorchTask(tensors(), Subset(whole, range(6))).class_names == names


def test_parts_whose_labels_mean_different_things_are_refused():
    one, other = named("cat", "dog", "eel"), named("dog", "cat", "eel")
    for make in (
        lambda **o: TorchTask(ConcatDataset([one, other]), **o),
        lambda **o: TorchTask(one, other, **o),
    ):
        with pytest.raises(InputError, match=r"different classes .*'cat', 'dog', 'eel'; 'dog', 'cat', 'eel'"):
            make()
        assert make(class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]


def test_items_may_be_dictionaries():
    pairs = [(np.full((8, 8), 20 * n, np.uint8), n % 2) for n in range(10)]
    plain = TorchTask(Pairs(pairs), size=8).data("train").all()[0]
    for image, label in (("image", "label"), ("img", "target"), ("image", "labels")):
        items = Pairs([{image: pixels, label: own, "id": 7} for pixels, own in pairs])
        items.features = {label: type("ClassLabel", (), {"names": ["off", "on"]})()}
        task = TorchTask(items, size=8)
        assert task.class_names == ["off", "on"] and torch.equal(task.data("train").all()[0], plain)
    for item, keys in (
        ({"x": GREY, "y": 0}, "'x', 'y'"),
        ({"image": GREY, "img": GREY, "label": 0}, "'image', 'img', 'label'"),
        ({"image": GREY}, "'image'"),
        ({}, "nothing"),
    ):
        with pytest.raises(
            InputError, match=f"item 0 .* is a dictionary of {keys}: it must have one of image"
        ):
            TorchTask(Pairs([item])).data("train")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(GREY, 0), (GREY, "x")], "item 1 .* not a pair"),
        ([(GREY,), (GREY,)], "not a pair"),
        ([(GREY, 0), (GREY, 1.5)], "integer label: its label is 1.5"),
        ([(GREY, 0), (GREY, "1")], "integer label: its label is '1'"),
        ([(GREY, 0), (GREY, torch.tensor([0.0, 1.0]))], "integer label: its label is tensor"),
        ([(GREY, 0), (GREY, True)], "integer label: its label is True"),
        ([(GREY, 0), "ab"], "item 1 .* but text"),
        ([(torch.zeros(3, 8, 8).to_sparse(), 0), (GREY, 1)], "item 0 .* is sparse_coo"),
        ([(torch.zeros(3, 8, 8, device="meta"), 0), (GREY, 1)], "item 0 .* has no values"),
        ([(GREY, 0), (GREY, -1)], "label -1"),
        ([(GREY, 1)], "one class only"),
        ([(GREY, 0), (GREY, 10**12)], "no train image of class 'class 1'"),
        ([(GREY, 0), (GREY, 0)], "one class only"),
        ([(GREY, 0), (GREY, 2)], "no train image of class 'class 1'"),
        ([("text", 0), (GREY, 1)], "item 0"),
        ([(torch.zeros(5, 8, 8), 0), (GREY, 1)], "no image"),
        ([(torch.zeros(3, 0, 8), 0), (GREY, 1)], "no image"),
        ([(torch.zeros(3, 8, 8, dtype=torch.int64), 0), (GREY, 1)], "bytes or floats"),
        ([(torch.full((3, 8, 8), 200.0), 0), (GREY, 1)], r"must lie in \[0, 1\]"),
        ([(torch.full((3, 8, 8), float("nan")), 0), (GREY, 1)], "must lie in"),
    ],
)
def test_bad_items(pairs, words):
    with pytest.raises(InputError, match=words):
        TorchTask(Pairs(pairs)).data("train")


def test_bad_datasets():
    with pytest.raises(InputError, match="has no images"):
        TorchTask(Pairs([]))
    with pytest.raises(InputError, match="has no images"):
        TorchTask(object())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="2 class names"):
        TorchTask(tensors(), class_names=["a", "b"]).data("train")
    with pytest.raises(InputError, match="no 'valid'"):
        TorchTask(tensors()).data("valid")
    with pytest.raises(InputError, match="between 0 and 1"):
        TorchTask(tensors(), test_fraction=2)
