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
# # int8 under the hood
#
# What `int8_qat` does at one site, by hand, with the functions that it uses itself; then what a
# whole step keeps in memory, and where int8 pays on this machine.

# %%
import pathlib
import sys

root = pathlib.Path.cwd() if pathlib.Path("experiments").exists() else pathlib.Path.cwd().parent
sys.path.insert(0, str(root))

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import tinyjax
from experiments import data, measure, plots, train
from experiments.models import SmallCnn
from tinyjax import numerics

plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## Codes and scales
#
# An int8 code `q` stands for `q * scale`. Activations have one scale, the largest magnitude over
# 127; weights have one for each output feature, so that a narrow column is not rounded in the
# steps of a wide one. Here 64 images meet 128 columns, half of them ten times wider than the
# others.

# %%
images, labels = data.load("fashion_mnist_sample").train
x = jnp.asarray(data.pixels(images[:64]).reshape(64, -1))
widths = jnp.where(jnp.arange(128) < 64, 0.01, 0.1)
w = widths * jax.random.normal(jax.random.key(0), (x.shape[1], 128))

# %%
s_x = numerics.symmetric_scale(numerics.abs_max(x))
x_q = numerics.quantize(x, s_x)
ranges = {"per_feature": numerics.per_feature(w), "per_tensor": numerics.per_tensor(w)}
scales = {name: numerics.symmetric_scale(largest) for name, largest in ranges.items()}
codes = {name: numerics.quantize(w, scale) for name, scale in scales.items()}
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
for ax, (name, w_q) in zip(axes, codes.items()):
    halves = [np.ravel(w_q[:, 64:]), np.ravel(w_q[:, :64])]
    ax.hist(halves, np.arange(-127.5, 128, 5), histtype="step", label=["wide", "narrow columns"])
    ax.set(title=f"codes, {name}", xlabel="code", yscale="log")
axes[1].legend()
plt.show()

# %% [markdown]
# With one scale for the tensor the narrow columns are left with a tenth of the codes.
#
# ## The product
#
# Codes are multiplied and added up in int32, exactly. The scales come last, once per output.

# %%
for name, w_q in codes.items():
    (sums,) = numerics.dot(x_q, w_q)
    errors = jnp.linalg.norm(sums * s_x * scales[name] - x @ w, axis=0)
    errors /= jnp.linalg.norm(x @ w, axis=0)
    print(
        f"{name}, {sums.dtype} sums: narrow {errors[:64].mean():.4f}, wide {errors[64:].mean():.4f}"
    )

# %% [markdown]
# ## Gradients are rounded at random
#
# A gradient has many values below half a step. Rounded to nearest they are all gone; rounded up or
# down at random they are right on average. Below, codes over gradients in steps; each dot is the
# mean of 64 roundings.

# %%
g = jnp.linspace(-2, 2, 81)
up_or_down = jax.vmap(lambda seed: numerics.stochastic(g, seed))(jnp.arange(64, dtype=jnp.uint32))
plt.figure(figsize=(5, 2.8), layout="constrained")
plt.plot(g, g, color="#94a3b8", lw=1)
plt.step(g, numerics.nearest(g), where="mid", color="#d97706", label="nearest")
plt.plot(g, np.mean(up_or_down, 0), ".", color="#0d9488", label="stochastic")
plt.legend()
plt.show()

# %% [markdown]
# ## What is kept for the backward pass
#
# A network's forward pass keeps what its backward pass will need. In float32 these are
# activations; under `int8_qat` they are codes, and bits where a relu or a pool only has to
# remember a choice.

# %%
model, batch = SmallCnn(), (jnp.asarray(data.pixels(images[:50])), labels[:50])
state = train.create_state(model, batch[0], learning_rate=0.05, steps=1, seed=0)
int8 = tinyjax.rewrite(tinyjax.int8_qat(), model.apply).apply
arms = {"float32": model.apply, "int8": lambda v, x: int8({}, v, x, key=jax.random.key(0))[0]}
for name, apply in arms.items():
    loss = lambda params, x, y, apply=apply: train.cross_entropy(apply({"params": params}, x), y)
    print(f"{name:8} keeps {measure.saved_bytes(loss, state.params, *batch) / 1e6:5.2f} MB")

# %% [markdown]
# ## Where it pays
#
# That depends on the layer and the processor, so it is measured. `audit` times every site alone,
# in float32 and in int8, quantization and both gradients included, and remembers the times.

# %%
report = tinyjax.audit(model.apply, {"params": state.params}, batch[0])
print(report)

# %%
names = [row.site.path.split("/")[1] for row in report.rows]
colors = [plots.COLORS["int8" if row.faster else "float32"] for row in report.rows]
plt.figure(figsize=(7, 2.6), layout="constrained")
plt.bar(names, [row.float_ms / row.int8_ms for row in report.rows], color=colors)
plt.axhline(1, color="#334155", lw=1)
plt.ylabel("times as fast in int8")
plt.show()

# %% [markdown]
# `report.choose(int8_qat())` is the policy: int8 where it was faster, float32 elsewhere.
