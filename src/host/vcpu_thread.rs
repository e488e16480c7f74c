//! The thread that runs a machine, and the signal that gets it out of the guest.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

extern "C" fn do_nothing(_: i32, _: *mut nix::libc::siginfo_t, _: *mut nix::libc::c_void) {}

/// A running vCPU thread.
pub struct VcpuThread<T> {
    thread: JoinHandle<T>,
    finished: Arc<AtomicBool>,
}

impl<T: Send + 'static> VcpuThread<T> {
    /// Runs `body` on a thread of its own.
    pub fn spawn(body: impl FnOnce() -> T + Send + 'static) -> std::io::Result<Self> {
        // The handler does nothing; the signal itself ends KVM_RUN.
        register_signal_handler(SIGRTMIN(), do_nothing).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))?;
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
        if !self.finished() && self.thread.as_pthread_t() != 0 {
            // An error means that the thread has just ended.
            let _ = self.thread.kill(SIGRTMIN());
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

/// Time between two kicks of a thread that is to leave the guest. A real-time signal is queued each time: without a pause, the thread
/// would do nothing any more but take signals.
const KICK_EVERY: Duration = Duration::from_millis(1);

/// Gets `thread` out of the guest and waits for it. What it would run for was told before to abandon the machine.
pub async fn stop<T: Send + 'static>(thread: Option<VcpuThread<T>>) {
    let Some(thread) = thread else { return };
    while !thread.finished() {
        thread.kick();
        // It may be in the guest or on its way there; the next kick finds it.
        tokio::time::sleep(KICK_EVERY).await;
    }
    if thread.join().is_err() {
        tracing::error!("the vCPU thread panicked");
    }
}
