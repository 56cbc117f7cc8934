"""A network that knows its classes is not measured against others unsaid."""

from __future__ import annotations

from weightloom.architectures import parse_architecture
from weightloom.fitting import initial_flats
from weightloom.generators import Sample


def test_a_network_that_knows_its_classes_is_not_measured_in_another_order(call, tmp_path):
    spec = parse_architecture("mlp(depth=1,width=4,classes=3,input=3x16x16)")
    file = tmp_path / "named.safetensors"
    Sample(spec, initial_flats(spec, [0])[0], {"class_names": ["3", "1", "7"]}).save(file)
    assert call("evaluate", str(file), "--task", "digits[3,1,7]").code == 0
    message = call("evaluate", str(file), "--task", "digits[7,1,3]").sentence(2)
    assert "in this order, 3, 1, 7" in message
    other = call("evaluate", str(file), "--task", "digits[0,1,2]")
    assert other.code == 0 and "was made for 3, 1, 7" in other.err
