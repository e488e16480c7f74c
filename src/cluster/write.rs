//! Writing what the agents and the people who command them agree on. Every write depends on the version of what it was made from, so one that was made from
//! what is not so any more has no effect; and since it may be repeated, a server that dies with the answer costs nothing but time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};
use zookeeper_client as zk;

use super::ClusterError;
use super::paths::Paths;
use super::placement::Placement;
use super::records::Document;
use super::spec::Spec;
use crate::arbiter::ensemble::{PATIENCE, Server};
use crate::arbiter::zookeeper::{Session, Sessions};

/// How long one server may take for one request.
const EACH: Duration = Duration::from_millis(600);

/// What has become of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It counts.
    Done,
    /// Something that it depended on is not so any more.
    Overtaken,
}

/// A placement that is to be written.
#[derive(Clone, Debug)]
pub struct Placing<'a> {
    /// The VM.
    pub vm: &'a str,
    /// The version that it takes the place of; `None`: there was none.
    pub instead_of: Option<i32>,
    /// The version of the specification that it was made for.
    pub spec_version: i32,
    /// The placement.
    pub placement: &'a Placement,
    /// The hosts that get a part which they had not, and the version of each one's reservation where it was read.
    pub added: BTreeMap<&'a str, Option<i32>>,
}

/// Writes.
#[derive(Clone)]
pub struct Writer {
    sessions: Arc<Sessions>,
    paths: Paths,
}

/// Whether an error of a transaction's part means that it was overtaken.
fn is_overtaken(error: &zk::Error) -> bool {
    matches!(error, zk::Error::BadVersion | zk::Error::NodeExists | zk::Error::NoNode)
}

async fn commit(transaction: zk::MultiWriter<'_>) -> Result<Written, zk::Error> {
    let mut transaction = transaction;
    match transaction.commit().await {
        Ok(_) => Ok(Written::Done),
        Err(zk::MultiWriteError::OperationFailed { source, .. }) if is_overtaken(&source) => Ok(Written::Overtaken),
        Err(error) => Err(error.into()),
    }
}

impl Writer {
    /// Writes through these sessions.
    pub fn new(sessions: Arc<Sessions>) -> Self {
        let paths = Paths::below(sessions.root());
        Writer { sessions, paths }
    }

    /// Asks one server after the other, until one answers.
    async fn ask<T>(
        &self,
        path: &str,
        work: impl AsyncFn(&Session) -> Result<T, zk::Error>,
    ) -> Result<T, ClusterError> {
        let until = Instant::now() + PATIENCE;
        let mut but: Option<String> = None;
        let mut last = None;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            let Ok((link, session)) = timeout(rest, self.sessions.any(but.as_deref())).await else {
                return Err(last.unwrap_or_else(|| self.sessions.no_answer().into()));
            };
            let asked = async {
                tokio::select! {
                    answer = work(&session) => answer,
                    () = session.gone() => Err(zk::Error::ConnectionLoss),
                }
            };
            let error = match timeout(EACH, asked).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(_) => zk::Error::Timeout,
            };
            let transient = matches!(
                error,
                zk::Error::ConnectionLoss | zk::Error::Timeout | zk::Error::SessionExpired | zk::Error::ClientClosed
            );
            let error =
                ClusterError::Write { location: self.sessions.location().into(), path: path.into(), source: error };
            if !transient || Instant::now() >= until {
                return Err(error);
            }
            (but, last) = (Some(link.address().to_owned()), Some(error));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Makes the nodes below which others are written.
    pub async fn prepare(&self) -> Result<(), ClusterError> {
        let path = self.paths.reservations();
        self.ask(&path, async |session| session.client.mkdir(&path, &session.persistent()).await).await
    }

    /// Writes a placement, and the change of what is on its hosts, as one transaction.
    pub async fn place(&self, placing: &Placing<'_>) -> Result<Written, ClusterError> {
        let path = self.paths.placement(placing.vm);
        let bytes = placing.placement.to_bytes();
        let note = format!("{} (placement {})", placing.vm, placing.placement.number);
        self.ask(&path, async |session| {
            let options = session.persistent();
            let mut transaction = session.client.new_multi_writer();
            transaction.add_check_version(&self.paths.spec(placing.vm), placing.spec_version)?;
            match placing.instead_of {
                Some(version) => transaction.add_set_data(&path, &bytes, Some(version))?,
                None => transaction.add_create(&path, &bytes, &options)?,
            }
            for (host, version) in &placing.added {
                let path = self.paths.reservation(host);
                match version {
                    Some(version) => transaction.add_set_data(&path, note.as_bytes(), Some(*version))?,
                    None => transaction.add_create(&path, note.as_bytes(), &options)?,
                }
            }
            commit(transaction).await
        })
        .await
    }

    /// Whether a VM's placement is still of this version, as a majority knows it.
    pub async fn confirm(&self, vm: &str, version: i32) -> Result<Written, ClusterError> {
        let path = self.paths.placement(vm);
        self.ask(&path, async |session| {
            let mut transaction = session.client.new_multi_writer();
            transaction.add_check_version(&path, version)?;
            commit(transaction).await
        })
        .await
    }

    /// Writes what a VM is to be, in the place of `instead_of` (`None`: of nothing), and with it where its sides are to be, if that is said, likewise.
    pub async fn specify(
        &self,
        vm: &str,
        (spec, instead_of): (&Spec, Option<i32>),
        placement: Option<(&Placement, Option<i32>)>,
    ) -> Result<Written, ClusterError> {
        let path = self.paths.spec(vm);
        self.ask(&path, async |session| {
            let (client, options) = (&session.client, session.persistent());
            if instead_of.is_none() {
                let above = path.rsplit_once('/').map_or("", |(above, _)| above);
                client.mkdir(above, &options).await?;
            }
            let mut transaction = client.new_multi_writer();
            let mut nodes = vec![(path.clone(), spec.to_bytes(), instead_of)];
            nodes.extend(placement.map(|(is, instead_of)| (self.paths.placement(vm), is.to_bytes(), instead_of)));
            for (path, bytes, instead_of) in nodes {
                match instead_of {
                    Some(version) => transaction.add_set_data(&path, &bytes, Some(version))?,
                    None => transaction.add_create(&path, &bytes, &options)?,
                }
            }
            commit(transaction).await
        })
        .await
    }

    /// Has the agents forget a VM: takes away what it is to be and where, of these versions.
    pub async fn forget(&self, vm: &str, spec: i32, placement: Option<i32>) -> Result<Written, ClusterError> {
        let path = self.paths.spec(vm);
        self.ask(&path, async |session| {
            let mut transaction = session.client.new_multi_writer();
            transaction.add_delete(&path, Some(spec))?;
            if let Some(version) = placement {
                transaction.add_delete(&self.paths.placement(vm), Some(version))?;
            }
            commit(transaction).await
        })
        .await
    }
}
