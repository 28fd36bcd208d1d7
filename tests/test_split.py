"""Split training without a network: numbers taken once, whatever is lost and whoever is killed."""

import functools
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from tests import hostile, split
from tinyjax import collab
from tinyjax.collab import halves, saving
from tinyjax.collab.messages import Kind, Message

STEPS = 7


# A process that comes back compiles again; here it need not, to save time.
COMPILED = {
    "training.upper_step": halves.upper_step(split.upper()),
    "device.forward": halves.forward(split.lower()),
    "device.backward": halves.backward(split.lower()),
}


def compiled_once(patch):
    for name, made in COMPILED.items():
        patch.setattr(f"tinyjax.collab.{name}", lambda half, made=made: made)


@pytest.fixture(autouse=True)
def _compiled_once(monkeypatch):
    compiled_once(monkeypatch)


ways_of = functools.cache(split.ways)


def cloud_of(codec="sgq", **settings):
    return collab.Cloud(split.upper(), ways_of(codec), **settings)


def device_of(dial, number=0, codec="sgq", **settings):
    return collab.Device(split.lower(number), ways_of(codec), dial, device=number, **settings)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_link_that_changes_nothing_trains_what_one_process_does():
    """Against plain jax: value_and_grad of the whole network, and one optimizer for each half."""
    low, up, tx = split.lower(), split.upper(), split.tx()
    cloud = cloud_of("plain")
    device = device_of(collab.within(cloud), codec="plain")
    params, moments = (low.params, up.params), (tx.init(low.params), tx.init(up.params))
    whole = lambda params, x, y: up.loss(up.apply(params[1], low.apply(params[0], x)), y)
    for step in range(5):
        x, labels = split.batch(0, step)
        loss, grads = jax.value_and_grad(whole)(params, x, labels)
        changes = [tx.update(*each) for each in zip(grads, moments, params, strict=True)]
        params = jax.tree.map(lambda p, u: p + u, tuple(params), tuple(u for u, _ in changes))
        moments = [m for _, m in changes]
        np.testing.assert_allclose(device.step(x, labels), loss, rtol=1e-5)
    # Sums of at most 8 products of order 1 in another order, over five steps.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (device.params, cloud.params), params)


# --- what goes wrong -----------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9 of a device: nothing catches it."""


class World:
    """A cloud that can be killed, and lines that break, at numbered asks."""

    def __init__(self, faults=(), **settings):
        self.settings, self.faults, self.asks = settings, dict(faults), itertools.count()
        self.cloud = cloud_of(**settings)

    def dial(self):
        world, line = self, collab.within(self.cloud)()

        class Line:
            def ask(self, message):
                fault = world.faults.pop(next(world.asks), None)
                if fault and fault[1] == "before":
                    world.fail(fault[0])
                answer = line.ask(message)
                if fault:
                    world.fail(fault[0])
                return answer

            def close(self):
                pass

        return Line()

    def fail(self, what):
        if what == "cloud":  # all that it had in memory is gone
            self.cloud.close()
            self.cloud = cloud_of(**self.settings)
        if what == "device":
            raise Killed
        raise ConnectionError(what)


def trained(world, number, folder, steps=STEPS, **settings):
    """The parameters of a device that starts again whenever it is killed."""
    settings |= {"folder": folder, "patience": 300, "codec": world.settings.get("codec", "sgq")}
    while True:
        device = device_of(world.dial, number, **settings)
        try:
            for step in range(device.steps, steps):
                device.step(*split.batch(number, step))
            device.finish()
        except Killed:
            device._store.close()
            continue
        device._store.close()
        return device.params


FAULTS = list(itertools.product(["cloud", "device", "cut"], ["before", "after"]))
AVERAGED = {"average_every": 2}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        compiled_once(patch)
        world = World(averaged=split.AVERAGED)
        lower = trained(world, 0, None, **AVERAGED)
        asked = next(world.asks)
        return lower, world.cloud.params, asked


def disturbed(faults, folder, save_every=(3, 2), codec="sgq"):
    settings = {"averaged": split.AVERAGED, "folder": folder / "cloud", "save_every": save_every[0]}
    world = World(faults, codec=codec, **settings)
    lower = trained(world, 0, folder / "device", save_every=save_every[1], **AVERAGED)
    assert not world.faults  # all have happened
    world.cloud.close()
    return lower, world.cloud.params


