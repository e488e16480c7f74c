//! Promise: of all that claim a generation where several servers keep the registers (Debian's ZooKeeper, Debian's etcd, our own arbiters, three of each), at most one
//! wins, whatever dies in between; one dead or silent server does not keep an answer away; without a majority there is no answer, and nothing is won.

mod arbiters;
mod common;
#[path = "arbiters/etcd.rs"]
mod etcd;
#[path = "arbiters/quorum.rs"]
mod quorum;
#[path = "arbiters/zookeeper.rs"]
mod zookeeper;

/// A process of its own of the other tests.
#[test]
fn a_contender_claims_generation_after_generation() {
    arbiters::contender_process();
}

mod debians_zookeeper {
    use super::quorum;
    use super::zookeeper::{self, Ensemble};
    use crate::common::zookeeper::Kind;

    zookeeper::promises!(Kind::Debian);

    #[test]
    fn a_server_that_lags_behind_misleads_nobody() {
        zookeeper::a_server_that_lags_behind_misleads_nobody();
    }
}

mod our_own_arbiters {
    use super::quorum;
    use super::zookeeper::{self, Ensemble};
    use crate::common::zookeeper::Kind;

    zookeeper::promises!(Kind::Lockstep);
}
