"""ZooKeeper's wire protocol (3.5 to 3.8), written from its published record definitions and shared by the judges here.

It depends on no client library and nothing of lockstep, so that neither can hide a deviation: a frame is what the socket gave, and
a reply is decoded to plain tuples, unknown bytes and all. Numbers are big-endian; a string or buffer is its length (int, -1 for
null) and its bytes; a vector is its count (-1 for null) and its elements.
"""

import socket
import struct
import time
from typing import NamedTuple, Optional

# Request types.
CREATE, DELETE, EXISTS, GET_DATA, SET_DATA, GET_ACL, SET_ACL, GET_CHILDREN, SYNC = range(1, 10)
PING, GET_CHILDREN2, CHECK, MULTI, CREATE2, RECONFIG, CHECK_WATCHES, REMOVE_WATCHES = range(11, 19)
CREATE_CONTAINER, DELETE_CONTAINER, CREATE_TTL, MULTI_READ = range(19, 23)
AUTH, SET_WATCHES, SASL, GET_EPHEMERALS, GET_ALL_CHILDREN_NUMBER, SET_WATCHES2, ADD_WATCH, WHO_AM_I = range(100, 108)
CREATE_SESSION, CLOSE_SESSION, ERROR = -10, -11, -1

OPCODE_NAMES = {
    CREATE: "create", DELETE: "delete", EXISTS: "exists", GET_DATA: "getData", SET_DATA: "setData", GET_ACL: "getACL",
    SET_ACL: "setACL", GET_CHILDREN: "getChildren", SYNC: "sync", PING: "ping", GET_CHILDREN2: "getChildren2", CHECK: "check",
    MULTI: "multi", CREATE2: "create2", RECONFIG: "reconfig", CHECK_WATCHES: "checkWatches", REMOVE_WATCHES: "removeWatches",
    CREATE_CONTAINER: "createContainer", DELETE_CONTAINER: "deleteContainer", CREATE_TTL: "createTTL", MULTI_READ: "multiRead",
    AUTH: "auth", SET_WATCHES: "setWatches", SASL: "sasl", GET_EPHEMERALS: "getEphemerals",
    GET_ALL_CHILDREN_NUMBER: "getAllChildrenNumber", SET_WATCHES2: "setWatches2", ADD_WATCH: "addWatch", WHO_AM_I: "whoAmI",
    CLOSE_SESSION: "closeSession", CREATE_SESSION: "createSession",
}

# Transaction ids of replies and the xids that are not a request's.
WATCH_XID, PING_XID, AUTH_XID, SET_WATCHES_XID = -1, -2, -4, -8

ERROR_NAMES = {
    0: "Ok", -1: "SystemError", -2: "RuntimeInconsistency", -3: "DataInconsistency", -4: "ConnectionLoss",
    -5: "MarshallingError", -6: "Unimplemented", -7: "OperationTimeout", -8: "BadArguments", -12: "UnknownSession",
    -13: "NewConfigNoQuorum", -14: "ReconfigInProgress", -100: "APIError", -101: "NoNode", -102: "NoAuth", -103: "BadVersion",
    -108: "NoChildrenForEphemerals", -110: "NodeExists", -111: "NotEmpty", -112: "SessionExpired", -113: "InvalidCallback",
    -114: "InvalidACL", -115: "AuthFailed", -118: "SessionMoved", -119: "NotReadOnly", -120: "EphemeralOnLocalSession",
    -121: "NoWatcher", -122: "RequestTimeout", -123: "ReconfigDisabled", -124: "SessionClosedRequireSaslAuth",
    -125: "QuotaExceeded", -127: "ThrottledOp",
}

EVENT_NAMES = {
    1: "NodeCreated", 2: "NodeDeleted", 3: "NodeDataChanged", 4: "NodeChildrenChanged", 5: "DataWatchRemoved",
    6: "ChildWatchRemoved", 7: "PersistentWatchRemoved",
}

