"""The experiment of split training: its halves are the network, and its commands train them."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import carriers, models, split
from experiments.__main__ import main
from experiments.errors import UserError
from experiments.split_codecs import CODECS
from tests.split import free_port
from tinyjax import collab

TINY = split.smoke(split.Config(devices=2))


def command(*words):
    return [str(word) for word in words]


def test_the_halves_are_the_network(rng):
    images = jnp.asarray(rng.random((10, 28, 28, 1)), jnp.float32)
    parts = split.halves(replace(TINY, average_every=2), 3, images)
    params = {**parts.lower.params, **parts.upper.params}
    features = parts.lower.apply(parts.lower.params, images)
    assert features.shape == parts.ways.features.shape
    whole = models.SmallCnn().apply({"params": params}, images)
    halves = parts.upper.apply(parts.upper.params, features)
    np.testing.assert_allclose(halves, whole, rtol=1e-6)  # at most the fusion differs
    assert parts.averaged == sum(leaf.size for leaf in jax.tree.leaves(parts.lower.params))


def test_batches_can_be_taken_up_anywhere():
    config = replace(TINY, epochs=3)
    whole = list(split.batches(config, 1, 0))
    assert len(whole) == split.steps_of(config) == 12
    for (images, labels), (again, same) in zip(whole[5:], split.batches(config, 1, 5), strict=True):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, same)
    assert list(split.batches(config, 1, 12)) == []
    shares = [split.share(config, number).labels for number in range(2)]
    assert [len(labels) for labels in shares] == [40, 40]


# Of the two that learn, one compiles as long as all the rest.
@pytest.mark.parametrize(
    "codec",
    [pytest.param(c, marks=pytest.mark.slow if c == "sgq_masked" else ()) for c in CODECS],
)
def test_every_codec_carries_features_and_gradients(codec, rng):
    features = jax.ShapeDtypeStruct((2, 3, 3, 32), np.float32)
    ways = CODECS[codec](split.Config(), features)
    x = np.maximum(rng.normal(size=features.shape), 0).astype(np.float32)
    device, cloud = ways.device, ways.cloud
    up, device = ways.up.encode(jnp.asarray(x), device, 7)
    found, cloud = ways.up.decode(up, cloud)
    down, _ = ways.down.encode(jnp.asarray(x), cloud, 7)
    back, _ = ways.down.decode(down, device)
    for arrived in (found, back):
        assert (arrived.shape, arrived.dtype) == (features.shape, features.dtype)
        assert carriers.relative_error(arrived, x) < (1e-9 if codec == "float32" else 0.31)
    for way, frame, end in ((ways.up, up, ways.cloud), (ways.down, down, device)):
        for bad in (frame[:-1], frame + b"\0", b""):
            with pytest.raises(ValueError, match="frame"):
                way.decode(bad, end)


def test_a_frame_that_would_decompress_to_much_is_refused():
    ways = CODECS["int4_zstd"](split.Config(), jax.ShapeDtypeStruct((2, 4), np.float32))
    with pytest.raises(ValueError, match="says it holds more than 65600 bytes"):
        ways.up.decode(carriers.compress(bytes(10**8)), ways.cloud)


def test_the_commands_train_over_a_socket(tmp_path, capsys):
    for package in ("grpc", "cryptography"):
        pytest.importorskip(package, reason=f"{package}, of the extra collab, is not installed")
    address = f"127.0.0.1:{free_port()}"
    sided = ("--keys", tmp_path / "keys", "--address", address)
    rest = ("--out", tmp_path, "--smoke", "--set", "devices=1")
    assert main(command("sgq", "certs", "--out", tmp_path / "keys")) == 0
    device = command("sgq", "device", *sided, "--link", "200Mbit/s,1ms", *rest)
    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(main, command("sgq", "serve", *sided, "--linger", 1, *rest))
        assert main(device) == 0
        assert serving.result(60) == 0
    assert main(command("sgq", "score", *rest)) == 0
    told = capsys.readouterr().out
    for words in ("serving 1 device(s) on", "device 0  step 4/4  loss", "images/s", "finished: 5"):
        assert words in told
    record = json.loads((tmp_path / "device-0.json").read_text())
    assert record["steps"] == 4
    assert record["link"] == "200Mbit/s,1ms"
    # Features of 10 images, 7 x 7 x 64, in four bits, and gradients in eight.
    assert record["socket_bytes"]["up"] > 4 * 10 * 7 * 7 * 64 / 2
    assert record["socket_bytes"]["down"] > 4 * 10 * 7 * 7 * 64
    written = (tmp_path / "device-0.msgpack").read_bytes()
    assert main(device) == 0  # it has finished, and does not even dial
    assert (tmp_path / "device-0.msgpack").read_bytes() == written


@pytest.mark.slow
def test_an_interrupted_device_continues(tmp_path):
    config = replace(TINY, devices=1)
    whole = split.cloud_of(config, None)
    right = split.run(config, 0, collab.within(whole))
    cloud, asked = split.cloud_of(config, tmp_path), []

    def dial():
        line = collab.within(cloud)()

        class Line:
            def ask(self, message):
                asked.append(message.sequence)
                if len(asked) == 4:  # after hello and two steps
                    raise KeyboardInterrupt
                return line.ask(message)

            def close(self):
                pass

        return Line()

    with pytest.raises(KeyboardInterrupt):
        split.run(config, 0, dial, tmp_path, save_every=1)
    found = split.run(config, 0, dial, tmp_path, save_every=1)
    assert found.steps == split.steps_of(config) - 2
    jax.tree.map(np.testing.assert_array_equal, found.params, right.params)
    jax.tree.map(np.testing.assert_array_equal, cloud.params, whole.params)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("device --link 20Mb", "link '20Mb' has no bandwidth: write 20Mbit/s"),
        ("device --address 192.0.2.1:1", "192.0.2.1:1 is another machine: give credentials"),
        ("device --keys nowhere", "there is no nowhere/ca.pem: make a set with"),
        ("serve --address 0.0.0.0:0", "0.0.0.0:0 is open to other machines: give credentials"),
        ("serve --set codec=jpeg", "codec='jpeg' is unknown: choose one of float32, int8"),
        ("serve --set devices=0", "devices=0 is too small: choose 1 or more"),
        (
            "serve --set codec=sgq_groups group_size=7",
            "group_size is 7, which does not cut 64 channels",
        ),
        ("serve --set batch=10000", "batch=10000 does not fit a device's images"),
        ("score", "cloud.msgpack: let that side finish first"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(words, message, tmp_path, capsys):
    name, *rest = words.split()
    assert main(command("sgq", name, "--out", tmp_path, *rest)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="dataset='cifar' is unknown"):
        split.Config(dataset="cifar")


def test_steps_are_those_of_the_smallest_share():
    counts = [split.steps_of(replace(TINY, limit=limit)) for limit in (40, 41, 59, 60)]
    assert counts == [2, 2, 2, 3]
