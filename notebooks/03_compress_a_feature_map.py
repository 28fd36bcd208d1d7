# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% [markdown]
# # Compress a feature map
#
# A network is cut in two: a device computes the layers below the cut, a cloud those above. What
# goes over the link is a feature map. `sgq` makes 4-bit codes of it, a lossless stage takes out
# what is left of it that can be foreseen, and `wire` makes bytes with a checksum.

# %%
import pathlib
import sys

root = pathlib.Path.cwd() if pathlib.Path("experiments").exists() else pathlib.Path.cwd().parent
sys.path.insert(0, str(root))

# %%
import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments import data, plots, train
from experiments.models import max_pool
from tinyjax import entropy, global_step, sgq_decode, sgq_encode, stripe_gains, stripe_groups, wire

plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## Features worth sending
#
# A small network learns Fashion-MNIST for a few seconds. The device has its first five layers: the
# map after them is 14x14 with 64 channels. 128 images are for calibration, 32 others are sent.

# %%
images, labels = data.load("fashion_mnist_sample").train
images = data.pixels(images)
flat = lambda x: x.reshape(len(x), -1)
below = [nn.Conv(32, (3, 3)), nn.relu, max_pool, nn.Conv(64, (3, 3)), nn.relu]
model = nn.Sequential([*below, max_pool, flat, nn.Dense(10)])
state = train.create_state(model, images[:50], learning_rate=0.05, steps=60, seed=0)
for i in range(60):
    state, _ = train.train_step(state, images[50 * i : 50 * i + 50], labels[50 * i : 50 * i + 50])
device = jax.jit(lambda x: nn.Sequential(below).apply({"params": state.params}, x))
seen, x = device(images[3000:3128]), device(images[3200:3232])

# %% [markdown]
# ## Codes, and what comes out of them
#
# The code is a pytree: packed codes, a step for all of them, and the mean of what each code took,
# which is what it is decoded to.

# %%
code = sgq_encode(x)
y = sgq_decode(code)
snr = lambda x, y: 10 * np.log10(np.sum(np.square(x)) / np.sum(np.square(x - y)))
print(f"{x.dtype} {x.shape} -> {code.packed.dtype} {code.packed.shape}, {snr(x, y):.1f} dB")

# %%
figure, axes = plt.subplots(3, 8, figsize=(9, 3.6), layout="constrained")
for row, (name, maps) in zip(axes, {"sent": x, "arrived": y, "difference": np.abs(x - y)}.items()):
    for ax, channel in zip(row, np.argsort(-np.var(x, (0, 1, 2)))):
        ax.imshow(maps[1, :, :, channel], cmap="magma", vmin=0, vmax=x[1, :, :, channel].max())
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## Bytes
#
# The lossless stage codes each value by its neighbours in space and in other channels. Both ends
# need its state, which is fitted to codes like those that are sent, and is sent once. It loses
# nothing: what comes out is the same code, bit for bit.

# %%
contexts = entropy.fit(sgq_encode(seen))
compress = jax.jit(entropy.compress)
frame = wire.pack(compress(code, contexts))
back, valid = entropy.expand(wire.unpack(frame), contexts)
print(f"intact: {bool(valid)}, the same codes: {bool((back.packed == code.packed).all())}")
sizes = {"float32": x.nbytes, "codes": len(wire.pack(code)), "lossless": len(frame)}
print(f"the state is {len(wire.pack(contexts)):,} bytes, sent once")
for name, size in sizes.items():
    print(f"{name:12} {size:9,} bytes, {x.nbytes / size:5.1f} times smaller than float32")

# %% [markdown]
# ## Rate against signal to noise
#
# Every quantizer has a knob: the step, the bits, the levels. Hollow marks are packed codes, full
# ones went through the lossless stage; further up and to the left is better. `stripe_gains` has no
# lossless stage: its messages all have one length. The finest step is worse both ways, since
# sixteen codes of it do not reach the largest features any more.

# %%
quantizers = {
    "global_step": [global_step(step=step) for step in (0.4, 0.5, 0.7, 1.0, 1.4)],
    "stripe_groups": [stripe_groups(bits=bits) for bits in (2, 4)],
    "stripe_gains": [stripe_gains(levels=levels) for levels in (3, 4)],
}
plt.figure(figsize=(6.4, 3.6), layout="constrained")
for (name, settings), color in zip(quantizers.items(), ("#0d9488", "#d97706", "#2563eb")):
    codes = [jax.jit(quantizer)(x) for quantizer in settings]
    decibels, small = [snr(x, sgq_decode(code)) for code in codes], []
    if name != "stripe_gains":
        small = [compress(q, entropy.fit(each(seen))) for q, each in zip(codes, settings)]
    plt.plot([], color=color, label=name)
    for form, line, fill in ((codes, "o:", "none"), (small, "o-", color)):
        bits = [8 * len(wire.pack(each)) / x.size for each in form]
        plt.plot(bits, decibels[: len(bits)], line, color=color, markerfacecolor=fill)
plt.gca().set(xlabel="bits for a feature", ylabel="signal to noise, dB", xlim=(0, 4.5))
plt.legend(loc="upper center")
plt.show()
