"""Forward passes of published checkpoints, in plain torch, straight from their state dicts.

A forward pass is a function of the weights by name and of inputs. It makes no module, so that whoever
wants to see a layer at work (:mod:`weightloom.consolidation.sensitivity`) only has to watch
``F.linear`` and the convolutions. Knows nothing of codes.

Shapes: B inputs; T frames; images (B, 3, side, side).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from weightloom.registry import Registry

Weights = Mapping[str, Tensor]
Forward = Callable[[Weights, Tensor], Tensor]

networks: Registry[Forward] = Registry("forward pass")


def _norm(w: Weights, x: Tensor, name: str, eps: float) -> Tensor:
    return F.batch_norm(
        x,
        w[f"{name}.running_mean"],
        w[f"{name}.running_var"],
        w[f"{name}.weight"],
        w[f"{name}.bias"],
        False,
        0.0,
        eps,
    )


@networks.register("mobilenet-v2")
def mobilenet_v2(w: Weights, x: Tensor) -> Tensor:
    """(B, 1000) logits. Sandler et al. (arXiv 1801.04381), table 2; torchvision's names."""
    x = F.conv2d(x, w["features.0.0.weight"], None, 2, 1)
    x = F.relu6(_norm(w, x, "features.0.1", 1e-5))
    at = 1
    for expand, repeats, first in (
        (1, 1, 1),
        (6, 2, 2),
        (6, 3, 2),
        (6, 4, 2),
        (6, 3, 1),
        (6, 3, 2),
        (6, 1, 1),
    ):
        for block in range(repeats):
            stride, y, name = first if block == 0 else 1, x, f"features.{at}.conv"
            part = 0
            if expand != 1:
                y = F.conv2d(y, w[f"{name}.0.0.weight"])
                y = F.relu6(_norm(w, y, f"{name}.0.1", 1e-5))
                part = 1
            y = F.conv2d(y, w[f"{name}.{part}.0.weight"], None, stride, 1, 1, y.shape[1])
            y = F.relu6(_norm(w, y, f"{name}.{part}.1", 1e-5))
            y = F.conv2d(y, w[f"{name}.{part + 1}.weight"])
            y = _norm(w, y, f"{name}.{part + 2}", 1e-5)
            x = x + y if stride == 1 and x.shape == y.shape else y
            at += 1
    x = F.relu6(_norm(w, F.conv2d(x, w["features.18.0.weight"]), "features.18.1", 1e-5))
    return F.linear(x.mean((2, 3)), w["classifier.1.weight"], w["classifier.1.bias"])


