"""A network that knows its classes is measured by their names, never in another order unsaid."""

from __future__ import annotations

from weightloom.architectures import parse_architecture
from weightloom.fitting import initial_flats
from weightloom.generators import Sample


def test_a_network_that_knows_its_classes_is_measured_in_whatever_order_they_are_named(call, tmp_path):
    spec = parse_architecture("mlp(depth=1,width=4,classes=3,input=3x16x16)")
    file = tmp_path / "named.safetensors"
    Sample(spec, initial_flats(spec, [0])[0], {"class_names": ["3", "1", "7"]}).save(file)
    own = call("evaluate", str(file), "--task", "digits[3,1,7]", "--json").json
    other = call("evaluate", str(file), "--task", "digits[7,1,3]", "--json").json
    assert {**own, "seconds": 0} == {**other, "seconds": 0} and own["task"] == "digits[3,1,7]"
    other = call("evaluate", str(file), "--task", "digits[0,4,2]")
    assert other.code == 0 and "was made for 3, 1, 7" in other.err
    some = call("evaluate", str(file), "--task", "digits[0,1,2]").sentence(2)
    assert "no class '0', '2'" in some and "tells apart 3, 1, 7" in some
