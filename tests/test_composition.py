"""What composes with what: a table whose every cell names its test, and tests that were missing.

``docs/composition.md`` is this table; ``python -m tests.test_composition`` writes it.
"""

import ast
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests import sharded
from tests.moving import conv, one_sentence, video
from tinyjax import (
    at,
    chain,
    count_macs,
    delta_uplink,
    frozen,
    int8_frozen,
    int8_qat,
    link,
    numerics,
    pass_skip,
    rewrite,
    send,
    sgq,
    sgq_decode,
    wire,
)

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "composition.md"
HERE = "tests/test_composition.py"


class Works(NamedTuple):
    """A cell that works: the test that shows it, and what there is to know."""

    test: str
    note: str = ""


class Refused(NamedTuple):
    """A cell that is refused: how the sentence begins that says why (``REFUSALS`` provokes it)."""

    act: str
    why: str


class Both(NamedTuple):
    """A cell that works in one way and is refused in another."""

    works: Works
    refused: Refused


# --- the table -----------------------------------------------------------------------------------

AROUND = {  # (outer, inner): what the outer gives the inner to compute
    ("sgq", "int8"): Works(
        "tests/transforms/test_link.py::test_a_split_step_trains_in_int8",
        "`chain(at(cut, send(sgq())), int8_qat())`",
    ),
    ("int8", "sgq"): Refused(
        "int8 around sgq",
        "int8_qat would bypass another transform, since it computes the op itself",
    ),
    ("pass_skip", "int8"): Both(
        Works(
            "tests/transforms/test_int8_frozen.py::test_skipping_in_int8_is_exact_to_the_last_bit",
            "`int8_frozen`: frozen scales, the same integers as in the whole frame",
        ),
        Refused(
            "pass_skip around dynamic int8",
            "no product of this function can be computed in patches",
        ),
    ),
    ("int8", "pass_skip"): Refused(
        "int8 around pass_skip", "this transform works on blocks, not on sites"
    ),
    ("pass_skip", "sgq"): Works(
        f"{HERE}::test_a_codec_inside_a_network_that_is_skipped",
        "the codec sees the whole tensor, so a block ends there",
    ),
    ("sgq", "pass_skip"): Both(
        Works(
            f"{HERE}::test_the_gradient_of_a_link_behind_what_is_skipped",
            "`link` on what `pass_skip` returns; or `delta_uplink`, which sends what changed "
            "(`tests/test_uplink.py::test_bytes_follow_what_pass_skip_recomputed`)",
        ),
        Refused("sgq around pass_skip", "this transform works on blocks, not on sites"),
    ),
    ("pass_skip", "sgq, int8"): Works(
        f"{HERE}::test_all_three_in_one_function",
        "`pass_skip` around `chain(at(cut, send(sgq())), int8_frozen(table=table))`",
    ),
    ("delta_uplink", "pass_skip, int8"): Works(
        f"{HERE}::test_a_device_skips_in_int8_and_sends_what_changed",
        "the device's half in int8, patch by patch; the codes of what changed",
    ),
}
METHODS = ("int8", "sgq", "pass_skip")
UNDER = {
    "int8_qat": {
        "jit": Works("tests/test_contract.py::test_jit_is_no_jit_and_gradients_are_finite"),
        "vmap": Works(
            "tests/test_sharding.py::test_under_vmap_a_scale_is_an_examples", "scales per example"
        ),
        "grad": Works("tests/transforms/test_int8_qat.py::test_convolution_equals_the_oracle"),
        "scan": Works("tests/test_step.py::test_inside_scan_over_batches"),
        "remat": Works("tests/test_step.py::test_vmap_over_examples_and_remat"),
        "shard_map": Works(
            "tests/test_sharding.py::test_in_shard_map_a_scale_is_a_shards", "scales per shard"
        ),
    },
    "int8_frozen": {
        "jit": Works("tests/transforms/test_int8_frozen.py::test_integers_are_those_of_int8_qat"),
        "vmap": Works(f"{HERE}::test_frozen_scales_are_the_same_everywhere"),
        "grad": Refused("grad of int8_frozen", "int8_frozen was differentiated at"),
        "scan": Works(f"{HERE}::test_frozen_scales_are_the_same_everywhere"),
        "remat": Refused("remat of int8_frozen", "int8_frozen was differentiated at"),
        "shard_map": Works(f"{HERE}::test_frozen_scales_are_the_same_everywhere"),
    },
    "sgq (`send`, `link`)": {
        "jit": Works("tests/transforms/test_link.py::test_a_link_encodes_both_directions"),
        "vmap": Works(
            "tests/transforms/test_link.py::test_a_link_under_vmap_is_a_link_per_example",
            "a step per example",
        ),
        "grad": Works("tests/transforms/test_link.py::test_a_link_encodes_both_directions"),
        "scan": Works(f"{HERE}::test_a_link_in_scan_and_remat"),
        "remat": Works(f"{HERE}::test_a_link_in_scan_and_remat"),
        "shard_map": Works(
            f"{HERE}::test_a_link_in_shard_map_is_a_link_per_shard", "a step per shard"
        ),
    },
    "pass_skip": {
        "jit": Works("tests/transforms/test_pass_skip.py::test_one_compilation_for_300_masks"),
        "vmap": Works(
            "tests/test_contract.py::test_blocks_jit_is_no_jit_and_vmap_is_a_loop",
            "right, but every frame costs more than a whole one",
        ),
        "grad": Works(
            "tests/transforms/test_pass_backward.py::test_random_chains_equal_their_emulation"
        ),
        "scan": Works("tests/transforms/test_pass_skip.py::test_scan_over_frames_equals_a_loop"),
        "remat": Works(f"{HERE}::test_what_is_skipped_under_remat"),
        "shard_map": Works(
            f"{HERE}::test_a_camera_for_each_device", "a camera per device, `check_vma=False`"
        ),
    },
    "delta_uplink": {
        "jit": Works(f"{HERE}::test_an_uplink_is_the_same_everywhere"),
        "vmap": Works(
            f"{HERE}::test_an_uplink_is_the_same_everywhere",
            "an uplink per camera; its codes are packed one by one",
        ),
        "grad": Refused("grad of delta_uplink", "an uplink was differentiated"),
        "scan": Works(f"{HERE}::test_an_uplink_is_the_same_everywhere"),
        "remat": Refused("remat of delta_uplink", "an uplink was differentiated"),
        "shard_map": Works(
            f"{HERE}::test_an_uplink_is_the_same_everywhere",
            "a camera per device, `check_vma=False`",
        ),
    },
}
CALLS = ("jit", "vmap", "grad", "scan", "remat", "shard_map")