def _same(w: Weights, x: Tensor, name: str, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's "same" padding: what is odd goes to the right and below."""
    weight = w[name]
    kernel, side = weight.shape[-1], x.shape[-1]
    pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    x = F.pad(x, (pad // 2, pad - pad // 2, pad // 2, pad - pad // 2))
    return F.conv2d(x, weight, None, stride, 0, 1, groups)


@networks.register("efficientnet-lite")
def efficientnet_lite(w: Weights, x: Tensor) -> Tensor:
    """(B, 1000) logits of EfficientNet-Lite0, 1 or 2. Tan and Le (arXiv 1905.11946), without squeezing.

    The sizes are read off the weights. A block has stride 2 where a stage of table 1 begins with one, which
    is where the channels of the blocks change for the 2nd, 3rd, 4th and 6th time counted from the stem.
    """
    x = F.relu6(_norm(w, _same(w, x, "_conv_stem.weight", 2), "_bn0", 1e-3))
    strides, stage, at, last = (1, 2, 2, 2, 1, 2, 1), -1, 0, (0, 0)
    while f"_blocks.{at}._depthwise_conv.weight" in w:
        name, y = f"_blocks.{at}", x
        kernel = w[f"{name}._depthwise_conv.weight"].shape[-1]
        shape = (w[f"{name}._project_conv.weight"].shape[0], kernel)
        first = shape != last
        stage, last = stage + first, shape
        stride = strides[stage] if first else 1
        if f"{name}._expand_conv.weight" in w:
            y = F.relu6(_norm(w, F.conv2d(y, w[f"{name}._expand_conv.weight"]), f"{name}._bn0", 1e-3))
        y = _same(w, y, f"{name}._depthwise_conv.weight", stride, y.shape[1])
        y = F.relu6(_norm(w, y, f"{name}._bn1", 1e-3))
        y = _norm(w, F.conv2d(y, w[f"{name}._project_conv.weight"]), f"{name}._bn2", 1e-3)
        x = x + y if x.shape == y.shape else y
        at += 1
    x = F.relu6(_norm(w, F.conv2d(x, w["_conv_head.weight"]), "_bn1", 1e-3))
    return F.linear(x.mean((2, 3)), w["_fc.weight"], w["_fc.bias"])


def _prelu(w: Weights, x: Tensor, name: str) -> Tensor:
    return F.prelu(x, w[f"{name}.weight"])


def _conv(w: Weights, x: Tensor, name: str) -> Tensor:
    return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _linear(w: Weights, x: Tensor, name: str) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


@networks.register("mtcnn-p")
def mtcnn_p(w: Weights, x: Tensor) -> Tensor:
    """(B, 6 * places): boxes and the two probabilities. Zhang et al. (arXiv 1604.02878), figure 2."""
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv1"), "prelu1"), 2, 2, ceil_mode=True)
    x = _prelu(w, _conv(w, x, "conv2"), "prelu2")
    x = _prelu(w, _conv(w, x, "conv3"), "prelu3")
    return torch.cat([_conv(w, x, "conv4_2"), _conv(w, x, "conv4_1").softmax(1)], 1).flatten(1)


@networks.register("mtcnn-r")
def mtcnn_r(w: Weights, x: Tensor) -> Tensor:
    """(B, 6): box and the two probabilities of 24x24 pictures."""
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv1"), "prelu1"), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv2"), "prelu2"), 3, 2, ceil_mode=True)
    x = _prelu(w, _conv(w, x, "conv3"), "prelu3").permute(0, 3, 2, 1).flatten(1)
    x = _prelu(w, _linear(w, x, "dense4"), "prelu4")
    return torch.cat([_linear(w, x, "dense5_2"), _linear(w, x, "dense5_1").softmax(1)], 1)


@networks.register("mtcnn-o")
def mtcnn_o(w: Weights, x: Tensor) -> Tensor:
    """(B, 16): box, five points and the two probabilities of 48x48 pictures."""
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv1"), "prelu1"), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv2"), "prelu2"), 3, 2, ceil_mode=True)
    x = F.max_pool2d(_prelu(w, _conv(w, x, "conv3"), "prelu3"), 2, 2, ceil_mode=True)
    x = _prelu(w, _conv(w, x, "conv4"), "prelu4").permute(0, 3, 2, 1).flatten(1)
    x = _prelu(w, _linear(w, x, "dense5"), "prelu5")
    parts = [_linear(w, x, "dense6_2"), _linear(w, x, "dense6_3"), _linear(w, x, "dense6_1").softmax(1)]
    return torch.cat(parts, 1)


@networks.register("crepe")
def crepe(w: Weights, x: Tensor) -> Tensor:
    """(B, 360) pitch activations of frames (B, 1024) at 16 kHz. Kim et al. (arXiv 1802.06182), figure 1."""
    x = x[:, None, :, None]
    for i in range(1, 7):
        x = F.pad(x, (0, 0, 254, 254) if i == 1 else (0, 0, 31, 32))
        x = F.conv2d(x, w[f"conv{i}.weight"], w[f"conv{i}.bias"], (4 if i == 1 else 1, 1))
        x = F.max_pool2d(_norm(w, F.relu(x), f"conv{i}_BN", 0.0010000000474974513), (2, 1), (2, 1))
    return _linear(w, x.permute(0, 2, 1, 3).flatten(1), "classifier").sigmoid()


