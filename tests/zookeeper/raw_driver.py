#!/usr/bin/python3
"""Runs the script with nothing between it and the wire: every frame is written and read here, and nothing is refused or hidden.

It does what the script expects of any client: it keeps its watches and registers them again when it is attached to another
connection. Events are kept as they come, one line each.
"""

import time

import wire
from steps import MODES, parse_acl, permission_letters, serve, show_data, show_list, show_stat, split

KINDS = {"create": wire.CREATE, "create2": wire.CREATE2, "container": wire.CREATE_CONTAINER, "ttl": wire.CREATE_TTL}
WATCH_TYPES = {"children": 1, "data": 2, "any": 3}


class Client:
    """One session, and the watches that it has asked for."""

    def __init__(self, address, timeout_ms, session=0, password=b"\0" * 16, last_zxid=0):
        self.address = address
        self.timeout_ms = timeout_ms
        self.events = []
        self.last_zxid = last_zxid
        self.watches = {"data": set(), "exist": set(), "child": set(), "persistent": set(), "recursive": set()}
        self.credentials = []
        self.open(session, password)

    def open(self, session, password):
        self.session = wire.Session(self.address, self.timeout_ms, session, password, self.last_zxid)
        if self.session.id:
            self.id, self.password = self.session.id, self.session.password

    def note(self, event):
        kind, _, path = event[:3]
        self.events.append(f"{kind} {path}")
        if kind in ("NodeCreated", "NodeDataChanged", "NodeDeleted"):
            self.watches["data"].discard(path)
            self.watches["exist"].discard(path)
        if kind in ("NodeChildrenChanged", "NodeDeleted"):
            self.watches["child"].discard(path)

    def call(self, kind, body=b"", xid=None):
        reply, fields, events = self.session.call(kind, body, xid)
        for event in events:
            self.note(event)
        if reply.zxid > 0:
            self.last_zxid = max(self.last_zxid, reply.zxid)
        return reply, fields

    def reattach(self):
        """What a library does when its connection is lost: the session goes on elsewhere, watches and identities are told again. A
        member that has not come as far as the client closes the connection without a word: then it is asked again."""
        self.session.close()
        end = time.monotonic() + wire.PATIENCE
        while True:
            try:
                self.open(self.id, self.password)
                break
            except wire.Closed:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        if not self.session.id:
            return False
        for scheme, credential in self.credentials:
            self.call(wire.AUTH, wire.auth_body(scheme, credential), wire.AUTH_XID)
        if any(self.watches.values()):
            lists = [sorted(self.watches[name]) for name in ("data", "exist", "child", "persistent", "recursive")]
            self.call(wire.SET_WATCHES2, wire.set_watches_body(self.last_zxid, *lists), wire.SET_WATCHES_XID)
        return True


def show_multi(results):
    """One line per operation, or the first that failed."""
    for index, result in enumerate(results[:-1]):
        if result[0] == "error" and result[1] != 0:
            return [f"failed at {index}: {wire.error_name(result[1])}"]
    shown = []
    for result in results[:-1]:
        if result[0] in ("create", "create2"):
            shown.append(result[2])
        elif result[0] == "setData":
            shown.append(f"set version={result[2].version}")
        elif result[0] == "getData":
            shown.append(f"{show_data(result[2])} version={result[3].version}")
        elif result[0] == "getChildren":
            shown.append(show_list(result[2]))
        else:
            shown.append({"delete": "deleted", "check": "checked"}[result[0]])
    return shown


