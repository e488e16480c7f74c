use super::*;
use std::sync::Mutex;

/// What a server does each time that it is asked; the last one again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Answers,
    /// It is there, and nothing comes.
    Nothing,
    Fails,
    Refuses,
}

struct Fake {
    address: String,
    does: Mutex<Vec<Does>>,
    health: watch::Sender<Health>,
    asked: AtomicUsize,
}

impl Server for Fake {
    fn address(&self) -> &str {
        &self.address
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }
}

fn fake(address: &str, healthy: bool, does: &[Does]) -> Arc<Fake> {
    let health = watch::Sender::new(if healthy { Ok(()) } else { Err(Silence::Lost) });
    // The first at the end, to be taken off.
    let does = Mutex::new(does.iter().rev().copied().collect());
    Arc::new(Fake { address: address.into(), does, health, asked: AtomicUsize::new(0) })
}

fn ensemble(servers: &[Arc<Fake>]) -> Ensemble<Fake> {
    Ensemble::new(Io::start().unwrap(), servers.to_vec(), "the ensemble".into())
}

/// Asks; the answer is the server's address.
fn ask(ensemble: &Ensemble<Fake>) -> Result<String, ArbiterError> {
    ensemble.ask(|server| async move {
        server.asked.fetch_add(1, Relaxed);
        let does = {
            let mut does = server.does.lock().unwrap();
            if does.len() > 1 { does.pop().unwrap() } else { does[0] }
        };
        match does {
            Does::Answers => Ok(server.address.clone()),
            Does::Nothing => std::future::pending().await,
            Does::Fails => Err(Silence::Said("out of order".into()).into()),
            Does::Refuses => {
                let denied = ArbiterError::Denied { location: "the ensemble".into(), reason: "no".into() };
                Err(Trouble::Final(denied))
            }
        }
    })
}

fn asked(servers: &[Arc<Fake>]) -> Vec<usize> {
    servers.iter().map(|server| server.asked.load(Relaxed)).collect()
}

#[test]
fn one_server_is_asked_and_whoever_answered_is_asked_first_the_next_time() {
    let servers = [fake("a", true, &[Does::Answers]), fake("b", true, &[Does::Answers])];
    let ensemble = ensemble(&servers);
    assert_eq!(ask(&ensemble).unwrap(), "a");
    ensemble.preferred.store(1, Relaxed);
    assert_eq!(ask(&ensemble).unwrap(), "b");
}

#[test]
fn a_silent_server_keeps_no_answer_away_and_is_asked_last_from_then_on() {
    let servers =
        [fake("a", true, &[Does::Nothing]), fake("b", true, &[Does::Nothing]), fake("c", true, &[Does::Answers])];
    let ensemble = ensemble(&servers);
    for _ in 0..3 {
        assert_eq!(ask(&ensemble).unwrap(), "c");
    }
    assert_eq!(asked(&servers), [1, 1, 3]);
}

#[test]
fn a_server_that_looks_dead_is_asked_after_those_that_look_well() {
    let servers = [fake("a", false, &[Does::Answers]), fake("b", true, &[Does::Answers])];
    assert_eq!(ask(&ensemble(&servers)).unwrap(), "b");
    let only = [fake("a", false, &[Does::Answers])];
    assert_eq!(ask(&ensemble(&only)).unwrap(), "a", "the only one there is");
}

#[test]
fn a_server_that_fails_is_asked_again() {
    let servers = [fake("a", true, &[Does::Fails, Does::Fails, Does::Answers]), fake("b", true, &[Does::Nothing])];
    assert_eq!(ask(&ensemble(&servers)).unwrap(), "a");
    assert_eq!(asked(&servers), [3, 1]);
}

#[test]
fn without_an_answer_each_server_is_named_with_what_is_known_of_it() {
    let servers =
        [fake("a", true, &[Does::Fails]), fake("b", true, &[Does::Nothing]), fake("c", false, &[Does::Nothing])];
    let error = ask(&ensemble(&servers)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no answer from the ensemble: a: out of order; b: it does not answer; c: the connection was lost"
    );
    let asked = asked(&servers);
    assert!(asked[0] > 3 && asked[1..] == [1, 1], "{asked:?}");
}

#[test]
fn a_refusal_is_final() {
    let servers = [fake("a", true, &[Does::Refuses]), fake("b", true, &[Does::Answers])];
    assert!(matches!(ask(&ensemble(&servers)), Err(ArbiterError::Denied { .. })));
}

#[test]
fn it_can_be_asked_from_any_thread_also_one_that_runs_tasks() {
    let servers = [fake("a", true, &[Does::Answers])];
    let ensemble = ensemble(&servers);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(async { ask(&ensemble) }).unwrap(), "a");
}
