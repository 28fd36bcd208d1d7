"""Split training over sockets: who may talk, what the hostile do, what is counted and shaped."""

import hashlib
import hmac
import itertools
import queue
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed

import jax
import numpy as np
import pytest

from tests import split
from tests.hostile import BEHAVIOURS, HELLO, connect, dialled, half_a_message, lies, raw, steps
from tinyjax import collab
from tinyjax.collab.messages import Kind
from tinyjax.collab.shaping import Bucket
from tinyjax.collab.tunnel import Tunnel

grpc = pytest.importorskip("grpc", reason="grpcio, of the extra collab, is not installed")
pytest.importorskip("cryptography", reason="cryptography, of the extra collab, is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys") / "set"
    collab.make_credentials(folder, 4)
    return folder


def cloud_of(devices=4, **settings):
    settings = {"fixed": False, **settings}
    return collab.Cloud(split.upper(), split.ways(), devices=devices, **settings)


def device_of(dial, number=0, **settings):
    return collab.Device(split.lower(number), split.ways(), dial, device=number, **settings)


@pytest.fixture
def server(keys):
    cloud = cloud_of()
    with collab.serve(cloud, credentials=collab.read_credentials(keys, "cloud")) as serving:
        serving.cloud = cloud
        yield serving


# --- who may talk --------------------------------------------------------------------------------


@pytest.mark.parametrize("mutual", [True, False, None], ids=["mutual TLS", "token", "clear"])
def test_a_line_trains_what_no_line_does(keys, mutual):
    shown = lambda name: mutual is not None and collab.read_credentials(keys, name, mutual=mutual)
    alone = cloud_of()
    right = device_of(collab.within(alone))
    cloud = cloud_of()
    with (
        collab.serve(cloud, "localhost:0", credentials=shown("cloud") or None) as serving,
        collab.Dial(serving.address, credentials=shown("device-0") or None) as dial,
    ):
        device = device_of(dial)
        for step in range(3):
            assert device.step(*split.batch(0, step)) == right.step(*split.batch(0, step))
        dial.cut()
        device.step(*split.batch(0, 3))
        right.step(*split.batch(0, 3))
        device.finish()
    assert device.retries > 0
    found, wanted = (device.params, cloud.params), (right.params, alone.params)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def answers(server, **settings):
    """Whether hello is answered, to one who dials in some way."""
    with collab.Dial(server.address, **settings) as dial:
        line = dial()
        try:
            line.ask(HELLO._replace(device=settings.get("device", 0)))
        except (collab.Refused, ConnectionError):
            return False
        finally:
            line.close()
        return True


def test_no_credentials_no_answer(server, keys, tmp_path, monkeypatch):
    collab.make_credentials(tmp_path / "others", 2)
    ours = collab.read_credentials(keys, "device-0")
    theirs = collab.read_credentials(tmp_path / "others", "device-0")
    read = []
    monkeypatch.setattr("tinyjax.collab.serving.read", read.append)
    assert not answers(server)  # in the clear
    assert not answers(server, credentials=theirs)  # of another authority
    assert not answers(server, credentials=theirs._replace(ca=ours.ca))
    assert not answers(server, credentials=ours._replace(certificate=None, key=None))
    assert not answers(server, credentials=ours._replace(token=None))
    assert not answers(server, credentials=ours._replace(token=theirs.token))
    assert not answers(server, credentials=ours._replace(token="ü"))
    assert not answers(server, credentials=ours, device=1)  # for another
    assert not answers(server, credentials=ours, device=4)  # whom there is not
    assert not answers(server, credentials=ours._replace(ca=theirs.ca))  # who doubts the cloud
    cloud = collab.read_credentials(keys, "cloud")
    assert not answers(server, credentials=cloud._replace(token=ours.token))
    assert read == []  # nothing that anybody sent has been looked at
    monkeypatch.undo()
    assert answers(server, credentials=ours)


def test_a_device_does_not_talk_to_a_device_that_plays_the_cloud(keys):
    ours, theirs = (collab.read_credentials(keys, f"device-{n}") for n in range(2))
    with collab.serve(cloud_of(), credentials=theirs) as false:
        assert not answers(false, credentials=ours)


