"""Rate and distortion: codecs and curves by their properties, and that the benchmark runs."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from benchmarks.__main__ import main
from benchmarks.rate import ablation, codecs, networks, report, rivals
from benchmarks.rate.curves import Point, bd_rate, frontier, measured
from experiments import pages, train
from tests.networks import initial
from tinyjax import entropy, global_step, lossless
from tinyjax.contexts import fit_contexts


@pytest.fixture
def features(rng):
    """Like features: smooth, not negative, channels alike, of 24 samples."""
    x = np.cumsum(np.cumsum(rng.normal(size=(24, 8, 8, 4)), axis=1), axis=2)
    return np.maximum(x @ rng.normal(size=(4, 16)), 0).astype(np.float32)


# --- curves --------------------------------------------------------------------------------------


def test_the_bd_rate_of_a_scaled_curve_is_the_scale():
    theirs = [Point(0, 2.0 ** (snr / 6), snr) for snr in (10.0, 14.0, 19.0, 25.0)]
    ours = [point._replace(bits=0.8 * point.bits) for point in theirs]
    assert bd_rate(ours, theirs) == pytest.approx(-0.2)
    assert bd_rate(theirs, ours) == pytest.approx(0.25)


def test_the_bd_rate_is_of_the_range_that_both_have():
    flat = lambda bits, *snr: [Point(0, bits + 1e-9 * s, s) for s in snr]
    ours = [*flat(1.0, 8.0, 16.0), *flat(4.0, 16.001, 30.0)]
    assert bd_rate(ours, flat(2.0, 8.0, 15.9)) == pytest.approx(-0.5, abs=1e-6)
    assert bd_rate(ours, flat(2.0, 14.5, 15.9)) is None  # too little in common
    assert bd_rate(ours, flat(2.0, 1.0, 11.0)) is None  # out of range


def test_a_frontier_has_what_nothing_beats():
    points = [Point(0, 1, 10), Point(1, 2, 9), Point(2, 2, 12), Point(3, 3, 12), Point(4, 3, 20)]
    assert [point.setting for point in frontier(points)] == [0, 2, 4]


# --- codecs --------------------------------------------------------------------------------------


def test_frames_of_our_codec_hold_its_codes_and_a_share_of_the_state(features):
    quantizer = global_step()
    state = codecs.state_for(quantizer, features[8:])
    x = features[:8]
    coded = codecs.stepped(codecs.by_context(state), step=0.5)(x)
    stream = entropy.compress(quantizer(jnp.asarray(x)), state).packed
    arrived, valid = lossless.decode(state, stream, x.shape)
    assert bool(valid)
    assert np.array_equal(arrived, codecs.codes_of(quantizer(jnp.asarray(x))))
    assert coded.size < codecs.stepped(codecs.packed, step=0.5)(x).size
    share = coded.size - math.floor(coded.size)
    assert share == pytest.approx(len(codecs.wire.pack(state)) / 200 % 1)


@pytest.mark.parametrize("bits", [4, 8])
def test_plain_codes_err_by_half_a_step_where_they_are_not_clipped(features, bits):
    step = 0.9
    coded = codecs.plain(codecs.packed, step=step, bits=bits)(features)
    width = step * math.sqrt(np.mean(np.square(features)))
    inside = features < 14 * width
    assert np.abs(coded.decoded - features)[inside].max() <= 0.51 * width


def test_tables_of_channels_take_their_cross_entropy(features):
    quantizer = global_step(step=0.5, offset=0.5)
    size = codecs.by_channel(quantizer, features[8:])
    code = quantizer(jnp.asarray(features[:8]))
    known = codecs.codes_of(quantizer(jnp.asarray(features[8:]))).reshape(-1, 16)
    sent = codecs.codes_of(code).reshape(-1, 16)
    bits = 0.0
    for c in range(16):
        counts = np.bincount(known[:, c], minlength=16) + 1e-3
        bits -= np.log2(np.maximum(counts / counts.sum(), 1 / 4096))[sent[:, c]].sum()
    state = 16 * 16 * 2 / 200
    # Shares are rounded to 4096ths; beside the codes are lanes, header and scales.
    assert bits / 8 < size(code) - state < 1.02 * bits / 8 + 200


def test_the_strongest_zstd_is_no_larger_than_any_form(rng):
    q = rng.integers(0, 4, size=(4, 6, 6, 8)).astype(np.uint8)
    size, form = codecs.strongest_zstd(q)
    assert "2 bits" in form
    assert size < q.size / 4 + 40
    plain = [codecs.zstd_of(np.moveaxis(q, -1, 0), 8, 1), codecs.zstd_of(q, 4, 9)]
    assert size <= min(plain)
    assert "8 bits" in codecs.strongest_zstd(q + np.uint8(100))[1]


def test_a_clip_of_two_bits_is_the_best_there_is(features):
    best = measured(0, codecs.two_bits(codecs.packed, features), [features]).snr_db
    for step in (0.5, 1.0, 2.0):
        point = measured(0, codecs.plain(codecs.packed, step=step, bits=2), [features])
        assert point.snr_db <= best + 1e-6


def test_the_cosine_transform_is_the_usual_one(rng):
    x = rng.normal(size=(2, 16, 8, 3)).astype(np.float32)
    basis = rivals._cosines(8)
    block = x[0, 8:, :, 1]
    expected = scipy.fft.dctn(block, norm="ortho")
    assert np.allclose(basis @ block @ basis.T, expected, atol=1e-5)
    assert measured(0, rivals.dct(1e-3), [x]).snr_db > 60
    assert measured(0, rivals.dct(0.5), [x]).snr_db == pytest.approx(10 * np.log10(48), abs=0.5)


@pytest.mark.parametrize("shape", [(2, 14, 14, 3), (2, 7, 7, 3), (1, 5, 3, 1)])
def test_the_cosine_transform_takes_maps_of_any_size(rng, shape):
    x = rng.normal(size=shape).astype(np.float32)
    assert rivals.dct(0.1)(x).decoded.shape == shape
    assert measured(0, rivals.dct(0.1), [x]).snr_db > 25


@pytest.mark.parametrize("random", [0.0, 0.25])
def test_a_share_of_the_values_is_sent(rng, random):
    x = rng.normal(size=(2, 4, 4, 25)).astype(np.float32)
    coded = rivals.largest(0.1, random)(x)
    sent = coded.decoded != 0
    assert sent.sum() == 80
    assert np.allclose(coded.decoded[sent], x[sent], rtol=1e-3)
    among = np.isin(np.flatnonzero(sent), np.argsort(-np.abs(x).ravel())[:80]).sum()
    assert among == round(80 * (1 - random))
    entropy_of = -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    assert coded.size == pytest.approx(codecs.framed(160 + 800 * entropy_of / 8))


def test_codebooks_hold_what_they_were_learned_from(rng):
    words = rng.normal(size=(4, 8)).astype(np.float32)
    x = words[np.arange(32) % 4].reshape(2, 4, 4, 8)
    coded = rivals.product_quantized(4, 8, x)(x)
    assert np.allclose(coded.decoded, x, atol=1e-5)
    assert coded.size == codecs.framed(2 * 32 * 3 / 8) + 2 * 2 * 8 * 4 / 200


# --- what is left out ----------------------------------------------------------------------------


def test_with_nothing_left_out_the_fit_is_the_library_s(features):
    q = codecs.codes_of(global_step()(jnp.asarray(features)))
    for ours, theirs in zip(
        jax.tree.leaves(ablation.fitted(q)), jax.tree.leaves(fit_contexts(q)), strict=True
    ):
        assert np.array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("left_out", "unused"),
    [
        ({"channels": False}, lambda state: state.weights[..., :16]),
        ({"own": False}, lambda state: state.weights[..., 16]),
        ({"activity": False}, lambda state: jnp.diff(state.splits, prepend=2**31 - 1)),
    ],
)
def test_what_is_left_out_is_not_used_and_the_rest_still_decodes(features, left_out, unused):
    q = codecs.codes_of(global_step()(jnp.asarray(features[:8])))
    state = ablation.fitted(q, **left_out)
    assert not np.asarray(unused(state)).any()
    arrived, valid = lossless.decode(state, lossless.encode(state, jnp.asarray(q)), q.shape)
    assert bool(valid)
    assert np.array_equal(arrived, q)


@pytest.mark.parametrize("name", ["channels by cosine", "channels at random"])
def test_an_order_of_channels_changes_no_value(features, name):
    x = features[:8]
    default, other = (ablation.VARIANTS[each](0.5, x)(x) for each in ("default", name))
    assert np.allclose(default.decoded, other.decoded, rtol=0.1, atol=1e-6)
    assert other.size == pytest.approx(default.size, rel=0.3)


def test_scales_of_groups_have_their_levels(features):
    coded = ablation.GROUPINGS["group scales, in order"](7, features)(features)
    largest = features.max(axis=(1, 2, 3), keepdims=True)
    assert np.abs(coded.decoded - features).max() <= 0.501 * (largest / 7).max()


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_both_sides_of_a_cut_make_the_network(rng, pooled):
    config = networks.Config("fashion_mnist_sample", 128, pooled, narrower=16)
    net = networks.Net(config.widths, pooled)
    images = rng.random((3, 28, 28, 1), np.float32)
    variables = initial(net, images)
    labels = np.array([0, 1, 2], np.int32)
    whole = jax.jit(lambda p: net.apply({**variables, "params": p}, images, train=False))
    exact = jax.jit(jax.grad(lambda p: train.cross_entropy(whole(p), labels)))(variables["params"])
    for name, shape in (("A", (3, 14, 14, 4)), ("B", (3, 7, 7, 8))):
        cut = networks.at_cut(config, variables, name)
        x = cut.features(images)
        assert x.shape == shape
        assert np.allclose(cut.logits(x), whole(variables["params"]), atol=1e-5)
        g = cut.gradient(x, labels)
        pulled = cut.device(images, g)
        below = [f"{kind}_{i}" for kind in ("convs", "norms") for i in range(networks.CUTS[name])]
        expected = jax.tree.map(jnp.zeros_like, exact) | {k: exact[k] for k in below}
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(expected)])
        assert np.allclose(pulled, flat, atol=1e-5)
        # Behind a max-pool three quarters of a gradient, at least, are 0.
        assert (float(np.mean(np.asarray(g) == 0)) >= 0.74) == pooled


def test_data_that_are_missing_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TINYJAX_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["rate", "--case", "cifar10"])
    said = capsys.readouterr().err
    assert f"cifar10 is not in {tmp_path / 'cifar10'}: set TINYJAX_DATA" in said


@pytest.mark.slow
def test_a_little_of_it_runs(tmp_path):
    file = tmp_path / "rate.json"
    assert main(["rate", "--quick", "--case", "cifar10_strided", "--json", str(file)]) == 0
    (row,) = json.loads(file.read_text())["rows"]
    default = report._point(row, "sgq", 0.5)
    assert default["bits"] < report._point(row, "order 0", 0.5)["bits"]
    assert 15 < default["snr_db"] < 25
    assert row["ablation"]["default"]["default"] == 0
    assert set(row["gradients"]) == {"early", "late"}
    for make in report.TABLES.values():
        assert pages.table(["a"], [["b"]]).count("\n") < make([row]).count("\n") + 1
