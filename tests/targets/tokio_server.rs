//! A small server on tokio, which is restored: it keeps numbers by name, counts ticks of a timer, and works in a blocking
//! thread. It prints `ready PORT`. A line of a client is answered with a line: `set NAME NUMBER`, `get NAME`, `ticks`,
//! `work N` (a sum over N numbers, done by a thread for blocking work), `later N` (answered after N milliseconds).

use anyhow::{Context, Result};
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

#[derive(Default)]
struct Kept {
    numbers: Mutex<HashMap<String, u64>>,
    ticks: AtomicU64,
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve())
}

async fn serve() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let kept = Arc::new(Kept::default());
    let ticking = Arc::clone(&kept);
    tokio::spawn(async move {
        let mut interval = tokio::time::interval(Duration::from_millis(10));
        loop {
            interval.tick().await;
            ticking.ticks.fetch_add(1, Ordering::Relaxed);
        }
    });
    println!("ready {}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    loop {
        let (client, _) = listener.accept().await?;
        let kept = Arc::clone(&kept);
        tokio::spawn(async move {
            // A client that goes away is no concern of others.
            let _ = talk(client, &kept).await;
        });
    }
}

async fn talk(mut client: TcpStream, kept: &Kept) -> Result<()> {
    let (input, mut output) = client.split();
    let mut lines = BufReader::new(input).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = answer(&line, kept)
            .await
            .unwrap_or_else(|error| format!("error: {error}"));
        output.write_all(format!("{answer}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn answer(line: &str, kept: &Kept) -> Result<String> {
    let words: Vec<&str> = line.split(' ').collect();
    match words[..] {
        ["set", name, number] => {
            kept.numbers
                .lock()
                .await
                .insert(name.to_owned(), number.parse()?);
            Ok("done".to_owned())
        }
        ["get", name] => {
            let number = kept.numbers.lock().await.get(name).copied();
            Ok(number.context("no such name")?.to_string())
        }
        ["ticks"] => Ok(kept.ticks.load(Ordering::Relaxed).to_string()),
        ["work", count] => {
            let count: u64 = count.parse()?;
            let sum = tokio::task::spawn_blocking(move || (1..=count).sum::<u64>()).await?;
            Ok(sum.to_string())
        }
        ["later", milliseconds] => {
            tokio::time::sleep(Duration::from_millis(milliseconds.parse()?)).await;
            Ok("later".to_owned())
        }
        _ => anyhow::bail!("an unknown command"),
    }
}
