"""The thesis end to end: both sides in one process, in two, what is refused, and the table."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import segmenter, thesis, thesis_report, thesis_setup
from experiments.__main__ import main
from experiments.data import scenes
from experiments.errors import UserError
from experiments.progress import unfollowed
from experiments.thesis_link import restarted
from experiments.thesis_sides import Answering, Camera, digest, learns, ways
from tests.moving import one_sentence
from tinyjax import calibrate, collab, count_macs, sgq_decode

pytest.importorskip("grpc", reason="grpcio, of the extra collab, is not installed")
pytest.importorskip("cryptography", reason="cryptography, of the extra collab, is not installed")
pytestmark = pytest.mark.xdist_group("thesis")  # which share a preparation: one process for all

SMOKE = thesis.smoke(thesis.CONFIGS["highway"])[0]
LEARN = replace(SMOKE, every=3)
Kind, Message = collab.Kind, collab.Message


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def setup():
    """As if prepared, with weights as they begin."""
    scene = scenes.squares(10)
    background = segmenter.median(scene.frames)
    x = segmenter.beside(scene.frames, background)
    whole = segmenter.Segmenter(SMOKE.width, SMOKE.blocks)
    variables = jax.jit(whole.init)(jax.random.key(0, impl="rbg"), x[:1])
    lower, upper = segmenter.halves(variables)
    table = calibrate(thesis_setup.lower(SMOKE), lower, [(x[:4],)])
    limits: dict[str, list[float]] = {"int8": [], "float": []}  # all is one block
    return thesis_setup.Setup(*scene, background, lower, upper, None, table, 24.0, 0.1, limits)


@pytest.fixture(scope="module")
def link(setup):
    """SGQ's, for the features of that; what it compiles is shared."""
    return ways(SMOKE, setup)


def watched(config, setup, link):
    """All frames, without a network: what both sides have in the end."""
    cloud, camera = Answering(config, setup, link), Camera(config, setup, link)
    line = collab.within(cloud)()
    camera.greet(line)
    frames = [camera.watch(line, image) for image in setup.frames]
    line.ask(Message(Kind.FINISH, sequence=len(frames) + 1))
    assert cloud.done.is_set()
    return camera, cloud, frames


# --- the network in two parts --------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [1, 2])
def test_two_parts_of_the_segmenter_are_the_whole(rng, blocks):
    x = rng.integers(0, 256, (1, 16, 24, 6)).astype(np.uint8)
    part = partial(segmenter.Segmenter, 8, blocks)
    whole = part()

    @jax.jit
    def both(x):
        variables = whole.init(jax.random.key(1, impl="rbg"), x)
        lower, upper = segmenter.halves(variables, blocks)
        features = part(part="lower").apply(lower, x, train=False)
        found = part(part="upper").apply(upper, features, train=False)
        return found, whole.apply(variables, x, train=False), lower, upper, features

    found, want, lower, upper, features = both(x)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)  # in one program, or another
    for name, has, seen in (("lower", lower, x), ("upper", upper, features)):
        # Each part has what it would make itself, and no more.
        made = jax.eval_shape(part(part=name).init, jax.random.key(1), seen)
        shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
        assert shapes(made) == shapes(has)


# --- the link ------------------------------------------------------------------------------------


def test_both_ends_of_the_link_have_the_same_features_and_gradients(rng, link):
    x = jnp.asarray(np.maximum(rng.normal(size=link.features.shape), 0), jnp.float32)
    device, cloud = link.device, link.cloud
    sizes = []
    for index in range(6):
        x = x.at[0, index, index, 0].add(1.0)
        frame, device = link.up.encode(x, device, 0)
        there, cloud = link.up.decode(frame, cloud)
        np.testing.assert_array_equal(there, sgq_decode(device.uplink.features).reshape(x.shape))
        sizes.append(len(frame))
    assert max(*sizes[1:4], sizes[5]) < min(sizes[0], sizes[4])  # differences, key frames
    g = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    frame, cloud = link.down.encode(g, cloud, 7)
    back, device = link.down.decode(frame, device)
    here, _ = link.down.decode(frame, cloud)
    np.testing.assert_array_equal(back, here)
    mask = np.asarray(sgq_decode(device.uplink.features)).reshape(x.shape) != 0
    assert not np.asarray(back)[~mask].any()
    # The codec's error is at most 0.3 of what is sent, root mean square over roundings.
    assert np.linalg.norm((back - g)[mask]) < 0.4 * np.linalg.norm(g[mask])


