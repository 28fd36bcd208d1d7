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
# # Write your own transform
#
# A transform is two pure functions: `init(site)` makes the variables of a site, `call` computes
# it. `tinyjax/transforms/_skeleton.py` is a file to copy; here are two in a few lines each. Both
# work on any model and train step, at sites of your choice, and below other transforms.

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
from experiments import data, plots, train
from experiments.models import SmallCnn

plt.rcParams.update(plots.STYLE)

# %% [markdown]
# ## Ternary weights
#
# Every weight becomes -s, 0 or s, with one `s` for each output feature ([Li et al.,
# 2016](https://arxiv.org/abs/1605.04711)). Rounding is differentiated as the identity.


# %%
def ternary():
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        axes, size = tuple(range(w.ndim - 1)), jnp.abs(w)
        kept = size >= 0.7 * size.mean(axes)
        rounded = jnp.where(kept, size.mean(axes, where=kept) * jnp.sign(w), 0.0)
        return op(x, w + jax.lax.stop_gradient(rounded - w), epilogue, **overrides), vars

    return tinyjax.Transform(lambda site: (), call)


# %% [markdown]
# ## Noise on the weights
#
# `key` is new for every site and step. It comes from the train state, where `attach` has put it.


# %%
def noisy(share):
    def call(op, site, vars, key, x, w, epilogue, **overrides):
        noise = share * jnp.std(w) * jax.random.normal(key, w.shape)
        return op(x, w + noise, epilogue, **overrides), vars

    return tinyjax.Transform(lambda site: (), call)


# %% [markdown]
# ## Put around a step
#
# `where` and `at` choose sites; in `chain` the first is outermost, and `int8_qat` multiplies last.
# It counts more products: kernels as narrow as these are filled up with zeros.

# %%
images, labels = data.load("fashion_mnist_sample").train
images = data.pixels(images)
model = SmallCnn(blocks=((16,), (32,)))
state = train.create_state(model, images[:50], learning_rate=0.05, steps=60, seed=0)
arms = {
    "float32": tinyjax.identity(),
    "ternary": ternary(),
    "ternary where wide": tinyjax.where(lambda site: site.w.shape[-1] == 32, ternary()),
    "ternary, int8": tinyjax.chain(tinyjax.at("Conv_*", ternary()), tinyjax.int8_qat()),
    "noisy": noisy(0.3),
}

# %%
curves, trained = {}, {}
for name, tx in arms.items():
    arm = tinyjax.attach(tx, train.train_step, state, images[:50], labels[:50])
    step, losses = tx(train.train_step), []
    for i in range(60):
        arm, scores = step(arm, images[50 * i : 50 * i + 50], labels[50 * i : 50 * i + 50])
        losses.append(float(scores["loss"]))
    curves[name], trained[name] = losses, {"params": tinyjax.detach(arm).params}
    print(f"{name:18} {tinyjax.count_macs(step, arm, images[:50], labels[:50])}")

# %%
for name, losses in curves.items():
    plt.plot(np.convolve(losses, np.ones(8) / 8, "valid"), label=name)  # means of eight
plt.gca().set(xlabel="step", ylabel="loss")
plt.legend()
plt.show()

# %% [markdown]
# ## What noise in training is good for
#
# A transform is for inference as well. Here the weights of two trained networks are disturbed, as
# in analogue memories.

# %%
for name in ("float32", "noisy"):
    hits = {}
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        apply = jax.jit(tinyjax.rewrite(noisy(share), model.apply).apply)
        logits, _ = apply({}, trained[name], images[3000:], key=jax.random.key(1))
        hits[share] = (logits.argmax(-1) == labels[3000:]).mean()
    plt.plot(hits.keys(), hits.values(), "o-", label=f"trained {name}")
plt.gca().set(xlabel="noise, in standard deviations of the weights", ylabel="accuracy")
plt.legend()
plt.show()
