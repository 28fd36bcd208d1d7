"""Other libraries in the same run and process, where they are installed.

``qwix`` trains a linen model in int8 (its QT: forward and both gradients). PyTorch trains the same
network in float32 and under bfloat16 autocast, both with channels last; it keeps its own copy of
the parameters, with its own initial values, which the time does not depend on. Neither is needed:
what is not installed is None here, null in the JSON and "not installed" in the table.
"""

import importlib
import itertools
import os
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import flax.linen as nn
import numpy as np

from experiments.models import Mlp, Vgg6

__all__ = ["qwix_model", "torch_steps", "versions"]


def versions() -> dict[str, str | None]:
    """The versions of the peers; None for what is not installed."""
    found: dict[str, str | None] = {}
    for name in ("qwix", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def qwix_model(model: nn.Module) -> nn.Module | None:
    """The model with its dense and convolution layers trained in int8 by qwix; None without qwix.

    Weights, activations and gradients are int8 and rounded to nearest, the rule that its
    documentation gives for quantized training.
    """
    qwix: Any = _module("qwix")
    if qwix is None:
        return None
    rule = qwix.QtRule(weight_qtype="int8", act_qtype="int8", bwd_qtype="int8")
    return qwix.quantize_model(model, qwix.QtProvider([rule]))


def torch_steps(
    model: nn.Module, images: np.ndarray, labels: np.ndarray
) -> dict[str, Callable[[], Any] | None]:
    """PyTorch train steps (SGD with momentum 0.9, cross entropy) of `Vgg6` or `Mlp`.

    Args:
      model: whose widths and classes are taken over.
      images: float32 [n, h, w, 3].
      labels: int32 [n].

    Returns:
      ``torch_f32`` and ``torch_bf16``, each to be called without arguments; None without PyTorch.

    Raises:
      ValueError: if the model is neither `Vgg6` nor `Mlp`.
    """
    torch: Any = _module("torch")
    if torch is None:
        return {"torch_f32": None, "torch_bf16": None}
    torch.set_num_threads(os.cpu_count() or 1)  # its default may be half of what XLA uses
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)  # NHWC in memory: channels last
    y = torch.from_numpy(labels.astype(np.int64))

    def stepper(bfloat16: bool) -> Callable[[], Any]:
        network = _torch_network(torch, model, images.shape[1:])
        network = network.to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                logits = network(x)
            loss = torch.nn.functional.cross_entropy(logits.float(), y)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    return {"torch_f32": stepper(False), "torch_bf16": stepper(True)}


def _torch_network(torch: Any, model: nn.Module, shape: tuple[int, ...]) -> Any:
    """The same layers in PyTorch, for images of a shape (h, w, c)."""
    layers: list[Any] = []
    if isinstance(model, Mlp):
        sizes = [int(np.prod(shape)), *model.hidden]
        for before, after in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        last = torch.nn.Linear(sizes[-1], model.classes)
        return torch.nn.Sequential(torch.nn.Flatten(), *layers, last)
    if isinstance(model, Vgg6):
        channels = shape[-1]
        for width in model.widths:
            for before in (channels, width):
                layers += [torch.nn.Conv2d(before, width, 3, padding=1), torch.nn.ReLU()]
            layers.append(torch.nn.MaxPool2d(2))
            channels = width
        mean = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        return torch.nn.Sequential(*layers, *mean, torch.nn.Linear(channels, model.classes))
    raise ValueError(f"{type(model).__name__} is not written in PyTorch: give a Vgg6 or an Mlp")


def _module(name: str) -> Any:
    """An optional package, imported; None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