def _lstm_step(x: Tensor, h: Tensor, c: Tensor, recurrent: Tensor) -> tuple[Tensor, Tensor]:
    """One step from the input's share of the gates (B, 4H); gates in torch's order."""
    i, f, g, o = (x + F.linear(h, recurrent)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


@networks.register("resemblyzer")
def resemblyzer(w: Weights, x: Tensor) -> Tensor:
    """(B, 256) unit vectors of mel spectrograms (B, T, 40). Wan et al. (arXiv 1710.10467)."""
    for layer in range(3):
        gates = F.linear(x, w[f"lstm.weight_ih_l{layer}"], w[f"lstm.bias_ih_l{layer}"])  # (B, T, 4H)
        gates = gates + w[f"lstm.bias_hh_l{layer}"]
        h = c = gates.new_zeros(len(x), gates.shape[2] // 4)
        steps = []
        for t in range(gates.shape[1]):
            h, c = _lstm_step(gates[:, t], h, c, w[f"lstm.weight_hh_l{layer}"])
            steps.append(h)
        x = torch.stack(steps, 1)
    return F.normalize(F.relu(_linear(w, x[:, -1], "linear")), dim=1)


@networks.register("silero-vad")
def silero_vad(w: Weights, x: Tensor) -> Tensor:
    """(B, T) logits of speech for windows of 576 samples at 16 kHz, (B, T, 576); the state goes along.

    The package's last step is a sigmoid; logits are compared because they do not hide errors at the ends.
    """
    b, t = x.shape[:2]
    y = F.pad(x.flatten(0, 1), (0, 64), "reflect")[:, None]  # (B * T, 1, 640)
    y = F.conv1d(y, w["stft_conv.weight"], None, 128)
    half = y.shape[1] // 2
    y = (y[:, :half].square() + y[:, half:].square() + 1e-20).sqrt()
    for i, stride in enumerate((1, 2, 2, 1), 1):
        y = F.relu(F.conv1d(y, w[f"conv{i}.weight"], w[f"conv{i}.bias"], stride, 1))
    y = y.reshape(b, t, -1)  # (B * T, 128, 1) -> (B, T, 128)
    gates = F.linear(y, w["lstm_cell.weight_ih"], w["lstm_cell.bias_ih"]) + w["lstm_cell.bias_hh"]
    h = c = gates.new_zeros(b, gates.shape[2] // 4)
    steps = []
    for i in range(t):
        h, c = _lstm_step(gates[:, i], h, c, w["lstm_cell.weight_hh"])
        steps.append(h)
    z = F.relu(torch.stack(steps, 2))
    return F.conv1d(z, w["final_conv.weight"], w["final_conv.bias"])[:, 0]


def _gru_step(x: Tensor, h: Tensor, w: Weights, side: str) -> Tensor:
    a = F.linear(x, w[f"{side}_w_ih"], w[f"{side}_b_ih"]).chunk(3, 1)
    b = F.linear(h, w[f"{side}_w_hh"], w[f"{side}_b_hh"]).chunk(3, 1)
    r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
    return (1 - z) * (a[2] + r * b[2]).tanh() + z * h


LETTERS = 16
"""Width of the letters' part of what :func:`g2p` reads."""


@networks.register("g2p")
def g2p(w: Weights, x: Tensor) -> Tensor:
    """(B, U * 74) logits of phonemes for letters (B, 16), 0 fills up, followed by the phonemes before (B, U).

    The phonemes are what the original says, so that one changed choice does not make all that follow another
    word; -1 where the word is over.
    """
    letters, spoken = x[:, :LETTERS].long(), x[:, LETTERS:].long()
    h = w["enc_w_hh"].new_zeros(len(x), w["enc_w_hh"].shape[1])
    for t in range(LETTERS):
        seen = (letters[:, t] != 0)[:, None]
        h = torch.where(seen, _gru_step(w["enc_emb"][letters[:, t]], h, w, "enc"), h)
    outs = []
    for t in range(spoken.shape[1]):
        h = _gru_step(w["dec_emb"][spoken[:, t].clamp(min=0)], h, w, "dec")
        logits = F.linear(h, w["fc_w"], w["fc_b"])
        outs.append(torch.where((spoken[:, t] < 0)[:, None], 0.0, logits))
    return torch.cat(outs, 1)


@networks.register("minilm")
def minilm(w: Weights, x: Tensor) -> Tensor:
    """(B, 384) unit vectors of word pieces (B, S); 0 fills up. See :mod:`weightloom.conditioning.text`."""
    from weightloom.conditioning.text import forward

    ids = x.long()
    return forward(w, ids, (ids != 0).long())
