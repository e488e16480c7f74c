//! Winning a generation at the arbiter: the questions, the pauses between them, and what the answers mean.
//!
//! One question is asked at a time, and every question is answered, if need be with
//! [`Answer::Unreachable`]. Asking again after an unknown outcome is safe: a register that already holds
//! this host's claim counts as won.

use crate::arbiter::{ArbiterError, Claim, Verdict};

/// What to ask the arbiter, about the VM's register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Question {
    /// Which generation does the register hold?
    Read,
    /// Compare and set: from `expected` to this host's claim on `generation`.
    Claim {
        /// What the register must hold; `None`: nothing yet.
        expected: Option<u64>,
        /// The generation to claim.
        generation: u64,
        /// The host that is to share it; see [`Claim::shared_with`].
        shared_with: Option<u64>,
    },
}

/// What the arbiter answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The register holds this generation, or nothing.
    Holds(Option<u64>),
    /// The register holds this host's claim.
    Won,
    /// The register holds something else.
    Lost(Option<Claim>),
    /// There is no answer, or none that can be read. The question may or may not have had its effect.
    Unreachable,
}

impl From<Result<Option<Claim>, ArbiterError>> for Answer {
    fn from(read: Result<Option<Claim>, ArbiterError>) -> Self {
        match read {
            Ok(claim) => Answer::Holds(claim.map(|claim| claim.generation)),
            Err(_) => Answer::Unreachable,
        }
    }
}

impl From<Result<Verdict, ArbiterError>> for Answer {
    fn from(verdict: Result<Verdict, ArbiterError>) -> Self {
        match verdict {
            Ok(Verdict::Won) => Answer::Won,
            Ok(Verdict::Lost(holder)) => Answer::Lost(holder),
            Err(_) => Answer::Unreachable,
        }
    }
}

/// What an answer led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Ask this now.
    Ask(Question),
    /// This host holds this generation.
    Won(u64),
    /// It does not, and never will.
    Lost {
        /// The generation it asked for.
        generation: u64,
        /// Who holds the register.
        holder: Option<Claim>,
    },
    /// Nothing yet: a pause, or an answer to nothing that was asked.
    Pending,
}

/// One attempt to win a generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Election {
    question: Question,
    /// When to ask again, ns; `None` while the answer is awaited.
    again_at: Option<u64>,
}

impl Election {
    /// For the first generation of a VM that starts: whatever the register holds, plus one; or only what follows `only_after` (0: an empty register).
    pub fn first(only_after: Option<u64>) -> (Self, Question) {
        let claim = |held: u64| {
            let expected = (held > 0).then_some(held);
            Question::Claim { expected, generation: held.saturating_add(1), shared_with: None }
        };
        Self::ask(only_after.map_or(Question::Read, claim))
    }

    /// For the generation after `generation`, which the pair shares.
    pub fn after(generation: u64) -> (Self, Question) {
        Self::after_with(generation, None)
    }

    /// For the generation after `generation`, whose holder has handed over and shares the next one.
    pub fn after_with(generation: u64, shared_with: Option<u64>) -> (Self, Question) {
        let (expected, generation) = (Some(generation), generation.saturating_add(1));
        Self::ask(Question::Claim { expected, generation, shared_with })
    }

    fn ask(question: Question) -> (Self, Question) {
        (Election { question, again_at: None }, question)
    }

    /// The arbiter answered.
    pub fn on_answer(&mut self, now: u64, answer: Answer, retry_ns: u64) -> Outcome {
        if self.again_at.is_some() {
            return Outcome::Pending;
        }
        match (answer, self.question) {
            (Answer::Holds(held), Question::Read) => {
                let generation = held.unwrap_or(0).saturating_add(1);
                self.question = Question::Claim { expected: held, generation, shared_with: None };
                Outcome::Ask(self.question)
            }
            (Answer::Won, Question::Claim { generation, .. }) => Outcome::Won(generation),
            (Answer::Lost(holder), Question::Claim { generation, .. }) => Outcome::Lost { generation, holder },
            (Answer::Unreachable, Question::Read | Question::Claim { .. }) => {
                self.again_at = Some(now.saturating_add(retry_ns));
                Outcome::Pending
            }
            (Answer::Holds(_), Question::Claim { .. }) | (Answer::Won | Answer::Lost(_), Question::Read) => {
                Outcome::Pending
            }
        }
    }

    /// Time has passed: the question to ask again, if the pause is over.
    pub fn on_time(&mut self, now: u64) -> Option<Question> {
        self.again_at.take_if(|at| *at <= now).map(|_| self.question)
    }

    /// When to call [`on_time`](Self::on_time), ns.
    pub fn deadline(&self) -> Option<u64> {
        self.again_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unanswered_question_is_asked_again_after_a_pause_and_unchanged() {
        let (mut election, question) = Election::after(4);
        assert_eq!(question, Question::Claim { expected: Some(4), generation: 5, shared_with: None });
        assert_eq!(election.on_answer(10, Answer::Unreachable, 100), Outcome::Pending);
        assert_eq!(election.on_answer(11, Answer::Won, 100), Outcome::Pending, "an answer to nothing that was asked");
        assert_eq!((election.on_time(109), election.deadline()), (None, Some(110)));
        assert_eq!(election.on_time(110), Some(question));
        assert_eq!(election.on_answer(111, Answer::Won, 100), Outcome::Won(5));
    }

    #[test]
    fn the_first_generation_follows_what_the_register_holds() {
        for (held, generation) in [(None, 1), (Some(7), 8)] {
            let (mut election, question) = Election::first(None);
            assert_eq!(question, Question::Read);
            let claim = Question::Claim { expected: held, generation, shared_with: None };
            assert_eq!(election.on_answer(0, Answer::Holds(held), 100), Outcome::Ask(claim));
            assert_eq!(election.on_answer(0, Answer::Lost(None), 1), Outcome::Lost { generation, holder: None });
        }
    }

    #[test]
    fn the_first_generation_may_be_wanted_after_one_that_is_known_and_no_other() {
        for (held, expected) in [(0, None), (7, Some(7))] {
            let (mut election, question) = Election::first(Some(held));
            assert_eq!(question, Question::Claim { expected, generation: held + 1, shared_with: None });
            let lost = Outcome::Lost { generation: held + 1, holder: None };
            assert_eq!(election.on_answer(0, Answer::Lost(None), 1), lost);
        }
    }
}
