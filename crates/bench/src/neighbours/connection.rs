//! A connection to a server, in the protocol that it speaks.

use anyhow::{Context, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// What a server speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// That of redis.
    Redis,
    /// HTTP/1.1, with connections that are kept.
    Http,
    /// Version 3 of PostgreSQL's.
    Postgres,
}

/// So many keys, rows or paths are asked for.
pub const KEYS: u64 = 100_000;

/// Longer than any stop; reached only by a server that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open connection.
pub struct Connection {
    protocol: Protocol,
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects, and says who we are where that is asked.
    pub fn open(protocol: Protocol, port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self {
            protocol,
            stream: BufReader::new(stream),
        };
        if protocol == Protocol::Postgres {
            let body = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
            let length = u32::try_from(body.len() + 4)?.to_be_bytes();
            connection.send(&[&length[..], body].concat())?;
            connection.until_ready()?;
        }
        Ok(connection)
    }

    fn send(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// One request about something that `random` chooses: one in four changes it, where the protocol can.
    pub fn ask(&mut self, random: u64) -> anyhow::Result<()> {
        let (key, changes) = (random % KEYS, random >> 32 & 3 == 0);
        match self.protocol {
            Protocol::Redis if changes => {
                let value = format!("{random:016x}").repeat(64);
                self.command(&["SET", &format!("key:{key}"), &value])
            }
            Protocol::Redis => self.command(&["GET", &format!("key:{key}")]),
            Protocol::Http => self.fetch(key),
            Protocol::Postgres if changes => self.query(&format!(
                "UPDATE accounts SET balance = balance + 1 WHERE id = {key}"
            )),
            Protocol::Postgres => {
                self.query(&format!("SELECT balance FROM accounts WHERE id = {key}"))
            }
        }
    }

    /// A command of redis, and its answer of one line, or of one string.
    pub fn command(&mut self, words: &[&str]) -> anyhow::Result<()> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.send(request.as_bytes())?;
        let line = self.line()?;
        match line.split_at_checked(1) {
            Some(("$", length)) if length != "-1" => self.skip(length.parse::<u64>()? + 2),
            Some(("-", error)) => bail!("redis says {error}"),
            _ => Ok(()),
        }
    }

    fn fetch(&mut self, key: u64) -> anyhow::Result<()> {
        self.send(format!("GET /{key} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let status = self.line()?;
        ensure!(status.starts_with("HTTP/1.1 200"), "it says {status}");
        let mut length = None;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').context("a header has a colon")?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.trim().parse()?);
            }
        }
        self.skip(length.context("the answer has no length")?)
    }

    /// A query of PostgreSQL, and all of its answer.
    pub fn query(&mut self, text: &str) -> anyhow::Result<()> {
        let length = u32::try_from(text.len() + 5)?.to_be_bytes();
        self.send(&[b"Q", &length[..], text.as_bytes(), b"\0"].concat())?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> anyhow::Result<()> {
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let body = u32::from_be_bytes(length).checked_sub(4);
            self.skip(body.context("a message has a length")?.into())?;
            ensure!(kind != b'E', "PostgreSQL refuses it");
            if kind == b'Z' {
                return Ok(());
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        ensure!(
            self.stream.read_line(&mut line)? > 0,
            "the server has closed the connection"
        );
        Ok(line.trim_end().to_owned())
    }

    fn skip(&mut self, bytes: u64) -> anyhow::Result<()> {
        let skipped = std::io::copy(&mut self.stream.by_ref().take(bytes), &mut std::io::sink())?;
        ensure!(skipped == bytes, "the server has closed the connection");
        Ok(())
    }
}
