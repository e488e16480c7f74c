//! Asks an ensemble as fast as it answers: `cargo run --release --example arbiter_load HOST:PORT,… [CONNECTIONS [WINDOW]]`.

use std::time::Duration;

use lockstep::load::zookeeper::{Ask, Load};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default| arguments.get(index).map_or(Ok(default), |text| text.parse());
    let members = arguments.first().ok_or("which members?")?.split(',').map(str::to_owned).collect();
    let load = Load { members, connections: number(1, 30)?, window: number(2, 16)?, bytes: 100 };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for (name, ask) in [("writes", Ask::Set), ("reads", Ask::Get)] {
        let answers = runtime.block_on(load.run(ask, Duration::from_secs(3)))?;
        let mut waits = answers.latencies.clone();
        waits.sort_unstable();
        let median = waits.get(waits.len() / 2).copied().unwrap_or_default();
        println!("{name}: {:.0} a second, median wait {median:?}", answers.per_s());
    }
    Ok(())
}
