"""Random sequences of what clients do, as data: a list of steps, each a session and what it sends at once. They are made from a seed
alone, so that the same sequence can be run against any server, cut down, and written to a file.

What ZooKeeper itself answers differently from run to run, or what ends it, is not generated; each such limit says so below. What is
a peculiarity of 3.8 that another server need not have, is a class of its own and can be left out (`PECULIAR`).
"""

import random

import wire

# Peculiarities of ZooKeeper 3.8, by the name that leaves them out.
PECULIAR = {
    "checkWatches": "answers Ok if anybody on this server watches the path, not only whoever asks",
    "watch-modes": "a watch of another mode on the same path takes the place of the first, in 3.9 they stand side by side",
    "wrong-password": "whoever comes with a wrong password ends the owner's connection on that server",
    "container-flags": "what flags and opcode of container nodes do to each other",
}

NAMES = ["a", "b", "c", "seq0000000000", "seq0000000001", "seq0000000002", "a0000000001"]
BAD_PATHS = ["", "x", "//", "/.", "{}/", "{}//a", "{}/./a", "{}/a/..", "{}/a\x00b", "{}/\x1f", "{}/\x7f", "{}/\ue000", "{}/\ufff0", "{}/..a", "{}/a.b", "{}/é"]
USERS = ["ann:one", "ben:two"]
TRUNCATED = [
    wire.CREATE, wire.DELETE, wire.EXISTS, wire.GET_DATA, wire.SET_DATA, wire.GET_ACL, wire.SET_ACL, wire.GET_CHILDREN, wire.SYNC,
    wire.GET_CHILDREN2, wire.CHECK, wire.MULTI, wire.CREATE2, wire.CREATE_CONTAINER, wire.CREATE_TTL, wire.MULTI_READ,
    wire.SET_WATCHES, wire.SET_WATCHES2, wire.ADD_WATCH, wire.REMOVE_WATCHES, wire.CHECK_WATCHES, wire.GET_EPHEMERALS,
    wire.GET_ALL_CHILDREN_NUMBER,
]
UNKNOWN = [0, 10, 23, 50, 99, 108, 200, -1, -2, -12, 2**31 - 1, -(2**31)]


