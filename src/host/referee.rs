//! Asking the arbiter from the channel thread, which must not block: a thread of its own asks, and a deadline says when it
//! counts as unreachable. A call that hangs on dead storage keeps its thread; no second one is started meanwhile.
//!
//! Another thread *probes*: it reads the register now and then, so that whoever looks at the status of a healthy pair sees in time that nobody could take over now. The
//! two share nothing but what is known of the arbiter's health. A probe that hangs keeps no question waiting, and no answer of a probe decides anything.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc as async_mpsc;
use tokio::time::Instant;

use crate::arbiter::{Arbiter, ArbiterError, Claim};
use crate::console::status::ArbiterStatus;
use crate::replication::Identity;
use crate::replication::election::{Answer, Question};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// How long the arbiter may take before it counts as unreachable.
    pub deadline: Duration,
    /// Time between two probes.
    pub probe_every: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Times { deadline: Duration::from_secs(2), probe_every: Duration::from_secs(2) }
    }
}

/// The channel thread's end.
pub struct Referee {
    questions: mpsc::Sender<(u64, Question)>,
    answers: async_mpsc::UnboundedReceiver<(u64, Answer)>,
    /// Number of the newest question, and when it counts as unanswerable.
    asked: u64,
    pending: Option<Instant>,
    /// Number of the question that the thread works at.
    working: Option<u64>,
    /// The newest question, while the thread works at an older one.
    next: Option<Question>,
    times: Times,
    health: Arc<Health>,
    /// The prober ends when this is gone.
    _prober: mpsc::Sender<()>,
}

