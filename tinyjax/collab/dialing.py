"""How a device reaches a cloud on another machine, or in another process of this one."""

from __future__ import annotations

import queue
import threading
from typing import Any, Self

from tinyjax.collab.credentials import Credentials, is_loopback
from tinyjax.collab.ledger import Refused
from tinyjax.collab.messages import Kind, Message, read, write
from tinyjax.collab.saving import extra
from tinyjax.collab.serving import KEEPALIVE, SERVICE, host_and_port
from tinyjax.collab.shaping import Link
from tinyjax.collab.tunnel import Traffic, Tunnel

__all__ = ["Dial"]

_LARGEST = 256 * 2**20  # bytes of an answer, at most


class Dial:
    """Opens lines to a cloud: ``dial()`` is a line, for a :class:`Device`. A context manager.

    All lines go through a small proxy on the loopback, which counts bytes and shapes traffic; TLS
    goes through it untouched.

    Args:
      address: ``host:port`` of the cloud.
      device: the number of the device that dials.
      credentials: the device's; None in the clear, to a loopback address only.
      link: how fast the line is to be; None for as fast as it goes.
      timeout: seconds to wait for an answer, more than the cloud's ``patience``.

    Raises:
      ValueError: if the address is of no such form, or of another machine and the line in the
        clear.
      ImportError: without the package grpcio.

    Example:
      >>> from tinyjax import collab
      >>> collab.Dial("192.0.2.1:5000")
      Traceback (most recent call last):
      ...
      ValueError: 192.0.2.1:5000 is another machine: give credentials
    """

    def __init__(
        self,
        address: str,
        *,
        device: int = 0,
        credentials: Credentials | None = None,
        link: Link | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._host, port = host_and_port(address)
        self._credentials, self._timeout = credentials or Credentials(), timeout
        if self._credentials.ca is None and not is_loopback(self._host):
            raise ValueError(f"{address} is another machine: give credentials")
        self._grpc = extra("grpc")
        self._metadata = [("device", str(device))]
        if self._credentials.token is not None:
            self._metadata.append(("token", self._credentials.token))
        self._tunnel = Tunnel(self._host.strip("[]"), port, link)

    @property
    def traffic(self) -> Traffic:
        """Bytes of all lines so far, in each direction: all that is above TCP."""
        return self._tunnel.traffic

    def cut(self) -> None:
        """Breaks the line there is, for tests."""
        self._tunnel.cut()

    def close(self) -> None:
        """Breaks the line, and lets go of the proxy."""
        self._tunnel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __call__(self) -> _GrpcLine:
        channel = self._channel(f"127.0.0.1:{self._tunnel.port}")
        return _GrpcLine(self._grpc, channel, self._metadata, self._timeout)

    def _channel(self, near: str) -> Any:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", _LARGEST),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE),
            ("grpc.keepalive_timeout_ms", KEEPALIVE),
            ("grpc.use_local_subchannel_pool", 1),  # a new line is a new connection
            ("grpc.enable_http_proxy", 0),
        ]
        ca, certificate, key, _ = self._credentials
        if ca is None:
            return self._grpc.insecure_channel(near, options)
        options.append(("grpc.ssl_target_name_override", self._host.strip("[]")))
        tls = self._grpc.ssl_channel_credentials(ca, key, certificate)
        return self._grpc.secure_channel(near, tls, options)


class _GrpcLine:
    """A stream to the cloud."""

    def __init__(self, grpc: Any, channel: Any, metadata: Any, timeout: float) -> None:
        self._grpc, self._channel, self._timeout = grpc, channel, timeout
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        talk = channel.stream_stream(f"/{SERVICE}/Talk")
        self._call = talk(iter(self._outbox.get, None), metadata=metadata)

    def ask(self, message: Message) -> Message:
        self._outbox.put(write(message))
        late = threading.Timer(self._timeout, self._call.cancel)
        late.daemon = True
        late.start()
        try:
            answer = read(next(self._call))
        except StopIteration as error:
            raise ConnectionError("the cloud hung up") from error
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        except self._grpc.RpcError as error:
            raise self._lost(error) from error
        finally:
            late.cancel()
        if answer.kind is Kind.ERROR:
            raise Refused(answer.frame.decode(errors="replace"))
        return answer

    def _lost(self, error: Any) -> Exception:
        code, words = error.code(), error.details()
        status = self._grpc.StatusCode
        if code is status.CANCELLED:
            return ConnectionError(f"no answer within {self._timeout:g} s, or hung up")
        if code in (status.UNAUTHENTICATED, status.UNIMPLEMENTED):
            return Refused(f"the cloud does not know this device ({words}): check its credentials")
        return ConnectionError(f"{code.name.lower()}: {words}")

    def close(self) -> None:
        self._outbox.put(None)
        self._call.cancel()
        self._channel.close()
