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
# # All three
#
# A device with a camera, and a cloud that marks what moves. The network learns in int8 (Octo)
# across a cut that features and gradients cross in few bits (SGQ). Then the device runs on a
# stream: int8 again, only the patches that changed (PASS), features in bytes. The scene is made
# up: two squares that wander over a noisy background.

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
import optax
from flax.training.train_state import TrainState

import tinyjax
from experiments import plots, video
from experiments.data import scenes
from tinyjax import entropy, sgq, wire

plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## Scene and network
#
# Frames of 96x160; the network says for each cell of 4x4 pixels whether most of it belongs to a
# square.

# %%
images, labels = scenes.squares(count=120, size=(96, 160))
frames = (images.astype(np.float32) / 64 - 2)[:, None]
cells = (labels == 255).reshape(120, 24, 4, 40, 4).mean((2, 4)) > 0.5
device = nn.Sequential([nn.Conv(16, (3, 3), 2), nn.relu, nn.Conv(32, (3, 3), 2), nn.relu])
cloud = nn.Sequential([nn.Conv(32, (3, 3)), nn.relu, nn.Conv(1, (1, 1))])
model = nn.Sequential([device, cloud])
params = jax.jit(model.init)(jax.random.key(0), frames[0])
state = TrainState.create(apply_fn=model.apply, params=params, tx=optax.adam(1e-2))


# %% [markdown]
# ## Learn on the first 80 frames
#
# The step is an ordinary one. `send` stands before the first layer of the cloud, and `int8_qat`
# computes all layers, forward and backward.


# %%
@jax.jit
def step(state, x, targets):
    def loss(params):
        logits = state.apply_fn(params, x)[..., 0]
        return optax.sigmoid_binary_cross_entropy(logits, targets).mean()

    return state.apply_gradients(grads=jax.grad(loss)(state.params))


tx = tinyjax.chain(tinyjax.at("layers_1/layers_0", tinyjax.send(sgq())), tinyjax.int8_qat())
batches = [(frames[i:80:10, 0], cells[i:80:10].astype(np.float32)) for i in range(10)]
state, step = tinyjax.attach(tx, step, state, *batches[0]), tx(step)
print(tinyjax.count_macs(step, state, *batches[0]))
for i in range(60):
    state = step(state, *batches[i % 10])
params = tinyjax.detach(state).params

# %% [markdown]
# ## Stream the other 40
#
# Scales are frozen at what was seen in training, so that a cell of a patch is the same number in a
# patch as in the whole frame. The frame of bytes is what would go over the link; here the cloud
# unpacks it.

# %%
lower, upper = ({"params": params["params"][half]} for half in ("layers_0", "layers_1"))
table = tinyjax.calibrate(device.apply, lower, [(frame,) for frame in frames[:80:8]])
int8 = tinyjax.rewrite(tinyjax.int8_frozen(table=table), device.apply).apply
gated = tinyjax.pass_skip(gate=tinyjax.threshold(4 / 64), fuse=False)
skipping = tinyjax.rewrite(gated, lambda params, frame: int8({}, params, frame)[0])
contexts = entropy.fit(sgq().encode(device.apply(lower, frames[:80:8, 0])))
encode = jax.jit(lambda x: entropy.compress(sgq().encode(x), contexts))
mark = jax.jit(lambda code: cloud.apply(upper, sgq().decode(entropy.expand(code, contexts)[0])))

# %%
seen, memory, run = [], skipping.init(lower, frames[80]), jax.jit(skipping.apply)
for frame in frames[80:]:
    features, memory = run(memory, lower, frame)
    sent = wire.pack(encode(features))
    found = mark(wire.unpack(sent))[0, ..., 0] > 0
    seen.append([np.asarray(each) for each in (found, memory.age == 0, len(sent))])
found, taken, sizes = (np.array(column) for column in zip(*seen))
plain, truth = jax.jit(model.apply)(params, frames[80:, 0])[..., 0] > 0, cells[80:]
for name, marked in {"float32, dense, uncompressed": plain, "all three": found}.items():
    print(f"F1 {2 * (marked & truth).sum() / (marked.sum() + truth.sum()):.3f}, {name}")
print(f"{features.nbytes / sizes.mean():.1f} times fewer bytes, {taken[1:].mean():.0%} taken")

# %% [markdown]
# On the left what the gate took, on the right what the cloud marked. Every frame is sent whole
# here, though most of it is the same.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
for ax, picture in zip(axes, (video.shade(images[110], taken[30], 16), found[30])):
    ax.imshow(picture, cmap="gray")
    ax.set_axis_off()
plt.show()
