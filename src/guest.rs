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

/// The applications of [`IMAGE`].
pub const APPS: &[App] = &[
    App { name: "shell", arguments: "", about: "interactive commands" },
    App {
        name: "mix",
        arguments: "[seed] [rounds]",
        about: "torture of replay: every event folded into one running hash",
    },
    App { name: "compute", arguments: "[rounds] [sha256|sort|matrix]…", about: "pure computation with safepoints" },
    App { name: "idle", arguments: "", about: "sleeps for ever" },
];

/// The application of this name.
pub fn app(name: &str) -> Option<&'static App> {
    APPS.iter().find(|app| app.name == name)
}
