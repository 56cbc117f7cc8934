from __future__ import annotations

import pytest
import torch

from weightloom.architectures import parse_architecture
from weightloom.errors import InputError
from weightloom.evaluation import Checkpoints, Novelty, Usual, overlap, verdict_of, wrong_answers
from weightloom.evaluation.novelty import RULE, VERDICTS, _mixture
from weightloom.fitting import initial_flats, run_networks
from weightloom.seeding import torch_generator
from weightloom.weights import WeightStatistics, layout_of, permute, random_permutations
from weightloom.weights.mixing import add_noise

SPEC = parse_architecture("cnn(depth=2,width=8,classes=3,input=1x8x8)")


@pytest.fixture(scope="module")
def flats():
    noise = torch.rand(10, layout_of(SPEC).size, generator=torch.Generator().manual_seed(0))
    return initial_flats(SPEC, list(range(10))) + 0.05 * noise


@pytest.fixture(scope="module")
def checkpoints(flats):
    return Checkpoints(SPEC, flats)


def test_a_permuted_copy_is_found_whatever_its_order(checkpoints, flats):
    hidden = torch.stack([permute(SPEC, flats[row], random_permutations(SPEC, row)) for row in range(10)])
    for row, one in enumerate(checkpoints.compare(hidden)):
        assert one.nearest == row and one.distance < 1e-4 and one.distance_before > 0.5
        assert one.hull < 1e-4 and one.largest_weight > 0.999


def test_distances_are_those_of_trainable_values_in_units_of_spread(checkpoints, flats):
    layout = layout_of(SPEC)
    trained = torch.tensor([not slot.is_buffer for slot in layout.slots])[layout.slot_of_value]
    moved = flats[:1].clone()
    moved[:, ~trained] += 1.0  # batch-norm statistics do not count
    assert checkpoints.compare(moved)[0].distance < 1e-5
    # Every tensor moved by its own spread: distance one.
    head = [s.name for s in layout.slots].index("head.weight")
    spread = (flats - flats.mean(0))[:, layout.slot_of_value == head].square().mean().sqrt()
    moved = flats[:1].clone()
    moved[:, layout.slot_of_value == head] += spread
    share = float((layout.slot_of_value == head).sum() / trained.sum())
    # The head is centred on one mean row of its classes, so its spread is a little larger than this.
    assert checkpoints.compare(moved)[0].distance == pytest.approx(share**0.5, rel=0.1)


def test_the_nearest_mixture_is_found():
    stream = torch.Generator().manual_seed(0)
    columns = torch.randn(6, 500, generator=stream)
    weights = torch.tensor([0.5, 0.3, 0.2, 0, 0, 0])
    distance, largest, _ = _mixture(columns, weights @ columns)
    assert distance < 1e-3 and largest == pytest.approx(0.5, abs=1e-3)
    # Outside: the nearest point of the simplex, checked against many others.
    one = torch.randn(500, generator=stream)
    distance, largest, structure = _mixture(columns, one)
    assert structure >= 0
    tries = torch.distributions.Dirichlet(torch.ones(6)).sample((2000,))
    others = (tries @ columns - one).square().mean(1).sqrt()
    assert distance <= float(others.min()) + 1e-6 and 0 < largest < 1


def test_noise_keeps_its_source(checkpoints, flats):
    """Noise as large as half of the zoo's spread leaves the mixture where it was."""
    bound = WeightStatistics.measure([(layout_of(SPEC), flats)]).bind(layout_of(SPEC))
    noisy = add_noise(bound, flats[:3], [torch_generator("test", row) for row in range(3)], 0.5)
    for row, one in enumerate(checkpoints.compare(noisy)):
        assert one.nearest == row and one.largest_weight > 0.8
        assert one.distance == pytest.approx(0.5, rel=0.15) and one.hull > 0.9 * one.distance


def test_an_average_is_a_mixture(checkpoints, flats):
    (one,) = checkpoints.compare(flats[:4].mean(0, keepdim=True))
    assert one.hull < 0.01 and one.largest_weight == pytest.approx(0.25, abs=0.02) and one.distance > 0.3


