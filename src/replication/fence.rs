//! Fencing tokens: for which generation the other side of a connection may speak.
//!
//! Every message carries the generation that its sender holds, and is looked at here before the state machine looks at anything else in it. A message of a
//! generation that is over is one of a side that has lost and does not know, whatever it says; one of a generation that cannot be yet is no better.
//! Either way the connection is given up.
//!
//! A generation may change while a connection stands, once in each direction, and only to the one that this side expects:
//!
//! | | spoken for now | and next |
//! | --- | --- | --- |
//! | a primary, until its backup has heard its hello | 0: none | its own |
//! | a primary that hands over, until it hears of the new one | its own | the one after |
//! | a backup that has taken over, until the old primary has heard of it | the one before | its own |
//! | otherwise | its own | the same |
//!
//! A backup without a generation takes its own from its primary's hello.

use super::Violation;
use super::message::Kind;

/// The generations that the other side of one connection may speak for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fence {
    /// This side knows of none, and waits for a hello.
    Unknown,
    /// This one, and from some message on the next.
    Between {
        /// What it speaks for by what was heard last.
        now: u64,
        /// What it may speak for from now on.
        next: u64,
    },
}

impl Fence {
    /// The other side speaks for this generation alone.
    pub fn at(generation: u64) -> Self {
        Fence::Between { now: generation, next: generation }
    }

    /// From some message on the other side speaks for `next`.
    pub fn expect(&mut self, next: u64) {
        if let Fence::Between { next: expected, .. } = self {
            *expected = next;
        }
    }

    /// A message of this kind has come with this token.
    pub fn admit(&mut self, kind: Kind, generation: u64) -> Result<(), Violation> {
        let expected = match self {
            Fence::Unknown => 0,
            Fence::Between { next, .. } => *next,
        };
        if !self.admits(kind, generation) {
            return Err(Violation::Generation { kind, expected, found: generation });
        }
        if let Fence::Between { now, .. } = self
            && generation == expected
        {
            *now = expected;
        }
        Ok(())
    }

    /// Whether such a message may come.
    pub fn admits(&self, kind: Kind, generation: u64) -> bool {
        match *self {
            // It has no token, and ends the connection in any case.
            _ if kind == Kind::Refuse => true,
            Fence::Unknown => {
                kind.needs_no_generation() && (generation == 0 || matches!(kind, Kind::Hello | Kind::Goodbye))
            }
            Fence::Between { now, next } => {
                // `Took` is the first word of the next one.
                let known = generation == next || generation == now && kind != Kind::Took;
                known && (generation > 0 || kind.needs_no_generation())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fence: &mut Fence, kind: Kind, found: u64) -> Option<u64> {
        match fence.admit(kind, found) {
            Err(Violation::Generation { kind: said, expected, found: was }) => {
                assert_eq!((said, was), (kind, found));
                Some(expected)
            }
            Err(other) => panic!("{other:?}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn nobody_speaks_for_a_generation_that_is_over_or_not_yet_there() {
        let mut fence = Fence::at(7);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Refuse) {
            assert_eq!(refused(&mut fence, kind, 7), None);
            for wrong in [0, 6, 8, u64::MAX] {
                assert_eq!(refused(&mut fence, kind, wrong), Some(7), "{kind:?} of {wrong}");
            }
        }
        assert_eq!(refused(&mut fence, Kind::Refuse, 0), None, "it has no token");
    }

    #[test]
    fn a_backup_speaks_without_a_generation_until_it_has_heard_of_it_and_then_never_again() {
        let mut fence = Fence::at(0);
        fence.expect(7);
        for kind in Kind::ALL {
            assert_eq!(refused(&mut fence, kind, 0).is_none(), kind.needs_no_generation(), "{kind:?}");
        }
        assert_eq!(refused(&mut fence, Kind::Ack, 6), Some(7));
        assert_eq!(refused(&mut fence, Kind::Welcome, 7), None);
        assert_eq!(refused(&mut fence, Kind::Heartbeat, 0), Some(7));
    }

    #[test]
    fn a_switch_has_two_generations_until_the_next_one_has_begun() {
        let mut fence = Fence::at(7);
        fence.expect(8);
        assert_eq!(refused(&mut fence, Kind::Ack, 7), None);
        assert_eq!(refused(&mut fence, Kind::Took, 7), Some(8), "it begins the next one");
        assert_eq!(refused(&mut fence, Kind::Ack, 9), Some(8));
        // The one that has won may be heard of before its first word as a primary.
        assert_eq!(refused(&mut fence, Kind::Heartbeat, 8), None);
        assert_eq!(refused(&mut fence, Kind::Heartbeat, 7), Some(8));
        assert_eq!(refused(&mut fence, Kind::Took, 8), None);
    }

    #[test]
    fn a_side_that_knows_of_no_generation_hears_only_hellos_and_who_leaves() {
        let mut fence = Fence::Unknown;
        for kind in Kind::ALL {
            let hears = matches!(kind, Kind::Hello | Kind::Goodbye | Kind::Refuse);
            assert_eq!(refused(&mut fence, kind, 3).is_none(), hears, "{kind:?}");
            assert_eq!(refused(&mut fence, kind, 0).is_none(), kind.needs_no_generation(), "{kind:?}");
        }
    }
}
