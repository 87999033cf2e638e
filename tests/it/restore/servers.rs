//! Prevents that a server is not what it was at the instant of its snapshot, that it cannot be reached again, or that its
//! clients are left hanging.

use pagetide_tests::{
    Client, Load, Program, Scratch, Subject, ask_once, cycle, free_port, skipped,
};
use std::process::{Command, Stdio};

const SCHEDULE: [&str; 4] = ["--every", "60ms", "--count", "3"];
/// Connections of clients do not survive, and that is what the user asks for.
const RESET: [&str; 2] = ["--tcp", "reset"];

/// How a server is talked to.
struct Words {
    /// Keeps a number under a name, and the answer.
    set: fn(&str, u32) -> (String, &'static str),
    /// Asks for a number, and the answer if it is this one.
    get: fn(&str, u32) -> (String, String),
    /// What many clients ask all the time, and the answer.
    load: (&'static str, &'static str),
}

struct Server {
    port: u16,
    words: Words,
    load: Option<Load>,
}

const NAMES: u32 = 500;

impl Server {
    fn new(port: u16, words: Words) -> Self {
        let server = Self {
            port,
            words,
            load: None,
        };
        ask_once(port, server.words.load.0, server.words.load.1);
        let mut client = Client::connect(port).expect("connect");
        for number in 0..NAMES {
            let (request, answer) = (server.words.set)(&format!("name{number}"), number * 7);
            assert_eq!(client.ask(&request, answer).expect("keep a number"), answer);
        }
        drop(client);
        let load = Load::start(3, port, server.words.load.0, server.words.load.1);
        Self {
            load: Some(load),
            ..server
        }
    }

    fn set(&self, name: &str, number: u32) {
        let (request, answer) = (self.words.set)(name, number);
        assert_eq!(ask_once(self.port, &request, answer), answer, "{request}");
    }

    #[track_caller]
    fn assert_is(&self, name: &str, number: u32) {
        let (request, answer) = (self.words.get)(name, number);
        let end = answer.rsplit_once("\r\n").map_or("\n", |_| "\r\n");
        // Of several lines the last one must come, too.
        let end = if answer.ends_with("END\r\n") {
            "END\r\n"
        } else {
            end
        };
        let mut said = ask_once(self.port, &request, end);
        if said.len() < answer.len() && answer.starts_with('$') {
            said = ask_once(self.port, &request, &answer);
        }
        assert_eq!(said, answer, "{request}");
    }
}

impl Program for Server {
    fn goes_on(&mut self, subject: &Subject) {
        let load = self.load.as_ref().expect("it is under load");
        let (answers, _) = load.counts();
        subject.wait_until("answers", || load.counts().0 > answers + 100);
        for number in (0..NAMES).step_by(37) {
            self.assert_is(&format!("name{number}"), number * 7);
        }
    }

    fn mark(&mut self, _subject: &Subject, mark: u32) {
        self.set("mark", mark);
    }

    fn killed(&mut self, _subject: &Subject, _id: u64) {
        assert!(Client::connect(self.port).is_err(), "somebody else listens");
    }

    fn restored(&mut self, _subject: &Subject, _id: u64, mark: u32) {
        self.assert_is("mark", mark);
    }
}

fn is_there(program: &str, test: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if found.is_err() {
        skipped(test, &format!("there is no {program}"));
    }
    found.is_ok()
}

fn goes_through_it(subject: Subject, port: u16, words: Words) {
    let mut subject = subject.restore_with(&RESET);
    let mut server = Server::new(port, words);
    cycle(&mut subject, &mut server, &SCHEDULE);
    let (_, connections) = server.load.as_ref().map(Load::counts).expect("its load");
    // Three clients, each of which has lost its server at least four times.
    assert!(connections >= 12, "{connections} connections");
}

#[test]
fn redis() {
    if !is_there("redis-server", "redis") {
        return;
    }
    let port = free_port();
    let scratch = Scratch::new();
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
    ]);
    command.arg(scratch.path());
    let subject = Subject::start(&command, scratch);
    let words = Words {
        set: |name, number| (format!("SET {name} {number}\r\n"), "+OK\r\n"),
        get: |name, number| {
            let length = number.to_string().len();
            (
                format!("GET {name}\r\n"),
                format!("${length}\r\n{number}\r\n"),
            )
        },
        load: ("PING\r\n", "+PONG\r\n"),
    };
    goes_through_it(subject, port, words);
}

#[test]
fn memcached() {
    if !is_there("memcached", "memcached") {
        return;
    }
    let port = free_port();
    let mut command = Command::new("memcached");
    command.args([
        "-u",
        "root",
        "-l",
        "127.0.0.1",
        "-U",
        "0",
        "-t",
        "2",
        "-m",
        "16",
        "-p",
        &port.to_string(),
    ]);
    let subject = Subject::start(&command, Scratch::new());
    let words = Words {
        set: |name, number| {
            let length = number.to_string().len();
            (
                format!("set {name} 0 0 {length}\r\n{number}\r\n"),
                "STORED\r\n",
            )
        },
        get: |name, number| {
            let length = number.to_string().len();
            (
                format!("get {name}\r\n"),
                format!("VALUE {name} 0 {length}\r\n{number}\r\nEND\r\n"),
            )
        },
        load: ("mn\r\n", "MN\r\n"),
    };
    goes_through_it(subject, port, words);
}

#[test]
fn tokio() {
    let command = Command::new(env!("CARGO_BIN_EXE_tokio_server"));
    let subject = Subject::start(&command, Scratch::new());
    subject.wait_until("its port", || subject.output().ends_with('\n'));
    let port = subject
        .output()
        .trim()
        .strip_prefix("ready ")
        .and_then(|port| port.parse().ok());
    let port = port.expect("a port");
    let words = Words {
        set: |name, number| (format!("set {name} {number}\n"), "done\n"),
        get: |name, number| (format!("get {name}\n"), format!("{number}\n")),
        load: ("work 20000\nlater 1\n", "200010000\nlater\n"),
    };
    goes_through_it(subject, port, words);
}

/// It serves one directory, in a thread for each client.
#[test]
fn a_python_web_server() {
    struct Web {
        port: u16,
        load: Load,
    }
    impl Program for Web {
        fn goes_on(&mut self, subject: &Subject) {
            let (answers, _) = self.load.counts();
            subject.wait_until("answers", || self.load.counts().0 > answers + 10);
            let page = ask_once(self.port, "GET /page HTTP/1.0\r\n\r\n", "the end\n");
            assert!(
                page.starts_with("HTTP/1.0 200 OK\r\nServer: SimpleHTTP"),
                "{page}"
            );
            assert!(page.contains("Content-Length: 8\r\n"), "{page}");
        }
        fn mark(&mut self, _subject: &Subject, _mark: u32) {}
        fn restored(&mut self, _subject: &Subject, _id: u64, _mark: u32) {}
    }
    if !is_there("/usr/bin/python3", "a_python_web_server") {
        return;
    }
    let port = free_port();
    let scratch = Scratch::new();
    std::fs::write(scratch.join("page"), "the end\n").expect("make a page");
    let mut command = Command::new("/usr/bin/python3");
    command.args([
        "-m",
        "http.server",
        "--bind",
        "127.0.0.1",
        &port.to_string(),
    ]);
    let mut subject = Subject::start(&command, scratch).restore_with(&RESET);
    ask_once(port, "GET /page HTTP/1.0\r\n\r\n", "the end\n");
    let load = Load::start(2, port, "GET /page HTTP/1.0\r\n\r\n", "the end\n");
    cycle(&mut subject, &mut Web { port, load }, &SCHEDULE);
}