def test_what_is_usual_leaves_each_checkpoint_itself_out(checkpoints):
    usual = checkpoints.usual()
    assert usual.distance > 0.5 and usual.hull > 0.3 and usual.largest_weight < 0.9
    assert usual.distance <= usual.distance_before
    assert checkpoints.usual(limit=3).distance == pytest.approx(usual.distance, rel=0.2)


def test_two_checkpoints_are_too_few(flats):
    with pytest.raises(InputError, match="at least 3 are needed"):
        Checkpoints(SPEC, flats[:2])


def test_wrong_answers_and_their_overlap(flats):
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    labels = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(3))
    wrong = wrong_answers(SPEC, flats[:3], images, labels)
    assert torch.equal(wrong, run_networks(SPEC, flats[:3], images).argmax(-1) != labels)
    table = overlap(wrong, wrong)
    assert torch.allclose(table.diagonal(), torch.ones(3)) and torch.equal(table, table.T)
    both, either = (wrong[0] & wrong[1]).sum(), (wrong[0] | wrong[1]).sum()
    assert float(table[0, 1]) == pytest.approx(float(both / either))


USUAL = Usual(distance=1.0, distance_before=1.4, hull=0.8, largest_weight=0.4)


@pytest.mark.parametrize(
    ("distance", "hull", "weight", "wanted"),
    [
        (0.0, 0.0, 1.0, "retrieves"),
        (0.3, 0.3, 0.97, "retrieves"),
        (1.2, 1.2, 0.9, "retrieves"),  # a copy under heavy noise
        (0.8, 0.0, 0.1, "interpolates"),
        (0.5, 0.0, 0.5, "interpolates"),
        (1.0, 0.8, 0.3, "novel"),
        (1.5, 1.3, 0.2, "novel"),
    ],
)
def test_verdicts(distance, hull, weight, wanted):
    one = Novelty(distance=distance, distance_before=1.5, nearest=0, hull=hull, largest_weight=weight)
    found = verdict_of(one, USUAL, accuracy=0.9, trained=0.92, chance=0.1)
    assert found == wanted and found in VERDICTS and f"{found}:" in RULE
    assert verdict_of(one, USUAL, accuracy=0.3, trained=0.92, chance=0.1) == "fails"


def test_structure_tells_training_from_noise():
    """Checkpoints vary in five directions of five hundred; what varies there too is not noise."""
    stream = torch.Generator().manual_seed(0)
    directions = torch.randn(5, 500, generator=stream)
    columns = torch.randn(40, 5, generator=stream) @ directions + 0.1 * torch.randn(40, 500, generator=stream)
    noise = torch.randn(500, generator=stream)
    beyond = 9 * directions[0] + 0.1 * noise
    assert _mixture(columns, columns[3] + 2 * noise)[2] < 1.6
    assert _mixture(columns, beyond)[2] > 5


def test_where_one_checkpoint_always_explains_most_structure_decides():
    crowded = Usual(distance=1.0, distance_before=1.0, hull=0.9, largest_weight=0.97, structure=1.6)
    options = {"accuracy": 0.9, "trained": 0.9, "chance": 0.1}
    for structure, wanted in ((1.02, "retrieves"), (1.5, "novel")):
        one = Novelty(1.0, 1.0, 0, 0.95, 0.95, structure)
        assert verdict_of(one, crowded, **options) == wanted
        assert verdict_of(one, USUAL, **options) == "retrieves"  # elsewhere the weight says enough
    assert verdict_of(Novelty(0.1, 0.1, 0, 0.1, 0.99, 1.5), crowded, **options) == "retrieves"


def test_the_same_errors_are_a_copy_wherever_the_weights_are():
    one = Novelty(distance=1.2, distance_before=1.5, nearest=0, hull=0.9, largest_weight=0.2)
    options = {"accuracy": 0.9, "trained": 0.9, "chance": 0.1}
    assert verdict_of(one, USUAL, overlap=0.99, usual_overlap=0.5, **options) == "retrieves"
    assert verdict_of(one, USUAL, overlap=0.99, usual_overlap=0.995, **options) == "novel"
    assert verdict_of(one, USUAL, overlap=0.6, usual_overlap=0.5, **options) == "novel"
