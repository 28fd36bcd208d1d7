"""A TCP proxy on the loopback that counts every byte, and delays them where a link is slow.

It carries the bytes of the connection and understands none of them. What it counts is all that is
above TCP: TLS, HTTP/2, gRPC and messages; headers of TCP and IP, and what they send again, are not
in it. Each direction has a token bucket of its own, as a full-duplex link does, and holds no more
than what is under way for its latency; the sender meets the rest as a full socket.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from typing import NamedTuple

from tinyjax.collab.shaping import Bucket, Link

__all__ = ["Traffic", "Tunnel"]

_MOST, _LEAST = 65536, 1448  # bytes read at once: at most, and of a link however slow
_BURST = 0.005  # seconds of a link's rate, which make up for sleeping too long
_ENDED = (0.0, b"")


class Traffic(NamedTuple):
    """Bytes that went through a tunnel, all that is above TCP.

    Attributes:
      up: from the device to the cloud.
      down: from the cloud to the device.

    Example:
      >>> from tinyjax import collab
      >>> collab.Traffic(up=3, down=4).up
      3
    """

    up: int
    down: int


class Tunnel:
    """A proxy from a port of the loopback to an address, until it is closed.

    Args:
      host: where to.
      port: where to.
      link: how fast; None for as fast as it goes.
    """

    def __init__(self, host: str, port: int, link: Link | None = None) -> None:
        self._to = (host, port)
        self._link = link
        self._counts, self._lock = [0, 0], threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._buckets = [Bucket(link.rate, _burst(link)) for _ in range(2)] if link else []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def traffic(self) -> Traffic:
        """What has come in so far."""
        with self._lock:
            return Traffic(*self._counts)

    def cut(self) -> None:
        """Breaks every connection there is; new ones are taken."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for each in sockets:
            _broken(each)

    def close(self) -> None:
        """Breaks every connection and takes no more."""
        _broken(self._listening)
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._to, timeout=10)
        except OSError:
            _broken(near)
            return
        far.settimeout(None)
        for each in (near, far):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._sockets |= {near, far}
        back = threading.Thread(target=self._pump, args=(far, near, 1), daemon=True)
        back.start()
        self._pump(near, far, 0)
        back.join()
        with self._lock:
            self._sockets -= {near, far}
        near.close()
        far.close()

    def _pump(self, source: socket.socket, sink: socket.socket, way: int) -> None:
        """Carries one direction until it ends; a connection that breaks ends both."""
        try:
            if self._link is None:
                while data := self._read(source, way, _MOST):
                    sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)
            else:
                self._slowly(source, sink, way, self._link)
        except OSError:
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _slowly(self, source: socket.socket, sink: socket.socket, way: int, link: Link) -> None:
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        arriving = threading.Thread(target=_deliver, args=(under_way, sink), daemon=True)
        arriving.start()
        most = int(min(_MOST, max(_LEAST, _burst(link))))
        try:
            while data := self._read(source, way, most):
                left = self._leave(way, len(data))
                under_way.put((left + link.latency, data))
        finally:
            under_way.put(_ENDED)
            arriving.join()

    def _leave(self, way: int, size: int) -> float:
        """Waits until so many bytes have left; returns when that was."""
        now = time.monotonic()
        with self._lock:
            wait = self._buckets[way].take(size, now)
        time.sleep(wait)
        return now + wait

    def _read(self, source: socket.socket, way: int, most: int) -> bytes:
        data = source.recv(most)
        with self._lock:
            self._counts[way] += len(data)
        return data


def _deliver(under_way: queue.SimpleQueue[tuple[float, bytes]], sink: socket.socket) -> None:
    """Hands over each piece when it arrives, the end after all of them."""
    with contextlib.suppress(OSError):
        while (piece := under_way.get()) is not _ENDED:
            arrives, data = piece
            time.sleep(max(0.0, arrives - time.monotonic()))
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def _burst(link: Link) -> float:
    return max(_LEAST, _BURST * link.rate)


def _broken(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
