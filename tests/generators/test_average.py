from __future__ import annotations

import pytest
import torch

from weightloom.errors import InputError, SpecError, UnsupportedRequestError
from weightloom.generators.average import AverageCheckpoint


def flat_of(model, spec, support):
    return model.generate(spec, support=support, batch_norm="generated")


def test_it_is_the_mean_of_the_nearest_tasks_checkpoints(igpg, resolved, supports):
    zoo = igpg.zoo_index.groups[resolved()].flats
    rows = [[0, 1, 2], [3, 4], [5]]
    for (task, support), own in zip(supports.items(), rows, strict=True):
        sample = flat_of(AverageCheckpoint.from_generator(igpg), resolved(), support)
        assert torch.allclose(sample.flat, zoo[own].mean(0), atol=1e-6)
        assert sample.report["checkpoint_tasks"] == [task] and sample.report["checkpoints"] == len(own)
        wanted = [igpg.zoo_index.groups[resolved()].rows[r]["accuracy"] for r in own]
        assert sample.report["checkpoint_accuracy"] == pytest.approx(sum(wanted) / len(own))


def test_of_several_tasks_every_checkpoint_counts_alike(igpg, resolved, support):
    zoo = igpg.zoo_index.groups[resolved()].flats
    for tasks in (3, 99):
        sample = flat_of(AverageCheckpoint.from_generator(igpg, tasks=tasks), resolved(), support)
        assert torch.allclose(sample.flat, zoo.mean(0), atol=1e-6)
        assert len(sample.report["checkpoint_tasks"]) == 3
    two = flat_of(AverageCheckpoint.from_generator(igpg, tasks=2), resolved(), support)
    assert (
        len(two.report["checkpoint_tasks"]) == 2 and two.report["checkpoint_tasks"][0] == "digits[3,1,7]@8c1"
    )


def test_all_samples_are_the_same(igpg, resolved, support):
    model = AverageCheckpoint.from_generator(igpg)
    first, second = model.generate_many(resolved(), support=support, num_samples=2, seed=3)
    assert torch.equal(first.flat, second.flat) and first.report is not second.report


def test_variances_stay_positive(igpg, resolved, support):
    state = flat_of(AverageCheckpoint.from_generator(igpg, tasks=3), resolved(), support).state_dict
    assert all(bool((v > 0).all()) for k, v in state.items() if k.endswith("running_var"))


@pytest.mark.parametrize("tasks", [0, -1, 1.5, True, "2"])
def test_a_number_of_tasks_is_whole_and_positive(igpg, tasks):
    with pytest.raises(SpecError, match="tasks must be a whole number"):
        AverageCheckpoint.from_generator(igpg, tasks=tasks)


def test_what_it_cannot_do_is_refused(igpg, resolved, support):
    model = AverageCheckpoint.from_generator(igpg)
    with pytest.raises(InputError, match="give examples"):
        model.generate(resolved())
    with pytest.raises(UnsupportedRequestError, match="no checkpoint of mlp"):
        model.generate(resolved("mlp(depth=1,width=4)"), support=support)
