//! Asking the arbiter from the channel thread, which must not block: a thread of its own asks, and a deadline says when it
//! counts as unreachable. A call that hangs on dead storage keeps its thread; no second one is started meanwhile.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc as async_mpsc;
use tokio::time::Instant;

use crate::arbiter::{Arbiter, Claim};
use crate::replication::Identity;
use crate::replication::election::{Answer, Question};

/// How long the arbiter may take before it counts as unreachable.
const DEADLINE: Duration = Duration::from_secs(2);

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
}

impl Referee {
    /// Starts the thread that asks `arbiter` for `me`.
    pub fn new(arbiter: Arc<dyn Arbiter>, me: Identity) -> std::io::Result<Self> {
        let (questions, inbox) = mpsc::channel::<(u64, Question)>();
        let (outbox, answers) = async_mpsc::unbounded_channel();
        thread::Builder::new().name("arbiter".into()).spawn(move || {
            while let Ok((number, question)) = inbox.recv() {
                if outbox.send((number, ask(arbiter.as_ref(), &me, question))).is_err() {
                    return;
                }
            }
        })?;
        Ok(Referee { questions, answers, asked: 0, pending: None, working: None, next: None })
    }

    /// Asks. The answer comes from [`answer`](Self::answer).
    pub fn ask(&mut self, question: Question) {
        self.asked += 1;
        self.pending = Some(Instant::now() + DEADLINE);
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

fn ask(arbiter: &dyn Arbiter, me: &Identity, question: Question) -> Answer {
    let answer = match question {
        Question::Read => {
            let holds = arbiter.read(me.vm());
            if let Err(error) = &holds {
                tracing::warn!(arbiter = arbiter.location(), error = error as &dyn std::error::Error, "no answer");
            }
            holds.into()
        }
        Question::Claim { expected, generation, shared_with } => {
            let claim = Claim { shared_with, ..me.claim(generation) };
            let verdict = arbiter.compare_and_set(me.vm(), expected, &claim);
            if let Err(error) = &verdict {
                tracing::warn!(arbiter = arbiter.location(), error = error as &dyn std::error::Error, "no answer");
            }
            verdict.into()
        }
    };
    tracing::debug!(?question, ?answer, "asked the arbiter");
    answer
}
