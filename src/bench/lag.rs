//! How far the backup's execution is behind the primary's, by what both have executed: the time since the primary stood where
//! the backup stands now. Both are asked for their safepoint counts in turn; between two looks the primary's count is
//! taken to grow evenly.

use std::time::{Duration, Instant};

use super::report::{Row, Target};
use super::statistics::{largest, median, quantile};
use super::{Bench, pause};
use crate::cli::loopback::{Pair, SETTLE, ensure_protected};

pub const NAME: &str = "lag";

/// Between two looks at the primary.
const EVERY: Duration = Duration::from_millis(2);
const WARM_UP: Duration = Duration::from_secs(1);

/// When a machine stood at a count: half-way through the question.
struct Look {
    at_ms: f64,
    polls: f64,
}

pub fn run(bench: &Bench) -> anyhow::Result<Vec<Row>> {
    bench.say(NAME);
    let (lags, own) = bench.block_on(sample(Duration::from_secs(bench.size(4, 15))))?;
    Ok(vec![
        Row::new(NAME, "execution lag under compute, 100 Hz", median(&lags), "ms").target(Target::AtMost(2.0)).note(
            format!("{} samples; p99 {:.2} ms, largest {:.2} ms", lags.len(), quantile(&lags, 0.99), largest(&lags)),
        ),
        Row::new(NAME, "  as the primary sees it (`status`)", median(&own), "ms")
            .note("the age of the oldest frame not executed, at an acknowledgement"),
    ])
}

async fn sample(long: Duration) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let pair = Pair::start("compute", "1000000 hz=100", &[])?;
    let (mut primary, mut backup) = (pair.primary.watch().await?, pair.backup.watch().await?);
    pause(WARM_UP).await;
    let (mut ahead, mut behind, mut own) = (Vec::<Look>::new(), Vec::<Look>::new(), Vec::new());
    let began = Instant::now();
    let ms = |at: Instant| (at - began).as_secs_f64() * 1e3;
    while began.elapsed() < long {
        for (watch, looks) in [(&mut primary, &mut ahead), (&mut backup, &mut behind)] {
            let asked = Instant::now();
            let status = watch.status().await?;
            looks.push(Look { at_ms: (ms(asked) + ms(Instant::now())) / 2.0, polls: status.instant_polls as f64 });
            own.extend(status.execution_lag_ns.map(|ns| ns as f64 / 1e6));
        }
        pause(EVERY).await;
    }
    pause(SETTLE).await;
    ensure_protected(&primary.status().await?)?;
    let lags = lags(&ahead, &behind);
    anyhow::ensure!(!lags.is_empty(), "the two sides have no instant in common");
    Ok((lags, own))
}

/// For every look at the backup behind the first at the primary: how long ago the primary stood there.
fn lags(ahead: &[Look], behind: &[Look]) -> Vec<f64> {
    let passed = |look: &Look| {
        let after = ahead.partition_point(|other| other.polls < look.polls);
        let (from, to) = (ahead.get(after.checked_sub(1)?)?, ahead.get(after)?);
        let share = (look.polls - from.polls) / (to.polls - from.polls).max(1.0);
        Some((look.at_ms - (from.at_ms + share * (to.at_ms - from.at_ms))).max(0.0))
    };
    behind.iter().filter_map(passed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_since_the_primary_stood_there() {
        let look = |at_ms: f64, polls: f64| Look { at_ms, polls };
        let ahead = [look(0.0, 0.0), look(10.0, 1000.0), look(20.0, 3000.0)];
        let behind = [look(5.0, 400.0), look(16.0, 2000.0), look(30.0, 9000.0)];
        assert_eq!(lags(&ahead, &behind), [1.0, 1.0]);
    }
}
