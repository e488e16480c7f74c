#!/usr/bin/python3
"""A proxy before a server that speaks ZooKeeper's protocol, which spoils one thing now and then: for proving that whoever compares
servers finds it.

    tamper.py TARGET PLANT      prints the port that it listens on

PLANT is one of the names below. Nothing is spoilt but what the name says; how often, each says itself.
"""

import socket
import struct
import sys
import threading

import wire


def stat_at(kind, body):
    """Where a reply of this type has a stat."""
    if kind in (wire.EXISTS, wire.SET_DATA, wire.SET_ACL):
        return 0
    if kind in (wire.GET_DATA, wire.GET_CHILDREN2, wire.CREATE2):
        return len(body) - 68
    return None


class Plant:
    """What is spoilt in the frames to the client. A frame is `xid, zxid, error, body`; several frames, or none, come of it."""

    every = 3

    def __init__(self):
        self.count = 0
        self.lock = threading.Lock()

    def now(self):
        """Whether this is one of the times."""
        with self.lock:
            self.count += 1
            return self.count % self.every == 0

    def frame(self, kind, frame):
        return [frame]


class Error(Plant):
    """A node of the wrong version is said not to be there."""

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        return [(xid, zxid, -101, body)] if error == -103 and self.now() else [frame]


class Field(Plant):
    """A number in a stat is one more."""

    at, size = 32, ">i"

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        start = stat_at(kind, body)
        if error or start is None or len(body) < start + 68 or not self.now():
            return [frame]
        at = start + self.at
        value = struct.unpack_from(self.size, body, at)[0]
        spoilt = body[:at] + struct.pack(self.size, value + 1) + body[at + struct.calcsize(self.size) :]
        return [(xid, zxid, error, spoilt)]


class Cversion(Field):
    """A node's count of changes of its children is one more."""

    at = 36


class Owner(Field):
    """A node belongs to a session that there is not."""

    at, size = 44, ">q"


class Pzxid(Field):
    """The last change of a node's children was another."""

    at, size, every = 60, ">q", 5


class Mtime(Field):
    """A node was changed a millisecond later than it was."""

    at, size = 24, ">q"


class LostEvent(Plant):
    """An event does not come."""

    def frame(self, kind, frame):
        return [] if frame[0] == wire.WATCH_XID and frame[1] == -1 and self.now() else [frame]


class DoubledEvent(Plant):
    """An event comes twice."""

    def frame(self, kind, frame):
        return [frame, frame] if frame[0] == wire.WATCH_XID and frame[1] == -1 and self.now() else [frame]


class LateEvent(Plant):
    """An event comes after the reply that it should come before."""

    every = 2

    def __init__(self):
        super().__init__()
        self.held = None

    def frame(self, kind, frame):
        if frame[0] == wire.WATCH_XID and frame[1] == -1 and self.held is None and self.now():
            self.held = frame
            return []
        held, self.held = self.held, None
        return [frame, held] if held else [frame]


class Child(Plant):
    """A child is not told."""

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        if error or kind not in (wire.GET_CHILDREN, wire.GET_CHILDREN2):
            return [frame]
        reader = wire.Reader(body)
        names = reader.vector(reader.string)
        if not names or not self.now():
            return [frame]
        return [(xid, zxid, error, wire.vector(names[1:], wire.string) + reader.rest())]


class Sequence(Plant):
    """A sequential node has the next number."""

    every = 2

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        if error or kind != wire.CREATE or not body[-10:].isdigit() or not self.now():
            return [frame]
        return [(xid, zxid, error, body[:-10] + b"%010d" % (int(body[-10:]) + 1))]


class MultiError(Plant):
    """The operations after one that failed are said to have succeeded."""

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        spoilt = body.replace(struct.pack(">ibii", -1, 0, -2, -2), struct.pack(">ibii", -1, 0, 0, 0))
        return [(xid, zxid, error, spoilt)] if kind == wire.MULTI and spoilt != body and self.now() else [frame]


class Backwards(Plant):
    """A reply knows of less than the one before it."""

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        return [(xid, zxid - 1000, error, body)] if zxid > 1001 and self.now() else [frame]


class Trailing(Plant):
    """A reply is longer than its record."""

    def frame(self, kind, frame):
        xid, zxid, error, body = frame
        return [(xid, zxid, error, body + b"\0")] if body and xid > 0 and kind != wire.SYNC and self.now() else [frame]


class Swapped(Plant):
    """Two replies come in the other order."""

    def __init__(self):
        super().__init__()
        self.held = None

    def frame(self, kind, frame):
        if self.held is None and 0 < frame[0] < 1 << 30 and self.now():
            self.held = frame
            return []
        held, self.held = self.held, None
        return [frame, held] if held else [frame]


class StaysOpen(Plant):
    """A connection that the server ends stays open, and pings and syncs on it are answered."""

    every = 1


PLANTS = {
    "error": Error, "version": Field, "cversion": Cversion, "owner": Owner, "pzxid": Pzxid, "mtime": Mtime, "lost-event": LostEvent,
    "doubled-event": DoubledEvent, "late-event": LateEvent, "child": Child, "sequence": Sequence, "multi-error": MultiError,
    "backwards": Backwards, "trailing": Trailing, "swapped": Swapped, "stays-open": StaysOpen,
}


def receive(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


class Relay:
    """One connection."""

    def __init__(self, client, target, plant):
        self.client = client
        self.server = socket.create_connection(target)
        for stream in (client, self.server):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.plant = plant
        self.kinds = {}
        self.alone = False
        threading.Thread(target=self.up, daemon=True).start()
        threading.Thread(target=self.down, daemon=True).start()

    def up(self):
        first = True
        try:
            while True:
                header = receive(self.client, 4)
                length = struct.unpack(">i", header)[0]
                body = receive(self.client, length) if 0 <= length < 1 << 20 else b""
                if len(body) >= 8 and not first:
                    xid, kind = struct.unpack(">ii", body[:8])
                    self.kinds[xid] = kind
                    if self.alone:
                        # The server has gone; the plant goes on for it.
                        self.client.sendall(wire.integer(16) + wire.integer(xid) + wire.long(1) + wire.integer(0))
                        continue
                first = False
                self.server.sendall(header + body)
        except (OSError, EOFError):
            self.end()

    def down(self):
        first = True
        try:
            while True:
                length = struct.unpack(">i", receive(self.server, 4))[0]
                body = receive(self.server, length)
                frames = [body]
                if not first:
                    xid, zxid, error = struct.unpack(">iqi", body[:16])
                    spoilt = self.plant.frame(self.kinds.get(xid), (xid, zxid, error, body[16:]))
                    frames = [struct.pack(">iqi", *frame[:3]) + frame[3] for frame in spoilt]
                first = False
                self.client.sendall(b"".join(wire.integer(len(frame)) + frame for frame in frames))
        except (OSError, EOFError):
            if isinstance(self.plant, StaysOpen):
                self.alone = True
                return
            self.end()

    def end(self):
        for stream in (self.client, self.server):
            try:
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def main():
    host, _, port = sys.argv[1].rpartition(":")
    plant = PLANTS[sys.argv[2]]
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        # What is held back belongs to one connection.
        Relay(client, (host, int(port)), plant())


if __name__ == "__main__":
    main()
