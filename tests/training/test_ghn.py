"""Training a graph hypernetwork: what a step is, that it learns, resumes, and comes back from its files."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import yaml

from weightloom.architectures.capture import graph_of
from weightloom.errors import InputError, SpecError
from weightloom.fitting import left_out, run_networks
from weightloom.generators.ghn import GHN
from weightloom.generators.load import load_generator
from weightloom.io import read_yaml
from weightloom.seeding import torch_generator
from weightloom.tasks import parse_task
from weightloom.training.ghn import (
    GHNObjective,
    GHNSettings,
    _judged,
    activation_memory,
    held_back,
    logits_of,
    make_ghn,
    shifted,
    zero_shot,
)
from weightloom.training.recipe import GHNRecipe
from weightloom.training.run import train_recipe
from weightloom.weights import layout_of

TINY = {
    "kind": "generator",
    "generator": "ghn",
    "name": "tiny",
    "task": "digits@8c1",
    "config": {"width": 8, "decoder": "coordinate", "rank": 8, "kernel": 5},
    "objective": {"networks": 4, "meta_batch": 2, "images": 16, "flip": False},
    "loop": {"steps": 4, "learning_rate": 0.003, "warmup": 2, "log_every": 2, "save_every": 2},
    "evaluate_every": 4,
    "evaluate_networks": 2,
}


def objective(**changes):
    recipe = GHNRecipe(**{**TINY, **changes})
    task = parse_task(recipe.task)
    model, settings = make_ghn(recipe, task)
    return GHNObjective(model, task.data("train"), settings, seed=recipe.seed)


def test_a_step_depends_on_its_number_alone():
    first, second = objective(), objective()
    first(7)
    a, b = first(3), second(3)
    assert torch.equal(a[0], b[0]) and a[1] == b[1] and not torch.equal(a[0], first(4)[0])
    assert first.specs(torch.Generator().manual_seed(0)) == second.specs(torch.Generator().manual_seed(0))


def test_validation_images_are_never_trained_on():
    one = objective()
    assert not set(one.validation.tolist()) & set(one.training.tolist())
    assert len(one.validation) + len(one.training) == len(one.data)
    assert all(spec.split == "train" for spec in one.specs(torch.Generator()))


def test_named_architectures_are_drawn_among_the_random_ones():
    others = ["cnn(depth=1,width=4)", "resnet(depth=8,width=4)"]
    one = objective(objective={**TINY["objective"], "architectures": others, "share": 0.5})
    stream = torch.Generator().manual_seed(0)
    drawn = [spec.family for _ in range(40) for spec in one.specs(stream)]
    assert set(drawn) == {"cnn", "resnet", "deepnet"} and 20 < drawn.count("deepnet") < 60
    assert all(spec.classes == 10 and spec.input == (1, 8, 8) for spec in one.others)
    loss, _ = one(3)
    assert loss.isfinite()


def test_logits_are_those_of_the_network_in_training_mode():
    one = objective()
    spec = one.spec("test", 1)
    (weights,) = one.model([graph_of(spec)])
    images = torch.randn(6, 1, 8, 8)
    state = {name: value.detach() for name, value in weights.items()}
    for slot in layout_of(spec).slots:
        if slot.is_buffer:
            state[slot.name] = torch.ones(slot.shape) if slot.is_variance else torch.zeros(slot.shape)
    flat = layout_of(spec).flatten(state)[None]
    wanted = run_networks(spec, flat, images, training=True)[0]
    assert torch.allclose(logits_of(spec, weights, images)[0], wanted, atol=1e-4)


def test_it_learns():
    """Eighty steps on two networks of the digits: the loss falls below that of chance (2.30)."""
    one = objective(
        config={"width": 32, "backbone": "transformer", "depth": 2, "heads": 4, "block": 16, "kernel": 5},
        objective={"networks": 2, "meta_batch": 2, "images": 64, "flip": False},
    )
    optimiser = torch.optim.AdamW(one.model.parameters(), lr=2e-3)
    losses = []
    for step in range(80):
        loss, _ = one(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) / 10 < 2.15


def test_networks_judged_one_by_one_give_the_gradient_of_the_whole():
    """Beside torch's own way through all networks at once."""
    one = objective(objective={**TINY["objective"], "clip": 1e9})
    loss, _ = one(3)
    loss.backward()
    found = {name: value.grad.clone() for name, value in one.model.named_parameters()}
    one.model.zero_grad()
    stream = torch_generator("ghn", one.seed, 3)
    specs = one.specs(stream)
    images, labels = one.batch(stream)
    total = torch.zeros(())
    for spec, weights in zip(specs, one.model([graph_of(spec) for spec in specs]), strict=True):
        logits, features = logits_of(spec, weights, images)
        total = total + held_back(F.cross_entropy(logits, labels), 10) / len(specs)
        total = total + F.cross_entropy(left_out(features, labels, 10), labels) / len(specs)
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for name, value in one.model.named_parameters():
        assert torch.allclose(found[name], value.grad, atol=1e-5, rtol=1e-3), name


def test_gradients_are_no_longer_than_the_clip_and_none_where_not_finite():
    weights = {"a": torch.tensor([3.0, 4.0], requires_grad=True), "b": torch.zeros(2, requires_grad=True)}
    for most, wanted in ((10.0, 5.0), (1.0, 1.0)):
        loss = _judged(lambda given: (given["a"] ** 2).sum() / 2 + given["b"].sum() * 0, weights, most)
        (grad,) = torch.autograd.grad(2 * loss, [weights["a"]])
        assert loss.item() == 12.5 and float(grad.norm()) == pytest.approx(2 * wanted)
    loss = _judged(lambda given: given["a"].sum() + given["b"].sqrt().sum(), weights, 1.0)
    assert all(not grad.any() for grad in torch.autograd.grad(loss, list(weights.values())))