def test_a_device_does_not_talk_to_a_cloud_of_another_name(server, keys, monkeypatch):
    ours = collab.read_credentials(keys, "device-0")
    assert answers(server, credentials=ours)
    address = server.address
    monkeypatch.setattr(socket, "create_connection", lambda to, timeout: connect(address))
    server.address = "elsewhere.example:" + server.address.rpartition(":")[2]
    assert not answers(server, credentials=ours)


def test_a_token_is_a_hash_of_secret_and_name(keys):
    secret = (keys / "cloud.token").read_bytes()
    right = hmac.new(secret, b"device-2", hashlib.sha256).hexdigest()
    assert (keys / "device-2.token").read_text() == right == collab.token(secret.decode(), 2)
    assert {path.stat().st_mode & 0o77 for path in keys.glob("*.key")} == {0}
    assert {path.stat().st_mode & 0o77 for path in keys.glob("*.token")} == {0}
    assert not list(keys.glob("ca.key"))
    with pytest.raises(ValueError, match="holds credentials already"):
        collab.make_credentials(keys, 1)


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
def test_nothing_goes_in_the_clear_to_other_machines(keys, address):
    with pytest.raises(ValueError, match="is open to other machines: give credentials"):
        collab.serve(cloud_of(), address)
    shown = collab.read_credentials(keys, "cloud")
    with pytest.raises(ValueError, match="would talk to anyone"):
        collab.serve(cloud_of(), address, credentials=shown._replace(ca=None, token=None))
    with pytest.raises(ValueError, match="is another machine: give credentials"):
        collab.Dial(address)


@pytest.mark.parametrize("address", ["127.0.0.1", ":5000", "localhost:http", "localhost:70000"])
def test_addresses_of_another_form_are_refused(address):
    with pytest.raises(ValueError, match="is not of the form host:port"):
        collab.serve(cloud_of(), address)


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:\d+ is not to be had"):
        collab.serve(cloud_of(), server.address)


# --- hostile devices, with credentials of their own ----------------------------------------------


def errors(found):
    return [m.frame.decode() for m in map(collab.read, found) if m.kind is Kind.ERROR]


HOSTILE = {
    "noise": lambda n: ([np.random.default_rng(0).bytes(1000)], "are no message"),
    "empty": lambda n: ([b""], "are no message"),
    "no hello": lambda n: (steps(n, 1)[1:], "does not say hello"),
    "two hellos": lambda n: (steps(n, 0) * 2, "came after step 0"),
    "lying sizes": lambda n: ([steps(n, 0)[0], lies(n)], "asks for another length"),
    "as another": lambda n: (steps(n - 1, 1), "speaks as device"),
    "repeated": lambda n: ([*steps(n, 1), steps(n, 1)[1]], "step 1 came after step 1"),
    "in another order": lambda n: ([steps(n, 2)[i] for i in (0, 2, 1)], "asks for step 2 where"),
    "stale": lambda n: (steps(n, 1, sequence=0), "step 0 came after step 0"),
    "far ahead": lambda n: (steps(n, 1, sequence=2**60), "asks for step 1152921504606846976"),
    "no frame": lambda n: (steps(n, 1, frame=b"SGQR\1\0\4"), "no SGQ frame"),
    "an answer": lambda n: (steps(n, 1, kind=Kind.GRADIENT, labels=np.zeros(0, np.int32)), "no an"),
}


@pytest.fixture(scope="module")
def lasting(keys):
    """One cloud for all that is done to it; device 0 is honest and trains until the end."""
    cloud = cloud_of()
    with collab.serve(cloud, credentials=collab.read_credentials(keys, "cloud"), idle=2) as serving:
        serving.cloud = cloud
        yield serving


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_are_answered_once_and_ended(lasting, keys, name):
    number = 3
    lasting.cloud._clients[number].__init__()  # as if it had never been here
    requests, words = HOSTILE[name](number)
    found, status = raw(lasting.address, keys, number, requests)
    (error,) = errors(found)
    assert words in error
    assert status == "OK"  # ended by the cloud
    assert collab.read(found[-1]).kind is Kind.ERROR
    with dialled(lasting.address, keys) as dial:
        device = device_of(dial)
        lasting.cloud._clients[0].__init__()
        assert device.step(*split.batch(0, 0)) > 0


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_message_too_large_is_refused_by_the_length_it_announces(lasting, keys):
    found, status = raw(lasting.address, keys, 3, [bytes(lasting.cloud.largest + 1)])
    assert (found, status) == ([], "RESOURCE_EXHAUSTED")
    assert lasting.cloud.largest < 100_000