# --- the page ------------------------------------------------------------------------------------

INTRODUCTION = """# What composes with what

Written by `python -m tests.test_composition` from the table in `tests/test_composition.py`: every
cell that works names the test that shows it, and every sentence here is one that a test provokes.

## The methods, one around the other

`chain(a, b)` and `rewrite(a, rewrite(b, apply))` are `a` around `b`: `b` is nearer to the op.
All of it runs under `jit`.

"""


def shown(cell):
    """A cell in Markdown."""
    match cell:
        case Works(test, note):
            return f"works{': ' + note if note else ''} (`{test}`)"
        case Refused(_, why):
            return f"refused: “{why} …”"
        case Both(works, refused):
            return f"{shown(works)}; else {shown(refused)}"


def page():
    """The text of ``docs/composition.md``."""
    lines = ["| outer | inner | |", "|---|---|---|"]
    lines += [f"| {a} | {b} | {shown(cell)} |" for (a, b), cell in AROUND.items()]
    lines += ["", "## Each under what jax does to functions", ""]
    for method, cells in UNDER.items():
        lines += [f"**{method}**", "", "| | |", "|---|---|"]
        lines += [f"| {call} | {shown(cells[call])} |" for call in CALLS] + [""]
    return INTRODUCTION + "\n".join(lines).rstrip() + "\n"


def cells():
    for cell in (*AROUND.values(), *(cell for row in UNDER.values() for cell in row.values())):
        yield from cell if isinstance(cell, Both) else (cell,)


