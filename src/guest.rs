//! The built-in guest: one ELF image with a PVH entry, in which the first word of the command line
//! chooses the application.

/// The image (`guest/apps`, built by the build script).
pub const IMAGE: &[u8] = include_bytes!(env!("LOCKSTEP_GUEST_ELF"));

/// An application of the built-in guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct App {
    /// The command line's first word.
    pub name: &'static str,
    /// What may follow it.
    pub arguments: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
}

/// The applications of [`IMAGE`]. All take `hz=N`, the timer's ticks per second (19 to 1,000; 100 if not given; 0: none); those with a network
/// `ip=ADDRESS/BITS` and `gw=ADDRESS`, or else ask a DHCP server.
pub const APPS: &[App] = &[
    App { name: "shell", arguments: "", about: "interactive commands" },
    App {
        name: "mix",
        arguments: "[seed] [rounds]",
        about: "torture of replay: every event folded into one running hash",
    },
    App { name: "compute", arguments: "[rounds] [sha256|sort|matrix]…", about: "pure computation with safepoints" },
    App { name: "idle", arguments: "", about: "sleeps for ever" },
    App { name: "transcript", arguments: "[tick]", about: "keeps an account of its input, line by line" },
    App { name: "ticker", arguments: "[ticks] [busy]", about: "prints a line every so many ticks, for measurements" },
    App { name: "echo", arguments: "[port=7]", about: "sends back what comes by TCP and UDP" },
    App { name: "http", arguments: "[port=80]", about: "a small web site with a live counter" },
    App {
        name: "stream",
        arguments: "[port=5001] [bytes=N]",
        about: "takes bulk data at the port, sends it at the one above",
    },
    App {
        name: "kv",
        arguments: "[port=6379] [persist=1] [fsync=always|everysec|no] [format=1]",
        about: "a key-value server that speaks the Redis protocol",
    },
    App {
        name: "disk",
        arguments: "[verify | bench read|write] [seed=N] [operations=N] [size=BYTES] [depth=N] [faults=1] [overlap=1]",
        about: "torture of the disk, held against a model in memory; a check after a restart; a benchmark",
    },
    App { name: "probe-crash", arguments: "triple|hlt|ud|loop|null|io|stack|panic", about: "ends badly" },
    App { name: "probe-irqoff", arguments: "[times]", about: "keeps interrupts off across many exits" },
    App { name: "probe-unclaimed", arguments: "", about: "reads and writes where nobody listens" },
    App { name: "probe-pv", arguments: "", about: "misuses the paravirtual page" },
    App { name: "probe-backwards", arguments: "", about: "sets the safepoint count back" },
    App { name: "probe-flags", arguments: "[times]", about: "enters ring 0 with the flags a safepoint left" },
    App { name: "probe-spin", arguments: "", about: "endless loop at ring 3 without safepoints" },
    App { name: "probe-spin0", arguments: "", about: "endless loop at ring 0 with interrupts off" },
];

/// The application of this name.
pub fn app(name: &str) -> Option<&'static App> {
    APPS.iter().find(|app| app.name == name)
}
