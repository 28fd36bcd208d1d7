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
# # Skip a video
#
# A camera that does not move sends nearly the same frame again and again. `pass_skip` computes
# only the patches that changed, and keeps the rest of every layer from the frames before. The clip
# is the bundled one; the network is a backbone with random weights, so that only relative figures
# count.

# %%
import pathlib
import sys

root = pathlib.Path.cwd() if pathlib.Path("experiments").exists() else pathlib.Path.cwd().parent
sys.path.insert(0, str(root))

# %%
import time
from itertools import islice

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import data, plots, video
from experiments.models import Backbone
from tinyjax import inner_limits, pass_skip, rewrite, threshold

plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## The network and the transform
#
# The gate takes a patch of 16x16 pixels where a value moved by more than 8 of 255, which is above
# the noise of this clip. `fuse=False` makes a block of each convolution.

# %%
images = list(islice(video.frames(data.clip()), 40, 100, 2))
frames = [jnp.asarray(image, jnp.float32)[None] / 255 for image in images]
model = Backbone()
params = jax.jit(model.init)(jax.random.key(0), frames[0])
skipping = rewrite(pass_skip(patch=16, gate=threshold(8 / 255), fuse=False), model.apply)
dense = jax.jit(lambda state, params, frame: (state, model.apply(params, frame)))
step = jax.jit(lambda *args: skipping.apply(*args)[::-1], donate_argnums=0)

# %% [markdown]
# ## Run it
#
# The state is yours: it goes into the step and comes out of it. It tells which patches the gate
# took (`age` is 0 there) and which cells each block recomputed (`active`).


# %%
def run(step, state):
    rows = []
    for frame in frames:
        start = time.perf_counter()
        state, out = jax.block_until_ready(step(state, params, frame))
        ms = 1e3 * (time.perf_counter() - start)
        active = [cells.mean() for cells in state.active]
        rows.append([np.asarray(each) for each in (out, state.age == 0, active, ms)])
    return [np.array(column) for column in zip(*rows[1:])]  # the first compiles, and is whole


right, _, _, dense_ms = run(dense, skipping.init(params, frames[0]))
found, taken, active, ms = run(step, skipping.init(params, frames[0]))
error = lambda found: np.linalg.norm(found - right) / np.linalg.norm(right)
print(f"{dense_ms.sum() / ms.sum():.1f} times as fast, relative error {error(found):.4f}")

# %% [markdown]
# ## What was skipped
#
# Patches that the gate took are in colour, the others dark.

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 2.3), layout="constrained")
for ax, i in zip(axes, (8, 18, 28)):
    ax.imshow(video.shade(images[i + 1], taken[i], 16))
    ax.set(title=f"{taken[i].mean():.0%} of the patches", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# A change spreads with every convolution, so that later blocks recompute more cells than the gate
# took.

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 2.6), layout="constrained")
axes[0].plot(taken.mean((1, 2)), color="#94a3b8", label="taken by the gate")
axes[0].plot(active[:, -1], color="#0d9488", label="recomputed, last block")
axes[0].set(ylabel="share of the cells", xlabel="frame", ylim=(0, None))
axes[1].plot(dense_ms, color=plots.COLORS["dense"], label="dense")
axes[1].plot(ms, color=plots.COLORS["exact"], label="skipping")
axes[1].set(ylabel="ms", xlabel="frame", ylim=(0, None))
axes[0].legend()
axes[1].legend()
plt.show()

# %% [markdown]
# ## Inner limits
#
# Many of these changes are tiny. `inner_limits` finds, on some frames, how far each tensor between
# blocks may move unseen for an error of the output. Limits are in the state; nothing compiles
# anew. The error that is asked for, 5 %, holds on the ten frames that they were found on; on all
# frames it is what is printed.

# %%
limits = inner_limits(skipping, model.apply, params, frames[:10], tolerance=0.05, tries=4)
found, _, limited, ms = run(step, skipping.init(params, frames[0])._replace(limits=limits))
print(f"{dense_ms.sum() / ms.sum():.1f} times as fast, relative error {error(found):.4f}")
plt.figure(figsize=(5, 2.6), layout="constrained")
plt.bar(np.arange(0.8, 5), active.mean(0), 0.4, color="#94a3b8", label="no limits")
plt.bar(np.arange(1.2, 6), limited.mean(0), 0.4, color="#0d9488", label="with inner limits")
plt.gca().set(xlabel="block", ylabel="share of the cells recomputed")
plt.legend()
plt.show()
