//! Where clients come in.

use std::sync::Arc;
use std::time::Duration;

use super::connection;
use crate::core::Core;
use crate::net::Net;

/// Takes connections of clients, until it is cancelled.
pub async fn listen<N: Net>(core: Arc<Core<N>>, listener: N::Listener) {
    loop {
        let (stream, from) = match N::accept(&listener).await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot take a client's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if core.replica.connection_count() >= core.settings.max_connections {
            tracing::warn!(%from, "too many connections: closing this one");
            continue;
        }
        let core = core.clone();
        tokio::spawn(async move {
            if let Err(error) = connection::serve(&core, stream, from.ip()).await {
                tracing::debug!(%from, error = &error as &dyn std::error::Error, "a client's connection ended");
            }
        });
    }
}