@pytest.mark.parametrize("fault", [FAULTS[1], FAULTS[2], FAULTS[5]], ids="-".join)
def test_one_fault_changes_nothing(undisturbed, tmp_path, fault):
    lower, upper, _ = undisturbed
    equal(disturbed({6: fault}, tmp_path), (lower, upper))


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids="-".join)
def test_one_fault_anywhere_changes_nothing(undisturbed, tmp_path, fault):
    lower, upper, asked = undisturbed
    for ask, save_every in itertools.product(range(asked), [(3, 2), (2, 3), (100, 100)]):
        folder = tmp_path / f"{ask} {save_every}"
        equal(disturbed({ask: fault}, folder, save_every), (lower, upper))


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 30))]


@pytest.mark.parametrize("seed", SEEDS)
def test_many_faults_change_nothing(undisturbed, tmp_path, seed):
    lower, upper, _ = undisturbed
    rng = np.random.default_rng(seed)
    asks = rng.choice(12, 5, replace=False)
    faults = {int(ask): FAULTS[rng.integers(len(FAULTS))] for ask in asks}
    equal(disturbed(faults, tmp_path), (lower, upper))


def kept(codec, folder):
    """A world without faults, after seeing that faults change nothing in it."""
    world = World(codec=codec, averaged=split.AVERAGED)
    lower = trained(world, 0, None, **AVERAGED)
    faults = {3: ("cut", "after"), 5: ("cloud", "after"), 8: ("device", "after")}
    equal(disturbed(faults, folder, codec=codec), (lower, world.cloud.params))
    return world


@pytest.mark.parametrize(
    "codec",
    [
        "masked",
        *(
            pytest.param(f"compressed{more}", marks=pytest.mark.slow)
            for more in ("", " and masked")
        ),
    ],
)
def test_ends_keep_features_and_states_of_coders(tmp_path, codec):
    kept(codec, tmp_path)


def test_codecs_with_a_memory_keep_it(tmp_path):
    world = kept("remembering", tmp_path)
    link = world.cloud._training.state[2][0]
    assert {name: int(way["count"]) for name, way in link.items()} == {"up": STEPS, "down": STEPS}


def together(devices, steps, faults=(), folder=None, **settings):
    """Devices in threads, since one waits for the other's turn."""
    world = World(faults, devices=devices, averaged=split.AVERAGED, **settings)
    where = lambda number: folder and folder / str(number)
    with ThreadPoolExecutor(devices) as pool:
        jobs = [
            pool.submit(trained, world, n, where(n), steps=steps, average_every=3, save_every=2)
            for n in range(devices)
        ]
        return [job.result(300) for job in jobs], world.cloud.params


def test_devices_in_turn_are_reproducible_and_averaged(tmp_path):
    lowers, upper = together(3, 6)
    equal(lowers[0], lowers[1])  # averaged after their last step
    again, same = together(
        3, 6, {4: ("cut", "after"), 9: ("device", "before"), 15: ("device", "after")}, tmp_path
    )
    equal((lowers, upper), (again, same))


def test_the_average_is_the_mean():
    cloud = cloud_of(devices=2, averaged=2)
    give = lambda n, values: Message(Kind.AVERAGE, n, 1, frame=np.asarray(values, "<f4").tobytes())
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(cloud.answer, give(0, [1.0, 2.0]))
        second = cloud.answer(give(1, [3.0, 8.0]))
    assert np.frombuffer(first.result().frame, "<f4").tolist() == [2.0, 5.0]
    assert second.frame == first.result().frame


def test_a_device_that_has_finished_leaves_the_circle():
    cloud = cloud_of(devices=2)
    short, long = (device_of(collab.within(cloud), n) for n in range(2))
    short.step(*split.batch(0, 0))
    long.step(*split.batch(1, 0))
    short.finish()
    for step in range(1, 4):
        long.step(*split.batch(1, step))
    assert not cloud.wait(0)
    long.finish()
    assert cloud.wait(0)
    with pytest.raises(collab.Refused, match="device 1 has finished"):
        long.step(*split.batch(1, 4))


# --- what is refused -----------------------------------------------------------------------------


def a_step(number=1, device=0, durable=0, labels=split.BATCH, frame=None):
    x, all_labels = split.batch(device, 0)
    del x
    if frame is None:
        ways = ways_of("sgq")
        x = np.ones(split.FEATURES.shape, np.float32) * number
        frame, _ = ways.up.encode(x, ways.device, 0)
    return Message(Kind.STEP, device, number, durable, labels=all_labels[:labels], frame=frame)


def refuses(cloud, message, words):
    before = jax.tree.map(np.array, cloud.params), cloud.taken
    with pytest.raises(collab.Refused, match=words):
        cloud.answer(message)
    equal(before, (cloud.params, cloud.taken))