impl Referee {
    /// Starts the threads that ask and probe `arbiter` for `me`.
    pub fn new(arbiter: Arc<dyn Arbiter>, me: Identity, times: Times) -> std::io::Result<Self> {
        let (questions, inbox) = mpsc::channel::<(u64, Question)>();
        let (outbox, answers) = async_mpsc::unbounded_channel();
        let (prober, stop) = mpsc::channel::<()>();
        let health = Arc::new(Health::of(arbiter.location(), times.deadline));
        let (probed, vm, watched) = (arbiter.clone(), me.vm().to_owned(), health.clone());
        thread::Builder::new().name("arbiter".into()).spawn(move || {
            while let Ok((number, question)) = inbox.recv() {
                if outbox.send((number, ask(arbiter.as_ref(), &me, question, &watched))).is_err() {
                    return;
                }
            }
        })?;
        let watched = health.clone();
        thread::Builder::new().name("arbiter's probe".into()).spawn(move || {
            loop {
                let _ = watched.time(Who::Prober, || probed.read(&vm));
                if stop.recv_timeout(times.probe_every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
        let (pending, working, next) = (None, None, None);
        Ok(Referee { questions, answers, asked: 0, pending, working, next, times, health, _prober: prober })
    }

    /// What is known of the arbiter.
    pub fn status(&self) -> ArbiterStatus {
        self.health.status()
    }

    /// Asks. The answer comes from [`answer`](Self::answer).
    pub fn ask(&mut self, question: Question) {
        self.asked += 1;
        self.pending = Some(Instant::now() + self.times.deadline);
        self.next = Some(question);
        self.put();
    }

    /// Has the thread work at the newest question, unless it works at another one.
    fn put(&mut self) {
        if self.working.is_none()
            && let Some(question) = self.next.take()
            && self.questions.send((self.asked, question)).is_ok()
        {
            self.working = Some(self.asked);
        }
    }

    /// Waits for the answer to the question asked last; for ever where none is pending.
    pub async fn answer(&mut self) -> Answer {
        loop {
            let deadline = self.pending;
            let too_late = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some((number, answer)) = self.answers.recv() => {
                    self.working = None;
                    self.put();
                    // An answer that comes too late is none: the question is asked again, and it is safe to.
                    if number == self.asked && self.pending.take().is_some() {
                        return answer;
                    }
                }
                () = too_late => {
                    self.pending = None;
                    return Answer::Unreachable;
                }
            }
        }
    }
}

fn ask(arbiter: &dyn Arbiter, me: &Identity, question: Question, health: &Health) -> Answer {
    let failed = |error: &ArbiterError| {
        tracing::warn!(arbiter = arbiter.location(), error = error as &dyn std::error::Error, "no answer");
    };
    let answer = match question {
        Question::Read => health.time(Who::Asker, || arbiter.read(me.vm())).inspect_err(failed).into(),
        Question::Claim { expected, generation, shared_with } => {
            let claim = Claim { shared_with, ..me.claim(generation) };
            let claimed = health.time(Who::Asker, || arbiter.compare_and_set(me.vm(), expected, &claim));
            claimed.inspect_err(failed).into()
        }
    };
    tracing::debug!(?question, ?answer, "asked the arbiter");
    answer
}

/// Which of the two threads.
#[derive(Clone, Copy)]
enum Who {
    Asker = 0,
    Prober = 1,
}

/// What the calls so far have shown of the arbiter.
struct Health {
    location: String,
    deadline: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Since when the thread waits for an answer, for each of the two.
    waiting: [Option<Instant>; 2],
    /// When the last answer came, and how long it took.
    answered: Option<(Instant, Duration)>,
    /// Since when there has been none, and why.
    failing: Option<(Instant, String)>,
}

impl Health {
    fn of(location: String, deadline: Duration) -> Self {
        Health { location, deadline, known: Mutex::default() }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a call, and remembers how it went.
    fn time<T>(&self, who: Who, call: impl FnOnce() -> Result<T, ArbiterError>) -> Result<T, ArbiterError> {
        let began = Instant::now();
        self.known().waiting[who as usize] = Some(began);
        let result = call();
        let (now, mut known) = (Instant::now(), self.known());
        known.waiting[who as usize] = None;
        match &result {
            Ok(_) => {
                known.answered = Some((now, now - began));
                if let Some((since, why)) = known.failing.take() {
                    let after_ms = (now - since).as_millis();
                    tracing::info!(arbiter = self.location, after_ms, "the arbiter answers again, after: {why}");
                }
            }
            Err(error) => {
                let why = chain(error);
                if known.failing.is_none() {
                    tracing::warn!(
                        arbiter = self.location,
                        "the arbiter cannot be asked; nobody takes over now: {why}"
                    );
                }
                let since = known.failing.as_ref().map_or(began, |(since, _)| *since);
                known.failing = Some((since, why));
            }
        }
        result
    }

    fn status(&self) -> ArbiterStatus {
        let (now, known) = (Instant::now(), self.known());
        let ms = |since: Instant| (now - since).as_millis() as u64;
        // A call that hangs says so by itself, however the one before it went.
        let hangs = known.waiting.iter().flatten().min().filter(|began| now - **began >= self.deadline).copied();
        let hanging = hangs.map(|began| (began, "it does not answer".to_owned()));
        let trouble = match (known.failing.clone(), hanging) {
            (Some(failing), Some(hanging)) => Some((failing.0.min(hanging.0), hanging.1)),
            (failing, hanging) => failing.or(hanging),
        };
        ArbiterStatus {
            location: self.location.clone(),
            reachable: match (&trouble, known.answered) {
                (Some(_), _) => Some(false),
                (None, Some(_)) => Some(true),
                (None, None) => None,
            },
            answered_ms: known.answered.map(|(at, _)| ms(at)),
            answer_ns: known.answered.map(|(_, took)| took.as_nanos() as u64),
            unreachable_ms: trouble.as_ref().map(|(since, _)| ms(*since)),
            trouble: trouble.map(|(_, why)| why),
        }
    }
}

/// The error with all that led to it.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::Verdict;
    use std::sync::Condvar;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    /// An arbiter whose reads hang, or fail, for as long as it is told to; claims are answered.
    #[derive(Default)]
    struct Slow {
        hangs: Mutex<bool>,
        changed: Condvar,
        fails: AtomicBool,
    }

    impl Slow {
        fn hang(&self, hangs: bool) {
            *self.hangs.lock().unwrap() = hangs;
            self.changed.notify_all();
        }
    }

    impl Arbiter for Slow {
        fn read(&self, _: &str) -> Result<Option<Claim>, ArbiterError> {
            drop(self.changed.wait_while(self.hangs.lock().unwrap(), |hangs| *hangs).unwrap());
            if self.fails.load(SeqCst) {
                let source = std::io::Error::other("no such luck");
                return Err(ArbiterError::Storage { what: "read", path: "/r".into(), source });
            }
            Ok(None)
        }

        fn compare_and_set(&self, _: &str, _: Option<u64>, _: &Claim) -> Result<Verdict, ArbiterError> {
            Ok(Verdict::Won)
        }

        fn location(&self) -> String {
            "here".into()
        }
    }

    fn referee(arbiter: &Arc<Slow>) -> Referee {
        let me = Identity::new("vm", 1, "host", "cpu").unwrap();
        let times = Times { deadline: Duration::from_millis(50), probe_every: Duration::from_millis(5) };
        Referee::new(arbiter.clone(), me, times).unwrap()
    }

    fn until(referee: &Referee, what: &str, wanted: impl Fn(&ArbiterStatus) -> bool) -> ArbiterStatus {
        let begun = Instant::now();
        loop {
            let status = referee.status();
            if wanted(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "never {what}: {status:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_claim_does_not_wait_behind_a_probe_that_hangs() {
        let arbiter = Arc::new(Slow::default());
        let mut referee = referee(&arbiter);
        let status = until(&referee, "reachable", |status| status.reachable == Some(true));
        assert!(status.answer_ns.is_some() && status.unreachable_ms.is_none() && status.location == "here");
        arbiter.hang(true);
        let status = until(&referee, "unreachable", |status| status.reachable == Some(false));
        assert_eq!(status.trouble.as_deref(), Some("it does not answer"));
        assert!(status.unreachable_ms >= Some(50), "{status:?}");
        for _ in 0..20 {
            referee.ask(Question::Claim { expected: None, generation: 1, shared_with: None });
            assert_eq!(referee.answer().await, Answer::Won);
        }
        // The claim was answered, and the probe still hangs.
        assert_eq!(referee.status().reachable, Some(false));
        // A question that hangs is answered all the same, and so is the one after it when the thread is back.
        referee.ask(Question::Read);
        assert_eq!(referee.answer().await, Answer::Unreachable);
        referee.ask(Question::Claim { expected: None, generation: 1, shared_with: None });
        arbiter.hang(false);
        assert_eq!(referee.answer().await, Answer::Won);
        until(&referee, "reachable again", |status| status.reachable == Some(true) && status.trouble.is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn why_and_since_when_it_cannot_be_asked_is_known() {
        let arbiter = Arc::new(Slow::default());
        arbiter.fails.store(true, SeqCst);
        let referee = referee(&arbiter);
        let first = until(&referee, "unreachable", |status| status.reachable == Some(false));
        assert_eq!(first.trouble.as_deref(), Some("cannot read /r: no such luck"));
        assert_eq!((first.answered_ms, first.answer_ns), (None, None));
        let since = first.unreachable_ms.unwrap();
        until(&referee, "unreachable for longer", |status| status.unreachable_ms > Some(since + 20));
        arbiter.fails.store(false, SeqCst);
        until(&referee, "reachable", |status| status.reachable == Some(true) && status.unreachable_ms.is_none());
    }

    #[test]
    fn the_threads_end_with_it() {
        let arbiter = Arc::new(Slow::default());
        drop(referee(&arbiter));
        let begun = Instant::now();
        while Arc::strong_count(&arbiter) > 1 {
            assert!(begun.elapsed() < Duration::from_secs(60));
            thread::sleep(Duration::from_millis(1));
        }
    }
}
