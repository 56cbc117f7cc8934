"""A network as a graph of torch's own operations, by ``torch.export``.

Batch norms and other layers stay one operation each; what writes into its input does so no more.
Knows no target.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from weightloom.errors import UnsupportedRequestError

NORM = "_native_batch_norm_legit_no_training.default"
"""What a batch norm in eval mode is called; it gives a tuple."""

MOST_AT_ONCE = 1 << 20
"""Pictures of one batch for which a graph with a free batch holds."""


@contextmanager
def quiet() -> Iterator[None]:
    """What torch and the exporters warn and log of themselves is none of the user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def exported(network: nn.Module, input: tuple[int, int, int], *, batch: int | None = None) -> Any:
    """The ``ExportedProgram`` of a network in eval mode.

    Args:
        network: takes (B, channels, height, width).
        input: (channels, height, width).
        batch: pictures at a time; None leaves it free.

    Raises:
        UnsupportedRequestError: torch cannot export it; the message has torch's first line.
    """
    free = {0: torch.export.Dim("batch", min=1, max=MOST_AT_ONCE)} if batch is None else None
    images = torch.zeros(batch or 2, *input)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(network, (images,), dynamic_shapes=(free,))
    except Exception as error:  # whatever torch's tracer raises
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedRequestError(f"torch.export cannot read this network: {first}") from None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return program


def plain(program: Any) -> Any:
    """The program in operations that change nothing in place."""
    with quiet():
        return program.run_decompositions({})


def tensors_of(program: Any) -> dict[str, tuple[str, Tensor, bool]]:
    """Placeholder to (name in the state dict, values, whether it is a parameter)."""
    signature = program.graph_signature
    found: dict[str, tuple[str, Tensor, bool]] = {}
    for held, learned in ((signature.inputs_to_parameters, True), (signature.inputs_to_buffers, False)):
        for placeholder, name in held.items():
            values = program.state_dict[name] if name in program.state_dict else program.constants[name]
            found[placeholder] = (name, values.detach(), learned)
    for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
        found[placeholder] = (name, program.constants[name].detach(), False)
    return found


def is_normed(node: fx.Node) -> bool:
    """Whether a node is the first output of a batch norm in eval mode, whose others nobody reads."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return False
    read = node.args[0]
    return isinstance(read, fx.Node) and operation(read) == NORM


def operation(node: fx.Node) -> str:
    """What a node calls, such as ``conv2d.default``; Python's own functions by their names."""
    text = str(node.target)
    return text.removeprefix("aten.") if text.startswith("aten.") else getattr(node.target, "__name__", text)