class Maker:
    """Makes one sequence. `{}` in a path stands for the root that an execution gets."""

    def __init__(self, seed, sessions=3, steps=40, without=()):
        self.random = random.Random(seed)
        self.sessions = sessions
        self.count = steps
        self.without = set(without)
        self.session = 0
        # Nodes that are probably there.
        self.there = ["{}"]

    def path(self, bad=0.06):
        roll = self.random.random()
        if roll < bad:
            return self.random.choice(BAD_PATHS)
        if roll < bad + 0.02:
            return "/"
        if roll < bad + 0.62:
            return self.random.choice(self.there)
        depth = self.random.choices([0, 1, 2, 3], [1, 6, 5, 2])[0]
        return "{}" + "".join("/" + self.random.choice(NAMES[:3] if depth > 1 else NAMES) for _ in range(depth))

    def node(self):
        """A path of which the root is no part: what may be locked up or deleted."""
        while True:
            path = self.path()
            if path not in ("/", "{}"):
                return path

    def child(self):
        """A path for a new node."""
        if self.random.random() < 0.3:
            return self.node()
        return self.random.choice(self.there[-12:]) + "/" + self.random.choice(NAMES[:3])

    def data(self):
        roll = self.random.random()
        if roll < 0.1:
            return None
        return self.random.choice(["", "x", "data", "y" * 50])

    def version(self, most=4):
        return self.random.choice([-1, -1, -1, 0, 0, 1, 2, 3, most, -2, 7])

    def acls(self, harmless=False):
        anyone = [31, "world", "anyone"]
        good = [
            [anyone], [anyone], [anyone], [anyone], [[1, "world", "anyone"]], [[30, "world", "anyone"]], [[27, "world", "anyone"]],
            [[31, "auth", ""]], [[1, "world", "anyone"], [31, "auth", "ignored"]], [[31, "ip", "127.0.0.1"]],
            [[31, "ip", "127.0.0.1/8"]], [[31, "ip", "10.1.2.3/32"]], [[16, "world", "anyone"]], [[0, "world", "anyone"]],
            [[31, "digest", "ann:grDcJ7OS1jCu/cG2TyJHw/I9L8o="]], [anyone, anyone, [1, "world", "anyone"]], [[31, "digest", ":x"]],
        ]
        bad = [
            [], None, [[31, "world", "someone"]], [[31, "digest", "x"]], [[31, "digest", "a:b:c"]], [[31, "ip", "1.2.3"]],
            [[31, "ip", "1.2.3.4/33"]], [[31, "none", "x"]], [[31, "super", ""]], [[31, "x509", "x"]], [[31, "sasl", "x"]], [[31, None, "x"]],
        ]
        if harmless or self.random.random() < 0.6:
            return [anyone]
        return self.random.choice(bad) if self.random.random() < 0.2 else self.random.choice(good)

    def create(self, name=None):
        kind = name or self.random.choice(["create", "create", "create2", "create2", "createContainer"])
        flags = self.random.choices([0, 1, 2, 3, 4, 5, 6, 7, -1], [10, 4, 4, 4, 1, 0.5, 0.5, 0.5, 0.5])[0]
        if kind == "createContainer":
            # Ephemeral flags with this opcode make a node that is one until it is written, and then is not: a race.
            flags = 4 if flags in (1, 3) or "container-flags" in self.without else flags
        elif flags == 4 and "container-flags" in self.without:
            flags = 0
        path, acls = self.child(), self.acls()
        if flags in (2, 3, 6) and path.startswith("{}/"):
            path = path.rsplit("/", 1)[0] + "/" + self.random.choice(["seq", "", "a"])
        elif flags in (0, 1, 4) and path.rsplit("/", 1)[0] in self.there and path not in self.there and len(path) < 12:
            self.there.append(path)
        return [kind, path, self.data(), acls, flags]

    def create_ttl(self):
        # A negative time to live with flags of no such node is written to the log and cannot be read again: it ends ZooKeeper.
        return ["createTTL", self.node(), self.data(), self.acls(), self.random.choice([0, 1, 2, 3, 4, 5, 6, 7]), self.random.choice([0, 1, 1000])]

    def delete(self):
        path, version = self.node(), self.version()
        if version == -1 and path in self.there and not any(other.startswith(path + "/") for other in self.there):
            self.there.remove(path)
        return ["delete", path, version]

    def write(self):
        roll = self.random.random()
        if roll < 0.42:
            return self.create()
        if roll < 0.60:
            return self.delete()
        if roll < 0.78:
            return ["setData", self.path(), self.data(), self.version()]
        if roll < 0.84:
            return ["setACL", self.node(), self.acls(), self.version(2)]
        if roll < 0.86:
            return self.create_ttl()
        if roll < 0.88:
            # One that succeeds is never answered.
            return ["check", self.path(), -7]
        return self.multi()

    def multi(self):
        operations = []
        for _ in range(self.random.randint(0, 5)):
            roll = self.random.random()
            if roll < 0.45:
                operation = self.create()
                # Without a time to live, ZooKeeper refuses the whole request in a way of its own.
                if operation[4] in (5, 6):
                    operation[4] = 0
                operations.append(operation)
            elif roll < 0.62:
                operations.append(self.delete())
            elif roll < 0.82:
                operations.append(["setData", self.path(), self.data(), self.version()])
            elif roll < 0.97:
                operations.append(["check", self.path(), self.version()])
            else:
                operations.append(self.random.choice([["getData", self.path(), False], ["setACL", self.node(), [[31, "world", "anyone"]], -1]]))
        return ["multi", operations]

    def multi_read(self):
        pick = lambda: self.random.choice([["getData", self.path(), self.random.random() < 0.3], ["getChildren", self.path(), False]])
        operations = [pick() for _ in range(self.random.randint(0, 4))]
        if self.random.random() < 0.1:
            operations.append(["getChildren2", self.path(), False])
        return ["multiRead", operations]

    def read(self):
        watch = self.random.random() < 0.45
        roll = self.random.random()
        if roll < 0.25:
            return ["exists", self.path(), watch]
        if roll < 0.50:
            return ["getData", self.path(), watch]
        if roll < 0.60:
            return ["getChildren", self.path(), watch]
        if roll < 0.75:
            return ["getChildren2", self.path(), watch]
        if roll < 0.82:
            return ["getACL", self.path()]
        if roll < 0.85:
            return ["sync", self.path()]
        if roll < 0.88:
            return ["getAllChildrenNumber", self.path()]
        if roll < 0.91:
            return ["getEphemerals", self.random.choice([None, "", "/", " ", "{}", "{}/a", "{}/b/"])]
        if roll < 0.92:
            return ["whoAmI"]
        if roll < 0.93:
            return ["ping", self.random.choice([-2, 5])]
        return self.multi_read()

    def watching(self):
        roll = self.random.random()
        if roll < 0.55 and "watch-modes" not in self.without:
            return ["addWatch", self.path(), self.random.choices([0, 1, 2, -1], [10, 10, 1, 1])[0]]
        if roll < 0.55:
            # A path of its own, that no other kind of watch is set on.
            return ["addWatch", "{}/w" + self.random.choice("12"), self.random.choice([0, 1])]
        if roll < 0.75:
            return ["removeWatches", self.path(), self.random.choice([1, 2, 3, 3, 0, 4])]
        if roll < 0.80 and "checkWatches" not in self.without:
            return ["checkWatches", self.path(), self.random.choice([1, 2, 3, 0, 4])]
        if roll < 0.80:
            # A path that nobody else watches.
            own = f"{{}}/of{self.session}"
            return self.random.choice([
                ["checkWatches", own, self.random.choice([1, 2, 3, 0, 4])], ["removeWatches", own, self.random.choice([1, 2, 3])],
                ["exists", own, True], ["addWatch", own, self.random.choice([0, 1])],
            ])
        paths = lambda: [self.path() for _ in range(self.random.randint(0, 2))]
        # Numbers of transactions differ between servers: before all of them, or after.
        before = self.random.random() < 0.5
        if roll < 0.9 or "watch-modes" in self.without:
            return ["setWatches", before, paths(), paths(), paths()]
        return ["setWatches2", before, paths(), paths(), paths(), paths(), paths()]

    def batch(self):
        operations = []
        for _ in range(self.random.choices([1, 2, 3, 5, 8], [12, 3, 2, 1, 1])[0]):
            roll = self.random.random()
            operations.append(self.write() if roll < 0.5 else self.read() if roll < 0.88 else self.watching())
            # What is sent behind a new ACL is judged by the old one or by the new one, as it happens: nothing is sent behind it.
            if operations[-1][0] == "setACL":
                break
        return operations

    def alone(self):
        """What is answered past the queue, so that it may overtake what was sent before it: never sent with others."""
        roll = self.random.random()
        if roll < 0.35:
            return ["auth", "digest", self.random.choice(USERS)]
        if roll < 0.42:
            return ["auth", *self.random.choice([
                ("digest", None), ("ip", "x"), ("none", "x"), (None, "x"), ("world", "anyone"), ("sasl", "x"), ("x509", "x"), ("super", "x"),
            ])]
        if roll < 0.50:
            return ["raw", self.random.choice(UNKNOWN), ""]
        if roll < 0.75:
            return ["raw", self.random.choice(TRUNCATED), self.random.choice(["", "00", "0000", "7fffffff2f", "fffffffe2f", "000000022f"])]
        if roll < 0.80:
            return ["raw", wire.SASL, "00000000"]
        if roll < 0.85:
            return ["raw", wire.RECONFIG, "ffffffffffffffffffffffffffffffffffffffff"]
        if roll < 0.88:
            return ["raw", wire.AUTH, "00"]
        if roll < 0.94:
            # A watch event's number, none, and one that was there before.
            return ["numbered", self.random.choice([0, -1, -77, 1, 2**31 - 1]), ["exists", self.path(), False]]
        return ["frame", self.random.choice(["00000000", "0000000400000001", "ffffffff", "00100000", "7fffffff", "72756f6b", "80000000"])]

    def steps(self):
        """The sequence: `[session, what, …]`."""
        made = [[session, "open"] for session in range(self.sessions)]
        made.append([0, "send", [["create", "{}", "", [[31, "world", "anyone"]], 0]]])
        identities = [False] * self.sessions
        for _ in range(self.count):
            session = self.session = self.random.randrange(self.sessions)
            roll = self.random.random()
            if roll < 0.86:
                made.append([session, "send", self.batch()])
            elif roll < 0.93:
                operation = self.alone()
                # Several identities come back in an order that nobody has chosen.
                if operation[:2] == ["auth", "digest"] and operation[2]:
                    if identities[session]:
                        continue
                    identities[session] = True
                made.append([session, "send", [operation]])
            elif roll < 0.95:
                made.append([session, "close"])
                made.append([session, "open"])
                identities[session] = False
            elif roll < 0.97:
                made.append([session, "reattach"])
                identities[session] = False
            elif roll < 0.98:
                made.append([session, "drop"])
                made.append([session, "reattach"])
                identities[session] = False
            elif roll < 0.99 and "wrong-password" not in self.without:
                made.append([session, "wrong-password"])
                made.append([session, "reattach"])
                identities[session] = False
            else:
                made.append([session, "reattach-closed"])
        return made