def test_no_cell_is_empty_and_every_named_test_is_there():
    assert {(a, b) for a in METHODS for b in METHODS if a != b} <= set(AROUND)
    assert all(tuple(row) == CALLS for row in UNDER.values())
    for cell in cells():
        if isinstance(cell, Works):
            path, _, name = cell.test.partition("::")
            tree = ast.parse((ROOT / path).read_text())
            assert name in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}, cell.test
        else:
            assert cell.act in REFUSALS


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text() == page(), "write it anew: python -m tests.test_composition"


# --- what is refused -----------------------------------------------------------------------------

KEY = jax.random.key(5)
SHAPE = (32, 32, 3)
TABLE = {"w0": 4.0, "w1": 4.0, "head": 4.0}
SKIP = pass_skip(patch=8)
CUT = at("w1", send(sgq()))


def apply(params, x):
    """Two convolutions and a product over channels."""
    x = jax.nn.relu(conv(x, params["w0"]))
    return jax.nn.relu(conv(x, params["w1"], stride=2)) @ params["head"]


def weights():
    rng = np.random.default_rng(3)
    shapes = {"w0": (3, 3, 3, 6), "w1": (3, 3, 6, 4), "head": (4, 5)}
    return {
        name: jnp.asarray(rng.normal(size=shape) / np.prod(shape[:-1]) ** 0.5, jnp.float32)
        for name, shape in shapes.items()
    }


def transformed(tx, key=KEY):
    """`apply` by a transform of sites."""
    return lambda params, x: rewrite(tx, apply).apply({}, params, x, key=key)[0]


def through(tx):
    return lambda: transformed(tx)(weights(), jnp.ones((1, *SHAPE)))


def gradient(wrap):
    frozen_apply = transformed(int8_frozen(table=TABLE), None)
    loss = wrap(lambda params: frozen_apply(params, jnp.ones((1, *SHAPE))).sum())
    return lambda: jax.grad(loss)(weights())


def gradient_of_uplink(wrap):
    """Of what the device holds after a difference, by the features."""
    uplink, x = delta_uplink(), jnp.ones((1, 4, 4, 2))
    state, _ = uplink.key(uplink.init(x), x)
    loss = wrap(lambda x: sgq_decode(uplink.delta(state, x)[0].features).sum())
    return lambda: jax.grad(loss)(x)


REFUSALS = {
    "int8 around sgq": through(chain(int8_qat(), CUT)),
    "pass_skip around dynamic int8": lambda: rewrite(
        SKIP, transformed(int8_qat(gradient_rounding=numerics.nearest), None)
    ).init(weights(), jnp.ones((1, *SHAPE))),
    "int8 around pass_skip": lambda: chain(int8_qat(scaling=frozen(TABLE)), SKIP),
    "sgq around pass_skip": lambda: chain(send(sgq()), SKIP),
    "grad of int8_frozen": gradient(lambda f: f),
    "remat of int8_frozen": gradient(jax.checkpoint),
    "grad of delta_uplink": gradient_of_uplink(lambda f: f),
    "remat of delta_uplink": gradient_of_uplink(jax.checkpoint),
}


@pytest.mark.parametrize("cell", [c for c in cells() if isinstance(c, Refused)], ids=str)
def test_what_is_refused_says_why(cell):
    with pytest.raises(ValueError, match=cell.why) as error:
        REFUSALS[cell.act]()
    one_sentence(error)


# --- what works ----------------------------------------------------------------------------------


def followed(function, frames):
    """Outputs, and those of the effective inputs: of a function that is skipped, compiled."""
    skipping, params = rewrite(SKIP, function), weights()
    step, whole = jax.jit(skipping.apply), jax.jit(function)
    state = skipping.init(params, frames[0])
    for x in frames:
        out, state = step(state, params, x)
        yield out, whole(params, state.ref), state


def test_a_codec_inside_a_network_that_is_skipped(rng):
    skipped = 0
    for out, want, state in followed(transformed(CUT), video(rng, SHAPE, 5)):
        # A rounding in the last bit may move a feature to the next code, by a step.
        np.testing.assert_allclose(out, want, atol=0.02 * float(np.abs(want).max()))
        skipped += not np.asarray(state.active[0]).all()
    assert skipped > 0


