//! Requests as `redis-benchmark` makes them: many clients, so and so many commands under way on each, SET or GET of one key with a
//! value of three bytes.

use tokio::task::JoinSet;

use super::connection::{ClientError, Connection};
use super::resp;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `SET`
    Set,
    /// `GET`
    Get,
}

const KEY: &str = "key:__rand_int__";

/// Makes at least `requests` requests with `clients` connections and `pipeline` commands at a time; how many it made.
pub async fn make(
    address: &str,
    command: Command,
    clients: usize,
    pipeline: usize,
    requests: usize,
) -> Result<usize, ClientError> {
    let rounds = requests.div_ceil(clients * pipeline);
    let mut commands = Vec::new();
    for _ in 0..pipeline {
        match command {
            Command::Set => resp::command(&["SET", KEY, "VXK"], &mut commands),
            Command::Get => resp::command(&["GET", KEY], &mut commands),
        }
    }
    let mut working = JoinSet::new();
    for _ in 0..clients {
        let (address, commands) = (address.to_owned(), commands.clone());
        working.spawn(async move {
            let mut connection = Connection::open(&address).await?;
            for _ in 0..rounds {
                connection.pipeline(&commands, pipeline).await?;
            }
            Ok::<_, ClientError>(())
        });
    }
    working.join_all().await.into_iter().collect::<Result<(), _>>()?;
    Ok(rounds * clients * pipeline)
}
