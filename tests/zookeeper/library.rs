//! Runs the script with the crate `zookeeper-client`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::task::{AbortHandle, LocalSet, spawn_local, yield_now};
use zookeeper_client::{
    Acl, Acls, AddWatchMode, AuthId, Client, CreateMode, Error, EventType, MultiReadResult, MultiWriteError,
    MultiWriteResult, OneshotWatcher, Permission, SessionState, Stat, WatchedEvent,
};

use super::driver::{Driver, Request, named, positional, set};
use super::script::Word;

/// What the crate can do beyond the usual. What is not here, it refuses by itself or does not show.
const CAPABILITIES: &[&str] = &[
    "attach",
    "container",
    "descendants",
    "ephemerals",
    "multi",
    "multi-read",
    "persistent-watch",
    "quick",
    "remove-watch",
    "set-watches",
    "stat-of-create",
    "stat-of-write",
    "timeout",
    "whoami",
];

/// The events of one session, one for each that came over the wire. The crate tells every watcher that is concerned; what two
/// watchers were told the same number of times was one event.
#[derive(Default)]
struct Log {
    events: Vec<String>,
    /// How often each watcher was told each event.
    told: BTreeMap<(usize, String), usize>,
}

impl Log {
    fn tell(&mut self, watcher: usize, event: &WatchedEvent) {
        let kind = match event.event_type {
            EventType::NodeCreated => "NodeCreated",
            EventType::NodeDeleted => "NodeDeleted",
            EventType::NodeDataChanged => "NodeDataChanged",
            EventType::NodeChildrenChanged => "NodeChildrenChanged",
            // That the connection was lost is no event of a server's.
            EventType::Session => return,
        };
        let line = format!("{kind} {}", event.path);
        let told = self.told.entry((watcher, line.clone())).or_default();
        *told += 1;
        if self.events.iter().filter(|known| **known == line).count() < *told {
            self.events.push(line);
        }
    }
}

struct Session {
    client: Client,
    log: Rc<RefCell<Log>>,
    states: Rc<RefCell<Vec<SessionState>>>,
    watchers: usize,
    /// The tasks that listen to watchers, by path and kind.
    tasks: Vec<(String, &'static str, AbortHandle)>,
}

impl Session {
    fn new(client: Client) -> Session {
        let states: Rc<RefCell<Vec<SessionState>>> = Rc::default();
        let (mut watcher, seen) = (client.state_watcher(), states.clone());
        spawn_local(async move {
            loop {
                let state = watcher.changed().await;
                seen.borrow_mut().push(state);
                if state.is_terminated() {
                    return;
                }
            }
        });
        Session { client, log: Rc::default(), states, watchers: 0, tasks: Vec::new() }
    }

    fn listen(&mut self, path: &str, kind: &'static str, watcher: OneshotWatcher) {
        self.watchers += 1;
        let (number, log) = (self.watchers, self.log.clone());
        let task = spawn_local(async move {
            let event = watcher.changed().await;
            log.borrow_mut().tell(number, &event);
        });
        self.tasks.push((path.to_owned(), kind, task.abort_handle()));
    }
}

/// The clients of the script, by name.
pub struct Library {
    runtime: Runtime,
    local: LocalSet,
    sessions: BTreeMap<String, Session>,
}

impl Library {
    /// No session yet.
    pub fn new() -> Library {
        // One thread: what is woken first runs first, so that events are told in the order of their coming.
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        Library { runtime, local: LocalSet::new(), sessions: BTreeMap::new() }
    }
}

impl Driver for Library {
    fn name(&self) -> &'static str {
        "library"
    }

    fn capabilities(&self) -> BTreeSet<String> {
        set(CAPABILITIES)
    }

    fn step(&mut self, request: &Request) -> Vec<String> {
        let sessions = &mut self.sessions;
        self.local.block_on(&self.runtime, async {
            match step(sessions, request).await {
                Ok(lines) => lines,
                Err(error) => vec![error_name(&error)],
            }
        })
    }
}

fn error_name(error: &Error) -> String {
    match error {
        Error::InvalidAcl => "InvalidACL".to_owned(),
        Error::RuntimeInconsistent => "RuntimeInconsistency".to_owned(),
        // The unit variants are called as ZooKeeper calls its errors.
        other => format!("{other:?}"),
    }
}

fn show_stat(stat: &Stat) -> String {
    let owner = if stat.ephemeral_owner == 0 { "none".to_owned() } else { format!("s:{}", stat.ephemeral_owner) };
    format!(
        "czxid=z:{} mzxid=z:{} pzxid=z:{} ctime=t:{} mtime=t:{} version={} cversion={} aversion={} owner={owner} length={} children={}",
        stat.czxid,
        stat.mzxid,
        stat.pzxid,
        stat.ctime,
        stat.mtime,
        stat.version,
        stat.cversion,
        stat.aversion,
        stat.data_length,
        stat.num_children
    )
}

