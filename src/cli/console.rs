//! Temporary.
use crate::console::client::*;
use std::io::Write;
use tokio::io::AsyncReadExt;
/// Temporary.
pub async fn attach_local(address: String) -> anyhow::Result<()> {
    let mut client = Client::start(Options::new([address]))?;
    let keyboard = client.keyboard();
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut buf = [0; 256];
        while let Ok(n) = stdin.read(&mut buf).await {
            if n == 0 || keyboard.send(&buf[..n]).await.is_err() {
                break;
            }
        }
    });
    while let Some(event) = client.next().await {
        match event.what {
            What::Output { bytes, .. } => {
                std::io::stdout().write_all(&bytes)?;
                std::io::stdout().flush()?;
            }
            What::Ended(_) => break,
            other => eprintln!("[{other:?}]"),
        }
    }
    Ok(())
}
