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
# # Wrap a train step
#
# A flax train step that knows nothing of tinyjax learns Fashion-MNIST twice: as it is, in float32,
# and wrapped, in int8 forward and backward. Run it from the repository's root or from `notebooks/`.

# %%
import pathlib
import sys

root = pathlib.Path.cwd() if pathlib.Path("experiments").exists() else pathlib.Path.cwd().parent
sys.path.insert(0, str(root))

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import tinyjax
from experiments import data, measure, train
from experiments.models import SmallCnn

# %% [markdown]
# ## The step, as any flax user has it
#
# `train.train_step` is jitted, takes a `TrainState` and a batch, and calls `state.apply_fn`.

# %%
images, labels = data.load("fashion_mnist_sample").train
images = data.pixels(images)
model = SmallCnn(blocks=((16, 16), (32, 32)))
state = train.create_state(model, images[:50], learning_rate=0.05, steps=60, seed=0)
step = train.train_step

# %% [markdown]
# ## Where a transform would act
#
# A *site* is where an activation meets a weight. Its name is the path of the weight.

# %%
for site in tinyjax.sites(state.apply_fn, {"params": state.params}, images[:50]):
    print(f"{site.path:24} {site.kind:5} {site.macs / 1e6:6.1f} M multiply-accumulates")

# %% [markdown]
# ## Wrap it
#
# `attach` puts the transform's variables, and the key of its random rounding, beside the
# parameters. `tx(step)` is the same step in int8. `at(...)` and `where(...)` would choose sites.

# %%
tx = tinyjax.int8_qat()
arms = {"float32": (step, state)}
arms["int8"] = (tx(step), tinyjax.attach(tx, step, state, images[:50], labels[:50]))

# %%
curves = {}
for name, (arm_step, arm_state) in arms.items():
    losses = []
    for i in range(60):
        rows = slice(50 * (i % 80), 50 * (i % 80) + 50)
        arm_state, scores = arm_step(arm_state, images[rows], labels[rows])
        losses.append(float(scores["loss"]))
    curves[name] = losses

# %%
for name, losses in curves.items():
    plt.plot(losses, label=name)
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()

# %% [markdown]
# ## What was really computed
#
# Read from the traced steps: the dtype of the operands of every product, forward and backward, and
# the bytes that are kept from the forward pass for the backward pass.

# %%
for name, (arm_step, arm_state) in arms.items():
    print(name, tinyjax.count_macs(arm_step, arm_state, images[:50], labels[:50]))

# %%
int8 = tinyjax.rewrite(tx, model.apply).apply
forward = {
    "float32": lambda params, x: model.apply({"params": params}, x),
    "int8": lambda params, x: int8({}, {"params": params}, x, key=jax.random.key(0))[0],
}
for name, apply in forward.items():
    loss = lambda params, x, y, apply=apply: train.cross_entropy(apply(params, x), y)
    kept = measure.saved_bytes(loss, state.params, jnp.asarray(images[:50]), labels[:50])
    print(f"{name:8} keeps {kept / 1e6:.1f} MB for the backward pass")
