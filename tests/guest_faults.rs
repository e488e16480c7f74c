//! Promise: nothing that a guest does wrong hurts its host. The guest is answered as real hardware would answer it, or it is
//! stopped with the right reason; the host process goes on answering and ends when it is told to; and a replay of what
//! was recorded ends where the recording did.
#![allow(clippy::disallowed_methods, reason = "tests are the outside world")]

mod recording;

use std::path::Path;
use std::time::Duration;

use lockstep::console::control;
use lockstep::console::status::GuestState;
use lockstep::log::entry::Body;
use lockstep::machine::doors::{EndReason, Halt};
use lockstep::machine::snapshot::Boot;
use nix::sys::signal::Signal;
use recording::image::image;
use recording::machine::{Ran, Recording, boot, boot_image, read_log, record, replay};
use recording::process::{Process, lockstep, path, text, until};

/// Records, replays, and checks that both are the same execution.
fn record_and_replay(boot: &Boot, file: &Path, deadline: Duration) -> Ran {
    let how = Recording { digest_every: Duration::from_millis(5), deadline, ..Recording::default() };
    let recorded = record(boot, file, how);
    let replayed = replay(file);
    assert!(replayed.complete, "{recorded:?}\n{replayed:?}");
    assert_eq!(recorded.screen, replayed.screen);
    match (&recorded.end, &replayed.end) {
        (Ok(recorded_end), Ok(replayed_end)) => {
            assert_eq!(recorded_end, replayed_end);
            assert_eq!(recorded.at, replayed.at);
        }
        // Given up between two instants: the log ends before.
        (Err(Halt::Requested(_)), Err(Halt::EndOfLog(at))) => assert!(*at <= recorded.at, "{recorded:?} {replayed:?}"),
        ends => panic!("{ends:?}"),
    }
    recorded
}

/// What must become of an image.
enum Expected {
    Ends(EndReason),
    /// KVMs differ in what they make of it; but it ends, and not well.
    EndsSomehow,
    /// It goes on until it is asked to stop, and stops at an instant.
    Stops,
    /// It reaches no instant any more, and is given up.
    GivenUp,
}

