//! Clients that count: each increments a key of its own over one connection, as fast as the answers come, and so knows at every
//! moment what must be there. From when their answers came follows who waited how long for the take-over.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::{ClientError, Connection};
use super::resp::Reply;

/// What one client saw.
#[derive(Debug, Default)]
pub struct Account {
    /// When each answer came.
    pub answers: Vec<Instant>,
    /// Increments it was told of that are not in the guest.
    pub lost: u64,
    /// Increments in the guest beyond those it asked for.
    pub doubled: u64,
    /// Why it stopped early.
    pub trouble: Option<ClientError>,
}

/// Clients at work.
pub struct Counting {
    clients: JoinSet<Account>,
    over: watch::Sender<bool>,
    answered: watch::Receiver<u64>,
}

impl Counting {
    /// Begins with `clients` connections to `address`. Call it within a runtime.
    pub fn begin(address: &str, clients: usize) -> Self {
        let (over, stop) = watch::channel(false);
        let (count, answered) = watch::channel(0);
        let mut set = JoinSet::new();
        for client in 0..clients {
            set.spawn(work(address.to_owned(), format!("client:{client}"), stop.clone(), count.clone()));
        }
        Counting { clients: set, over, answered }
    }

    /// Waits for `answers` more answers to all clients together. False: all clients have stopped before.
    pub async fn wait_for(&mut self, answers: u64) -> bool {
        let goal = *self.answered.borrow() + answers;
        self.answered.wait_for(|&answered| answered >= goal).await.is_ok()
    }

    /// Lets the clients stop, compare and say what they saw.
    pub async fn end(self) -> Vec<Account> {
        // Without a client, nobody has to be told.
        let _ = self.over.send(true);
        self.clients.join_all().await
    }
}

async fn work(address: String, key: String, stop: watch::Receiver<bool>, count: watch::Sender<u64>) -> Account {
    let mut account = Account::default();
    account.trouble = attempt(&address, &key, &stop, &count, &mut account).await.err();
    account
}

async fn attempt(
    address: &str,
    key: &str,
    stop: &watch::Receiver<bool>,
    count: &watch::Sender<u64>,
    account: &mut Account,
) -> Result<(), ClientError> {
    let integer = |reply: Reply| if let Reply::Integer(value) = reply { Some(value) } else { None };
    let mut connection = Connection::open(address).await?;
    let mut told = 0;
    while !*stop.borrow() {
        let value = connection.call(&["INCR", key], integer).await?;
        account.answers.push(Instant::now());
        account.compare(told + 1, value);
        told = value;
        count.send_modify(|count| *count += 1);
    }
    account.compare(told, read(&mut connection, key).await?);
    Ok(())
}

/// The number in a key; 0 without the key.
pub async fn read(connection: &mut Connection, key: &str) -> Result<i64, ClientError> {
    let number = |reply: Reply| match reply {
        Reply::Bulk(Some(digits)) => std::str::from_utf8(digits).ok()?.parse().ok(),
        Reply::Bulk(None) => Some(0),
        Reply::Simple(_) | Reply::Error(_) | Reply::Integer(_) => None,
    };
    connection.call(&["GET", key], number).await
}

impl Account {
    fn compare(&mut self, expected: i64, found: i64) {
        let difference = found.abs_diff(expected);
        if found < expected {
            self.lost += difference;
        } else {
            self.doubled += difference;
        }
    }

    /// The first answer after `moment`.
    pub fn first_after(&self, moment: Instant) -> Option<Instant> {
        self.answers.get(self.answers.partition_point(|&answer| answer <= moment)).copied()
    }

    /// The longest time between two answers of which the second came after `from` and not after `to`.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Option<Duration> {
        let pauses = self.answers.windows(2).filter(|pair| pair[1] > from && pair[1] <= to);
        pauses.map(|pair| pair[1] - pair[0]).max()
    }

    /// How many answers came after `from` and not after `to`.
    pub fn answers_between(&self, from: Instant, to: Instant) -> usize {
        let until = |moment| self.answers.partition_point(|&answer| answer <= moment);
        until(to).saturating_sub(until(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_account_shows() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let account = Account { answers: [1, 2, 5, 250, 251].map(at).to_vec(), ..Account::default() };
        assert_eq!(account.first_after(at(5)), Some(at(250)));
        assert_eq!(account.first_after(at(251)), None);
        assert_eq!(account.longest_pause(at(0), at(5)), Some(Duration::from_millis(3)));
        assert_eq!(account.longest_pause(at(5), at(260)), Some(Duration::from_millis(245)));
        assert_eq!(account.longest_pause(at(251), at(260)), None);
        assert_eq!((account.answers_between(at(0), at(5)), account.answers_between(at(5), at(250))), (3, 1));
    }

    #[test]
    fn what_is_lost_and_what_is_doubled() {
        let mut account = Account::default();
        account.compare(5, 5);
        account.compare(5, 3);
        account.compare(3, 4);
        assert_eq!((account.lost, account.doubled), (2, 1));
    }
}
