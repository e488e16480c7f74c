#!/usr/bin/python3
"""Runs the script with kazoo (Debian's python3-kazoo)."""

import logging
import threading
import time

import wire
from kazoo.client import KazooClient, TransactionRequest
from kazoo.exceptions import ConnectionClosedError, ConnectionLoss, SessionExpiredError, ZookeeperError
from kazoo.protocol.states import KazooState
from kazoo.retry import KazooRetry
from kazoo.security import ACL, Id
from steps import MODES, parse_acl, permission_letters, serve, show_data, show_list, show_stat, split

logging.disable(logging.CRITICAL)


def error_name(error):
    if isinstance(error, (ConnectionClosedError, SessionExpiredError)):
        return "SessionExpired"
    return wire.error_name(error.code)


def kazoo_acls(text):
    return [ACL(perms, Id(scheme, identity)) for perms, scheme, identity in parse_acl(text)]


def stat_line(stat):
    return show_stat(
        stat.czxid, stat.mzxid, stat.ctime, stat.mtime, stat.version, stat.cversion, stat.aversion, stat.ephemeralOwner,
        stat.dataLength, stat.numChildren, stat.pzxid,
    )


class Client:
    """One session, with what it was told."""

    def __init__(self, address, timeout_ms, client_id=None):
        retry = KazooRetry(max_tries=-1, delay=0.05, backoff=1, max_delay=0.1)
        self.kazoo = KazooClient(
            hosts="%s:%d" % tuple(address), timeout=timeout_ms / 1000, client_id=client_id, connection_retry=retry, randomize_hosts=False
        )
        self.events = []
        self.states = []
        self.changed = threading.Condition()
        self.kazoo.add_listener(self.on_state)

    def start(self):
        self.kazoo.start(timeout=60)
        self.id = self.kazoo.client_id
        self.states.clear()

    def on_state(self, state):
        with self.changed:
            self.states.append(state)
            self.changed.notify_all()

    def on_event(self, event):
        # kazoo also tells watches that the connection was lost; what the script is about is what servers tell.
        if event.path is not None:
            self.events.append(f"{EVENTS[event.type]} {event.path}")

    def barrier(self):
        """Every event that came so far has been handed out."""
        self.kazoo.sync("/")
        done = threading.Event()
        self.kazoo.handler.dispatch_callback(Callback(done.set))
        done.wait(60)


EVENTS = {"CREATED": "NodeCreated", "DELETED": "NodeDeleted", "CHANGED": "NodeDataChanged", "CHILD": "NodeChildrenChanged"}


class Callback:
    """What kazoo's handler calls in its thread for events."""

    def __init__(self, function):
        self.func, self.args = function, ()
        self.type = "watch"