class Driver:
    """The clients of the script, by name."""

    def __init__(self):
        self.clients = {}

    def step(self, step):
        verb = step["verb"]
        positional, named = split(step["words"])
        action = getattr(self, "do_" + verb.replace("-", "_"))
        try:
            return action(step, positional, named)
        except wire.Closed:
            return ["closed"]

    def client(self, step):
        return self.clients[step["client"]]

    def outcome(self, step, kind, body, show=lambda *fields: ["ok"], xid=None):
        reply, fields = self.client(step).call(kind, body, xid)
        return show(*fields) if reply.error == 0 else [wire.error_name(reply.error)]

    # ---- sessions

    def do_connect(self, step, _positional, named):
        client = Client(tuple(step["address"]), int(named.get("timeout", 30000)))
        self.clients[step["client"]] = client
        return ["connected" if client.session.id else "refused"]

    def do_attach(self, step, positional, _named):
        other = self.clients[positional[0]]
        password = b"wrong".ljust(16) if "wrong-password" in positional else other.password
        client = Client(tuple(step["address"]), other.timeout_ms, other.id, password)
        self.clients[step["client"]] = client
        return ["attached" if client.session.id else "expired"]

    def do_reconnected(self, step, _positional, _named):
        return ["attached" if self.client(step).reattach() else "expired"]

    def do_timeout(self, step, _positional, _named):
        return [str(self.client(step).session.timeout_ms)]

    def do_close(self, step, _positional, _named):
        lines = self.outcome(step, wire.CLOSE_SESSION, b"", lambda: ["closed"])
        self.client(step).session.close()
        return lines

    def do_abandon(self, step, _positional, _named):
        self.client(step).session.close()
        return []

    # ---- nodes

    def do_create(self, step, positional, named):
        path, mode = positional[:2]
        data = parse_data(positional[2]) if len(positional) > 2 else None
        flags = MODES[mode] if mode in MODES else int(mode.removeprefix("flags:"))
        with_stat = named.get("with") == "stat"
        kind = KINDS[named["op"]] if "op" in named else wire.CREATE2 if with_stat else wire.CREATE
        if mode == "container" and "op" not in named:
            kind = wire.CREATE_CONTAINER
        body = wire.create_body(path, data, parse_acl(named["acl"]) if "acl" in named else None, flags)
        if kind == wire.CREATE_TTL:
            body += wire.long(int(named["ttl"]))
        return self.outcome(step, kind, body, lambda made, stat=None: [made] + ([show_stat(*stat)] if with_stat else []))

    def do_delete(self, step, positional, named):
        body = wire.path_version_body(positional[0], int(named.get("version", -1)))
        return self.outcome(step, wire.DELETE, body, lambda: ["deleted"])

    def do_set(self, step, positional, named):
        body = wire.set_data_body(positional[0], parse_data(positional[1]), int(named.get("version", -1)))
        show = (lambda stat: [show_stat(*stat)]) if named.get("with") == "stat" else (lambda stat: [f"version={stat.version}"])
        return self.outcome(step, wire.SET_DATA, body, show)

    def read(self, step, kind, positional, table, show):
        path = positional[0]
        watch = "watch" in positional
        reply, fields = self.client(step).call(kind, wire.path_watch_body(path, watch))
        if watch and reply.error == 0:
            self.client(step).watches[table].add(path)
        elif watch and kind == wire.EXISTS and wire.error_name(reply.error) == "NoNode":
            self.client(step).watches["exist"].add(path)
        return show(*fields) if reply.error == 0 else [wire.error_name(reply.error)]

    def do_exists(self, step, positional, _named):
        return self.read(step, wire.EXISTS, positional, "data", lambda stat: ["yes"])

    def do_stat(self, step, positional, _named):
        return self.read(step, wire.EXISTS, positional, "data", lambda stat: [show_stat(*stat)])

    def do_get(self, step, positional, named):
        with_stat = named.get("with") == "stat"
        show = lambda data, stat: [show_data(data)] + ([show_stat(*stat)] if with_stat else [])
        return self.read(step, wire.GET_DATA, positional, "data", show)

    def do_children(self, step, positional, named):
        if named.get("with") == "stat":
            show = lambda names, stat: [show_list(names), show_stat(*stat)]
            return self.read(step, wire.GET_CHILDREN2, positional, "child", show)
        return self.read(step, wire.GET_CHILDREN, positional, "child", lambda names: [show_list(names)])

    def do_sync(self, step, positional, _named):
        return self.outcome(step, wire.SYNC, wire.string(positional[0]), lambda path: [path])

    def do_await(self, step, positional, _named):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.outcome(step, wire.SYNC, wire.string(positional[1]))
            reply, _ = self.client(step).call(wire.EXISTS, wire.path_watch_body(positional[1]))
            if (reply.error == 0) == (positional[0] == "there"):
                return [positional[0]]
            time.sleep(0.02)
        return [f"waited in vain: {positional}"]

    def do_ephemerals(self, step, positional, _named):
        body = wire.string(positional[0] if positional else None)
        return self.outcome(step, wire.GET_EPHEMERALS, body, lambda paths: [show_list(paths)])

    def do_descendants(self, step, positional, _named):
        return self.outcome(step, wire.GET_ALL_CHILDREN_NUMBER, wire.string(positional[0]), lambda count: [str(count)])

    # ---- access

    def do_getacl(self, step, positional, named):
        def show(acls, stat):
            lines = [f"{scheme} {identity} {permission_letters(perms)}".replace("  ", " ") for perms, scheme, identity in acls]
            return lines + ([show_stat(*stat)] if named.get("with") == "stat" else [])

        return self.outcome(step, wire.GET_ACL, wire.string(positional[0]), show)

    def do_setacl(self, step, positional, named):
        body = wire.set_acl_body(positional[0], parse_acl(positional[1]), int(named.get("version", -1)))
        show = (lambda stat: [show_stat(*stat)]) if named.get("with") == "stat" else (lambda stat: [f"aversion={stat.aversion}"])
        return self.outcome(step, wire.SET_ACL, body, show)

    def do_addauth(self, step, positional, _named):
        credential = positional[1].encode()
        lines = self.outcome(step, wire.AUTH, wire.auth_body(positional[0], credential), xid=wire.AUTH_XID)
        if lines == ["ok"]:
            self.client(step).credentials.append((positional[0], credential))
        return lines

    def do_whoami(self, step, _positional, _named):
        return self.outcome(step, wire.WHO_AM_I, b"", lambda users: sorted(f"{scheme} {user}" for scheme, user in users))

    # ---- several operations as one

    def operations(self, step):
        made = []
        for words in step["operations"]:
            positional, named = split(words)
            verb, path = positional[0], positional[1]
            if verb == "create":
                flags = MODES[positional[2]] if positional[2] in MODES else int(positional[2].removeprefix("flags:"))
                kind = wire.CREATE_CONTAINER if positional[2] == "container" else KINDS[named.get("op", "create2")]
                acl = parse_acl(named["acl"]) if "acl" in named else None
                made.append((kind, wire.create_body(path, parse_data(positional[3]), acl, flags)))
            elif verb == "delete":
                made.append((wire.DELETE, wire.path_version_body(path, int(named.get("version", -1)))))
            elif verb == "set":
                body = wire.set_data_body(path, parse_data(positional[2]), int(named.get("version", -1)))
                made.append((wire.SET_DATA, body))
            elif verb == "check":
                made.append((wire.CHECK, wire.path_version_body(path, int(named["version"]))))
            else:
                kind = {"get": wire.GET_DATA, "children": wire.GET_CHILDREN}[verb]
                made.append((kind, wire.path_watch_body(path)))
        return wire.multi_body(made)

    def do_multi(self, step, _positional, _named):
        return self.outcome(step, wire.MULTI, self.operations(step), show_multi)

    def do_multi_errors(self, step, _positional, _named):
        show = lambda results: [wire.error_name(result[1]) for result in results[:-1]]
        return self.outcome(step, wire.MULTI, self.operations(step), show)

    def do_multi_read(self, step, _positional, _named):
        def show(results):
            return [wire.error_name(r[1]) if r[0] == "error" else show_multi([r, None])[0] for r in results[:-1]]

        return self.outcome(step, wire.MULTI_READ, self.operations(step), show)

    # ---- watches

    def do_watch(self, step, positional, _named):
        path, mode = positional
        lines = self.outcome(step, wire.ADD_WATCH, wire.string(path) + wire.integer({"persistent": 0, "recursive": 1}[mode]))
        self.client(step).watches[mode].add(path)
        return lines if lines != ["ok"] else ["watching"]

    def do_unwatch(self, step, positional, _named):
        path, kind = positional
        tables = {"data": ("data", "exist"), "children": ("child",), "any": ("data", "exist", "child", "persistent", "recursive")}
        for table in tables[kind]:
            self.client(step).watches[table].discard(path)
        body = wire.string(path) + wire.integer(WATCH_TYPES[kind])
        return self.outcome(step, wire.REMOVE_WATCHES, body, lambda: ["removed"])

    def do_events(self, step, positional, _named):
        client = self.client(step)
        if "local" not in positional:
            client.call(wire.SYNC, wire.string("/"))
        events, client.events = client.events, []
        return (sorted(events) if "sorted" in positional else events) or ["none"]

    # ---- only here

    def do_op(self, step, positional, named):
        """`op TYPE [HEX]`: any request. What comes back: xid, error, body, and whether the connection stays."""
        client = self.client(step)
        xid = int(named["xid"]) if "xid" in named else None
        client.session.send(int(positional[0]), bytes.fromhex(positional[1] if len(positional) > 1 else ""), xid)
        lines = []
        try:
            reply = client.session.receive()
            shown = "the request's" if reply.xid == (client.session.xid if xid is None else xid) else str(reply.xid)
            zxid = {0: "0", -1: "-1"}.get(reply.zxid, "last")
            lines.append(f"xid={shown} zxid={zxid} {wire.error_name(reply.error)} body={reply.body.hex() or 'none'}")
        except TimeoutError:
            lines.append("silence")
        try:
            # ZooKeeper writes what is queued behind the mark at which it closes a connection before it looks at the mark: of a connection
            # that ends, the first ping may still be answered, the second is not.
            for _ in range(2):
                client.call(wire.PING, b"", wire.PING_XID)
            lines.append("stays open")
        except wire.Closed:
            lines.append("closed")
        return lines

    def do_frame(self, step, positional, _named):
        """`frame HEX`: bytes as they are. What becomes of the connection."""
        client = self.client(step)
        client.session.connection.send_raw(bytes.fromhex(positional[0]))
        try:
            client.call(wire.PING, b"", wire.PING_XID)
        except wire.Closed:
            return ["closed"]
        return ["stays open"]

    def do_pipeline(self, step, _positional, _named):
        """Several requests at once; replies and events in the order of their coming."""
        client = self.client(step)
        session, waiting = client.session, []
        for words in step["operations"]:
            positional, named = split(words)
            path = positional[1]
            if positional[0] == "set":
                waiting.append(session.send(wire.SET_DATA, wire.set_data_body(path, parse_data(positional[2]))))
            elif positional[0] == "get":
                waiting.append(session.send(wire.GET_DATA, wire.path_watch_body(path, "watch" in positional)))
            elif positional[0] == "create":
                waiting.append(session.send(wire.CREATE, wire.create_body(path, parse_data(positional[3]))))
            elif positional[0] == "delete":
                waiting.append(session.send(wire.DELETE, wire.path_version_body(path)))
            else:
                waiting.append(session.send(wire.EXISTS, wire.path_watch_body(path, "watch" in positional)))
        lines = []
        while waiting:
            reply = session.receive()
            if reply.xid == wire.WATCH_XID:
                event = wire.decode_event(reply.body)
                lines.append(f"event {event[0]} {event[2]}")
                continue
            lines.append(f"reply {waiting.index(reply.xid)} {wire.error_name(reply.error)}" if waiting else "?")
            waiting[waiting.index(reply.xid)] = None
            if not any(waiting):
                break
        return lines


def parse_data(text):
    """Data of the script; `null` is none."""
    return None if text is None else text.encode()


if __name__ == "__main__":
    serve(Driver())
