"""Icons: what they show by their names, how they are drawn, how they are split."""

from __future__ import annotations

import numpy as np
import pytest

from weightloom.tasks.datasets import icons
from weightloom.tasks.store import SourceSilent, datasets


@pytest.mark.parametrize(
    ("icon_set", "icon", "shown"),
    [
        ("ph", "coffee-bean-duotone", "coffee bean"),
        ("mdi", "home-outline", "home"),
        ("tabler", "number-3", "number"),
        ("material-symbols", "outline-cake-24px", "cake"),
        ("noto", "waving-hand-light-skin-tone", None),
        ("noto", "flag-for-france", None),
        ("twemoji", "birthday-cake", "birthday cake"),
        ("mdi", "a-very-long-name-of-things", None),
    ],
)
def test_an_icon_is_named_without_its_style(icon_set, icon, shown):
    assert icons.concept(icon_set, icon) == shown


def test_the_list_says_what_the_dataset_holds():
    info, counts = datasets.get("icons"), icons.listed()
    assert info.class_names == tuple(counts) and min(counts.values()) >= 3 and len(counts) > 2000
    assert sum(info.counts.values()) == sum(counts.values())
    assert "share" not in info.licence.lower() and "SA" not in info.licence


def test_of_every_class_one_icon_in_five_is_for_testing(monkeypatch):
    monkeypatch.setattr(icons, "listed", lambda: {"cat": 10, "dog": 3})
    images = np.zeros((13, 3, 32, 32), np.uint8)
    split = icons._split(images, [(0, n * 7 % 11) for n in range(10)] + [(1, n) for n in range(3)])
    labels = {name: np.bincount(own[1]).tolist() for name, own in split.items()}
    assert labels == {"train": [8, 2], "test": [2, 1]}


def test_drawings_are_on_white_and_fit_the_picture():
    pytest.importorskip("resvg_py")
    content = {
        "width": 24, "height": 12,
        "icons": {
            "bar": {"body": '<rect width="24" height="12" fill="currentColor"/>'},
            "gone": {"body": "<path/>", "hidden": True},
        },
    }  # fmt: skip
    drawn = icons.drawings(content)
    assert list(drawn) == ["bar"]
    pixels = icons.render(drawn["bar"])
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.uint8
    assert pixels[:, 16, 16].tolist() == [0, 0, 0] and pixels[:, 0, 0].tolist() == [255, 255, 255]


def test_a_drawing_reads_no_file(tmp_path):
    pytest.importorskip("resvg_py")
    from PIL import Image

    Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / "red.png")
    body = f'<image href="{tmp_path}/red.png" width="8" height="8"/>'
    for one in (
        body,
        body.replace("image", "svg:image"),
        f"<filter>{body.replace('image', 'feImage')}</filter>",
    ):
        with pytest.raises(SourceSilent, match="a picture inside"):
            icons.render(icons.drawing(one, (0, 0, 8, 8)))
