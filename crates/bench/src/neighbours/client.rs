//! A client that asks and waits for the answer, and notes how long that took. It knows as much of each protocol as one
//! request needs.

use super::connection::Connection;
use super::servers::Running;
use std::time::{Duration, Instant};

/// Has so many clients ask for so long; how long each answer took, in us.
pub fn load(running: &Running, clients: usize, time: Duration) -> anyhow::Result<Vec<u32>> {
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..clients as u64)
            .map(|client| scope.spawn(move || ask_on(running, client + 1, time)))
            .collect();
        let mut all = Vec::new();
        for asking in asking {
            match asking.join() {
                Ok(latencies) => all.extend(latencies?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(all)
    })
}

fn ask_on(running: &Running, mut random: u64, time: Duration) -> anyhow::Result<Vec<u32>> {
    let mut connection = Connection::open(running.protocol, running.port)?;
    let deadline = Instant::now() + time;
    let mut latencies = Vec::with_capacity(1 << 16);
    loop {
        // xorshift64
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = Instant::now();
        if before >= deadline {
            return Ok(latencies);
        }
        connection.ask(random)?;
        latencies.push(u32::try_from(before.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}