def test_a_lost_frame_is_refused_and_a_key_frame_begins_anew(rng, link):
    x = jnp.asarray(rng.normal(size=link.features.shape), jnp.float32)
    key, device = link.up.encode(x, link.device, 0)
    _, cloud = link.up.decode(key, link.cloud)
    _, device = link.up.encode(x + 1, device, 0)  # lost
    frame, device = link.up.encode(x, device, 0)
    with pytest.raises(ValueError, match="not the uplink's next one") as error:
        link.up.decode(frame, cloud)
    one_sentence(error)
    frame, device = link.up.encode(x, restarted(device), 0)
    there, _ = link.up.decode(frame, cloud)
    np.testing.assert_array_equal(there, sgq_decode(device.uplink.features).reshape(x.shape))


# --- both sides ----------------------------------------------------------------------------------


def test_a_device_and_a_cloud_learn_and_what_was_kept_is_begun_anew(setup, link):
    camera, cloud, frames = watched(LEARN, setup, link)
    updates = [index for index in range(len(frames)) if learns(LEARN, index)]
    assert len(cloud.losses) == len(updates) == len(frames) // 3 > 1
    assert [bool(frame.gradient_bytes) for frame in frames] == [
        learns(LEARN, index) for index in range(len(frames))
    ]
    # Key frames come first, every fourth frame, and after an update; all is recomputed there.
    since, keys = 0, []
    for index in range(len(frames)):
        keys += [index] if since % LEARN.key_every == 0 else []
        since = 0 if learns(LEARN, index) else since + 1
    others = [frame for index, frame in enumerate(frames) if index not in keys]
    assert all(frames[index].active == 1 for index in keys)
    assert np.mean([frame.active for frame in others]) < 0.9
    moved = lambda new, old: any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(new["params"]), jax.tree.leaves(old["params"]), strict=True)
    )
    assert moved(camera._variables, setup.lower)
    assert moved(cloud._variables, setup.upper)
    # Statistics stay, and an update costs what its two products more do.
    for new, old in ((camera._variables, setup.lower), (cloud._variables, setup.upper)):
        same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        jax.tree.map(same, new["batch_stats"], old["batch_stats"])
    assert frames[2].macs["int8"] > 2 * frames[1].macs["int8"]


def test_with_all_off_the_cloud_finds_what_the_whole_network_does(setup):
    config = replace(SMOKE, off="all")
    _, cloud, frames = watched(config, setup, ways(config, setup))
    apply = segmenter.Segmenter(config.width, config.blocks).apply
    with_lower = {kind: dict(tree) for kind, tree in setup.lower.items()}
    first = 2 * config.blocks + 2
    for kind, tree in setup.upper.items():
        for name, values in tree.items():
            module, _, number = name.rpartition("_")
            with_lower[kind][f"{module}_{int(number) + first}"] = values
    whole = jax.jit(lambda x: apply(with_lower, x, train=False))
    x = segmenter.beside(np.asarray(setup.frames), np.asarray(setup.background))
    found = np.stack([np.asarray(whole(each[None])[0] > 0) for each in x])
    right = segmenter.counts(found, np.asarray(setup.labels))
    # Halves are compiled alone, so a logit next to 0 may fall to the other side.
    np.testing.assert_allclose(np.sum(cloud.counts, 0), [int(n) for n in right], atol=3)
    dense = count_macs(lambda x: apply(with_lower, x, train=False), x[:1])
    assert all(frame.macs.keys() == dense.keys() == {"float32"} for frame in frames)
    assert all(0 < frame.macs["float32"] < dense["float32"] for frame in frames)
    assert {frame.bytes for frame in frames} == {4 * 16 * 24 * 8}


