//! What an arbiter costs: the time of a claim and of a read, one after the other.
//!
//! `cargo run --release --example arbiter_cost -- URI [CLAIMS]` writes the register of a VM of its own, whose name it prints.
#![allow(clippy::disallowed_methods, reason = "it measures time")]

use std::time::{Duration, Instant};

use anyhow::Context;
use lockstep::arbiter::{Claim, Verdict};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let uri = arguments.next().context("which arbiter? (DIR, zk://HOST,… or etcd://HOST,…)")?;
    let count: u64 = arguments.next().map_or(Ok(200), |count| count.parse())?;
    let (arbiter, _sessions) = lockstep::arbiter::open(&uri.parse()?)?;
    let vm = format!("arbiter-cost-{}", std::process::id());
    // The connections are there when a host needs its arbiter.
    arbiter.read(&vm)?;
    let (mut claims, mut reads) = (Vec::new(), Vec::new());
    for generation in 1..=count {
        let claim = Claim { generation, host: 1, host_name: "here".into(), shared_with: None };
        let begun = Instant::now();
        let verdict = arbiter.compare_and_set(&vm, (generation > 1).then(|| generation - 1), &claim)?;
        claims.push(begun.elapsed());
        anyhow::ensure!(verdict == Verdict::Won, "{verdict:?}");
        let begun = Instant::now();
        let held = arbiter.read(&vm)?;
        reads.push(begun.elapsed());
        anyhow::ensure!(held == Some(claim), "{held:?}");
    }
    println!("{} ({vm})", arbiter.location());
    for (what, mut times) in [("claim", claims), ("read", reads)] {
        times.sort();
        let at = |per_cent: usize| -> Duration { times[(times.len() - 1) * per_cent / 100] };
        println!("{what}: median {:?}, p99 {:?}, longest {:?}", at(50), at(99), at(100));
    }
    Ok(())
}
