"""Clients that mean ill, with credentials of their own, and the bytes they send."""

import contextlib
import hashlib
import socket
import ssl
import struct
import zlib

import numpy as np

from tests import split
from tinyjax import collab
from tinyjax.collab.messages import Kind, Message
from tinyjax.collab.saving import extra

HELLO = Message(Kind.HELLO, frame=hashlib.sha256(b"").digest())


def connect(address, create=socket.create_connection):
    """A plain connection to the port of an address here."""
    return create(("127.0.0.1", int(address.rpartition(":")[2])), timeout=10)


def dialled(address, keys, number=0, **settings):
    credentials = collab.read_credentials(keys, f"device-{number}")
    return collab.Dial(address, device=number, credentials=credentials, **settings)


def raw(address, keys, number, requests):
    """What the cloud answers to bytes, from one who may talk; and the status at the end."""
    with dialled(address, keys, number) as dial:
        channel = dial._channel(address)
        call = channel.stream_stream("/tinyjax.Split/Talk")(
            iter(requests), metadata=dial._metadata, timeout=120
        )
        found = []
        try:
            found += call
            return found, "OK"
        except extra("grpc").RpcError as error:
            return found, error.code().name
        finally:
            channel.close()


def steps(number, count, **changes):
    """Hello and steps of a device, as bytes."""
    ways = split.ways()
    frame, _ = ways.up.encode(np.ones(split.FEATURES.shape, np.float32), ways.device, 0)
    labels = np.zeros(split.BATCH, np.int32)
    make = lambda i: Message(Kind.STEP, number, i + 1, i, labels=labels, frame=frame)
    messages = [make(i)._replace(**changes) for i in range(count)]
    return [collab.write(m) for m in (HELLO._replace(device=number), *messages)]


def lies(number):
    """A step whose header lies about sizes, with a checksum that is right."""
    data = bytearray(steps(number, 1)[1][:-4])
    data[36:40] = struct.pack("<I", 2**32 - 1)
    return bytes(data) + struct.pack("<I", zlib.crc32(data))


def http2(kind, flags, stream, payload):
    """A frame of HTTP/2."""
    size, place = len(payload).to_bytes(3, "big"), stream.to_bytes(4, "big")
    return size + bytes([kind, flags]) + place + payload


def headers(pairs):
    """HPACK literals that are not indexed, not Huffman-coded."""
    text = lambda word: bytes([len(word)]) + word.encode()
    return b"".join(b"\0" + text(k) + text(v) for k, v in pairs)


def half_a_message(address, keys, number, timeout=60):
    """A TLS connection that has said who it is, announced a message, and sent half of it."""
    context = ssl.create_default_context(cafile=keys / "ca.pem")
    context.load_cert_chain(keys / f"device-{number}.pem", keys / f"device-{number}.key")
    context.set_alpn_protocols(["h2"])
    stream = context.wrap_socket(connect(address), server_hostname="127.0.0.1")
    said = [
        (":method", "POST"),
        (":scheme", "https"),
        (":path", "/tinyjax.Split/Talk"),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("device", str(number)),
        ("token", (keys / f"device-{number}.token").read_text()),
    ]
    hello = steps(number, 0)[0]
    message = b"\0" + len(hello).to_bytes(4, "big") + hello
    with contextlib.ExitStack() as unless_all_goes_well:
        unless_all_goes_well.callback(stream.close)
        _half(stream, said, message, timeout)
        unless_all_goes_well.pop_all()
    return stream


def _half(stream, said, message, timeout):
    stream.settimeout(timeout)
    stream.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + http2(4, 0, 0, b"")
        + http2(1, 4, 1, headers(said))
        + http2(0, 0, 1, message)
    )
    answered = b""
    while b"TJCM" not in answered:  # which says that it may talk
        data = stream.recv(4096)
        if not data:
            raise ConnectionError("there were too many streams")
        answered += data
    stream.sendall(http2(0, 0, 1, b"\0" + (60_000).to_bytes(4, "big") + bytes(1000)))


def noise(address, keys, number, stop):
    """Bytes that are no message, over and over."""
    rng = np.random.default_rng(number)
    while not stop.is_set():
        raw(address, keys, number, [rng.bytes(500)])


def repeats(address, keys, number, stop):
    """A step once more, and steps in another order."""
    while not stop.is_set():
        raw(address, keys, number, [*steps(number, 1), steps(number, 1)[1]])
        raw(address, keys, number, [steps(number, 2)[i] for i in (0, 2, 1)])
        raw(address, keys, number, [steps(number, 0)[0], lies(number)])


def flood(address, keys, number, stop):
    """Large messages as fast as they go, and no look at the answers."""

    def requests():
        yield from steps(number, 1)
        while not stop.is_set():
            yield bytes(60_000)

    while not stop.is_set():
        raw(address, keys, number, requests())


def stalls(address, keys, number, stop):
    """Connections that say nothing, and messages that stop in the middle."""
    held = []
    while not stop.is_set():
        try:
            held.append(connect(address))
            held.append(half_a_message(address, keys, number, timeout=2))
        except OSError:
            pass
        stop.wait(0.2)
    for each in held:
        each.close()


BEHAVIOURS = (noise, repeats, flood, stalls)


def damaged(rng, sent, places):
    """Bytes after something has happened to them; sizes are told at some of the places."""
    data = bytearray(sent)
    match rng.integers(4):
        case 0:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        case 1:
            del data[rng.integers(len(data)) :]
        case 2:
            data += rng.bytes(1 + rng.integers(9))
        case _:  # a lie about a size
            start = int(rng.choice(places))
            data[start : start + 4] = int(rng.integers(1, 2**32)).to_bytes(4, "little")
    return bytes(data)
