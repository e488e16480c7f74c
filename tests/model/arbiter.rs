//! The model's arbiter: one register.

use super::Side;
use super::actions::Plant;
use super::state::State;
use lockstep::arbiter::Claim;
use lockstep::replication::election::{Answer, Question};

/// Generation, its winner, and who shares it.
pub type Won = (u64, Side, Option<Side>);

pub(super) fn number(side: Side) -> u64 {
    side as u64 + 1
}

impl State {
    pub(super) fn ask(&mut self, plant: Plant, side: Side, question: Question) {
        let holds = self.register.1 == side;
        let host = self.host(side);
        let primary = host.primary().is_some();
        let skips = match question {
            Question::Read => false,
            Question::Claim { generation, expected, .. } => match plant {
                Plant::SkipArbiter => generation > 1,
                Plant::TakeBackUnasked => primary && host.handed_over,
                Plant::HeirAlone => !primary && holds && expected == Some(self.register.0),
                _ => false,
            },
        };
        let host = self.host(side);
        (host.question, host.answer) = if skips { (None, Some(Answer::Won)) } else { (Some(question), None) };
        host.claimed = 0;
    }

    /// What the register answers; it may be set by that.
    pub(super) fn arbitrate(&mut self, plant: Plant, side: Side, question: Question) -> Answer {
        match question {
            Question::Read => Answer::Holds((self.register.0 > 0).then_some(self.register.0)),
            Question::Claim { expected, generation, shared_with } => {
                let claim = (generation, side, shared_with.map(|_| !side));
                let expected = expected.unwrap_or(0);
                let stale = plant == Plant::StaleReadBelieved && self.register_before.0 == expected;
                if self.register.0 == expected || stale || plant == Plant::ClaimUnasked {
                    self.register_before = std::mem::replace(&mut self.register, claim);
                }
                if self.register == claim { Answer::Won } else { self.lost(plant, side) }
            }
        }
    }

    /// The register holds what it does, and that is not this side's claim.
    pub(super) fn lost(&self, plant: Plant, side: Side) -> Answer {
        let (generation, holder, with) = self.register;
        let with = if plant == Plant::SharedWithAnybody { Some(side) } else { with };
        let (host, shared_with) = (number(holder), with.map(number));
        Answer::Lost(Some(Claim { generation, host, host_name: "host".into(), shared_with }))
    }
}
