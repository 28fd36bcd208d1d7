"""The cloud's end of an uplink, from ``docs/wire.md`` alone: frames to values, in plain Python."""

import numpy as np

from tests.oracles import wire


class Cloud:
    """Codes, and what they stand for, of the frames of one device."""

    def __init__(self):
        self.sequence, self.synced, self.q = 0, False, None

    def receive(self, frame, state=None):
        """Whether a frame was taken."""
        head, body = wire.opened(frame)
        sequence = int(body.take("u4"))
        if head["kind"] == 5:
            inner, features = wire.opened(body.data[body.place :])
            known = wire.codes(inner, features, state if inner["state"] else None)
            self.q, self.scale, self.zero_point, self.centroids = known
            self.sequence, self.synced, self.dtype = sequence, True, inner["dtype"]
            return True
        ahead = (sequence - self.sequence) % 2**32
        if ahead == 0 or ahead >= 2**31:
            return False
        self.synced = self.synced and ahead == 1 and self.advance(head, body, state)
        return self.synced

    def advance(self, head, body, state):
        """The codes after a difference, if it leads where it should."""
        check, scale = int(body.take("u4")), body.take("u2")
        if scale not in (self.scale, 0x7FC0):
            return False
        q = after(self.q, head, body, state)
        if tag(q) != check:
            return False
        self.q, self.scale, self.sequence = q, scale, self.sequence + 1
        return True

    def values(self):
        """Float32 values of the features."""
        return wire.rounded(self.centroids[self.q] * wire.wide(self.scale), self.dtype)


def after(q, head, body, state):
    """The codes once those that are sent have changed."""
    shape, side = head["shape"], head["groups"]
    if body.place == len(body.data):
        return q
    rows, cols = (-(-n // side) for n in shape[1:3])
    flags = np.unpackbits(body.take("u1", -(-rows * cols // 8)), bitorder="little")
    sent = [[flags[i // side * cols + j // side] for j in range(shape[2])] for i in range(shape[1])]
    mask = np.broadcast_to(np.array(sent, bool)[None, :, :, None], shape)
    if head["state"]:
        return wire.streamed(head, body, state, mask, q)
    return (q + wire.streamed(head, body, None, mask).astype(int)) % 2 ** head["bits"]


def tag(q):
    """The sum over all codes of the code times the odd number of its place."""
    total = 0
    for i, code in enumerate(q.reshape(-1).tolist()):
        x = (i + 1) * 0x9E3779B1 % 2**32
        x = (x ^ (x >> 15)) * 0x85EBCA77 % 2**32
        total += ((x ^ (x >> 13)) | 1) * code
    return total % 2**32
