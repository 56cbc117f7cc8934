"""Trained weights, their gradients and the optimiser's memory, divided among processes between steps.

Torch's fully sharded data parallelism over the whole step: weights are gathered when a step begins and given
back when its gradients have been added up, each process keeping its share of both. What is not trained stays
whole everywhere. Knows nothing of losses or models.

Source: Zhao et al. (arXiv 2304.11277), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch import distributed as dist

from weightloom.training import parallel


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be divided; then every process has to ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def share(tensor: Tensor) -> Tensor:
    """What this process has of a tensor that may be divided."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def reached(loss: Tensor) -> set[int]:
    """``id`` of every leaf that ``loss`` depends on.

    Example:
        >>> a, b = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> reached((2 * a).sum()) == {id(a)}
        True
    """
    seen, found, todo = set(), set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [before for before, _ in node.next_functions]
    return found


class Sharded:
    """The parameters of ``step`` that require gradients, each process with its share of them.

    Numbers alone (of no dimension) stay whole, their gradients are added up here. :meth:`close` puts the
    trained weights back where they were, as the parameters that they were.
    """

    def __init__(self, step: nn.Module, modules: nn.Module) -> None:
        # Not every torch has them, and only here are they needed.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        self.modules = modules
        self.places = [
            (module, name, parameter)
            for module in modules.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter.requires_grad and parameter.dim() > 0
        ]
        divided = {id(parameter) for _, _, parameter in self.places}
        left = {p for p in modules.parameters() if id(p) not in divided}
        self.loose = {n: p for n, p in modules.named_parameters() if p in left and p.requires_grad}
        mesh = init_device_mesh(next(modules.parameters()).device.type, (parallel.count(),))
        self.root: FSDPModule = fully_shard(step, mesh=mesh, ignored_params=left)
        for _, _, parameter in self.places:  # torch has copied this process's share of it
            parameter.data = parameter.new_empty(0)
        # Parts of a batch add up; a mean would meet the objectives' own bounds on gradients differently.
        self.root.set_gradient_divide_factor(1.0)
        self.root.set_force_sum_reduction_for_comms(True)
        self.used: set[str] = set()

    def parameters(self) -> dict[str, nn.Parameter]:
        """This process's shares, by name."""
        return {n: p for n, p in self.modules.named_parameters() if p.requires_grad}

    def divided(self, name: str, tensor: Tensor) -> Tensor:
        """This process's share of a tensor that is to go with the parameter ``name``."""
        from torch.distributed.tensor import DTensor, distribute_tensor

        parameter = self.modules.get_parameter(name)
        if not isinstance(parameter, DTensor):
            return tensor
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements)

    def joined(self, loss: Tensor) -> Tensor:
        """``loss``, of which every parameter is a part, if only by zero: all add up the same ones."""
        found = reached(loss)
        trained = {n: p for n, p in self.modules.named_parameters() if p.requires_grad}
        self.used |= {name for name, parameter in trained.items() if id(parameter) in found}
        return loss + 0.0 * torch.stack([p.flatten()[0] for p in trained.values()]).nan_to_num().sum()

    def begin(self, last: bool) -> None:
        """Before a part of a step: the first process's buffers for all, and whether gradients are added up
        after it.
        """
        parallel.copy_from_first(self.modules.buffers())
        self.root.set_requires_gradient_sync(last)

    def finish(self) -> None:
        """After the last backward pass of a step: loose gradients added up, none where nobody had one."""
        mine = self.parameters()
        told = torch.tensor([name in self.used for name in mine], dtype=torch.int32)
        dist.all_reduce(told, op=dist.ReduceOp.MAX)
        for (name, parameter), some in zip(mine.items(), told.tolist(), strict=True):
            if name in self.loose and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
            if not some:
                parameter.grad = None
        self.used = set()

    def clip(self, most: float) -> Tensor:
        """Shorten the gradient to ``most``; its length before."""
        gradients = [p.grad for p in self.parameters().values() if p.grad is not None]
        if not gradients:  # the same ones in all processes: of none there is nothing to add up
            return torch.zeros(())
        shares = [share(gradient) for gradient in gradients]
        squares = torch.stack([part.double().square().sum() for part in shares])
        # What is whole everywhere counts once.
        first = parallel.rank() == 0
        counted = [first or part is not g for part, g in zip(shares, gradients, strict=True)]
        own = torch.tensor(counted, device=squares.device)
        total = torch.where(own, squares, 0.0).sum()
        dist.all_reduce(total)
        length = total.sqrt()
        factor = min(1.0, most / (float(length) + 1e-6))
        if math.isfinite(factor):
            for part in shares:
                part.mul_(factor)
        return length

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The weights as a whole, to be read."""
        self.root.unshard()
        try:
            yield
        finally:
            self.root.reshard()

    def close(self) -> None:
        """Put the weights back as a whole."""
        self.root.reshard()
        for module, name, parameter in self.places:
            mine = module._parameters[name]
            assert mine is not None
            parameter.data = whole(mine.detach()).contiguous()
        for module, name, parameter in self.places:
            module._parameters[name] = parameter
            parameter.grad = None
        for module in self.modules.modules():
            for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                module.__dict__.pop(mark, None)