class Driver:
    """The clients of the script, by name."""

    def __init__(self):
        self.clients = {}

    def step(self, step):
        positional, named = split(step["words"])
        try:
            return getattr(self, "do_" + step["verb"].replace("-", "_"))(step, positional, named)
        except ZookeeperError as error:
            return [error_name(error)]

    def client(self, step):
        return self.clients[step["client"]]

    def kazoo(self, step):
        return self.client(step).kazoo

    def watch(self, step, positional):
        return self.client(step).on_event if "watch" in positional[1:] else None

    # ---- sessions

    def do_connect(self, step, _positional, named):
        client = self.clients[step["client"]] = Client(step["address"], int(named.get("timeout", 10000)))
        client.start()
        return ["connected"]

    def do_attach(self, step, positional, _named):
        other = self.clients[positional[0]]
        client = self.clients[step["client"]] = Client(step["address"], 10000, other.id)
        client.start()
        return ["attached" if client.id[0] == other.id[0] else "expired"]

    def do_reconnected(self, step, _positional, _named):
        client = self.client(step)
        with client.changed:
            done = lambda: KazooState.LOST in client.states or client.states[-2:] == [KazooState.SUSPENDED, KazooState.CONNECTED]
            if not client.changed.wait_for(done, 60):
                return [f"waited in vain: {client.states}"]
            lost = KazooState.LOST in client.states
            client.states.clear()
        if lost:
            client.kazoo.stop()
        return ["expired" if lost else "attached"]

    def do_close(self, step, _positional, _named):
        self.kazoo(step).stop()
        self.kazoo(step).close()
        return ["closed"]

    # ---- nodes

    def do_create(self, step, positional, named):
        path, mode, data = (positional + [None])[:3]
        data = None if data is None else data.encode()
        acl = kazoo_acls(named["acl"]) if "acl" in named else None
        flags = MODES[mode]
        with_stat = named.get("with") == "stat"
        made = self.kazoo(step).create(path, data, acl, bool(flags & 1), bool(flags & 2), include_data=with_stat)
        return [made[0], stat_line(made[1])] if with_stat else [made]

    def do_delete(self, step, positional, named):
        self.kazoo(step).delete(positional[0], int(named.get("version", -1)))
        return ["deleted"]

    def do_set(self, step, positional, named):
        data = None if positional[1] is None else positional[1].encode()
        stat = self.kazoo(step).set(positional[0], data, int(named.get("version", -1)))
        return [stat_line(stat) if named.get("with") == "stat" else f"version={stat.version}"]

    def do_exists(self, step, positional, _named):
        stat = self.kazoo(step).exists(positional[0], self.watch(step, positional))
        return ["NoNode" if stat is None else "yes"]

    def do_stat(self, step, positional, _named):
        stat = self.kazoo(step).exists(positional[0], self.watch(step, positional))
        return ["NoNode" if stat is None else stat_line(stat)]

    def do_get(self, step, positional, named):
        data, stat = self.kazoo(step).get(positional[0], self.watch(step, positional))
        return [show_data(data)] + ([stat_line(stat)] if named.get("with") == "stat" else [])

    def do_children(self, step, positional, named):
        with_stat = named.get("with") == "stat"
        names = self.kazoo(step).get_children(positional[0], self.watch(step, positional), include_data=with_stat)
        return [show_list(names[0]), stat_line(names[1])] if with_stat else [show_list(names)]

    def do_sync(self, step, positional, _named):
        return [self.kazoo(step).sync(positional[0])]

    def do_await(self, step, positional, _named):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.kazoo(step).sync(positional[1])
            if (self.kazoo(step).exists(positional[1]) is not None) == (positional[0] == "there"):
                return [positional[0]]
            time.sleep(0.02)
        return [f"waited in vain: {positional}"]

    # ---- access

    def do_getacl(self, step, positional, named):
        acls, stat = self.kazoo(step).get_acls(positional[0])
        lines = [f"{acl.id.scheme} {acl.id.id} {permission_letters(acl.perms)}".replace("  ", " ") for acl in acls]
        return lines + ([stat_line(stat)] if named.get("with") == "stat" else [])

    def do_setacl(self, step, positional, named):
        stat = self.kazoo(step).set_acls(positional[0], kazoo_acls(positional[1]), int(named.get("version", -1)))
        return [stat_line(stat) if named.get("with") == "stat" else f"aversion={stat.aversion}"]

    def do_addauth(self, step, positional, _named):
        self.kazoo(step).add_auth(positional[0], positional[1])
        return ["ok"]

    # ---- several operations as one

    def transaction(self, step):
        transaction = self.kazoo(step).transaction()
        for words in step["operations"]:
            positional, named = split(words)
            verb, path = positional[:2]
            version = int(named.get("version", -1))
            if verb == "create":
                flags = MODES[positional[2]]
                acl = kazoo_acls(named["acl"]) if "acl" in named else None
                transaction.create(path, positional[3].encode(), acl, bool(flags & 1), bool(flags & 2))
            elif verb == "delete":
                transaction.delete(path, version)
            elif verb == "set":
                transaction.set_data(path, positional[2].encode(), version)
            else:
                transaction.check(path, version)
        return transaction.commit()

    def do_multi(self, step, _positional, _named):
        results = self.transaction(step)
        shown = []
        for index, (words, result) in enumerate(zip(step["operations"], results)):
            if isinstance(result, ZookeeperError):
                if result.code != 0:
                    return [f"failed at {index}: {error_name(result)}"]
                continue
            verb = words[0]["text"]
            shown.append({"create": result, "delete": "deleted", "check": "checked"}.get(verb) or f"set version={result.version}")
        return shown

    def do_multi_errors(self, step, _positional, _named):
        return [error_name(result) for result in self.transaction(step)]

    # ---- watches

    def do_events(self, step, positional, _named):
        client = self.client(step)
        if "local" not in positional:
            client.barrier()
        events, client.events = client.events, []
        return (sorted(events) if "sorted" in positional else events) or ["none"]


if __name__ == "__main__":
    serve(Driver())