# How long a session waits in silence before it pings, seconds.
PING_EVERY = 0.5

# How long something is waited for that has to come, seconds.
PATIENCE = 30.0

READ, WRITE, CREATE_PERM, DELETE_PERM, ADMIN = 1, 2, 4, 8, 16
ALL = 31
OPEN_ACL = [(ALL, "world", "anyone")]

PERSISTENT, EPHEMERAL, SEQUENTIAL, EPHEMERAL_SEQUENTIAL, CONTAINER, TTL, SEQUENTIAL_TTL = range(7)


def error_name(code):
    """A reply's error as ZooKeeper's own clients call it."""
    return ERROR_NAMES.get(code, str(code))


class Truncated(Exception):
    """A reply is shorter than its records say."""


class Closed(Exception):
    """The other side has closed the connection."""


# ---- encoding


def integer(value):
    return struct.pack(">i", value)


def long(value):
    return struct.pack(">q", value)


def boolean(value):
    return b"\x01" if value else b"\x00"


def buffer(value):
    return integer(-1) if value is None else integer(len(value)) + value


def string(value):
    return buffer(value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value)


def vector(items, encode):
    return integer(-1) if items is None else integer(len(items)) + b"".join(encode(item) for item in items)


def acl_vector(acls):
    return vector(acls, lambda acl: integer(acl[0]) + string(acl[1]) + string(acl[2]))


def connect_request(timeout_ms, session=0, password=b"\0" * 16, last_zxid=0, read_only=False, protocol=0):
    """The body of the first frame of a connection. `read_only=None` leaves the last byte away, as old clients do."""
    body = integer(protocol) + long(last_zxid) + integer(timeout_ms) + long(session) + buffer(password)
    return body if read_only is None else body + boolean(read_only)


def create_body(path, data=b"", acls=None, flags=PERSISTENT):
    return string(path) + buffer(data) + acl_vector(OPEN_ACL if acls is None else acls) + integer(flags)


def create_ttl_body(path, data, acls, flags, ttl_ms):
    return create_body(path, data, acls, flags) + long(ttl_ms)


def path_version_body(path, version=-1):
    return string(path) + integer(version)


def path_watch_body(path, watch=False):
    return string(path) + boolean(watch)


def set_data_body(path, data, version=-1):
    return string(path) + buffer(data) + integer(version)


def set_acl_body(path, acls, version=-1):
    return string(path) + acl_vector(acls) + integer(version)


def auth_body(scheme, credentials):
    return integer(0) + string(scheme) + buffer(credentials)


def set_watches_body(zxid, data=(), exists=(), children=(), persistent=None, recursive=None):
    body = long(zxid) + b"".join(vector(list(paths), string) for paths in (data, exists, children))
    if persistent is not None or recursive is not None:
        body += vector(list(persistent or ()), string) + vector(list(recursive or ()), string)
    return body


def multi_body(operations):
    """`operations`: pairs of a request type and its body."""
    parts = [integer(kind) + boolean(False) + integer(-1) + body for kind, body in operations]
    return b"".join(parts) + integer(-1) + boolean(True) + integer(-1)


# ---- decoding


class Stat(NamedTuple):
    """A node's stat, in the order of the wire."""

    czxid: int
    mzxid: int
    ctime: int
    mtime: int
    version: int
    cversion: int
    aversion: int
    ephemeral_owner: int
    data_length: int
    children: int
    pzxid: int