def test_networks_that_keep_too_much_are_passed_over():
    one = objective(objective={**TINY["objective"], "networks": 30})
    sizes = [activation_memory(one.spec("train", index), 16) for index in range(30)]
    most = sorted(sizes)[10]
    small = objective(objective={**TINY["objective"], "networks": 30, "memory": most})
    for index in range(30):
        chosen = small.drawn(index).index
        passed = [(index + later) % 30 for later in range((chosen - index) % 30)]
        assert sizes[chosen] <= most and all(sizes[other] > most for other in passed)
        assert one.drawn(index).index == index
    with pytest.raises(SpecError, match="3 after it all keep more than"):
        objective(objective={**TINY["objective"], "memory": 1e-9})(0)


def test_the_memory_that_is_reckoned_is_what_torch_keeps():
    """Against the same count on real tensors, weights left out."""
    one = objective()
    for index in range(4):
        spec = one.spec("train", index)
        (weights,) = one.model([graph_of(spec)])
        weights = {name: value.detach().requires_grad_() for name, value in weights.items()}
        own = {value.untyped_storage().data_ptr() for value in weights.values()}
        kept = {}

        def keep(tensor, own=own, kept=kept):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits_of(spec, weights, torch.randn(16, 1, 8, 8))
        real = sum(storage.nbytes() for storage in kept.values()) / 2**30
        assert activation_memory(spec, 16) == pytest.approx(real, rel=0.1)


def test_exploding_networks_do_not_decide_the_step():
    loss = torch.tensor([1.0, 1e6], requires_grad=True)
    sum(held_back(x, 10) for x in loss.unbind()).backward()
    assert loss.grad is not None and loss.grad.tolist() == pytest.approx([1.0, 4.6e-6], rel=0.01)


def test_pictures_are_moved_and_mirrored_by_their_own_stream():
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8).repeat(50, 1, 1, 1)
    kept = images.clone()
    made = shifted(images, torch.Generator().manual_seed(0), flip=True)
    assert made.shape == images.shape and torch.equal(images, kept)
    assert torch.equal(made, shifted(images, torch.Generator().manual_seed(0), flip=True))
    middle = {tuple(one[0, 3, 3:5].tolist()) for one in made}
    assert any(a > b for a, b in middle) and any(a < b for a, b in middle), "some are mirrored"
    still = shifted(images, torch.Generator().manual_seed(0), flip=False)
    assert all(one[0, 3, 3] < one[0, 3, 4] for one in still)
    assert len(middle) > 6, "places differ"


def test_settings_are_checked():
    for wrong in (
        {"space": "large"}, {"meta_batch": 0}, {"images": 1}, {"norm_penalty": -1.0}, {"share": 0.5},
        {"memory": 0.0}, {"memory": float("nan")},
        {"architectures": ["cnn"]}, {"architectures": ["cnn"], "share": 1.5},
    ):  # fmt: skip
        with pytest.raises(SpecError):
            GHNSettings(**wrong)
    with pytest.raises(SpecError, match="options"):
        objective(config={"wide": 3})


def test_a_recipe_is_trained_resumed_and_found_again(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY))
    whole = train_recipe(file, None, tmp_path / "whole")
    assert isinstance(whole, GHN)

    def stop(what, step, steps):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_recipe(file, None, tmp_path / "parts", stop)
    resumed = train_recipe(file, None, tmp_path / "parts")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    again = load_generator(tmp_path / "whole")
    spec = whole.generate("resnet(depth=8,width=6,classes=10)").architecture
    assert torch.equal(whole.generate(spec).flat, again.generate(spec).flat)
    assert again.validity.tasks == ("digits@8c1",)
    log = (tmp_path / "whole" / "work" / "ghn" / "log.jsonl").read_text()
    assert "val_mean" in log and "accuracy" in log
    file.write_text(yaml.safe_dump({**TINY, "seed": 1}))
    with pytest.raises(InputError, match="another recipe"):
        train_recipe(file, None, tmp_path / "whole")


def test_training_goes_on_from_another_generator_with_other_batches(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(TINY))
    train_recipe(file, None, tmp_path / "first")
    more = {**TINY, "start": str(tmp_path / "first"), "first_step": TINY["loop"]["steps"]}
    file.write_text(yaml.safe_dump(more))
    recipe = read_yaml(file, GHNRecipe)
    first = load_generator(tmp_path / "first")
    model, settings = make_ghn(recipe, parse_task(recipe.task))
    one, other = (
        GHNObjective(model, parse_task(recipe.task).data("train"), settings, first=n) for n in (0, 6)
    )
    assert torch.equal(one(6)[0], other(0)[0]) and not torch.equal(one(0)[0], other(0)[0])
    second = train_recipe(file, None, tmp_path / "second")
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    moved = [float((a - b).detach().abs().max()) for a, b in pairs]
    assert 0 < max(moved) < 1  # other starts are further apart: embeddings are standard normal
    file.write_text(yaml.safe_dump({**more, "config": {**TINY["config"], "width": 12}}))
    with pytest.raises(SpecError, match="start"):
        train_recipe(file, None, tmp_path / "third")


def test_zero_shot_accuracies_are_shares():
    one = objective()
    images, labels = one.data.batch(one.validation[:50])
    scores = zero_shot(one.model, [one.spec("test", i) for i in range(2)], images, images, labels)
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores)


def test_parts_of_a_step_add_up_to_it(adds_up, halves_well):
    changes = {"meta_batch": 3, "norm_penalty": 0.01}
    one = objective(objective={**TINY["objective"], **changes})
    assert one.items == 3
    adds_up(one.model, one)
    halves_well(one.model, one)
