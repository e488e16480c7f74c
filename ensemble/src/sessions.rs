//! When sessions were last heard: the leader's judgement of which are over.
//!
//! Members tell the leader which of their clients were heard. It measures with its own monotonic clock, and only the time in which it
//! led and was awake: a new leader begins anew with every session, and so does one that was itself asleep. Its judgement goes into the
//! log with the term in which it was made and has no effect in another.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

#[derive(Debug, Default)]
struct Book {
    /// The term of which this is.
    term: Option<u64>,
    heard: BTreeMap<i64, Instant>,
    looked: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<Book>);

/// A leader that did not look for so long was asleep.
const ASLEEP: Duration = Duration::from_millis(400);

impl Sessions {
    /// These were heard just now.
    pub fn note(&self, sessions: impl IntoIterator<Item = i64>) {
        let now = Instant::now();
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if book.term.is_some() {
            book.heard.extend(sessions.into_iter().map(|session| (session, now)));
        }
    }

    /// Which of these (session, time-out) are over, now, in the term in which this member leads. Each is told once for its time-out.
    pub fn silent(&self, term: u64, now: Instant, sessions: impl Iterator<Item = (i64, Duration)>) -> Vec<i64> {
        let mut book = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asleep = book.looked.is_none_or(|looked| now.saturating_duration_since(looked) > ASLEEP);
        if book.term != Some(term) || asleep {
            book.heard.clear();
            book.term = Some(term);
        }
        book.looked = Some(now);
        let before = std::mem::take(&mut book.heard);
        let mut silent = Vec::new();
        for (session, timeout) in sessions {
            let mut heard = before.get(&session).copied().unwrap_or(now);
            if now.saturating_duration_since(heard) > timeout {
                silent.push(session);
                heard = now;
            }
            book.heard.insert(session, heard);
        }
        silent
    }

    /// This member does not lead.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Book::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_millis(300);

    fn look(sessions: &Sessions, term: u64, now: Instant) -> Vec<i64> {
        sessions.silent(term, now, [(1, S), (2, S)].into_iter())
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_over_when_nothing_was_heard_for_its_time_out() {
        let sessions = Sessions::default();
        let ms = Duration::from_millis;
        assert!(look(&sessions, 1, Instant::now()).is_empty());
        for _ in 0..3 {
            tokio::time::advance(ms(100)).await;
            sessions.note([2]);
            assert!(look(&sessions, 1, Instant::now()).is_empty());
        }
        tokio::time::advance(ms(100)).await;
        assert_eq!(look(&sessions, 1, Instant::now()), [1]);
        assert!(look(&sessions, 1, Instant::now()).is_empty(), "told once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_and_one_that_slept_begin_anew() {
        let sessions = Sessions::default();
        look(&sessions, 1, Instant::now());
        tokio::time::advance(Duration::from_millis(350)).await;
        assert!(look(&sessions, 2, Instant::now()).is_empty(), "another term");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert!(look(&sessions, 2, Instant::now()).is_empty(), "asleep");
        tokio::time::advance(Duration::from_millis(350)).await;
        assert_eq!(look(&sessions, 2, Instant::now()), [1, 2]);
    }
}