def test_all_three_in_one_function(rng):
    function = transformed(chain(CUT, int8_frozen(table=TABLE)))
    both = (function, transformed(int8_frozen(table=TABLE), None))
    macs, alone = (count_macs(f, weights(), jnp.ones((1, *SHAPE))) for f in both)
    assert macs == alone  # float32 only looks for NaN
    assert macs["int8"] > 10 * macs["float32"]
    skipped = 0
    for out, want, state in followed(function, video(rng, SHAPE, 5)):
        np.testing.assert_allclose(out, want, atol=0.02 * float(np.abs(want).max()))
        skipped += not np.asarray(state.active[0]).all()
    assert skipped > 0


def test_a_device_skips_in_int8_and_sends_what_changed(rng):
    frames = video(rng, SHAPE, 6)
    function = transformed(int8_frozen(table=TABLE), None)
    uplink = delta_uplink(cell=2)
    key, delta, receive = (jax.jit(f) for f in uplink[1:])
    device = cloud = uplink.init(jax.eval_shape(function, weights(), frames[0]))
    for t, (out, want, _) in enumerate(followed(function, frames)):
        np.testing.assert_array_equal(out, want)
        device, code = (delta if t else key)(device, out)
        cloud, valid = receive(cloud, wire.unpack(wire.pack(code)))
        assert bool(valid)
        here, there = (np.asarray(sgq_decode(end.features)) for end in (device, cloud))
        assert here.tobytes() == there.tobytes()
        if t == 1:  # the first frame again
            assert not np.asarray(code.cells).any()


@pytest.mark.slow
def test_the_gradient_of_a_link_behind_what_is_skipped(rng):
    frames, params, codec = video(rng, SHAPE, 4), weights(), sgq()
    skipping = rewrite(SKIP, apply)
    state = jax.jit(skipping.apply)(skipping.init(params, frames[0]), params, frames[0])[1]
    head = lambda out: jnp.sum(jnp.sin(link(codec, out, KEY)))
    loss = lambda params: head(skipping.apply(state, params, frames[2])[0])
    found = jax.jit(jax.grad(loss))(params)
    # The gradient that comes back over the link, then that of what was recomputed.

    def by_hand(params):
        out, back = jax.vjp(lambda params: skipping.apply(state, params, frames[2])[0], params)
        return back(jax.grad(head)(out))[0]

    wanted = jax.jit(by_hand)(params)
    for name in params:
        scale = float(np.abs(wanted[name]).max())
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-4 * scale)
        assert scale > 0


def test_frozen_scales_are_the_same_everywhere(rng):
    x, params = jnp.asarray(rng.normal(size=(4, *SHAPE)), jnp.float32), weights()
    run = transformed(int8_frozen(table=TABLE), None)
    want = jax.jit(run)(params, x)
    vmapped = jax.vmap(lambda x: run(params, x[None])[0])
    scanned = lambda x: lax.scan(lambda none, x: (none, run(params, x[None])[0]), None, x)[1]
    over = jax.shard_map(
        lambda x: run(params, x),
        mesh=sharded.mesh_of(),
        in_specs=sharded.BATCH,
        out_specs=sharded.BATCH,
    )
    for function in (vmapped, scanned, over):
        # The integers are equal; what follows them may be fused into another rounding.
        np.testing.assert_allclose(jax.jit(function)(x), want, rtol=1e-5, atol=1e-6)


def loss_of(x):
    return jnp.sum(jnp.sin(link(sgq(gradient_step=numerics.bounded_step), x, KEY)))


def test_a_link_in_scan_and_remat(rng):
    x = jnp.asarray(rng.normal(size=(3, 2, 5, 4)), jnp.float32)
    alone = jax.jit(jax.grad(loss_of))
    want = np.stack([alone(each) for each in x])
    kept = jax.grad(jax.checkpoint(loss_of))
    looped = jax.jit(lambda x: lax.scan(lambda none, x: (none, kept(x)), None, x)[1])(x)
    np.testing.assert_allclose(looped, want, rtol=1e-5)
    total = lambda x: lax.scan(lambda sum, x: (sum + loss_of(x), None), jnp.float32(0), x)[0]
    np.testing.assert_allclose(jax.jit(jax.grad(total))(x), want, rtol=1e-5)


