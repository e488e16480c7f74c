//! What can happen in the model, from where it begins, and the mistakes that can be planted in it.

use super::Side;
use lockstep::replication::message::Envelope;

/// Mistakes, to see the properties find them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plant {
    Nothing,
    ReleaseOnSent,
    SkipArbiter,
    AckAfterSuspicion,
    IgnoreTime,
    ForgetTail,
    IgnoreLease,
    LeaseFromArrival,
    RepeatNothing,
    LeftFromAcks,
    /// Outputs are not held when the state is taken.
    JoiningLeaks,
    TakeBackUnasked,
    HeirAlone,
    /// A new primary lets out at once what the old one has not acknowledged.
    HeirLeaks,
    /// The register does not tell a generation that was won alone from one that is shared.
    SharedWithAnybody,
    /// A claim is set whatever the register holds.
    ClaimUnasked,
    /// A claim is set if a member of the arbiter that lags behind says that the register holds what it should.
    StaleReadBelieved,
    /// Nobody looks at the generation that a message speaks for.
    NoFence,
}

/// Where the model begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Nothing has happened.
    Boot,
    /// The guest runs alone and has made an output.
    Alone,
    /// The guest is protected.
    Switch,
    /// The guest runs alone in its second generation; its new backup comes, and so may what was said in the first.
    Survivor,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// The connection asked for stands, or a backup has connected.
    Opened,
    Message(Envelope),
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Time moves.
    Step,
    Tick(Side),
    Deliver(Side),
    Connect(Side),
    Append(Side),
    WentLive(Side),
    /// It comes to writing what was released; it may have been stopped since.
    Write(Side),
    Switch,
    Park(Side),
    Capture(Side),
    /// The register is set and the answer is on its way.
    Arbitrate(Side),
    /// A read is answered by a member that does not know of the newest claim.
    ReadStale(Side),
    /// There is no answer in time: the question was lost, or is late, or its answer was lost or is late; or there is no majority.
    GiveUp(Side),
    /// A claim that was given up is carried out after all.
    CarryOut(usize),
    Answer(Side),
    /// The one who has won looks whether it is still at the top, and is not.
    AnswerOvertaken(Side),
    /// What was said in an older generation arrives on the connection that stands now. No connection of TCP does that.
    Late(usize),
    /// How a process ends: its kernel sends the rest and closes; cuts off what is under way; says nothing.
    Crash(Side, Ending),
    Break(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Close,
    Cut,
    Silence,
}