def test_one_device_has_few_streams(lasting, keys):
    waiting = queue.SimpleQueue()
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(raw, lasting.address, keys, 3, iter(waiting.get, None)) for _ in range(6)
        ]
        refused = itertools.islice(as_completed(jobs, timeout=120), 4)
        statuses = [job.result()[1] for job in refused]
        with dialled(lasting.address, keys) as dial:
            lasting.cloud._clients[0].__init__()
            assert device_of(dial).step(*split.batch(0, 0)) > 0
        for _ in jobs:
            waiting.put(None)
    assert statuses == ["RESOURCE_EXHAUSTED"] * 4


def test_a_stream_that_falls_silent_is_ended(lasting, keys):
    never = threading.Event()

    def requests():
        yield steps(3, 0)[0]
        never.wait(100)

    start = time.monotonic()
    found, status = raw(lasting.address, keys, 3, requests())
    never.set()
    assert len(found) == 1
    assert status in ("CANCELLED", "UNKNOWN")
    assert time.monotonic() - start < 90


def test_who_stops_in_the_middle_of_a_message_is_alone_in_it(lasting, keys):
    stopped = half_a_message(lasting.address, keys, 2)
    with dialled(lasting.address, keys) as dial:
        lasting.cloud._clients[0].__init__()
        device = device_of(dial)
        for step in range(3):
            device.step(*split.batch(0, step))
    until = time.monotonic() + 90
    while lasting._switchboard._streams[2] and time.monotonic() < until:
        time.sleep(0.1)
    assert lasting._switchboard._streams[2] == 0  # the silent one has been ended
    stopped.close()


def test_a_flood_without_reading_answers_stays_small(lasting, keys):
    lasting.cloud._clients[3].__init__()
    before = memory()
    stop = threading.Event()

    def flood():
        yield from steps(3, 1)
        while not stop.is_set():
            yield bytes(lasting.cloud.largest - 10)

    with dialled(lasting.address, keys, 3) as dial, dialled(lasting.address, keys) as honest:
        channel = dial._channel(lasting.address)
        call = channel.stream_stream("/tinyjax.Split/Talk")(flood(), metadata=dial._metadata)
        lasting.cloud._clients[0].__init__()
        device = device_of(honest)
        for step in range(20):
            device.step(*split.batch(0, step))
        stop.set()
        del call
        channel.close()
    # Client and cloud are both in this process; a flood that was kept would be gigabytes.
    assert memory() - before < 100e6


def test_hostile_devices_harm_nobody_else(keys):
    """Eight devices, of which four mean ill all the time; the others finish, and rightly."""
    cloud = cloud_of(8)
    stop = threading.Event()
    with (
        collab.serve(cloud, credentials=collab.read_credentials(many(keys), "cloud")) as serving,
        ThreadPoolExecutor(8) as pool,
    ):
        ill = [
            pool.submit(behave, serving.address, many(keys), 4 + i, stop)
            for i, behave in enumerate(BEHAVIOURS)
        ]

        def honest(number):
            with dialled(serving.address, many(keys), number) as dial:
                device = device_of(dial, number)
                losses = [device.step(*split.batch(number, step)) for step in range(10)]
                device.finish()
            return losses

        try:
            losses = list(pool.map(honest, range(4)))
        finally:
            stop.set()
        for each in ill:
            each.result(300)
    assert np.isfinite(losses).all()
    assert [client.finished for client in cloud._clients] == [True] * 4 + [False] * 4
    assert jax.tree.all(jax.tree.map(lambda leaf: np.isfinite(leaf).all(), cloud.params))


def many(keys):
    folder = keys.parent / "many"
    if not folder.exists():
        collab.make_credentials(folder, 8)
    return folder


