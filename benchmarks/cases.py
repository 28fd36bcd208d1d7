"""What `benchmarks.int8` trains: models and steps that know nothing of tinyjax.

All but the last take 32x32x3 images and SGD with momentum.

``mlp``
    3072-1024-1024-10, batch 256.
``vgg6``, ``vgg6_bn``
    Six 3x3 convolutions with relu, ``nn.max_pool`` after every second, batch 128; ``_bn`` has batch
    normalization between convolution and relu.
``resnet``, ``resnet20``
    Basic blocks with batch normalization, batch 64: one each at 64, 128 and 256 channels; three
    each at 16, 32 and 64.
``mobilenet``
    Inverted residuals at 16, 24, 32, 64 and 96 channels, batch 64.
``conv_b8``
    No network: one 3x3 convolution 64 -> 64 without bias on 32x32x64, batch 8, forward and both
    gradients. Its input is alive anyway, so float keeps nothing and the saved ratio is 0.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments import train
from experiments.models import Mlp, Vgg6, slice_max_pool
from experiments.networks import MobileNet, ResNet, Vgg6Bn, shifted_depthwise
from tinyjax import count_macs

__all__ = ["CASES", "Case", "batch_of", "both_gradients", "model_macs", "training"]

Array = jax.Array


class Case(NamedTuple):
    """A model, how it is trained, and what it is compared with."""

    model: nn.Module
    batch: int
    edited: nn.Module | None = None  # the same model, by hand as float32 runs it fastest
    step: Callable[..., Any] = train.train_step
    peers: tuple[str, ...] = ()  # of "qwix", "torch"
    slow: tuple[str, ...] = ()  # programs that take seconds a call
    left_out: tuple[str, ...] = ()  # float32 programs that are known to be hopeless
    baseline: str = "f32"  # what `speedup` compares with


@jax.jit
def both_gradients(state: Any, x: Array, g: Array) -> tuple[Array, Any]:
    """A layer alone, forward and backward.

    Args:
      state: flax train state.
      x: float32 [n, h, w, c], the input.
      g: float32 [n, h, w, c'], the output's gradient.

    Returns:
      The output, and the gradients of the parameters and of the input.
    """
    y, pull = jax.vjp(lambda params, x: state.apply_fn({"params": params}, x), state.params, x)
    return y, pull(g)


CASES = {
    "mlp": Case(Mlp(), 256, peers=("qwix", "torch")),
    "vgg6": Case(Vgg6(), 128, Vgg6(pool=slice_max_pool), peers=("qwix", "torch"), slow=("qwix",)),
    "vgg6_bn": Case(Vgg6Bn(), 128, Vgg6Bn(pool=slice_max_pool), train.statistics_step),
    "resnet": Case(ResNet(), 64, step=train.statistics_step),
    "resnet20": Case(ResNet((16, 32, 64), blocks=3), 64, step=train.statistics_step),
    # In float32 the grouped convolution takes two to four times the edited model's time, whatever
    # else is done (seconds a step on a loaded machine, default XLA and library fusion off: batch
    # 16, 5.5 and 4.1, edited 1.4 and 3.2; batch 64, 34 and 18, edited 19 and 9), and the rewrite
    # leaves it as it is (batch 64: 70 and 31 where it was 49 and 17). One form of it is run.
    "mobilenet": Case(
        MobileNet(),
        64,
        MobileNet(depthwise=shifted_depthwise),
        train.statistics_step,
        slow=("f32",),
        left_out=("f32_off", "f32_rewritten", "f32_rewritten_off"),
        baseline="f32_edited",
    ),
    "conv_b8": Case(
        nn.Conv(64, (3, 3), use_bias=False),
        8,
        step=both_gradients,
        peers=("qwix",),
        slow=("qwix",),
    ),
}


def model_macs(case: Case) -> int:
    """Multiply-accumulates of the model's forward pass for one image; nothing is compiled."""
    image = jax.ShapeDtypeStruct((1, *_shape(case)), jnp.float32)
    variables = jax.eval_shape(case.model.init, jax.random.key(0), image)
    return sum(count_macs(training(case.model.apply, variables), variables, image).values())


def _shape(case: Case) -> tuple[int, int, int]:
    """One image [h, w, c] of a case."""
    return (32, 32, case.model.features if isinstance(case.model, nn.Conv) else 3)


def batch_of(case: Case, size: int) -> tuple[Array, Array]:
    """Images float32 [n, h, w, c], and labels int32 [n] or an output's gradient float32."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(size, *_shape(case))), jnp.float32)
    if case.step is both_gradients:
        return images, jnp.asarray(rng.normal(size=images.shape), jnp.float32)
    return images, jnp.asarray(rng.integers(0, 10, size), jnp.int32)


def training(apply: Callable[..., Any], variables: Mapping[str, Any]) -> Callable[..., Array]:
    """``(variables, images) -> output``, in training where there are running averages."""
    if "batch_stats" not in variables:
        return apply
    return lambda variables, images: apply(variables, images, mutable=["batch_stats"])[0]
