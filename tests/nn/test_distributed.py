"""Two processes with half of the batch each have the gradient of one process with all of it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import weightloom

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_two_processes_have_the_gradient_of_one(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(weightloom.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    arguments = ["2", str(tmp_path / "meeting"), str(tmp_path / "gradients.pt")]
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), *arguments], env=env) for rank in range(2)
    ]
    assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    spec = importlib.util.spec_from_file_location("distributed_worker", WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, data = module.model_and_data()
    model(data).square().mean().backward()
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, atol=1e-6), name