#[test]
fn foreign_images_that_misbehave() {
    use Expected::{Ends, EndsSomehow, GivenUp, Stops};
    let exit = |code| Ends(EndReason::Exit(code));
    let images: [(&str, &[u8], Expected); 19] = [
        ("cli; hlt", &[0xfa, 0xf4], Ends(EndReason::HaltedForever)),
        ("ud2 without an interrupt table", &[0x0f, 0x0b], Ends(EndReason::TripleFault)),
        ("rdmsr of the time-stamp counter", &[0xb9, 0x10, 0, 0, 0, 0x0f, 0x32], Ends(EndReason::TripleFault)),
        ("wrmsr of the local APIC's base", &[0xb9, 0x1b, 0, 0, 0, 0x0f, 0x30], Ends(EndReason::TripleFault)),
        ("in al, 0x80", &[0xe4, 0x80, 0xe6, 0xf4], exit(0xff)),
        ("in eax, 0x80; its highest byte", &[0xe5, 0x80, 0xc1, 0xe8, 24, 0xe6, 0xf4], exit(0xff)),
        ("mov eax, [0xc0000000]", &[0xa1, 0, 0, 0, 0xc0, 0xe6, 0xf4], exit(0xff)),
        ("a read that begins below the paravirtual page", &[0xa1, 0xfe, 0xff, 0xff, 0xcf, 0xe6, 0xf4], exit(0xff)),
        // movs dword [0xd0000008], 0x1000: half a register
        (
            "half of the safepoint page's address",
            &[0xc7, 5, 8, 0, 0, 0xd0, 0, 0x10, 0, 0, 0xb0, 7, 0xe6, 0xf4],
            exit(7),
        ),
        ("a doorbell without a safepoint page", &[0xc7, 5, 0, 0, 0, 0xd0, 1, 0, 0, 0, 0xb0, 8, 0xe6, 0xf4], exit(8)),
        // edi = 2 MiB, ecx = 4096, dx = 0x80: rep insb, then the last byte read
        (
            "rep insb from nobody",
            &[
                0xbf, 0, 0, 0x20, 0, 0xb9, 0, 0x10, 0, 0, 0x66, 0xba, 0x80, 0, 0xfc, 0xf3, 0x6c, 0xa0, 0xff, 0x0f,
                0x20, 0, 0xe6, 0xf4,
            ],
            exit(0xff),
        ),
        // esi = 2 MiB, ecx = 4096, dx = COM1: rep outsb
        (
            "rep outsb to the console, never asking",
            &[0xbe, 0, 0, 0x20, 0, 0xb9, 0, 0x10, 0, 0, 0x66, 0xba, 0xf8, 3, 0xfc, 0xf3, 0x6e, 0xb0, 5, 0xe6, 0xf4],
            exit(5),
        ),
        // edi = 2 bytes below the end of the 32 MiB, ecx = 8: rep stosb
        (
            "rep stosb across the end of memory",
            &[0xbf, 0xfe, 0xff, 0xff, 1, 0xb9, 8, 0, 0, 0, 0xfc, 0xf3, 0xaa, 0xb0, 6, 0xe6, 0xf4],
            exit(6),
        ),
        ("a jump to where no memory is", &[0xb8, 0, 0, 0, 0xc0, 0xff, 0xe0], EndsSomehow),
        // cr3 = 0xf0000000, paging on
        (
            "page tables where no memory is",
            &[0xb8, 0, 0, 0, 0xf0, 0x0f, 0x22, 0xd8, 0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0],
            EndsSomehow,
        ),
        ("jmp $", &[0xeb, 0xfe], GivenUp),
        ("sti; jmp $", &[0xfb, 0xeb, 0xfe], GivenUp),
        ("sti; hlt without a timer", &[0xfb, 0xf4], Stops),
        ("doorbells for ever", &[0xc7, 5, 0, 0, 0, 0xd0, 1, 0, 0, 0, 0xeb, 0xf4], Stops),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    for (what, code, expected) in images {
        let file = directory.path().join("image.log");
        let deadline = match expected {
            Stops | GivenUp => Duration::from_millis(300),
            Ends(_) | EndsSomehow => recording::machine::DEADLINE,
        };
        let ran = record_and_replay(&boot_image(image(code), ""), &file, deadline);
        match (&expected, &ran.end) {
            (Ends(wanted), Ok(end)) => assert_eq!(wanted, end, "{what}"),
            (EndsSomehow, Ok(EndReason::TripleFault | EndReason::CannotExecute(_))) => {}
            (Stops, Ok(EndReason::Stopped)) => {}
            (GivenUp, Err(Halt::Requested(_))) => {}
            (_, end) => panic!("{what}: {end:?}"),
        }
        if what.starts_with("rep outsb") {
            assert_eq!(ran.screen.len(), 4096, "{what}");
        }
    }
}

/// The built-in guest's own ways to go wrong: what it says, and how it ends.
#[test]
fn the_built_in_guest_in_trouble() {
    let crash = |how: &str, end, says| (format!("probe-crash {how}"), end, says);
    let exception = |vector: u8| EndReason::Exit(0x60 + vector);
    let guests = [
        crash("triple", EndReason::TripleFault, ""),
        crash("hlt", EndReason::HaltedForever, ""),
        crash("ud", exception(6), "guest exception: vector 0000000000000006"),
        crash("null", exception(14), "cr2 0000000000000000"),
        crash("io", exception(13), "guest exception: vector 000000000000000d"),
        crash("stack", exception(14), "guest exception: vector 000000000000000e"),
        ("probe-unclaimed".into(), EndReason::Exit(0), "address 0xc0000000: 0xffffffffffffffff"),
        ("probe-unclaimed".into(), EndReason::Exit(0), "still here"),
        ("probe-pv".into(), EndReason::Exit(0), "identity still right: true"),
        ("probe-pv".into(), EndReason::Exit(0), "still here"),
        ("probe-backwards".into(), EndReason::SafepointsWentBack, "count at"),
        ("no-such-application".into(), EndReason::Exit(2), "no application `no-such-application`"),
    ];
    let directory = tempfile::tempdir().expect("a directory");
    for (command_line, end, says) in guests {
        let file = directory.path().join("guest.log");
        let ran = record_and_replay(&boot(&command_line), &file, recording::machine::DEADLINE);
        assert_eq!(ran.end.expect("an end"), end, "{command_line}\n{}", ran.screen);
        assert!(ran.screen.contains(says), "{command_line}\n{}", ran.screen);
    }
}

/// The address that a detached recording prints.
fn console_address(stderr: &Path) -> String {
    until("the console's address", || {
        let told = std::fs::read_to_string(stderr).ok()?;
        let line = told.lines().find(|line| line.contains("; console "))?;
        line.rsplit(' ').next().map(str::to_owned)
    })
}

/// A guest that never comes back to its host, in the real program: its status is answered while it spins, it ends on
/// SIGTERM, and the log replays as far as it goes.
#[test]
fn a_guest_that_loops_for_ever_holds_up_nobody() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for guest in ["probe-spin", "probe-spin0"] {
        let file = directory.path().join(format!("{guest}.log"));
        let stderr = directory.path().join(format!("{guest}.stderr"));
        let mut command = std::process::Command::new(recording::process::LOCKSTEP);
        command.args(["record", "--detached", "--log", path(&file), "--guest", guest, "--", "hz=1000"]);
        let recorder = Process::spawn_into(command, &stderr);
        let address = console_address(&stderr);

        // It spins: its last output is there, and its instants no longer change.
        let mut before = None;
        until("the guest to spin", || {
            let status = runtime.block_on(control::status(&address, recording::process::DEADLINE)).expect("a status");
            assert!(matches!(status.guest, GuestState::Starting | GuestState::Running), "{status:?}");
            let now = (status.instant_exits, status.instant_polls, status.uptime_ms / 300);
            let still = before.is_some_and(|(exits, polls, at)| (exits, polls) == (now.0, now.1) && at + 2 < now.2);
            if before.is_none_or(|(exits, polls, _)| (exits, polls) != (now.0, now.1)) {
                before = Some(now);
            }
            (still && status.console.produced_bytes > 0).then_some(())
        });
        recorder.signal(Signal::SIGTERM);
        let output = recorder.wait();
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));

        let (_, entries) = read_log(&file);
        assert!(matches!(entries.last().expect("entries").body, Body::Output { .. } | Body::Tick), "{entries:?}");
        let output = lockstep(&["replay", "--show", path(&file)]);
        assert!(output.status.success(), "{}", text(&output));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.contains("spinning at ring") && told.contains("equivalent, "), "{}", text(&output));
        assert!(told.contains("the recording was ended before its guest"), "{}", text(&output));
    }
}