# --- what is counted and shaped ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("20Mbit/s,30ms", (2.5e6, 0.03)),
        ("20 Mbit/s, 30 ms", (2.5e6, 0.03)),
        ("0.5Gbit/s", (62.5e6, 0.0)),
        ("800bit/s,0ms", (100.0, 0.0)),
        ("64kbit/s,1.5s", (8e3, 1.5)),
    ],
)
def test_links_are_read(text, link):
    assert collab.parse_link(text) == pytest.approx(link)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no bandwidth"),
        ("30ms", "has no bandwidth"),
        ("20MB/s", "has no bandwidth"),
        ("20mbit/s", "has no bandwidth"),
        ("-1Mbit/s", "has no bandwidth"),
        ("0Mbit/s", "has no bandwidth"),
        ("infMbit/s", "has no bandwidth"),
        ("20Mbit/s,", "has '' for a latency"),
        ("20Mbit/s,30", "has '30' for a latency"),
        ("20Mbit/s,30ms,1%", "has '30ms,1%' for a latency"),
    ],
)
def test_links_of_another_form_are_refused(text, words):
    with pytest.raises(ValueError, match=words):
        collab.parse_link(text)


def test_a_bucket_by_its_own_clock():
    """Against the definition: tokens flow in at the rate, up to the burst, and are waited for."""
    rng = np.random.default_rng(0)
    bucket, tokens, now, last = Bucket(100.0, 30.0), 30.0, 0.0, 0.0
    for _ in range(1000):
        now += rng.exponential(0.3)
        size = int(rng.integers(1, 60))
        tokens = min(30.0, tokens + 100.0 * (now - last)) - size
        last = now
        wait = max(0.0, -tokens / 100.0)
        assert bucket.take(size, now) == pytest.approx(wait, abs=1e-9)
        now += wait


def echo():
    """A server that sends back what it gets, and its port."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            with near:
                while data := near.recv(65536):
                    near.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    return listening, listening.getsockname()[1]


@pytest.mark.parametrize("text", [None, "16Mbit/s,20ms"])
def test_a_tunnel_carries_counts_and_delays(text, rng):
    listening, port = echo()
    tunnel = Tunnel("127.0.0.1", port, text and collab.parse_link(text))
    data = rng.bytes(200_000)
    with listening, socket.create_connection(("127.0.0.1", tunnel.port)) as near:
        start = time.monotonic()
        near.sendall(b"x")
        assert near.recv(1) == b"x"
        once = time.monotonic() - start
        start = time.monotonic()
        threading.Thread(target=near.sendall, args=(data,), daemon=True).start()
        back = b""
        while len(back) < len(data):
            back += near.recv(65536)
        seconds = time.monotonic() - start
        near.shutdown(socket.SHUT_WR)
        assert near.recv(1) == b""  # the end comes through
    assert back == data
    assert tunnel.traffic == (len(data) + 1, len(data) + 1)
    if text:  # 2 MB/s each way at once, 10 kB of it in a burst, and 20 ms each way
        assert once >= 0.04
        assert seconds >= 0.04 + (len(data) - 2 * 10_000) / 2e6
        assert seconds < 60
    tunnel.close()
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, by what was under way
        socket.create_connection(("127.0.0.1", tunnel.port), timeout=1).recv(1)


def test_traffic_is_that_of_the_socket(lasting, keys):
    lasting.cloud._clients[0].__init__()
    with dialled(lasting.address, keys) as dial:
        device = device_of(dial)
        device.step(*split.batch(0, 0))
        before = dial.traffic
        for step in range(1, 11):
            device.step(*split.batch(0, step))
        up, down = (b - a for a, b in zip(before, dial.traffic, strict=True))
    ways = split.ways()
    frame, _ = ways.up.encode(np.ones(split.FEATURES.shape, np.float32), ways.device, 0)
    message = len(frame) + 4 * split.BATCH + 44
    # TLS and HTTP/2 add a record's 22 bytes to two frames' 9 and gRPC's 5, pings and windows more.
    assert 10 * message < up < 10 * (message + 200)
    assert 10 * (4 * 8 + 44) < down < 10 * (4 * 8 + 44 + 300)