class Reader:
    """Reads records from bytes; a record that the bytes do not fill raises `Truncated`."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, count):
        if count < 0 or self.at + count > len(self.data):
            raise Truncated(f"{count} bytes asked for, {len(self.data) - self.at} left")
        taken = self.data[self.at : self.at + count]
        self.at += count
        return taken

    def integer(self):
        return struct.unpack(">i", self.take(4))[0]

    def long(self):
        return struct.unpack(">q", self.take(8))[0]

    def boolean(self):
        return self.take(1) != b"\0"

    def buffer(self):
        length = self.integer()
        return None if length == -1 else self.take(length)

    def string(self):
        value = self.buffer()
        return None if value is None else value.decode("utf-8", "surrogateescape")

    def vector(self, read):
        count = self.integer()
        if count == -1:
            return None
        if count < 0 or count > len(self.data):
            raise Truncated(f"a vector of {count}")
        return [read() for _ in range(count)]

    def stat(self):
        return Stat(*struct.unpack(">qqqqiiiqiiq", self.take(68)))

    def acls(self):
        return self.vector(lambda: (self.integer(), self.string(), self.string()))

    def rest(self):
        return self.take(len(self.data) - self.at)


class Reply(NamedTuple):
    """One frame from the server after the session's establishment."""

    xid: int
    zxid: int
    error: int
    body: bytes


class Connected(NamedTuple):
    """The answer to a session request."""

    protocol: int
    timeout_ms: int
    session: int
    password: bytes
    read_only: Optional[bool]


def decode_multi(reader):
    results = []
    while True:
        kind, done, error = reader.integer(), reader.boolean(), reader.integer()
        if done:
            results.append(("end", kind, error))
            return results
        if kind == CREATE:
            results.append(("create", error, reader.string()))
        elif kind == CREATE2:
            results.append(("create2", error, reader.string(), reader.stat()))
        elif kind in (DELETE, CHECK):
            results.append((OPCODE_NAMES[kind], error))
        elif kind == SET_DATA:
            results.append(("setData", error, reader.stat()))
        elif kind == GET_CHILDREN:
            results.append(("getChildren", error, reader.vector(reader.string)))
        elif kind == GET_DATA:
            results.append(("getData", error, reader.buffer(), reader.stat()))
        elif kind == ERROR:
            results.append(("error", error, reader.integer()))
        else:
            results.append(("unknown", kind, error))
            return results


def decode_body(kind, body):
    """The records of a reply to a request of this type, as a tuple; the bytes that were left over come last, if there are any."""
    reader = Reader(body)
    if not body:
        return ()
    if kind in (CREATE, SYNC):
        fields = (reader.string(),)
    elif kind in (CREATE2, CREATE_CONTAINER, CREATE_TTL):
        fields = (reader.string(), reader.stat())
    elif kind in (EXISTS, SET_DATA, SET_ACL):
        fields = (reader.stat(),)
    elif kind == GET_DATA or kind == RECONFIG:
        fields = (reader.buffer(), reader.stat())
    elif kind == GET_ACL:
        fields = (reader.acls(), reader.stat())
    elif kind == GET_CHILDREN or kind == GET_EPHEMERALS:
        fields = (reader.vector(reader.string),)
    elif kind == GET_CHILDREN2:
        fields = (reader.vector(reader.string), reader.stat())
    elif kind in (MULTI, MULTI_READ):
        fields = (decode_multi(reader),)
    elif kind in (GET_ALL_CHILDREN_NUMBER, ADD_WATCH):
        fields = (reader.integer(),)
    elif kind == WHO_AM_I:
        fields = (reader.vector(lambda: (reader.string(), reader.string())),)
    elif kind == SASL:
        fields = (reader.buffer(),)
    else:
        fields = ()
    rest = reader.rest()
    return fields + (("rest", rest),) if rest else fields


def decode_event(body):
    """Type, state and path of a watch event."""
    reader = Reader(body)
    event = (EVENT_NAMES.get(kind := reader.integer(), str(kind)), reader.integer(), reader.string())
    rest = reader.rest()
    return event + (("rest", rest),) if rest else event


# ---- a connection