/// Data as the script writes them.
fn show_data(data: &[u8]) -> String {
    let first = data.first().copied().unwrap_or_default();
    if data.len() > 100 && data.iter().all(|byte| *byte == first) {
        return format!("{:?}*{}", char::from(first).to_string(), data.len());
    }
    serde_json::to_string(&String::from_utf8_lossy(data)).expect("text can be written as JSON")
}

/// Names in order, as the script writes them.
pub fn show_list(mut names: Vec<String>) -> String {
    names.sort();
    format!("[{}]", names.join(", "))
}

const PERMISSIONS: [(char, Permission); 5] = [
    ('c', Permission::CREATE),
    ('d', Permission::DELETE),
    ('r', Permission::READ),
    ('w', Permission::WRITE),
    ('a', Permission::ADMIN),
];

fn acls(text: &str) -> Vec<Acl> {
    let entry = |entry: &str| {
        let (scheme, rest) = entry.split_once(':').expect("scheme:id:perms");
        let (id, letters) = rest.rsplit_once(':').expect("scheme:id:perms");
        let bits = PERMISSIONS.iter().filter(|(letter, _)| letters.contains(*letter));
        let permission = bits.fold(Permission::NONE, |all, (_, bit)| all | *bit);
        Acl::new(permission, AuthId::new(scheme, id))
    };
    text.split(',').map(entry).collect()
}

fn show_acl(acl: &Acl) -> String {
    let letters: String = PERMISSIONS.iter().filter(|(_, bit)| acl.permission().has(*bit)).map(|(l, _)| l).collect();
    let letters = if letters.is_empty() { "-".to_owned() } else { letters };
    format!("{} {} {letters}", acl.scheme(), acl.id()).replace("  ", " ")
}

fn mode(word: &str) -> CreateMode {
    match word {
        "persistent" => CreateMode::Persistent,
        "sequential" => CreateMode::PersistentSequential,
        "ephemeral" => CreateMode::Ephemeral,
        "ephemeral-sequential" => CreateMode::EphemeralSequential,
        "container" => CreateMode::Container,
        other => panic!("the crate has no mode {other}"),
    }
}

fn data(word: Option<&str>) -> &[u8] {
    word.expect("the crate has no null data").as_bytes()
}

