"""The cloud on a port: gRPC with bytes in and bytes out, for those who may talk.

One bidirectional stream per device, ``/tinyjax.Split/Talk``. Who is there is settled by TLS and by
the stream's metadata before anything it sends is read. Then one message is read at a time and
answered before the next one, so that what a stream can make the cloud hold is one message of a
bounded size; gRPC refuses a larger one by the length that it announces.
"""

from __future__ import annotations

import hmac
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any, Self

from tinyjax.collab.credentials import Credentials, is_loopback, name_of, token
from tinyjax.collab.ledger import Busy, Refused
from tinyjax.collab.lines import Answers
from tinyjax.collab.messages import Kind, Message, read, write
from tinyjax.collab.saving import extra

__all__ = ["KEEPALIVE", "SERVICE", "Server", "host_and_port", "serve"]

SERVICE = "tinyjax.Split"
KEEPALIVE = 10_000  # milliseconds between looks at whether the other side is still there
_STREAMS_EACH = 2  # of a device: one that is broken, not noticed yet, and its successor
_LOOK_EVERY = 0.5  # seconds between looks at who has been silent too long


def serve(
    cloud: Answers,
    address: str = "127.0.0.1:0",
    *,
    credentials: Credentials | None = None,
    idle: float = 300.0,
) -> Server:
    """Lets devices talk to a cloud, until the server is closed.

    Args:
      cloud: what answers them.
      address: ``host:port``; port 0 is a free one.
      credentials: the cloud's; None in the clear, on a loopback address only.
      idle: seconds of silence after which a stream is ended.

    Returns:
      The server, which has started.

    Raises:
      ValueError: if others than this machine could talk to it without TLS, or without showing who
        they are; or if the address is not to be had.
      ImportError: without the package grpcio.

    Example:
      >>> from tinyjax import collab
      >>> collab.serve(None, "0.0.0.0:5000")
      Traceback (most recent call last):
      ...
      ValueError: 0.0.0.0:5000 is open to other machines: give credentials, or serve on 127.0.0.1
    """
    host, port = host_and_port(address)
    shown = credentials or Credentials()
    if not is_loopback(host):
        if shown.certificate is None:
            raise ValueError(
                f"{address} is open to other machines: give credentials, or serve on 127.0.0.1"
            )
        if shown.ca is None and shown.token is None:
            raise ValueError(f"{address} would talk to anyone: give a ca, a token or both")
    grpc = extra("grpc")
    streams = _STREAMS_EACH * cloud.devices
    workers = futures.ThreadPoolExecutor(streams + 2, "tinyjax-cloud")
    server = grpc.server(
        workers,
        options=[
            ("grpc.max_receive_message_length", cloud.largest),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", 8192),
            ("grpc.max_allowed_incoming_connections", 2 * streams + 32),
            ("grpc.max_concurrent_streams", _STREAMS_EACH),  # of a connection
            ("grpc.server_handshake_timeout_ms", 10_000),
            ("grpc.keepalive_time_ms", KEEPALIVE),
            ("grpc.keepalive_timeout_ms", KEEPALIVE),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE // 2),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=streams + 2,
    )
    switchboard = _Switchboard(cloud, shown, idle)
    talk = grpc.stream_stream_rpc_method_handler(switchboard.talk)
    handler = grpc.method_handlers_generic_handler(SERVICE, {"Talk": talk})
    server.add_generic_rpc_handlers((handler,))
    try:
        if shown.certificate is None:
            port = server.add_insecure_port(address)
        else:
            pair = [(shown.key, shown.certificate)]
            mutual = shown.ca is not None
            port = server.add_secure_port(
                address, grpc.ssl_server_credentials(pair, shown.ca, mutual)
            )
    except RuntimeError as error:
        raise ValueError(f"{address} is not to be had: {error}") from error
    server.start()
    return Server(server, f"{host}:{port}", switchboard)


class Server:
    """A cloud on a port; a context manager that closes it.

    Attributes:
      address: ``host:port``, with the port that it has.

    Example:
      >>> from tinyjax import collab
      >>> callable(collab.Server.close)
      True
    """

    def __init__(self, server: Any, address: str, switchboard: _Switchboard) -> None:
        self.address = address
        self._server, self._switchboard = server, switchboard

    def close(self, grace: float = 1.0) -> None:
        """Ends all streams, after as many seconds at most."""
        self._switchboard.closed.set()
        self._server.stop(grace).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Switchboard:
    """Who is talking, and how long they have been silent."""

    def __init__(self, cloud: Answers, credentials: Credentials, idle: float) -> None:
        self._cloud, self._credentials, self._idle = cloud, credentials, idle
        self._grpc = extra("grpc")
        self._lock = threading.Lock()
        self._heard: dict[Any, float] = {}  # stream: when its silence began
        self._streams = [0] * cloud.devices
        self.closed = threading.Event()
        threading.Thread(target=self._end_the_silent, daemon=True).start()

    def talk(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        """One stream, from its metadata to its end."""
        device = self._who(context)
        with self._lock:
            full = self._streams[device] >= _STREAMS_EACH
            self._streams[device] += not full
        if full:
            context.abort(
                self._grpc.StatusCode.RESOURCE_EXHAUSTED, f"device {device} has too many streams"
            )
        try:
            yield from self._conversation(device, requests, context)
        except Busy as error:
            context.abort(self._grpc.StatusCode.UNAVAILABLE, str(error))
        finally:
            with self._lock:
                self._streams[device] -= 1
                self._heard.pop(context, None)

    def _who(self, context: Any) -> int:
        """The device at the other end; nothing it sends has been read yet."""
        metadata, ours = dict(context.invocation_metadata()), self._credentials
        claimed = str(metadata.get("device", ""))
        known = claimed.isascii() and claimed.isdigit() and len(claimed) < 10
        device = int(claimed) if known else self._cloud.devices
        allowed = device < self._cloud.devices
        if ours.token is not None:
            shown = str(metadata.get("token", "")).encode()
            allowed &= hmac.compare_digest(token(ours.token, device).encode(), shown)
        if ours.ca is not None:
            names = context.auth_context().get("x509_common_name", [])
            allowed &= [name_of(device).encode()] == list(names)
        if not allowed:
            context.abort(self._grpc.StatusCode.UNAUTHENTICATED, "show who you are")
        return device

    def _conversation(
        self, device: int, requests: Iterator[bytes], context: Any
    ) -> Iterator[bytes]:
        """Hello, then messages with numbers that grow; the first that is refused ends it."""
        said_hello, last = False, 0
        self._silent_from_now(context)
        for data in requests:
            with self._lock:
                self._heard.pop(context, None)  # until it is answered the silence is ours
            try:
                message = _read(data)
                if message.device != device:
                    raise Refused(f"device {device} speaks as device {message.device}")
                if not said_hello:
                    reply, said_hello = self._cloud.hello(message), True
                elif message.sequence <= last:
                    raise Refused(f"step {message.sequence} came after step {last}")
                else:
                    reply, last = self._cloud.answer(message, context.is_active), message.sequence
            except Refused as error:
                yield write(Message(Kind.ERROR, device, frame=str(error).encode()[:1000]))
                return
            self._silent_from_now(context)
            yield write(reply)

    def _silent_from_now(self, context: Any) -> None:
        with self._lock:
            self._heard[context] = time.monotonic()

    def _end_the_silent(self) -> None:
        while not self.closed.wait(_LOOK_EVERY):
            before = time.monotonic() - self._idle
            with self._lock:
                silent = [stream for stream, heard in self._heard.items() if heard < before]
            for stream in silent:
                stream.cancel()


def _read(data: bytes) -> Message:
    try:
        return read(data)
    except ValueError as error:
        raise Refused(str(error)) from error


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of an address.

    Raises:
      ValueError: if it is not of the form ``host:port``.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"address {address!r} is not of the form host:port: write 127.0.0.1:5000")
    return host, int(port)
