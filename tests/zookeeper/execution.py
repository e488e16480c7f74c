"""Runs a sequence against a server (or an ensemble) and notes down everything that came back, freed of what must differ: numbers of
transactions become symbols in the order of their appearance, sessions the number of who opened them, times are held against the
transactions and left away. Everything else is kept: replies and events in their order on each connection, records to the last
byte, and which connections were closed.
"""

import time
from collections import Counter

import wire

READS = {
    wire.EXISTS, wire.GET_DATA, wire.GET_CHILDREN, wire.GET_CHILDREN2, wire.GET_ACL, wire.SYNC, wire.GET_ALL_CHILDREN_NUMBER,
    wire.GET_EPHEMERALS, wire.MULTI_READ, wire.WHO_AM_I,
}
WRITES = {wire.CREATE, wire.CREATE2, wire.CREATE_CONTAINER, wire.CREATE_TTL, wire.DELETE, wire.SET_DATA, wire.SET_ACL}
CODES = {name: code for code, name in wire.OPCODE_NAMES.items()}
# The errors after which ZooKeeper ends a connection.
ENDING = ("Unimplemented", "AuthFailed")
# From here on: the xids of requests that everything has come before.
BARRIER = 1 << 30


class Numbers:
    """What the numbers of one run stand for."""

    def __init__(self):
        self.symbols = {}
        self.times = {}
        self.highest = 0
        self.sessions = {}

    def zxid(self, zxid):
        if zxid <= 0:
            return zxid
        self.highest = max(self.highest, zxid)
        return f"z{self.symbols.setdefault(zxid, len(self.symbols) + 1)}"

    def owner(self, session):
        return self.sessions.get(session, session)

    def time(self, zxid, time_ms):
        if zxid == 0 or time_ms == 0:
            return time_ms
        if self.times.setdefault(zxid, time_ms) != time_ms:
            return "another time"
        return "T" if abs(time_ms - time.time() * 1000) < 3_600_000 else "no time of today"

    def stat(self, stat):
        return (
            self.zxid(stat.czxid), self.zxid(stat.mzxid), self.time(stat.czxid, stat.ctime), self.time(stat.mzxid, stat.mtime),
            stat.version, stat.cversion, stat.aversion, self.owner(stat.ephemeral_owner), stat.data_length, stat.children,
            self.zxid(stat.pzxid),
        )

    def record(self, kind, fields):
        if isinstance(fields, wire.Stat):
            return self.stat(fields)
        if isinstance(fields, (tuple, list)):
            # The order of children, of a session's nodes and of a connection's identities is nobody's promise.
            if kind in ("getChildren", "getChildren2", "getEphemerals", "whoAmI") and isinstance(fields, list):
                return sorted(fields)
            if fields and fields[0] == "getChildren" and isinstance(fields, tuple):
                return (fields[0], fields[1], sorted(fields[2]))
            return tuple(self.record(kind, field) for field in fields)
        return fields


def encode(operation, root, zxid_before):
    """Type and body of an operation of a sequence."""
    name, *arguments = operation
    text = lambda path: path.replace("{}", root) if isinstance(path, str) else path
    if name == "raw":
        return arguments[0], bytes.fromhex(arguments[1])
    if name == "numbered":
        return encode(arguments[1], root, zxid_before)
    kind = CODES[name]
    if name in ("create", "create2", "createContainer", "createTTL"):
        path, data, acls, flags = arguments[:4]
        body = wire.string(text(path)) + wire.buffer(None if data is None else data.encode()) + wire.acl_vector(acls) + wire.integer(flags)
        return kind, body + (wire.long(arguments[4]) if name == "createTTL" else b"")
    if name in ("delete", "check"):
        return kind, wire.path_version_body(text(arguments[0]), arguments[1])
    if name == "setData":
        path, data, version = arguments
        return kind, wire.set_data_body(text(path), None if data is None else data.encode(), version)
    if name == "setACL":
        return kind, wire.set_acl_body(text(arguments[0]), arguments[1], arguments[2])
    if name in ("exists", "getData", "getChildren", "getChildren2"):
        return kind, wire.path_watch_body(text(arguments[0]), arguments[1])
    if name in ("getACL", "sync", "getAllChildrenNumber", "getEphemerals"):
        return kind, wire.string(text(arguments[0]))
    if name in ("multi", "multiRead"):
        return kind, wire.multi_body([encode(inner, root, zxid_before) for inner in arguments[0]])
    if name in ("addWatch", "removeWatches", "checkWatches"):
        return kind, wire.string(text(arguments[0])) + wire.integer(arguments[1])
    if name in ("setWatches", "setWatches2"):
        before, *lists = arguments
        zxid = zxid_before if before else 1 << 60
        return kind, wire.set_watches_body(zxid, *([text(path) for path in paths] for paths in lists))
    if name == "auth":
        scheme, credential = arguments
        return kind, wire.auth_body(scheme, None if credential is None else credential.encode())
    return kind, b""


