//! `redis-benchmark`, where it is installed: the load that people know.

use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, bail, ensure};

use super::loopback::confine;
use crate::load::connection::Connection;
use crate::load::counting::read;

const PROGRAM: &str = "redis-benchmark";
/// The key that it counts up without `-r`.
const COUNTER: &str = "counter:__rand_int__";
/// The most requests that it takes as an argument.
const ENDLESS: &str = "2147483647";

/// It, at work until it is told to stop. Killed and waited for when dropped.
pub struct RedisBenchmark {
    process: Child,
    address: String,
}

/// Whether it is installed.
pub fn installed() -> bool {
    let asked = Command::new(PROGRAM).arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

fn command(host: &str, port: u16) -> anyhow::Result<Command> {
    let mut command = Command::new(PROGRAM);
    confine(&mut command, None)?;
    command.args(["-h", host, "-p", &port.to_string()]).stdin(Stdio::null()).stderr(Stdio::piped());
    Ok(command)
}

impl RedisBenchmark {
    /// Begins to count up with ten connections; `None` if it is not installed.
    pub fn endless(host: &str, port: u16) -> anyhow::Result<Option<Self>> {
        if !installed() {
            return Ok(None);
        }
        let mut command = command(host, port)?;
        command.args(["-c", "10", "-t", "incr", "-q", "-n", ENDLESS]).stdout(Stdio::null());
        let process = command.spawn().context("cannot start redis-benchmark")?;
        Ok(Some(RedisBenchmark { process, address: format!("{host}:{port}") }))
    }

    /// Ends it; how many requests it has made, if it was still at work: it gives up at the first error.
    pub async fn end(mut self) -> anyhow::Result<u64> {
        if self.process.try_wait().context("cannot wait for redis-benchmark")?.is_some() {
            let mut said = String::new();
            if let Some(mut stderr) = self.process.stderr.take() {
                std::io::Read::read_to_string(&mut stderr, &mut said).context("cannot read its standard error")?;
            }
            bail!("redis-benchmark gave up: {}", said.trim());
        }
        self.process.kill().context("cannot end redis-benchmark")?;
        let mut connection = Connection::open(&self.address).await?;
        let requests = read(&mut connection, COUNTER).await?;
        u64::try_from(requests).context("its counter went back")
    }
}

impl Drop for RedisBenchmark {
    fn drop(&mut self) {
        // A process that has ended already is no error.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Makes `requests` of each of `tests` (`set,get`) with `clients` connections, `pipeline` at a time; requests/s by test.
pub fn measure(
    (host, port): (&str, u16),
    tests: &str,
    clients: usize,
    pipeline: usize,
    requests: usize,
) -> anyhow::Result<Vec<(String, f64)>> {
    let mut command = command(host, port)?;
    command.args(["-t", tests, "--csv"]);
    for (option, value) in [("-c", clients), ("-P", pipeline), ("-n", requests)] {
        command.args([option, &value.to_string()]);
    }
    let output = command.output().context("cannot start redis-benchmark")?;
    succeeded(output.status, &output.stderr)?;
    rates(&String::from_utf8_lossy(&output.stdout))
}

fn succeeded(status: ExitStatus, stderr: &[u8]) -> anyhow::Result<()> {
    let said = String::from_utf8_lossy(stderr);
    ensure!(status.success(), "redis-benchmark: {status}: {}", said.trim());
    Ok(())
}

/// Names and rates of its CSV: `"SET","12345.67",…` below a line of heads.
fn rates(csv: &str) -> anyhow::Result<Vec<(String, f64)>> {
    let mut found = Vec::new();
    for line in csv.lines() {
        let mut cells = line.split(',').map(|cell| cell.trim_matches('"'));
        let (Some(name), Some(rate)) = (cells.next(), cells.next()) else { continue };
        if let Ok(rate) = rate.parse() {
            found.push((name.to_owned(), rate));
        }
    }
    ensure!(!found.is_empty(), "redis-benchmark said no figures: {}", csv.trim());
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_stand_below_the_heads() {
        let csv = "\"test\",\"rps\",\"avg_latency_ms\"\n\"SET\",\"1250.50\",\"0.3\"\n\"GET\",\"2000.00\",\"0.2\"\n";
        assert_eq!(rates(csv).unwrap(), [("SET".to_owned(), 1250.5), ("GET".to_owned(), 2000.0)]);
        assert!(rates("\"test\",\"rps\"\n").is_err());
    }
}