async fn step(sessions: &mut BTreeMap<String, Session>, request: &Request) -> Result<Vec<String>, Error> {
    let verb = request.verb.as_str();
    if let "connect" | "attach" = verb {
        return connect(sessions, request).await;
    }
    if verb == "close" {
        let session = sessions.remove(&request.client).expect("a session");
        session.tasks.iter().for_each(|(_, _, task)| task.abort());
        drop(session.client);
        return Ok(vec![wait(|| session.states.borrow().last() == Some(&SessionState::Closed)).await("closed")]);
    }
    let session = sessions.get_mut(&request.client).expect("a session");
    let with_stat = request.named("with") == Some("stat");
    match verb {
        "reconnected" => {
            let lines = reconnected(session).await;
            if lines == ["expired"] {
                session.tasks.iter().for_each(|(_, _, task)| task.abort());
            }
            Ok(lines)
        }
        "timeout" => Ok(vec![session.client.session_timeout().as_millis().to_string()]),
        "create" => create(&session.client, request, with_stat).await,
        "delete" => {
            session.client.delete(request.text(0), request.number("version")).await?;
            Ok(vec!["deleted".to_owned()])
        }
        "set" => {
            let version = request.number("version");
            let stat = session.client.set_data(request.text(0), data(request.positional()[1]), version).await?;
            Ok(vec![if with_stat { show_stat(&stat) } else { format!("version={}", stat.version) }])
        }
        "exists" | "stat" => {
            let path = request.text(0);
            let stat = if request.has("watch") {
                let (stat, watcher) = session.client.check_and_watch_stat(path).await?;
                session.listen(path, "data", watcher);
                stat
            } else {
                session.client.check_stat(path).await?
            };
            let found = |stat: Stat| if verb == "stat" { show_stat(&stat) } else { "yes".to_owned() };
            Ok(vec![stat.map_or("NoNode".to_owned(), found)])
        }
        "get" => {
            let path = request.text(0);
            let (data, stat) = if request.has("watch") {
                let (data, stat, watcher) = session.client.get_and_watch_data(path).await?;
                session.listen(path, "data", watcher);
                (data, stat)
            } else {
                session.client.get_data(path).await?
            };
            Ok(with(with_stat, vec![show_data(&data)], &stat))
        }
        "children" => children(session, request, with_stat).await,
        "sync" => {
            session.client.sync(request.text(0)).await?;
            Ok(vec![request.text(0).to_owned()])
        }
        "await" => {
            let (there, path) = (request.text(0) == "there", request.text(1));
            for _ in 0..3000 {
                session.client.sync(path).await?;
                if session.client.check_stat(path).await?.is_some() == there {
                    return Ok(vec![request.text(0).to_owned()]);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok(vec!["waited in vain".to_owned()])
        }
        "ephemerals" => {
            let prefix = request.positional().first().copied().flatten().unwrap_or("/");
            Ok(vec![show_list(session.client.list_ephemerals(prefix).await?)])
        }
        "descendants" => Ok(vec![session.client.count_descendants_number(request.text(0)).await?.to_string()]),
        "getacl" => {
            let (acls, stat) = session.client.get_acl(request.text(0)).await?;
            Ok(with(with_stat, acls.iter().map(show_acl).collect(), &stat))
        }
        "setacl" => {
            let acls = acls(request.text(1));
            let stat = session.client.set_acl(request.text(0), &acls, request.number("version")).await?;
            Ok(vec![if with_stat { show_stat(&stat) } else { format!("aversion={}", stat.aversion) }])
        }
        "addauth" => {
            session.client.auth(request.text(0), request.text(1).as_bytes()).await?;
            Ok(vec!["ok".to_owned()])
        }
        "whoami" => {
            let users = session.client.list_auth_users().await?;
            let mut lines: Vec<String> =
                users.iter().map(|user| format!("{} {}", user.scheme(), user.user())).collect();
            lines.sort();
            Ok(lines)
        }
        "multi" => multi(&session.client, &request.operations).await,
        "multi-read" => multi_read(&session.client, &request.operations).await,
        "watch" => watch(session, request).await,
        "unwatch" => {
            let (path, kind) = (request.text(0), request.text(1));
            let goes = |task: &(String, &'static str, AbortHandle)| task.0 == path && (kind == "any" || task.1 == kind);
            session.tasks.iter().filter(|task| goes(task)).for_each(|(_, _, task)| task.abort());
            session.tasks.retain(|task| !goes(task));
            // The watcher is dropped when its task is, which tells the server; what is asked after that, comes after that.
            settle().await;
            session.client.sync("/").await?;
            Ok(vec!["removed".to_owned()])
        }
        "events" => {
            if !request.positional().contains(&Some("local")) {
                session.client.sync("/").await?;
            }
            settle().await;
            let mut events = std::mem::take(&mut *session.log.borrow_mut()).events;
            if request.positional().contains(&Some("sorted")) {
                events.sort();
            }
            Ok(if events.is_empty() { vec!["none".to_owned()] } else { events })
        }
        other => panic!("the crate cannot {other}: line without a mark?"),
    }
}

fn with(with_stat: bool, mut lines: Vec<String>, stat: &Stat) -> Vec<String> {
    if with_stat {
        lines.push(show_stat(stat));
    }
    lines
}

/// Lets the tasks run that were woken.
async fn settle() {
    for _ in 0..4 {
        yield_now().await;
    }
}

/// Waits for a condition; then a function of what to say.
async fn wait(done: impl Fn() -> bool) -> impl FnOnce(&str) -> String {
    let mut tries = 0;
    while !done() && tries < 6000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        tries += 1;
    }
    let done = done();
    move |said| if done { said.to_owned() } else { format!("waited in vain for: {said}") }
}

async fn connect(sessions: &mut BTreeMap<String, Session>, request: &Request) -> Result<Vec<String>, Error> {
    let timeout = Duration::from_millis(request.number("timeout").unwrap_or(10_000) as u64);
    let connector = Client::connector().with_session_timeout(timeout);
    let cluster = request.socket().to_string();
    let (connector, said) = match request.verb.as_str() {
        "attach" => (connector.with_session(sessions[request.text(0)].client.session().clone()), "attached"),
        _ => (connector, "connected"),
    };
    match connector.connect(&cluster).await {
        Ok(client) => {
            sessions.insert(request.client.clone(), Session::new(client));
            Ok(vec![said.to_owned()])
        }
        Err(Error::SessionExpired) => Ok(vec!["expired".to_owned()]),
        Err(error) => Err(error),
    }
}

async fn reconnected(session: &mut Session) -> Vec<String> {
    let states = session.states.clone();
    let after = |states: &[SessionState]| -> Option<&'static str> {
        let lost = states.iter().position(|state| *state == SessionState::Disconnected)?;
        match states[lost..].last() {
            Some(SessionState::SyncConnected) => Some("attached"),
            Some(SessionState::Expired) => Some("expired"),
            _ => None,
        }
    };
    let seen = states.clone();
    let said = wait(move || after(&seen.borrow()).is_some()).await;
    let line = after(&states.borrow()).unwrap_or("a connection");
    states.borrow_mut().clear();
    vec![said(line)]
}

async fn create(client: &Client, request: &Request, with_stat: bool) -> Result<Vec<String>, Error> {
    let (path, word) = (request.text(0), request.text(1));
    let given = request.named("acl").map(acls);
    let acls = given.as_deref().map_or(Acls::anyone_all(), Acls::new);
    let options = mode(word).with_acls(acls);
    let (stat, sequence) = client.create(path, data(request.positional()[2]), &options).await?;
    let made = if word.contains("sequential") { format!("{path}{sequence}") } else { path.to_owned() };
    Ok(with(with_stat, vec![made], &stat))
}

async fn children(session: &mut Session, request: &Request, with_stat: bool) -> Result<Vec<String>, Error> {
    let path = request.text(0);
    if with_stat {
        let (names, stat) = if request.has("watch") {
            let (names, stat, watcher) = session.client.get_and_watch_children(path).await?;
            session.listen(path, "children", watcher);
            (names, stat)
        } else {
            session.client.get_children(path).await?
        };
        return Ok(vec![show_list(names), show_stat(&stat)]);
    }
    let names = if request.has("watch") {
        let (names, watcher) = session.client.list_and_watch_children(path).await?;
        session.listen(path, "children", watcher);
        names
    } else {
        session.client.list_children(path).await?
    };
    Ok(vec![show_list(names)])
}

async fn watch(session: &mut Session, request: &Request) -> Result<Vec<String>, Error> {
    let path = request.text(0);
    let (kind, mode) = match request.text(1) {
        "persistent" => ("persistent", AddWatchMode::Persistent),
        _ => ("recursive", AddWatchMode::PersistentRecursive),
    };
    let mut watcher = session.client.watch(path, mode).await?;
    session.watchers += 1;
    let (number, log) = (session.watchers, session.log.clone());
    let task = spawn_local(async move {
        loop {
            let event = watcher.changed().await;
            if event.session_state.is_terminated() {
                return;
            }
            log.borrow_mut().tell(number, &event);
        }
    });
    session.tasks.push((path.to_owned(), kind, task.abort_handle()));
    Ok(vec!["watching".to_owned()])
}

async fn multi(client: &Client, operations: &[Vec<Word>]) -> Result<Vec<String>, Error> {
    let mut writer = client.new_multi_writer();
    for words in operations {
        let texts = positional(words);
        let path = texts[1].expect("a path");
        let version = named(words, "version").map(|text| text.parse().expect("a number"));
        match texts[0] {
            Some("create") => {
                let given = named(words, "acl").map(acls);
                let acls = given.as_deref().map_or(Acls::anyone_all(), Acls::new);
                writer.add_create(path, data(texts[3]), &mode(texts[2].expect("a mode")).with_acls(acls))?;
            }
            Some("delete") => writer.add_delete(path, version)?,
            Some("set") => writer.add_set_data(path, data(texts[2]), version)?,
            Some("check") => writer.add_check_version(path, version.expect("a version"))?,
            other => panic!("no operation of a multi: {other:?}"),
        }
    }
    match commit(writer.commit()).await {
        Ok(results) => Ok(results.iter().map(show_write).collect()),
        Err(MultiWriteError::OperationFailed { index, source }) => {
            Ok(vec![format!("failed at {index}: {}", error_name(&source))])
        }
        Err(MultiWriteError::RequestFailed { source }) => Err(source),
    }
}

/// Only so that the future has a name for its type.
async fn commit<T>(future: impl Future<Output = T>) -> T {
    future.await
}

fn show_write(result: &MultiWriteResult) -> String {
    match result {
        MultiWriteResult::Check => "checked".to_owned(),
        MultiWriteResult::Delete => "deleted".to_owned(),
        MultiWriteResult::Create { path, .. } => path.clone(),
        MultiWriteResult::SetData { stat } => format!("set version={}", stat.version),
        other => format!("{other:?}"),
    }
}

async fn multi_read(client: &Client, operations: &[Vec<Word>]) -> Result<Vec<String>, Error> {
    let mut reader = client.new_multi_reader();
    for words in operations {
        let texts = positional(words);
        let path = texts[1].expect("a path");
        match texts[0] {
            Some("get") => reader.add_get_data(path)?,
            _ => reader.add_get_children(path)?,
        }
    }
    let show = |result: MultiReadResult| match result {
        MultiReadResult::Data { data, stat } => format!("{} version={}", show_data(&data), stat.version),
        MultiReadResult::Children { children } => show_list(children),
        MultiReadResult::Error { err } => error_name(&err),
        other => format!("{other:?}"),
    };
    Ok(reader.commit().await?.into_iter().map(show).collect())
}