class Connection:
    """A socket that speaks in frames: an int for the length, then so many bytes."""

    def __init__(self, address, patience=30.0):
        self.socket = socket.create_connection(address, timeout=patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.patience = patience
        self.pending = b""

    def send_raw(self, data):
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Closed(str(error)) from None

    def send(self, body):
        self.send_raw(integer(len(body)) + body)

    def receive(self, patience=None):
        """The next frame's body. Raises `Closed` at the end of the connection, `TimeoutError` if nothing comes."""
        deadline = time.monotonic() + (self.patience if patience is None else patience)
        while True:
            if len(self.pending) >= 4:
                length = struct.unpack(">i", self.pending[:4])[0]
                if length < 0 or length > 64 << 20:
                    raise Truncated(f"a frame of {length} bytes")
                if len(self.pending) >= 4 + length:
                    body, self.pending = self.pending[4 : 4 + length], self.pending[4 + length :]
                    return body
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no frame")
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(1 << 16)
            except socket.timeout:
                raise TimeoutError("no frame") from None
            except OSError as error:
                raise Closed(str(error)) from None
            if not data:
                raise Closed("end of stream" if not self.pending else f"cut off in a frame ({len(self.pending)} bytes)")
            self.pending += data

    def close(self):
        self.socket.close()


class Session:
    """A session on one connection, with requests one after the other or pipelined. Watch events are kept in arrival order
    together with the replies, so that their order can be judged."""

    def __init__(self, address, timeout_ms=10_000, session=0, password=b"\0" * 16, last_zxid=0, read_only=False, patience=PATIENCE):
        self.connection = Connection(address, patience)
        self.xid = 0
        self.kinds = {}
        self.pings = 0
        self.connection.send(connect_request(timeout_ms, session, password, last_zxid, read_only))
        reader = Reader(self.connection.receive())
        answer = (reader.integer(), reader.integer(), reader.long(), reader.buffer())
        self.connected = Connected(*answer, reader.boolean() if reader.at < len(reader.data) else None)
        self.id, self.password, self.timeout_ms = self.connected.session, self.connected.password, self.connected.timeout_ms

    def send(self, kind, body=b"", xid=None):
        """Sends a request without waiting; the xid that it got."""
        if xid is None:
            self.xid += 1
            xid = self.xid
        self.kinds[xid] = kind
        self.connection.send(integer(xid) + integer(kind) + body)
        return xid

    def receive(self, patience=None):
        """The next frame. It pings while it waits for long, as every client does: members of ZooKeeper's ensembles sometimes keep an
        answer back until somebody asks them something else (a notification that their commit processor misses)."""
        patience = self.connection.patience if patience is None else patience
        while True:
            try:
                reader = Reader(self.connection.receive(min(patience, PING_EVERY)))
            except TimeoutError:
                patience -= PING_EVERY
                if patience <= 0:
                    raise
                self.connection.send(integer(PING_XID) + integer(PING))
                self.pings += 1
                continue
            reply = Reply(reader.integer(), reader.long(), reader.integer(), reader.rest())
            if reply.xid == PING_XID and self.pings:
                self.pings -= 1
                continue
            return reply

    def call(self, kind, body=b"", xid=None):
        """A request and its reply, with the watch events that came before it."""
        xid = self.send(kind, body, xid)
        events = []
        while True:
            reply = self.receive()
            if reply.xid == WATCH_XID and xid != WATCH_XID:
                events.append(decode_event(reply.body))
                continue
            return reply, decode_body(kind, reply.body), events

    def events(self, patience=0.2):
        """The events that are there, waiting so long for the next."""
        found = []
        while True:
            try:
                reply = self.receive(patience)
            except TimeoutError:
                return found
            found.append(decode_event(reply.body) if reply.xid == WATCH_XID else reply)

    def close(self):
        self.connection.close()


def four_letter_word(address, word, patience=10.0):
    """What the server answers to a four-letter word, until it closes."""
    with socket.create_connection(address, timeout=patience) as stream:
        stream.sendall(word if isinstance(word, bytes) else word.encode())
        answer = b""
        while True:
            try:
                data = stream.recv(1 << 16)
            except ConnectionResetError:
                return answer
            if not data:
                return answer
            answer += data
