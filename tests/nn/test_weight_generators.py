"""The generators against the paper's equations written out, and their sizes against the paper's counts."""

from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError, UnknownNameError
from weightloom.nn import BlockGenerator, CoordinateGenerator, SeparableGenerator


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_block_is_the_papers_equations_written_out():
    generator = BlockGenerator((3, 2), block=(5, 4), embedding_size=6, hidden_size=7).double()
    with torch.no_grad():
        generator.project.bias.normal_()
        generator.out.bias.normal_()
    z = torch.randn(1, 6, dtype=torch.float64)
    kernel = generator(z, (5, 4, 3, 2))
    w_in = generator.project.weight.view(4, 7, 6)  # W_i for i = 1 ... N_in, each (d, Nz)
    b_in = generator.project.bias.view(4, 7)
    w_out = generator.out.weight.view(5, 3, 2, 7)
    b_out = generator.out.bias.view(5, 3, 2)
    for i in range(4):
        a = w_in[i] @ z[0] + b_in[i]  # equation 2
        wanted = torch.einsum("ofgd,d->ofg", w_out, a) + b_out
        assert torch.allclose(kernel[:, i], wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("embedding", "kernel", "generator", "embeddings", "shape"),
    [
        (4, (7, 7), 4_240, 4, (16, 16, 7, 7)),  # the paper's MNIST network: 4,244 in all
        (64, (3, 3), 75_920, 8 * 64, (64, 32, 3, 3)),  # a kernel of its wide residual networks: 8 blocks
    ],
)
def test_sizes_are_the_papers(embedding, kernel, generator, embeddings, shape):
    made = BlockGenerator(kernel, embedding_size=embedding)
    assert count(made) == generator
    assert made.num_embeddings(shape) * embedding == embeddings


def test_large_weights_are_blocks_side_by_side():
    generator = BlockGenerator((3,), block=(4, 2), embedding_size=5)
    z = torch.randn(6, 5)
    whole = generator(z, (8, 6, 3))
    for tile in range(6):
        row, column = divmod(tile, 3)
        block = generator(z[tile : tile + 1], (4, 2, 3))
        found = whole[4 * row : 4 * row + 4, 2 * column : 2 * column + 2]
        assert torch.allclose(found, block, atol=1e-6)
    assert torch.equal(generator(z, (7, 5, 3)), whole[:7, :5])


def test_separable_kernels_are_patterns_times_numbers():
    generator = SeparableGenerator((3, 2), block=(2, 4), pattern_size=3).double()
    torch.nn.init.normal_(generator.pattern.bias)
    z = torch.randn(4, 11, dtype=torch.float64)
    kernel = generator(z, (4, 8, 3, 2))
    for tile in range(4):
        row, column = divmod(tile, 2)
        pattern = (generator.pattern.weight @ z[tile, 8:] + generator.pattern.bias).view(3, 2)
        wanted = z[tile, :8].view(2, 4)[..., None, None] * pattern
        found = kernel[2 * row : 2 * row + 2, 4 * column : 4 * column + 4]
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(generator(z, (3, 5, 3, 2)), kernel[:3, :5])


@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu", "tanh"])
def test_weights_start_with_unit_variance(activation):
    torch.manual_seed(0)
    sizes = []
    for _ in range(8):
        generator = BlockGenerator((3, 3), activation=activation)
        sizes.append(generator(torch.randn(4, 64), (32, 32, 3, 3)).detach().square().mean())
    assert 0.8 < float(torch.stack(sizes).mean()) < 1.25


def test_separable_weights_start_with_unit_variance():
    torch.manual_seed(0)
    generator = SeparableGenerator((3, 3), block=(1, 64), pattern_size=9)
    made = generator(torch.randn(512, generator.embedding_size), (512, 64, 3, 3)).detach()
    assert 0.5 < float(made.square().mean()) < 1.5


def test_coordinates_start_with_about_unit_variance():
    torch.manual_seed(0)
    sizes = [
        CoordinateGenerator(hidden_size=64, depth=depth)(torch.randn(1, 8), (16, 16, 3, 3))
        .detach()
        .square()
        .mean()
        for depth in (0, 1, 2)
        for _ in range(10)
    ]
    assert 0.5 < float(torch.stack(sizes).mean()) < 2


def test_coordinates_decide_each_weight():
    """The network on each coordinate by itself gives the same numbers."""
    generator = CoordinateGenerator(embedding_size=3, hidden_size=8, depth=2).double()
    z = torch.randn(1, 3, dtype=torch.float64)
    weight = generator(z, (5, 1, 3))
    for o, k in [(0, 0), (2, 1), (4, 2)]:
        place = torch.tensor([-1 + o / 2, 0.0, -1.0 + k, 0.0, 0.0], dtype=torch.float64)
        hidden = torch.sin(generator.place(place) + generator.shift(z[0]))
        for layer in generator.layers:
            hidden = torch.tanh(layer(hidden))
        assert torch.allclose(generator.out(hidden)[0], weight[o, 0, k], atol=1e-12)


def test_the_size_of_coordinates_does_not_depend_on_the_weights():
    generator = CoordinateGenerator()
    assert generator(torch.zeros(1, 8), (64, 64, 3, 3)).shape == (64, 64, 3, 3)
    assert generator(torch.zeros(1, 8), (7, 9)).shape == (7, 9)
    assert generator.num_embeddings((512, 512, 5, 5)) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: BlockGenerator((2,), block=(3, 2)),
        lambda: SeparableGenerator((2,), block=(1, 3)),
        CoordinateGenerator,
    ],
)
def test_gradients_reach_every_parameter(make):
    generator = make()
    z = torch.randn(generator.num_embeddings((5, 4, 2)), generator.embedding_size, requires_grad=True)
    generator(z, (5, 4, 2)).square().sum().backward()
    for name, parameter in [*generator.named_parameters(), ("embedding", z)]:
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


@pytest.mark.parametrize(
    "options",
    [{"embedding_size": 0}, {"block": (0, 16)}, {"block": (16,)}, {"hidden_size": -1}, {"block": (4, 4.5)}],
)
def test_bad_sizes_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        BlockGenerator((3, 3), **options)


@pytest.mark.parametrize("options", [{"pattern_size": 0}, {"block": (0, 16)}, {"block": (16,)}])
def test_bad_separable_sizes_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SeparableGenerator((3, 3), **options)
    with pytest.raises(InputError, match="nothing to separate"):
        SeparableGenerator((1, 1))


@pytest.mark.parametrize("options", [{"embedding_size": 0}, {"frequency": 0.0}, {"depth": -1}])
def test_bad_coordinates_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        CoordinateGenerator(**options)


def test_what_it_is_not_for_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'gelu'"):
        BlockGenerator((3,), activation="gelo")
    generator = BlockGenerator((3, 3), embedding_size=4)
    with pytest.raises(InputError, match=r"kernels of shape \(3, 3\), not \(5, 5\)"):
        generator(torch.zeros(1, 4), (16, 16, 5, 5))
    with pytest.raises(InputError, match=r"embeddings of shape \(2, 4\), not \(1, 4\)"):
        generator(torch.zeros(1, 4), (32, 16, 3, 3))
    with pytest.raises(InputError, match="2 to 5 dimensions"):
        CoordinateGenerator()(torch.zeros(1, 8), (4,))
