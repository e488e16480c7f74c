//! What the sides say of themselves: the records tell who is there and in which role, and everything else is asked at the console ports, all at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::view::View;
use crate::console::control;
use crate::console::status::Status;

/// How many sides are asked at the same time: each costs a connection.
const AT_ONCE: usize = 64;

/// What the sides answered, by the address of their console port; why there is no answer, where there is none.
pub type Figures = BTreeMap<String, Result<Box<Status>, String>>;

/// Asks every side of a cluster. Those that do not answer within `patience` are unreachable.
pub async fn ask(view: &View, patience: Duration) -> Figures {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking = JoinSet::new();
    for side in view.vms.values().flat_map(|vm| &vm.sides) {
        let (address, vm, places) = (side.control.clone(), side.vm.clone(), places.clone());
        asking.spawn(async move {
            let _place = places.acquire().await;
            let status = control::status(&address, patience).await;
            let status = match status {
                // Another process has its port by now.
                Ok(status) if status.vm != vm => Err(format!("{address} is of another VM, {}", status.vm)),
                Ok(status) => Ok(Box::new(status)),
                Err(error) => Err(error.to_string()),
            };
            (address, status)
        });
    }
    asking.join_all().await.into_iter().collect()
}