def test_a_cloud_takes_no_other_device_and_no_other_order(setup):
    config = replace(SMOKE, off="all")
    cloud = Answering(config, setup, ways(config, setup))
    with pytest.raises(collab.Refused, match="other settings"):
        cloud.hello(Message(Kind.HELLO, frame=digest(SMOKE)))
    assert cloud.hello(Message(Kind.HELLO, frame=digest(config))).kind is Kind.HELLO
    frame, step = bytes(4 * 16 * 24 * 8), lambda index: np.array([index], np.int32)
    with pytest.raises(collab.Refused, match="step 2 came where 1 is next"):
        cloud.answer(Message(Kind.STEP, sequence=2, labels=step(1), frame=frame))
    with pytest.raises(collab.Refused, match="no label 3"):
        cloud.answer(Message(Kind.STEP, sequence=1, labels=step(3), frame=frame))
    with pytest.raises(collab.Refused, match="bytes where"):
        cloud.answer(Message(Kind.STEP, sequence=1, labels=step(0), frame=frame[1:]))
    assert cloud.answer(Message(Kind.STEP, sequence=1, labels=step(0), frame=frame)).frame == b""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"off": "everything"}, "choose one of nothing, pass, int8, sgq, all"),
        ({"every": -1}, "every=-1 is too small"),
        ({"fold": 5}, "fold=5 is none"),
        ({"key_every": 0}, "key_every=0"),
        ({"patch": 12}, "patch=12 does not fit"),
        ({"calibration": 1}, "calibration=1"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_one_sentence(settings, message):
    with pytest.raises(UserError, match=message) as error:
        thesis.Config(**settings)
    one_sentence(error)


# --- two processes -------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_find_what_one_does(kept, tmp_path):
    setup = thesis_setup.read(SMOKE, thesis_setup.prepared(SMOKE, kept, unfollowed))
    _, cloud, frames = watched(LEARN, setup, ways(LEARN, setup))
    found = thesis.run(replace(LEARN, cores=1), tmp_path / "run", kept=kept)
    assert found.counts == np.sum(cloud.counts, 0).tolist()
    assert found.losses == cloud.losses
    assert found.frame_bytes == [frame.bytes for frame in frames]
    assert found.code < found.up < found.code + 300  # messages, HTTP/2 and TLS around the codec's
    assert found.peak_bytes > 2**26


@pytest.mark.slow
def test_the_command_writes_a_record_for_each_run_and_the_table(kept, tmp_path):
    out = tmp_path / "out"
    command = ["thesis", "--smoke", "--out", str(out), "--checkpoints", str(kept)]
    assert main(command) == 0
    records = [json.loads(path.read_text()) for path in out.glob("*.json")]
    assert len(records) == 2 * len(thesis.OFF)
    table = (out / "table.md").read_text()
    assert table.startswith(thesis_report.parts(records)["gains"])
    assert table.count("| all off |") == 4  # two modes in two tables
    assert table.count("| streaming, squares |") == 10
    ours = next(r for r in records if r["config"]["off"] == "nothing" and not r["config"]["every"])
    none = next(r for r in records if r["config"]["off"] == "all" and not r["config"]["every"])
    assert ours["metrics"]["up"] < none["metrics"]["up"] / 12


# --- the table -----------------------------------------------------------------------------------


def record(off, fold, *, f1=(9, 1, 1), ms=2.0, up=10.0):
    config = {"scene": "highway", "link": "", "cores": 0, "memory": 0, "every": 0}
    config |= {"off": off, "fold": fold}
    zero = dict.fromkeys(("coding_ms", "learning_ms", "cloud_ms", "down", "active"), 0.0)
    metrics = {
        "counts": list(f1),
        "device_ms": ms,
        "whole_ms": 2 * ms,
        "half_ms": ms,
        "up": up,
        **zero,
    }
    metrics |= {"macs": {"int8": 1e6}, "compute_mj": 1.0, "radio_mj": 2.0, "peak_bytes": 2**20}
    where = {"cpu": "some", "cores": 2, "jax": "1", "load_average": [1.5]}
    metrics["frame_ms"] = [ms] * (fold + 1)
    return {"config": config, "metrics": metrics, "environment": where}


def test_folds_are_put_together_by_pixels_and_frames():
    records = [
        record("all", 0, ms=6.0, up=100.0),
        record("nothing", 0, f1=(8, 2, 2), ms=2.0),
        record("nothing", 1, f1=(4, 0, 0), ms=4.0),
        record("all", 1, f1=(5, 0, 0), ms=6.0, up=200.0),
        record("nothing", 2, ms=100.0),  # a fold that the other arm has not run
    ]
    ((key, arms),) = thesis_report.rows(records).items()
    assert key == ("highway", "", 0)
    assert list(arms) == ["nothing", "all"]
    assert arms["nothing"].f1 == pytest.approx(2 * 12 / (2 * 12 + 2 + 2))
    assert arms["nothing"].device_ms == pytest.approx((2.0 + 2 * 4.0) / 3)
    parts = thesis_report.parts(records)
    lines = parts["gains"].splitlines()
    assert "| 1.80x |" in lines[2]
    assert "| 17x |" in lines[2]
    assert "| all off |" in lines[3]
    assert parts["where"].startswith("Folds 0, 1, 2 of 5; some, 2 cores, jax 1; load average")
    assert "(here 1.80x, and with coding 1.80x)" in parts["asked"].replace("\n", " ")


def test_the_page_has_the_tables_of_the_records():
    assert thesis_report.stale(check=True) == [], thesis_report.COMMAND


def test_energy_is_linear_in_what_it_is_of():
    compute, radio = thesis.energy({"int8": 2e9, "float32": 1e9}, 1000, 100)
    assert compute == pytest.approx(0.6 + 4.6)
    assert radio == pytest.approx(8e-6 * (283.17 * 1000 + 137.01 * 100))