class Execution:
    """One run of a sequence against one target."""

    def __init__(self, members, root, together, patience):
        """`together`: whether all sessions are on one server, so that it knows at once which connection of a session is the last."""
        self.members = members
        self.root = root
        self.together = together
        self.patience = patience
        self.numbers = Numbers()
        self.connections = {}
        self.known = {}
        self.closed = {}
        self.last = {}
        self.zxid_before = 0
        self.coverage = Counter()
        self.opened = 0
        self.barriers = 0
        # The sessions that were not closed, with their passwords.
        self.alive = {}

    # ---- connections

    def connect(self, session, identity=(0, b"\0" * 16), member=None):
        try:
            connected = wire.Session(self.member(session) if member is None else member, 30_000, *identity, patience=self.patience)
        except wire.Closed:
            return None, ("refused",)
        answer = connected.connected
        if answer.session and not identity[0]:
            self.opened += 1
            self.numbers.sessions[answer.session] = f"s{self.opened}"
            self.alive[answer.session] = answer.password
        note = (answer.protocol, answer.timeout_ms, self.numbers.owner(answer.session), len(answer.password), answer.password == b"\0" * 16, answer.read_only)
        return connected, ("connected", *note)

    def member(self, session):
        return self.members[session % len(self.members)]

    def take(self, session, connected):
        self.connections[session] = connected
        self.known[session] = (connected.id, connected.password)
        self.last[session] = 0

    def is_closed(self, connected):
        """Whether the server ends the connection."""
        try:
            connected.send(wire.PING, b"", wire.PING_XID)
            while True:
                connected.receive()
        except wire.Closed:
            return "closed"
        except TimeoutError:
            return "open"

    # ---- steps

    def step(self, step):
        session, what, *rest = step
        notes = []
        connected = self.connections.get(session)
        if what == "open":
            connected, note = self.connect(session)
            notes.append(note)
            if connected:
                self.take(session, connected)
        elif what == "drop":
            if connected:
                connected.close()
            self.connections.pop(session, None)
        elif what == "reattach":
            if session in self.known:
                if not self.together and connected:
                    # Another member does not know of it until the session writes.
                    connected.close()
                fresh, note = self.connect(session, self.known[session], self.members[(session + 1) % len(self.members)])
                notes.append(note)
                if connected and self.together:
                    notes.append(("the older connection is", self.is_closed(connected)))
                self.connections.pop(session, None)
                if fresh and fresh.id:
                    self.take(session, fresh)
        elif what == "wrong-password":
            if session in self.known:
                fresh, note = self.connect(session, (self.known[session][0], b"0123456789abcdef"))
                notes += [note, ("then", self.is_closed(fresh))] if fresh else [note]
                if connected:
                    notes.append(("the owner's connection is", self.is_closed(connected)))
                    connected.close()
                    self.connections.pop(session, None)
        elif what == "reattach-closed":
            fresh, note = self.connect(session, self.closed.get(session, (0x1234567, b"0123456789abcdef")))
            notes += [note, ("then", self.is_closed(fresh))] if fresh else [note]
        elif not connected:
            notes.append(("no connection",))
        elif what == "close":
            notes += self.exchange(session, [["closeSession"]], False)
            self.connections.pop(session).close()
            self.closed[session] = self.known.pop(session)
            self.alive.pop(self.closed[session][0], None)
        else:
            notes += self.exchange(session, rest[0], True)
        notes += self.barrier(session, unordered=what == "close")
        self.zxid_before = self.numbers.highest
        return notes

    def exchange(self, session, operations, goes_on):
        """Sends all at once, then reads until everything has come."""
        connected = self.connections[session]
        frames, waiting, xid = [], {}, connected.xid
        for operation in operations:
            self.coverage[operation[0]] += 1
            if operation[0] == "frame":
                frames.append(bytes.fromhex(operation[1]))
                continue
            kind, body = encode(operation, self.root, self.zxid_before)
            xid += 1
            number = xid
            if operation[0] == "numbered":
                number = operation[1]
            elif kind == wire.PING:
                number = operation[1] if len(operation) > 1 else wire.PING_XID
            waiting.setdefault(number, []).append((operation, kind))
            request = wire.integer(number) + wire.integer(kind) + body
            frames.append(wire.integer(len(request)) + request)
        connected.xid = xid
        # What comes after a request that ends the connection is answered or not, as it happens.
        behind = not any(operation[0] in ("raw", "auth") for operation in operations)
        if goes_on and behind:
            frames.append(self.last_request())
        notes = []
        missing = len(frames)
        try:
            connected.connection.send_raw(b"".join(frames))
            while True:
                reply = connected.receive(1 if not behind and not missing else None)
                if reply.xid == BARRIER + self.barriers:
                    break
                notes.append(self.note(session, reply, waiting))
                if notes[-1][0] != "event":
                    missing -= 1
                    if goes_on and not behind and not missing and wire.error_name(reply.error) not in ENDING:
                        connected.connection.send_raw(self.last_request())
        except wire.Closed:
            notes.append(("closed",))
            if goes_on:
                connected.close()
                self.connections.pop(session)
        except TimeoutError:
            notes.append(("silence",))
        except wire.Truncated as error:
            notes.append(("not a frame", str(error)))
            connected.close()
            self.connections.pop(session)
        return notes

    def last_request(self):
        """What is sent last: when it is answered, everything has come. In an ensemble it also brings the member up to date."""
        self.barriers += 1
        request = wire.integer(BARRIER + self.barriers) + wire.integer(wire.SYNC) + wire.string("/")
        return wire.integer(len(request)) + request

    def note(self, session, reply, waiting):
        if reply.xid == wire.WATCH_XID and reply.zxid == -1:
            event = wire.decode_event(reply.body)
            self.coverage[event[0]] += 1
            return ("event", reply.error, *event)
        number = reply.xid
        # The reply to a ping has a number of its own.
        if number == wire.PING_XID and number not in waiting:
            number = next((key for key, sent in waiting.items() if sent and sent[0][1] == wire.PING), number)
        sent = waiting.get(number)
        if not sent:
            return ("a reply to nothing", reply.xid, reply.error, reply.body.hex())
        operation, kind = sent.pop(0)
        error = wire.error_name(reply.error)
        self.coverage[f"{operation[0] if operation[0] != 'raw' else wire.OPCODE_NAMES.get(kind, 'unknown')}: {error}"] += 1
        number = "its number" if reply.xid == number else reply.xid
        # No client looks at what comes with an error.
        if reply.error:
            return ("reply", operation[0], number, self.header(session, kind, reply, ()), error)
        try:
            fields = wire.decode_body(kind, reply.body)
        except wire.Truncated as truncated:
            return ("reply", operation[0], number, error, "not its record", str(truncated), reply.body.hex())
        header = self.header(session, kind, reply, fields)
        if operation[0] == "getAllChildrenNumber" and operation[1] in ("/", ""):
            fields = ()
        return ("reply", operation[0], number, header, error, self.numbers.record(wire.OPCODE_NAMES.get(kind, "?"), fields))

    def header(self, session, kind, reply, fields):
        """What the number in a reply's header has to do with what came before. Failed writes may use one up or not."""
        zxid = reply.zxid
        if zxid <= 0:
            return zxid
        before, self.last[session] = self.last[session], max(self.last[session], zxid)
        highest, self.numbers.highest = self.numbers.highest, max(self.numbers.highest, zxid)
        if zxid < before:
            return "goes back"
        failed = reply.error or (kind == wire.MULTI and any(result[0] == "error" for result in fields[0]))
        if (kind in WRITES or kind == wire.MULTI) and not failed:
            return "new" if zxid > highest else "not new"
        return "on"

    def barrier(self, acting, unordered):
        """The events that the other sessions got by now."""
        notes = []
        for session, connected in sorted(self.connections.items()):
            if session == acting:
                continue
            seen = []
            try:
                connected.connection.send_raw(self.last_request())
                while True:
                    reply = connected.receive()
                    if reply.xid == BARRIER + self.barriers:
                        break
                    seen.append(self.note(session, reply, {}))
            except wire.Closed:
                seen.append(("closed",))
            except TimeoutError:
                seen.append(("silence",))
            # A session's nodes go in no order.
            notes += [(f"to {session}", *note) for note in (sorted(seen) if unordered else seen)]
            if seen and seen[-1] in (("closed",), ("silence",)):
                connected.close()
                self.connections.pop(session)
        return notes

    def run(self, steps):
        """The notes of each step."""
        try:
            return [self.step(step) for step in steps]
        finally:
            self.end()

    def end(self):
        """No session of this run outlives it: its nodes would vanish in the middle of a later one."""
        for connected in self.connections.values():
            connected.close()
        for session, (identity, password) in enumerate(self.alive.items()):
            try:
                connected = wire.Session(self.member(session), 30_000, identity, password, patience=self.patience)
                connected.call(wire.CLOSE_SESSION)
                connected.close()
            except (OSError, wire.Closed, wire.Truncated):
                # What this shows of a server, the next run shows as well.
                pass
