//! Promise: our own arbiters (`lockstep arbiter`, three of them) keep every promise that a ZooKeeper ensemble keeps for the registers of VMs.

mod arbiters;
mod common;
#[path = "arbiters/quorum.rs"]
mod quorum;

#[path = "arbiters/zookeeper.rs"]
mod zookeeper;

use common::zookeeper::Kind;
use zookeeper::Ensemble;

zookeeper::promises!(Kind::Lockstep);
