//! Clients of servers that are restored: one that asks once, and one that asks all the time and comes back whenever
//! its connection is gone.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// So long a server may stay silent.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_millis(5);

/// A port of the loopback interface that nobody listened to just now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// One connection.
pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// Connects to a port of the loopback interface.
    pub fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    /// Sends this, and reads until the answer ends with `end`.
    pub fn ask(&mut self, request: &str, end: &str) -> Result<String> {
        self.stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(end.as_bytes()) {
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes)? {
                0 => return Err(Error::from(ErrorKind::UnexpectedEof)),
                length => answer.extend_from_slice(&bytes[..length]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Connects, asks once, and is gone. A server that is not there yet is waited for.
#[track_caller]
pub fn ask_once(port: u16, request: &str, end: &str) -> String {
    let mut tries = 0;
    loop {
        let answer = Client::connect(port).and_then(|mut client| client.ask(request, end));
        match answer {
            Ok(answer) => return answer,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused && tries < 1000 => {
                tries += 1;
                std::thread::sleep(PAUSE);
            }
            Err(error) => panic!("port {port}, {request:?}: {error}"),
        }
    }
}

/// Clients that ask all the time, until this is dropped.
pub struct Load {
    enough: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// So many clients, each with one connection, who all send `request` and expect an answer that ends with `end`.
    pub fn start(clients: usize, port: u16, request: &'static str, end: &'static str) -> Self {
        let mut load = Self {
            enough: Arc::default(),
            answers: Arc::default(),
            connections: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..clients {
            let (enough, answers) = (Arc::clone(&load.enough), Arc::clone(&load.answers));
            let connections = Arc::clone(&load.connections);
            load.threads.push(std::thread::spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    // Whatever happens to a connection while its server is away, another one must work.
                    if let Ok(mut client) = Client::connect(port) {
                        connections.fetch_add(1, Ordering::Relaxed);
                        while client.ask(request, end).is_ok() && !enough.load(Ordering::Relaxed) {
                            answers.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    std::thread::sleep(PAUSE);
                }
            }));
        }
        load
    }

    /// The number of answers, and of connections.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.answers.load(Ordering::Relaxed),
            self.connections.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.enough.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
