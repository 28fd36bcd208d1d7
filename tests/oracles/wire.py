"""A second reader of SGQ frames, from ``docs/wire.md`` alone: bytes to values, in plain Python."""

import math
import struct
import zlib

import numpy as np

from tests.oracles import features as lattice

DTYPES = (np.float32, np.float16, None)  # bfloat16 is rounded by hand
SLOTS = 1 << 12


class Reader:
    """Numbers off the front of some bytes."""

    def __init__(self, data):
        self.data, self.place = data, 0

    def take(self, dtype, *shape):
        flat = np.frombuffer(self.data, "<" + dtype, math.prod(shape), self.place)
        self.place += flat.nbytes
        return flat.reshape(shape)


def opened(frame):
    """The header as a dictionary, and a reader of the body."""
    magic, version, kind, stage, flags, bits, dtype, axes, zero = struct.unpack_from("<4s8B", frame)
    state, groups, nought, length = struct.unpack_from("<IHHI", frame, 12)
    assert (magic, version, zero, nought) == (b"SGQR", 2, 0, 0)
    assert len(frame) == 24 + 4 * axes + length + 4
    assert zlib.crc32(frame[:-4]) == struct.unpack("<I", frame[-4:])[0]
    shape = struct.unpack_from(f"<{axes}I", frame, 24)
    head = dict(kind=kind, stage=stage, flags=flags, bits=bits, dtype=dtype)
    head |= dict(state=state, groups=groups, shape=shape)
    return head, Reader(frame[24 + 4 * axes : -4])


def values(frame, state=None, features=None):
    """Float32 values of a frame, given those of its state and of its features, if it needs any."""
    head, body = opened(frame)
    shape, size = head["shape"], math.prod(head["shape"])
    if head["kind"] == 2:
        step = body.take("f4")
        mask = np.ones(shape, bool) if features is None else mask_of(features)
        if head["stage"]:
            q = streamed(head, body, None, mask).astype(np.uint8).view(np.int8)
        else:
            if head["flags"]:
                packed_mask = np.packbits(mask.reshape(-1), bitorder="little").tobytes()
                assert zlib.crc32(packed_mask) == body.take("u4")
            q = np.zeros(shape, np.int8)
            q[mask] = body.take("i1", np.count_nonzero(mask) if head["flags"] else size)
        return rounded(step * q.astype(np.float32), head["dtype"])
    if head["kind"] == 4:
        return rounded(gained(head, body), head["dtype"])
    q, scale, zero_point, beside = codes(head, body, state)
    if head["kind"] == 0:
        return rounded(beside[q] * wide(scale), head["dtype"])
    lift = lambda a: a[:, beside].reshape(shape[0], *[1] * (len(shape) - 2), shape[-1])
    exact = lift(wide(scale)).astype(np.float64) * (q.astype(np.float64) - lift(zero_point))
    return rounded(exact.astype(np.float32), head["dtype"])


