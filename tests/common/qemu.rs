//! A guest on somebody else's machine: QEMU's `microvm`, emulated. It ends with the test that started it.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use lockstep::guest;

/// How long one guest may take: far more than the slowest emulation needs.
const DEADLINE: Duration = Duration::from_secs(120);

/// A running guest and what it has said.
pub struct Qemu {
    process: Child,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    said: String,
    /// What `expect` has already found ends here.
    read: usize,
    deadline: Instant,
    _image: tempfile::NamedTempFile,
}

impl Qemu {
    /// Boots `image` on a machine without a network.
    pub fn boot(image: &[u8], command_line: &str) -> Self {
        Self::start(image, command_line, None, None)
    }

    /// Boots the built-in guest with a network card that has these options, on QEMU's network back end `netdev`.
    pub fn networked(command_line: &str, netdev: &str, options: &[&str]) -> Self {
        Self::start(guest::IMAGE, command_line, Some((netdev, options)), None)
    }

    /// Boots the built-in guest with this raw image as its disk and, if `netdev` names a back end, a network card.
    pub fn with_disk(command_line: &str, disk: &Path, netdev: Option<&str>) -> Self {
        Self::start(guest::IMAGE, command_line, netdev.map(|netdev| (netdev, &[][..])), Some(disk))
    }

    /// The machine loses its power, now.
    pub fn kill(mut self) {
        self.process.kill().expect("its own child");
        self.process.wait().expect("its own child");
    }

    fn start(image: &[u8], command_line: &str, network: Option<(&str, &[&str])>, disk: Option<&Path>) -> Self {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(image).expect("writing the image");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,pit=on,pic=on,isa-serial=on,accel=tcg", "-cpu", "max", "-m", "64", "-no-reboot"])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio"])
            .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"])
            .arg("-kernel")
            .arg(file.path())
            .args(["-append", command_line]);
        if network.is_some() || disk.is_some() {
            // The slots' interrupts on the PIC pair, as on a lockstep machine; with ACPI they would be elsewhere.
            command.args(["-M", "acpi=off", "-global", "virtio-mmio.force-legacy=false"]);
        }
        if let Some(disk) = disk {
            command.args(["-drive", &format!("file={},format=raw,if=none,id=disk,discard=unmap", disk.display())]);
            command.args(["-device", "virtio-blk-device,drive=disk"]);
        }
        if let Some((netdev, options)) = network {
            let device = [&["virtio-net-device,netdev=net"], options].concat().join(",");
            command.args(["-netdev", &format!("{netdev},id=net"), "-device", &device]);
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("cannot start qemu-system-x86_64 ({error}); install it: apt-get install -y qemu-system-x86")
        });
        let (keyboard, mut output) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let (sender, screen) = channel();
        // Ends with the process, whose end of the pipe then closes.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + DEADLINE;
        Qemu { process, keyboard, screen, said: String::new(), read: 0, deadline, _image: file }
    }

    /// Boots the built-in guest on a machine without a network.
    pub fn builtin(command_line: &str) -> Self {
        Self::boot(guest::IMAGE, command_line)
    }

    /// More of what the guest says; false at its end.
    fn hear(&mut self) -> bool {
        let Ok(bytes) = self.screen.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) else {
            assert!(Instant::now() < self.deadline, "nothing for a long time; so far:\n{}", self.said);
            return false;
        };
        self.said.push_str(&String::from_utf8_lossy(&bytes));
        true
    }

    /// Waits until the guest says `text`, after what was expected before.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        loop {
            if let Some(at) = self.said[self.read..].find(text) {
                self.read += at + text.len();
                return;
            }
            assert!(self.hear(), "the guest ended without saying {text:?}; it said:\n{}", self.said);
        }
    }

    /// Types on the guest's keyboard.
    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the guest listens");
    }

    /// Waits for the end: all that was said, and the guest's exit code.
    pub fn finish(mut self) -> (String, i32) {
        while self.hear() {}
        let status = self.process.wait().expect("its own child").code().expect("QEMU was not killed");
        assert_eq!(status & 1, 1, "QEMU itself failed with status {status}; the guest said:\n{}", self.said);
        (std::mem::take(&mut self.said), status >> 1)
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Only a failed test leaves it running; nothing more can be done if even this fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