def test_a_step_asked_again_is_answered_and_not_trained_again():
    cloud = cloud_of()
    first = cloud.answer(a_step(1))
    after = jax.tree.map(np.array, cloud.params)
    again = cloud.answer(a_step(1))
    assert again.frame == first.frame
    assert again.loss == first.loss
    equal(after, cloud.params)
    assert cloud.taken == 1


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (a_step(3), "asks for step 3 where step 2 is next"),
        (a_step(1, labels=3), "step 1 of device 0 was another one before"),
        (a_step(0), "step 0 of device 0 is no longer kept"),
        (a_step(2, durable=2), "asks for step 2 and says it saved 2"),
        (a_step(2, labels=3), "3 labels came with features"),
        (a_step(2, frame=b"SGQR"), "no SGQ frame"),
        (a_step(2, frame=b""), "no SGQ frame"),
        (a_step(2, device=1), "a step of device 1 has no answer"),
        (Message(Kind.GRADIENT, 0, 2), "a gradient of device 0 has no answer"),
        (Message(Kind.AVERAGE, 0, 2, frame=bytes(8)), "gives 8 bytes to be averaged where 0"),
    ],
)
def test_messages_that_do_not_fit_change_nothing(message, words):
    cloud = cloud_of()
    cloud.answer(a_step(1))
    refuses(cloud, message, words)
    cloud.answer(a_step(2))


def test_a_step_that_would_spoil_the_parameters_is_left_out():
    cloud = cloud_of("plain")
    bad = np.full(split.FEATURES.shape, np.nan, "<f4").tobytes()
    refuses(cloud, a_step(1, frame=bad), "is not finite: left out")
    outside = a_step(1, frame=bytes(len(bad)))._replace(labels=np.full(split.BATCH, 99, np.int32))
    refuses(cloud, outside, "is not finite: left out")


def test_codes_of_another_shape_are_refused_before_they_compile_anything(rng):
    other = collab.coded(split.CODEC, jax.ShapeDtypeStruct((9, split.WIDTH), np.float32)).up
    frame, _ = other.encode(rng.random((9, split.WIDTH), np.float32), (), 0)
    refuses(cloud_of(), a_step(1, frame=frame), "holds another code than one of float32 .4, 8.")


def test_neither_side_keeps_more_than_it_says(tmp_path):
    cloud = cloud_of(keep=3)
    for number in range(1, 4):
        cloud.answer(a_step(number))
    refuses(cloud, a_step(4), "has not saved for 3 steps")
    cloud.answer(a_step(4, durable=3))
    refuses(cloud, a_step(3), "no longer kept")
    assert list(cloud._clients[0].answers) == [4]
    cloud = cloud_of(folder=tmp_path, save_every=100)
    device = device_of(collab.within(cloud), keep=2)
    device.step(*split.batch(0, 0))
    device.step(*split.batch(0, 1))
    with pytest.raises(collab.Refused, match="the cloud has not saved for 2 steps"):
        device.step(*split.batch(0, 2))
    cloud.close()


def test_other_settings_are_refused(tmp_path):
    cloud = cloud_of(job="a", folder=tmp_path / "cloud", save_every=1)
    with pytest.raises(collab.Refused, match="device 0 has other settings than the cloud"):
        device_of(collab.within(cloud), job="b").step(*split.batch(0, 0))
    with pytest.raises(collab.Refused, match="device 1 of 1 does not say hello"):
        device_of(collab.within(cloud), 1, job="a").step(*split.batch(0, 0))
    device = device_of(collab.within(cloud), job="a", folder=tmp_path / "device", save_every=1)
    device.step(*split.batch(0, 0))
    cloud.close()
    device._store.close()
    for settings in ({"job": "b"}, {"job": "a", "devices": 2}):
        with pytest.raises(ValueError, match="holds another side or training"):
            cloud_of(folder=tmp_path / "cloud", **settings)
    with pytest.raises(ValueError, match="holds another side or training"):
        device_of(None, 1, job="a", folder=tmp_path / "device")
    for path in (tmp_path / "cloud" / "1" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"checkpoint 1 in .* cannot be read"):
        cloud_of(job="a", folder=tmp_path / "cloud")


def test_a_device_that_lost_its_disk_is_told(tmp_path):
    cloud = cloud_of()
    device = device_of(collab.within(cloud))
    for step in range(3):
        device.step(*split.batch(0, step))
    with pytest.raises(collab.Refused, match="no longer kept: continue from the device's checkpo"):
        device_of(collab.within(cloud)).step(*split.batch(0, 0))
    device._dial, device._line = collab.within(cloud_of()), None
    with pytest.raises(collab.Refused, match="the cloud is at step 0 and device 0 at 3"):
        device.step(*split.batch(0, 3))


