//! The task that carries a [`Port`]'s packets: waits for the cable, for the vCPU thread and for time.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};
use tokio::time::Instant;

use super::cable::Handle;
use super::port::Port;
use super::wire::Turn;

/// A guest that computes has this long to reach an exit by itself before it is stopped for packets that wait: many
/// come in one go then, and most guests look before.
const REMIND_AFTER: Duration = Duration::from_micros(100);

/// A timer that is finer than the runtime's, which counts milliseconds.
struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Port {
    /// Carries packets, for ever. To be run on the thread that calls `release`.
    pub async fn run(self: Arc<Self>) {
        if let Err(error) = self.carry().await {
            tracing::error!(%error, "the network stands still");
        }
    }

    async fn carry(&self) -> std::io::Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: the descriptor is the timer's own until the timer is dropped, and there is no other way to it.
        let timer = unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?;
        let remind_after = Expiration::OneShot(TimeSpec::nanoseconds(REMIND_AFTER.as_nanos() as i64));
        let mut armed = false;
        let (mut plugs, mut watch) = (0, None);
        loop {
            let (full, next_at) = {
                let wire = self.wire();
                if plugs != wire.plugs || watch.is_some() != wire.is_plugged_in() {
                    // The old one is let go first: a TAP device has one user at a time.
                    drop(watch.take());
                    watch = wire.handle().map(register).transpose()?;
                    plugs = wire.plugs;
                }
                (wire.full, wire.next_at())
            };
            tokio::select! {
                guard = readable(&watch) => {
                    let mut guard = guard?;
                    let (turn, remind) = self.wire().receive(self);
                    if remind && !armed {
                        // Setting it again forgets an old expiration: nobody has to read the file.
                        timer.get_ref().0.set(remind_after, TimerSetTimeFlags::empty())?;
                        armed = true;
                    }
                    match turn {
                        Turn::Empty => guard.clear_ready(),
                        Turn::More => {
                            drop(guard);
                            tokio::task::yield_now().await;
                        }
                    }
                }
                guard = writable(&watch), if full => {
                    let mut guard = guard?;
                    let (more, full) = self.send_turn();
                    if full {
                        guard.clear_ready();
                    }
                    drop(guard);
                    self.go_on(more).await;
                }
                () = self.changed.notified() => {
                    if !full {
                        let (more, _) = self.send_turn();
                        self.go_on(more).await;
                    }
                }
                guard = timer.readable(), if armed => {
                    guard?.clear_ready();
                    armed = false;
                    self.remind();
                }
                () = due(next_at) => self.wire().on_time(self),
            }
        }
    }

    /// Whether there is more to send, and whether it is the cable that does not take it.
    fn send_turn(&self) -> (bool, bool) {
        let mut wire = self.wire();
        (wire.send(self), wire.full)
    }

    /// Comes back to what has to be sent after others had their turn.
    async fn go_on(&self, more: bool) {
        if more {
            self.changed.notify_one();
            tokio::task::yield_now().await;
        }
    }
}

fn register(handle: Handle) -> std::io::Result<AsyncFd<Handle>> {
    // SAFETY: a handle shares the ownership of one open file, always the same, whose descriptor stays open while the handle lives.
    Ok(unsafe { AsyncFd::register(handle) }?)
}

async fn readable(watch: &Option<AsyncFd<Handle>>) -> std::io::Result<AsyncFdReadyGuard<'_, Handle>> {
    match watch {
        Some(watch) => watch.readable().await,
        None => std::future::pending().await,
    }
}

async fn writable(watch: &Option<AsyncFd<Handle>>) -> std::io::Result<AsyncFdReadyGuard<'_, Handle>> {
    match watch {
        Some(watch) => watch.writable().await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
