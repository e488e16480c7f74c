//! The thread that runs a machine, and the signal that gets it out of the guest.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};

use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Not a real-time signal: those queue, and a thread that is kicked faster than it runs would never get on.
const KICK: Signal = Signal::SIGUSR1;

extern "C" fn do_nothing(_: i32) {}

/// A running vCPU thread.
pub struct VcpuThread<T> {
    thread: JoinHandle<T>,
    finished: Arc<AtomicBool>,
}

impl<T: Send + 'static> VcpuThread<T> {
    /// Runs `body` on a thread of its own.
    pub fn spawn(body: impl FnOnce() -> T + Send + 'static) -> std::io::Result<Self> {
        // The handler does nothing; the signal itself ends KVM_RUN.
        let action = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler touches nothing at all.
        unsafe { sigaction(KICK, &action) }?;
        let finished = Arc::new(AtomicBool::new(false));
        let done = Finish(finished.clone());
        let thread = thread::Builder::new().name("vcpu".into()).spawn(move || {
            let _done = done;
            body()
        })?;
        Ok(VcpuThread { thread, finished })
    }

    /// Whether the thread has ended.
    pub fn finished(&self) -> bool {
        self.finished.load(SeqCst)
    }

    /// Interrupts the guest once, if it runs at this moment. Repeat until [`finished`](Self::finished): a signal that
    /// arrives outside of the guest has no effect.
    pub fn kick(&self) {
        if !self.finished() {
            // The handle is valid until it is joined; an error means that the thread has just ended.
            let _ = pthread_kill(self.thread.as_pthread_t(), KICK);
        }
    }

    /// Waits for the thread's result.
    pub fn join(self) -> thread::Result<T> {
        self.thread.join()
    }
}

/// Says so when the thread ends, also by a panic.
struct Finish(Arc<AtomicBool>);

impl Drop for Finish {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Gets `thread` out of the guest and waits for it. What it would go on running for was told before to abandon the machine.
pub async fn stop<T: Send + 'static>(thread: Option<VcpuThread<T>>) {
    let Some(thread) = thread else { return };
    while !thread.finished() {
        // It may be in the guest or only on its way there; then the next kick finds it.
        thread.kick();
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    if thread.join().is_err() {
        tracing::error!("the vCPU thread panicked");
    }
}
