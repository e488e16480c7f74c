"""Servers of a kind for programs that start them themselves: what to run, where they listen, how they are set. (The tests in Rust have
`tests/common/zookeeper.rs`.)"""

import ctypes
import os
import signal
import socket
import subprocess
import time

import wire

JARS = ":".join(f"/usr/share/java/{jar}" for jar in ("slf4j-simple.jar", "zookeeper.jar"))


def free_ports(count):
    """Ports that nobody uses. They are let go all at once, so that they differ."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def end_with_parent():
    """Run in a server's process before it is a server: that it is killed when whoever has started it is no more, for whatever reason."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    """One server; its data outlive its process."""

    def __init__(self, argv, port, output):
        self.argv = argv
        self.client_port = port
        self.output = output
        self.process = None

    @property
    def address(self):
        return f"127.0.0.1:{self.client_port}"

    @property
    def running(self):
        return self.process is not None

    def run(self):
        if self.running:
            return
        with open(self.output, "ab") as output:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=end_with_parent
            )

    def stop(self):
        if not self.running:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def mode(self):
        """What it says it is; nothing while it does not serve."""
        try:
            answer = wire.four_letter_word(("127.0.0.1", self.client_port), "srvr", 2).decode("utf-8", "replace")
        except OSError:
            return None
        return next((line[6:] for line in answer.splitlines() if line.startswith("Mode: ")), None)


def debian(directory, count):
    """Debian's ZooKeeper, set as its own tests and kazoo's set it: a tick of two seconds, all four-letter words."""
    ports = free_ports(3 * count)
    peers = "".join(f"server.{n + 1}=127.0.0.1:{ports[3 * n + 1]}:{ports[3 * n + 2]}\n" for n in range(count)) if count > 1 else ""
    servers = []
    for n in range(count):
        data = os.path.join(directory, f"data-{n + 1}")
        os.makedirs(data, exist_ok=True)
        with open(os.path.join(data, "myid"), "w", encoding="ascii") as file:
            file.write(str(n + 1))
        path = os.path.join(directory, f"zoo-{n + 1}.cfg")
        with open(path, "w", encoding="utf-8") as file:
            file.write(
                f"tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={data}\nclientPort={ports[3 * n]}\nclientPortAddress=127.0.0.1\n"
                f"maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=*\nforceSync=no\n{peers}"
            )
        argv = ["java", "-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8"]
        argv += ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", JARS]
        argv += ["org.apache.zookeeper.server.quorum.QuorumPeerMain", path]
        servers.append(Server(argv, ports[3 * n], os.path.join(directory, f"said-{n + 1}")))
    return servers


def lockstep(directory, count):
    """lockstep's own arbiters. `LOCKSTEP` names the program."""
    ports = free_ports(2 * count)
    peers = ",".join(f"{n + 1}=127.0.0.1:{ports[2 * n + 1]}" for n in range(count))
    servers = []
    for n in range(count):
        data = os.path.join(directory, f"data-{n + 1}")
        argv = [os.environ.get("LOCKSTEP", "lockstep"), "arbiter", "--id", str(n + 1), "--peers", peers]
        argv += ["--client", f"127.0.0.1:{ports[2 * n]}", "--data", data]
        servers.append(Server(argv, ports[2 * n], os.path.join(directory, f"said-{n + 1}")))
    return servers


KINDS = {"debian": debian, "lockstep": lockstep}


class Cluster:
    """Servers that start, stop and end together, as kazoo's own tests handle theirs."""

    def __init__(self, kind, count, directory):
        self.servers = KINDS[kind](directory, count)

    def __iter__(self):
        return iter(self.servers)

    def __getitem__(self, index):
        return self.servers[index]

    def start(self):
        for server in self.servers:
            server.run()
        end = time.monotonic() + 60
        while not all(server.mode() for server in self.servers):
            if time.monotonic() > end:
                raise RuntimeError("the servers do not serve")
            time.sleep(0.05)

    def stop(self):
        for server in self.servers:
            server.stop()

    terminate = stop
