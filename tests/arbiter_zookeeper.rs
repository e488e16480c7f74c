//! Promise: of all that claim a generation in a ZooKeeper ensemble (Debian's, of three servers), at most one wins, whatever dies in between; one dead or
//! silent server does not keep an answer away; without a majority there is no answer, and nothing is won.

mod arbiters;
mod common;
#[path = "arbiters/quorum.rs"]
mod quorum;

#[path = "arbiters/zookeeper.rs"]
mod zookeeper;

use common::zookeeper::Kind;
use zookeeper::Ensemble;

zookeeper::promises!(Kind::Debian);

#[test]
fn a_server_that_lags_behind_misleads_nobody() {
    zookeeper::a_server_that_lags_behind_misleads_nobody();
}
