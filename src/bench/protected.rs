//! What protection costs a computing guest, backup and all on the same host.

use super::pair::Pair;
use super::report::{Row, Target};
use super::statistics::median;
use super::{Bench, alone, compute, soon};
use crate::console::client::What;

pub const NAME: &str = "protected";

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (samples, rounds) = (bench.size(3, 9), bench.size(40, 80));
    let (mut unprotected, mut protected) = (Vec::new(), Vec::new());
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {sample} of {samples}"));
        unprotected.push(compute::in_a_guest(rounds)?.elapsed);
        protected.push(bench.block_on(in_a_pair(rounds))?);
    }
    let (u, p) = (median(&unprotected), median(&protected));
    Ok(vec![Row::new(NAME, "compute protected / unprotected, 100 Hz", u / p, "").target(Target::AtLeast(0.97)).note(
        format!("{samples} samples each of {rounds} rounds; unprotected {u:.3} s, protected {p:.3} s (medians)"),
    )])
}

async fn in_a_pair(rounds: u64) -> anyhow::Result<f64> {
    let pair = Pair::start("compute", &format!("{rounds} hz=100"), &[])?;
    let mut console = pair.console().await?;
    let mut printed = Vec::new();
    loop {
        match soon("compute in a pair", console.next()).await?.map(|event| event.what) {
            Some(What::Output { bytes, .. }) => printed.extend_from_slice(&bytes),
            Some(What::Lost { reason, .. }) => anyhow::bail!("the console lost the primary: {reason}"),
            Some(What::Failed(error)) => return Err(error.into()),
            Some(What::Ended(_)) | None => break,
            Some(_) => {}
        }
    }
    alone::compute_seconds(&String::from_utf8_lossy(&printed))
}
