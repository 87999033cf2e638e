//! Prevents that a server under load notices its checkpoints, that deltas grow with its memory instead
//! of with what it writes, or that a snapshot under load is not what it held.

use pagetide_tests::{
    Scratch, Target, TestStore, anonymous_kib, background, children, list, number, pagetide,
    skipped, text,
};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

struct Redis {
    target: Target,
    port: String,
    _directory: Scratch,
}

impl Redis {
    /// A server on a free port of the loopback interface, or nothing if there is none installed.
    fn start(test: &str) -> Option<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener
            .local_addr()
            .expect("its address")
            .port()
            .to_string();
        drop(listener);
        if Command::new("redis-server")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            skipped(test, "there is no redis-server");
            return None;
        }
        let directory = Scratch::new();
        let mut command = Command::new("redis-server");
        command.args([
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]);
        command
            .args(["--enable-debug-command", "yes", "--dir"])
            .arg(directory.path());
        let mut target = Target::spawn(&mut command);
        while !target.line().contains("Ready to accept connections") {}
        Some(Self {
            target,
            port,
            _directory: directory,
        })
    }

    fn ask(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        let output = command
            .args(["-p", &self.port])
            .args(words)
            .output()
            .expect("run redis-cli");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn fifty_snapshots_under_load() {
    let Some(redis) = Redis::start("fifty_snapshots_under_load") else {
        return;
    };
    assert_eq!(
        redis.ask(&["debug", "populate", "120000", "key", "1000"]),
        "OK"
    );
    let info = redis.ask(&["info", "memory"]);
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used
        .and_then(|text| text.trim().parse().ok())
        .expect("used_memory");
    assert!(used > 100 << 20, "{used} bytes are too few");

    let store = TestStore::new();
    let words = ["--every", "200ms", "--count", "50"];
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Whoever waits for this thread has told it to end, also when an assertion fails.
        struct Tell<'a>(&'a AtomicBool);
        impl Drop for Tell<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _tell = Tell(&enough);
        let load = scope.spawn(|| {
            let mut rounds = 0;
            while !enough.load(Ordering::Relaxed) {
                let mut command = Command::new("redis-benchmark");
                command.args(["-h", "127.0.0.1", "-p", &redis.port, "-t", "set,get", "-q"]);
                command.args(["-n", "4000", "-r", "100000", "-d", "300", "-c", "8"]);
                let output = command.output().expect("run redis-benchmark");
                let said = format!("{output:?}");
                assert!(output.status.success(), "{said}");
                assert!(!said.to_lowercase().contains("error"), "{said}");
                rounds += 1;
            }
            rounds
        });
        let mut checkpoints = background(store.checkpoint_words(redis.target.pid(), &words));
        let first = checkpoints.next_line().expect("a first snapshot");
        let whole = number(&first, "stored_pages");
        assert!(whole * 4096 > used / 2, "{first}");
        let mut compared = Vec::new();
        for stop in 0..3 {
            let frozen = redis.target.freeze();
            let id = store.taken_from_now_on(&mut checkpoints);
            let truth = checkpoints.image_of(&frozen);
            // Between this and the next nothing ran, so nothing was written.
            let idle = checkpoints.next_line().expect("another snapshot");
            assert_eq!(number(&idle, "stored_pages"), 0, "{idle}");
            frozen.assert_still_stopped();
            drop(frozen);
            store.assert_equals(id, &truth, &format!("stop {stop}"));
            compared.push((id, truth.digest()));
        }
        let mut most = 0;
        while let Some(line) = checkpoints.next_line() {
            assert_eq!(text(&line, "kind"), "delta", "{line}");
            assert!(list(&line, "not_tracked").is_empty(), "{line}");
            most = most.max(number(&line, "stored_pages"));
        }
        checkpoints.wait().done();
        enough.store(true, Ordering::Relaxed);
        let rounds: u64 = load.join().expect("no client error");
        let log = store.log();
        assert_eq!(log.len(), 50);
        assert_eq!(
            log.iter()
                .filter(|line| text(line, "kind") == "full")
                .count(),
            1
        );
        println!(
            "redis: {whole} pages in the full snapshot, {most} in the largest delta, {rounds} rounds of load"
        );
        assert!(rounds > 0 && most > 0, "no load");
        assert!(
            most < whole / 2,
            "a delta of {most} pages, and all are {whole}"
        );
        for (id, digest) in compared {
            assert_eq!(
                store.image(id).digest(),
                digest,
                "snapshot {id} has changed"
            );
        }
    });
    store.assert_sound();
    assert_eq!(redis.ask(&["ping"]), "PONG");
}

#[test]
fn a_key_goes_back() {
    let Some(redis) = Redis::start("a_key_goes_back") else {
        return;
    };
    let store = TestStore::new();
    assert_eq!(redis.ask(&["set", "tide", "low"]), "OK");
    let id = number(&store.checkpoint(redis.target.pid(), &[]), "id").to_string();
    assert_eq!(redis.ask(&["set", "tide", "high"]), "OK");
    assert_eq!(redis.ask(&["get", "tide"]), "high");
    let pid = redis.target.pid_text();
    pagetide(["rollback", &pid, &store.text(), "--at", &id]).done();
    assert_eq!(redis.ask(&["get", "tide"]), "low");
}

/// While it saves, a child shares its memory.
#[test]
fn t36_a_checkpoint_during_bgsave_leaves_shared_what_the_child_shares() {
    let Some(redis) =
        Redis::start("t36_a_checkpoint_during_bgsave_leaves_shared_what_the_child_shares")
    else {
        return;
    };
    assert_eq!(
        redis.ask(&["debug", "populate", "50000", "key", "1000"]),
        "OK"
    );
    // A millisecond a key: it saves as long as the test lasts.
    assert_eq!(
        redis.ask(&["config", "set", "rdb-key-save-delay", "1000"]),
        "OK"
    );
    assert_eq!(redis.ask(&["bgsave"]), "Background saving started");
    let pid = redis.target.pid();
    let child = loop {
        match children(pid)[..] {
            [child] => break child,
            _ => std::thread::yield_now(),
        }
    };
    // It is killed whatever happens: nobody else would.
    struct Killed(i32);
    impl Drop for Killed {
        fn drop(&mut self) {
            let pid = rustix::process::Pid::from_raw(self.0).expect("a process id");
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let child = Killed(child);
    let both = || anonymous_kib(&[pid, child.0]);
    let before = both();
    assert!(before > 50_000, "{before} KiB");
    // Comparing leaves nothing behind in it.
    for more in [&["--backend", "rehash"][..], &[]] {
        let store = TestStore::new();
        store.checkpoint(pid, more);
        let after = both();
        assert!(
            after * 100 <= before * 102,
            "{more:?}: {before} KiB became {after}"
        );
    }
    assert_eq!(children(pid), [child.0], "it has saved all, and is gone");
}