def test_a_link_in_shard_map_is_a_link_per_shard(rng):
    x = jnp.asarray(rng.normal(size=(4, 5, 4)), jnp.float32).at[:2].multiply(8.0)
    over = jax.shard_map(
        jax.grad(loss_of), mesh=sharded.mesh_of(), in_specs=sharded.BATCH, out_specs=sharded.BATCH
    )
    alone = jax.jit(jax.grad(loss_of))
    want = np.concatenate([alone(part) for part in (x[:2], x[2:])])
    np.testing.assert_allclose(jax.jit(over)(x), want, rtol=1e-5)
    assert np.abs(want - alone(x)).max() > 1e-3  # which is not the batch's


@pytest.mark.slow
def test_what_is_skipped_under_remat(rng):
    frames, params = video(rng, SHAPE, 4), weights()
    skipping = rewrite(SKIP, apply)
    state = jax.jit(skipping.apply)(skipping.init(params, frames[0]), params, frames[0])[1]
    loss = lambda params: jnp.sum(jnp.sin(skipping.apply(state, params, frames[2])[0]))
    want, found = (jax.jit(jax.grad(f))(params) for f in (loss, jax.checkpoint(loss)))
    for name in params:
        np.testing.assert_allclose(found[name], want[name], rtol=1e-5, atol=1e-6)


def test_a_camera_for_each_device(rng):
    params, skipping = weights(), rewrite(SKIP, apply)
    clips = jnp.stack([jnp.stack(video(rng, SHAPE, 4)) for _ in range(2)])

    def camera(clip):
        def frame(state, x):
            out, state = skipping.apply(state, params, x)
            return state, (out, state.active[0])

        return lax.scan(frame, skipping.init(params, clip[0]), clip)[1]

    over = jax.shard_map(
        lambda clips: jax.tree.map(lambda a: a[None], camera(clips[0])),
        mesh=sharded.mesh_of(),
        in_specs=sharded.BATCH,
        out_specs=sharded.BATCH,
        check_vma=False,  # jax does not know the type of a loop's carry that begins with zeros
    )
    outs, active = jax.jit(over)(clips)
    for i, clip in enumerate(clips):
        want, cells = jax.jit(camera)(clip)
        np.testing.assert_allclose(outs[i], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(active[i], cells)
    assert not active.all()


def test_an_uplink_is_the_same_everywhere(rng):
    """Two cameras of four frames: in a loop, scan, vmap and shard_map, either end."""
    uplink = delta_uplink(cell=2)
    clips = jnp.asarray(np.cumsum(rng.random((2, 4, 1, 5, 6, 3)) > 0.9, axis=1), jnp.float32)

    def frame(ends, x):
        device, cloud = ends
        device, code = uplink.delta(device, x)
        cloud, valid = uplink.receive(cloud, code)
        return (device, cloud), (code, valid)

    @jax.jit
    def begun(x):
        device, _ = uplink.key(uplink.init(x), x)
        return device, device  # as the cloud's end after a key frame

    camera = lambda ends, clip: lax.scan(frame, ends, clip)
    starts, loops, next_of = [], [], jax.jit(frame)
    for clip in clips:
        ends, out = begun(clip[0]), []
        starts.append(ends)
        for x in clip[1:]:
            ends, one = next_of(ends, x)
            out.append(one)
        loops.append((ends, jax.tree.map(lambda *a: jnp.stack(a), *out)))
    starts, want = (jax.tree.map(lambda *a: jnp.stack(a), *many) for many in (starts, loops))
    one_of = lambda many: jax.tree.map(lambda a: a[0], many)
    over = jax.shard_map(
        lambda ends, clips: jax.tree.map(lambda a: a[None], camera(one_of(ends), clips[0])),
        mesh=sharded.mesh_of(),
        in_specs=(sharded.BATCH, sharded.BATCH),
        out_specs=sharded.BATCH,
        check_vma=False,  # as above
    )
    for function in (jax.vmap(camera), over):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(function)(starts, clips[:, 1:]), want)
    (device, cloud), (_, valid) = want
    jax.tree.map(np.testing.assert_array_equal, cloud, device)
    assert valid.all()


if __name__ == "__main__":
    PAGE.write_text(page())
