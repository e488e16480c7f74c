//! What protection costs a computing guest, backup and all on the same host.

use super::report::{Row, Target};
use super::statistics::median;
use super::{Bench, alone, compute, soon};
use crate::cli::loopback::Pair;
use crate::console::client::What;

pub const NAME: &str = "protected";

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    let (samples, rounds) = (bench.size(3, 9), bench.size(80, 160));
    let (mut unprotected, mut beside, mut protected) = (Vec::new(), Vec::new(), Vec::new());
    for sample in 1..=samples {
        bench.say(format!("{NAME}: {sample} of {samples}"));
        unprotected.push(compute::in_a_guest(rounds)?.elapsed);
        beside.push(beside_another(rounds)?);
        protected.push(bench.block_on(in_a_pair(rounds))?);
    }
    let (u, b, p) = (median(&unprotected), median(&beside), median(&protected));
    let note = format!("{samples} samples each of {rounds} rounds; unprotected {u:.3} s, protected {p:.3} s (medians)");
    let fair = format!(
        "two unprotected guests at once, as busy as primary and backup keep two cores: {b:.3} s; what is left is protection alone"
    );
    let target = Target::AtLeast(0.97);
    Ok(vec![
        Row::new(NAME, "compute protected / unprotected, 100 Hz", u / p, "").target(target).note(note),
        Row::new(NAME, "  the same, beside another unprotected guest", b / p, "").target(target).note(fair),
    ])
}

/// An unprotected guest while a second one keeps another core as busy as a backup would.
fn beside_another(rounds: u64) -> anyhow::Result<f64> {
    std::thread::scope(|scope| {
        let other = scope.spawn(move || compute::in_a_guest(rounds));
        let measured = compute::in_a_guest(rounds)?.elapsed;
        let other = other.join().map_err(|_| anyhow::anyhow!("the other guest panicked"))??.elapsed;
        Ok((measured + other) / 2.0)
    })
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