def test_who_is_away_holds_up_the_others_no_longer_than_patience_says():
    cloud = cloud_of(devices=2, patience=0.1)
    device = device_of(collab.within(cloud), 1, patience=0.3)
    with pytest.raises(ConnectionError, match=r"not answer for 0\.3 s: another device's turn has"):
        device.step(*split.batch(1, 0))
    assert device.retries > 0
    free = cloud_of(devices=2, fixed=False)
    assert device_of(collab.within(free), 1).step(*split.batch(1, 0)) > 0


def test_a_step_in_another_devices_place_waits_for_it():
    cloud = cloud_of(devices=2)
    order = []
    second = threading.Thread(
        target=lambda: [cloud.answer(a_step(1, device=1)), order.append(1)], daemon=True
    )
    second.start()
    cloud.answer(a_step(1))
    order.append(0)
    second.join(30)
    assert sorted(order) == [0, 1]
    assert cloud.taken == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cloud_of(devices=0), "devices=0"),
        (lambda: cloud_of(averaged=-1), "averaged=-1"),
        (lambda: device_of(None, save_every=0), "save_every=0"),
    ],
)
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_batches_of_another_size_are_told_on_the_device():
    device = device_of(collab.within(cloud_of()))
    with pytest.raises(ValueError, match=r"made float32 \[3, 8\] where the link is for"):
        device.step(np.ones((3, 5), np.float32), np.zeros(3, np.int32))


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(saving.importlib, "import_module", absent)
    for name, needs_it in {
        "grpc": lambda: collab.serve(cloud_of()),
        "cryptography": lambda: collab.make_credentials(tmp_path, 1),
        "orbax.checkpoint": lambda: cloud_of(folder=tmp_path),
    }.items():
        with pytest.raises(
            ImportError, match=rf"'{name}[.\w]*', which is missing: install tinyjax"
        ):
            needs_it()


# --- messages ------------------------------------------------------------------------------------

MESSAGES = [
    Message(Kind.HELLO, 3, 5, 2, frame=bytes(32)),
    Message(Kind.STEP, 1, 2**40, 7, labels=np.arange(3, dtype=np.int32), frame=b"features"),
    Message(Kind.GRADIENT, 1, 2, 1, loss=0.25, frame=b"gradient"),
    Message(Kind.FINISH, 2**32 - 1, 9),
    Message(Kind.ERROR, frame=b"no"),
]


def as_plain(message):
    return message._replace(labels=message.labels.tolist())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m.kind.name)
def test_messages_come_back(message):
    assert as_plain(collab.read(collab.write(message))) == as_plain(message)


def test_a_message_is_these_bytes():
    """Byte by byte from the format, for a second implementation."""
    data = collab.write(MESSAGES[1]._replace(sequence=2))
    head = "544a434d 01 01 0000 01000000 0200000000000000 0700000000000000 00000000 "
    head += "03000000 08000000"
    labels = "00000000 01000000 02000000"
    assert data[:-4] == bytes.fromhex(head + labels) + b"features"
    assert data[-4:] == bytes.fromhex("a86d8e2c")


@pytest.mark.parametrize("count", [2000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_damaged_messages_are_refused(rng, count):
    for _ in range(count):
        data = collab.write(MESSAGES[rng.integers(len(MESSAGES))])
        bad = hostile.damaged(rng, data, (32, 36))
        with pytest.raises(ValueError, match="are no message"):
            collab.read(bad)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (Message(Kind.STEP, labels=np.zeros(2)), "labels are float64 .2.: give int32"),
        (Message(Kind.STEP, device=-1), "does not fit its header"),
        (Message(Kind.STEP, sequence=2**64), "does not fit its header"),
    ],
)
def test_messages_without_bytes_are_refused(message, words):
    with pytest.raises(ValueError, match=words):
        collab.write(message)


# --- ways ----------------------------------------------------------------------------------------


def test_a_masked_gradient_is_that_of_the_features_last_sent(rng):
    codec, ways = split.MASKED, ways_of("masked")
    device, cloud = ways.device, ways.cloud
    for seed in range(3):
        x = np.maximum(rng.normal(size=split.FEATURES.shape), 0).astype(np.float32)
        g = rng.normal(size=x.shape).astype(np.float32)
        up, device = ways.up.encode(x, device, seed)
        arrived, cloud = ways.up.decode(up, cloud)
        down, cloud = ways.down.encode(g, cloud, seed)
        back, device = ways.down.decode(down, device)
        code = codec.encode(x)
        equal(arrived, codec.decode(code))
        right = codec.decode_gradient(codec.encode_gradient(g, np.uint32(seed), code))
        equal(back, right)
        assert not np.asarray(back)[x == 0].any()
        with pytest.raises(ValueError, match="no SGQ frame"):
            ways.down.decode(down, ways.device)  # to one who has sent other features