def codes(head, body, state):
    """Codes of features, scale, zero point, and centroids or ids."""
    n, c, b = head["shape"][0], head["shape"][-1], head["bits"]
    if head["kind"] == 0:
        scale, centroids = body.take("u2"), body.take("u2", 2**b)
        zero_point = body.take("u1")
        beside = centroids.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        scale, zero_point = body.take("u2", n, head["groups"]), body.take("u1", n, head["groups"])
        beside = body.take("u1", c)
    if head["stage"]:
        return streamed(head, body, state, None).astype(int), scale, zero_point, beside
    rows = math.prod(head["shape"][:-1])
    packed = body.take("u1", -(-rows * b // 8), c)
    place = np.arange(rows)
    q = packed[place % len(packed)] >> (b * (place // len(packed)))[:, None] & (2**b - 1)
    return q.reshape(head["shape"]).astype(int), scale, zero_point, beside


def gained(head, body):
    """Float32 values of features with gains."""
    shape, groups, levels = head["shape"], head["groups"], head["bits"]
    rows, in_a_byte = math.prod(shape[:-1]), {3: 5, 4: 4}[levels]
    scale, ids = body.take("u2", shape[0], groups), body.take("u1", shape[-1])
    gains = digits(body.take("u1", -(-rows // 2), groups), 16, rows)
    q = digits(body.take("u1", -(-rows // in_a_byte), shape[-1]), levels, rows)
    ladder = [40, 51, 64, 81, 102, 128, 161, 203, 256, 323, 406, 512, 645, 813, 1024]
    share = np.array([0, *ladder])[gains[:, ids]] * q / (1024 * (levels - 1))
    of_row = wide(scale)[np.arange(rows) // (rows // shape[0])]
    return (share.astype(np.float32) * of_row[:, ids]).reshape(shape)


def digits(packed, base, rows):
    """The digits of bytes, cut along rows: those of the first rows are the lowest."""
    place = np.arange(rows)
    return packed[place % len(packed)].astype(int) // base ** (place // len(packed))[:, None] % base


def mask_of(features):
    """Where the codes of a plain frame of features differ from the zero point."""
    head, body = opened(features)
    q, _, zero_point, beside = codes(head, body, None)
    if head["kind"] == 1:
        n, *rest, c = head["shape"]
        zero_point = zero_point[:, beside].reshape(n, *[1] * len(rest), c)
    return q != zero_point


def tag_of(mask):
    """The tag of a mask."""
    total = 0
    for i in np.flatnonzero(mask.reshape(-1)).tolist():
        x = (i + 1) * 0x9E3779B1 % 2**32
        x = (x ^ (x >> 15)) * 0x85EBCA77 % 2**32
        total += x ^ (x >> 13)
    return total % 2**32 | 1


def streamed(head, body, state, mask, known=None):
    """Codes of a stream, of the shape of the frame; by a state, with those that are known."""
    shape, size, b = head["shape"], math.prod(head["shape"]), head["bits"]
    mode, lanes = int(body.take("u1")), 1 << int(body.take("u1"))
    if mode == 2:
        words = np.frombuffer(body.data[body.place :], "<u1")
        height = len(words)
        place = np.arange(size)
        q = words[place % height] >> b * (place // height) & (2**b - 1)
        return q.reshape(shape)
    states = body.take("u4", lanes).tolist()
    table = None
    if mode == 1:
        present = np.unpackbits(body.take("u1", -(-(2**b) // 8)), bitorder="little")[: 2**b]
        table = present.astype(int)
        table[present > 0] = body.take("u2", int(present.sum()))
        assert table.sum() == SLOTS
    words = body.take("u2", (len(body.data) - body.place) // 2).tolist()
    coder = Coder(states, words)
    if head["kind"] == 2 and head["flags"]:
        assert head["state"] == tag_of(mask)
    if state is not None:
        q = by_state(coder, table, state, shape, head["state"], mask, known)
    else:
        where = np.ones(size, bool) if mask is None else mask.reshape(-1)
        q = np.zeros(size, int)
        for first in range(0, size, lanes):
            chosen = [table if where[i] else None for i in range(first, min(first + lanes, size))]
            q[first : first + len(chosen)] = coder.step(chosen)
        q = q.reshape(shape)
    assert coder.position == len(words)
    assert all(x == 1 << 16 for x in coder.states)
    return q


class Coder:
    """The lanes of the range coder."""

    def __init__(self, states, words):
        self.states, self.words, self.position = states, words, 0

    def step(self, tables):
        """A symbol for each lane that has a table, else 0."""
        found = []
        for lane, table in enumerate(tables):
            if table is None:
                found.append(0)
                continue
            x = self.states[lane]
            ends = np.cumsum(table)
            symbol = int(np.searchsorted(ends, x % SLOTS, side="right"))
            x = int(table[symbol]) * (x // SLOTS) + x % SLOTS - int(ends[symbol] - table[symbol])
            if x < 1 << 16:
                x = x << 16 | self.words[self.position]
                self.position += 1
            self.states[lane] = x
            found.append(symbol)
        return found


def by_state(coder, table, state, shape, tag, mask, known):
    """Codes in the order of rounds and phases, by the tables of a state or by one for all."""
    head, body = opened(state)
    assert head["kind"] == 3
    c, symbols = (int(x) for x in body.take("u4", 2))
    assert tag == (zlib.crc32(body.data[8:]) or 1)
    sources, weights = body.take("u2", c, 8), body.take("i2", 2, 3, c, 18)
    edges, splits = body.take("i4", 3, 13), body.take("i4", 3, 14, 2)
    tables = body.take("u2", 126, symbols)
    n, *space, _ = shape
    h, w = ([1, 1, *space])[-2:]
    planes = (n * math.prod(space[:-2]), h, w, c)
    q = np.zeros(planes, np.int64)
    sent = np.ones(planes, bool)
    if mask is not None:
        sent = mask.reshape(planes)
        q[~sent] = known.reshape(planes)[~sent]
    size, lanes = -(-c // 8), len(coder.states)
    for first in range(0, c, size):
        for phase in range(3):
            pixels = [
                (i, y, x, k)
                for k in range(first, first + size)
                for down, right in ([(0, 0)], [(1, 1)], [(0, 1), (1, 0)])[phase]
                for i in range(len(q))
                for y in range(down, h, 2)
                for x in range(right, w, 2)
            ]
            chosen = [
                None
                if pixel[3] >= c or not sent[pixel]
                else table
                if table is not None
                else tables[lattice.context(q, *pixel, phase, sources, weights, edges, splits)]
                for pixel in pixels
            ]
            for start in range(0, len(pixels), lanes):
                row = coder.step(chosen[start : start + lanes])
                for pixel, symbol in zip(pixels[start : start + lanes], row, strict=True):
                    if pixel[3] < c and sent[pixel]:
                        q[pixel] = symbol
    return q.reshape(shape)


def wide(scale):
    """Float32 of the upper halves of some."""
    return (np.asarray(scale, np.uint32) << 16).astype(np.uint32).view(np.float32)


def rounded(x, dtype):
    """Float32 values of the header's dtype."""
    if DTYPES[dtype] is np.float32:
        return x
    if DTYPES[dtype] is np.float16:
        with np.errstate(invalid="ignore"):
            return (
                np.where(np.abs(x) > 65504, np.sign(x) * 65504, x).astype(np.float16).astype("f4")
            )
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    even = (bits >> 16) & 1
    half = ((bits + 0x7FFF + even) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), x, half).astype(np.float32)
