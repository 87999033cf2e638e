//! Prevents that a server of several processes with shared buffers notices its checkpoints, that a
//! snapshot holds what one of them shares with the others more than once, or that a process of it is not
//! stored as it was.

use pagetide_tests::{
    Frozen, Image, Scratch, Target, TestStore, family, list, maps, number, pagetide, skipped, text,
};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Accounts: a hundred thousand for each of this number.
const SCALE: &str = "5";
const SNAPSHOTS: usize = 20;

/// The newest programs of the server that are installed.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    programs.filter(|path| path.join("postgres").exists()).max()
}

struct Server {
    postmaster: Target,
    programs: PathBuf,
    scratch: Scratch,
}

impl Server {
    /// A server of its own, which can be reached by a socket in its directory alone.
    fn start(test: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            skipped(test, "there is no PostgreSQL server");
            return None;
        };
        let scratch = Scratch::new();
        let directory = scratch.join("server");
        std::fs::create_dir(&directory).expect("make a directory");
        let all = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(scratch.path(), all).expect("let the server in");
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            let mut chown = Command::new("chown");
            let status = chown.arg("postgres:postgres").arg(&directory).status();
            assert!(status.expect("run chown").success());
        }
        let data = directory.join("data");
        let mut initdb = as_postgres(&programs.join("initdb"));
        initdb.args([
            "--data-checksums",
            "--auth=trust",
            "--no-sync",
            "--username=postgres",
            "-D",
        ]);
        done(initdb.arg(&data));
        let mut command = as_postgres(&programs.join("postgres"));
        command.arg("-D").arg(&data);
        let sockets = format!("unix_socket_directories={}", directory.display());
        for setting in [&sockets, "listen_addresses=", "shared_buffers=128MB"] {
            command.args(["-c", setting]);
        }
        let server = Self {
            postmaster: Target::spawn(&mut command),
            programs,
            scratch,
        };
        let since = Instant::now();
        while !server
            .client("pg_isready")
            .status()
            .expect("run pg_isready")
            .success()
        {
            assert!(
                since.elapsed() < Duration::from_secs(60),
                "it does not answer"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Some(server)
    }

    /// A program that talks to the server.
    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        let directory = self.scratch.join("server");
        command
            .env("PGHOST", directory)
            .env("PGUSER", "postgres")
            .env("PGDATABASE", "postgres");
        command
    }

    fn ask(&self, query: &str) -> String {
        let output = done(self.client("psql").args(["-At", "-c", query]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What a transfer of money leaves the same, and that nothing is missing.
    fn assert_consistent(&self) {
        assert_eq!(self.ask("select count(*) from pgbench_accounts"), "500000");
        let sum = |(what, table)| {
            self.ask(&format!(
                "select coalesce(sum({what}), 0) from pgbench_{table}"
            ))
        };
        let columns = [
            ("abalance", "accounts"),
            ("bbalance", "branches"),
            ("tbalance", "tellers"),
            ("delta", "history"),
        ];
        let all = columns.map(sum);
        assert!(all.iter().all(|sum| *sum == all[0]), "{all:?}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Those that were left stopped would not see that the first of them is gone.
        for pid in family(self.postmaster.pid()) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// A command that does not run as root.
fn as_postgres(program: &std::path::Path) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.args(["--pdeathsig=KILL"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}

#[track_caller]
fn done(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// Every process of the server as it stands still.
fn stopped(server: &Server) -> Vec<Frozen> {
    let all = family(server.postmaster.pid());
    all.into_iter().map(Frozen::found).collect()
}

/// How many pages of shared memory with content there are, each counted once, and once for each process
/// that maps it; and how many pages of private memory. By the kernel's word alone.
struct Pages {
    objects: BTreeSet<String>,
    once: u64,
    each: u64,
    private: u64,
}

fn count(processes: &[Frozen]) -> Pages {
    let mut most: BTreeMap<String, u64> = BTreeMap::new();
    let (mut each, mut private) = (0, 0);
    for frozen in processes {
        let image = Image::of_process(frozen);
        let mut shared = 0;
        for mapped in maps(frozen.pid())
            .iter()
            .filter(|mapped| mapped.permissions.ends_with('s'))
        {
            let pages = image.pages_within(mapped.start, mapped.end);
            shared += pages;
            let most = most.entry(mapped.object.clone()).or_default();
            *most = pages.max(*most);
        }
        each += shared;
        private += image.page_count() as u64 - shared;
    }
    Pages {
        once: most.values().sum(),
        objects: most.into_keys().collect(),
        each,
        private,
    }
}

fn spaces(store: &TestStore, kind: &str) -> usize {
    let answer = pagetide(["show", &store.text(), "--json"]).done().json();
    let spaces = list(&answer, "spaces").iter();
    spaces
        .filter(|space| text(space, "name").starts_with(kind))
        .count()
}

/// A new store for processes that are tracked for one already.
fn another_store(root: i32) -> TestStore {
    for pid in family(root) {
        pagetide(["detach", &pid.to_string()]).done();
    }
    TestStore::new()
}

#[test]
fn a_server_under_load() {
    let Some(mut server) = Server::start("a_server_under_load") else {
        return;
    };
    done(server.client("pgbench").args(["-i", "-q", "-s", SCALE]));
    let root = server.postmaster.pid();
    let store = TestStore::new();
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
                let mut pgbench = server.client("pgbench");
                let output = done(pgbench.args(["-n", "-c", "4", "-j", "2", "-T", "4"]));
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(said.contains("number of failed transactions: 0 "), "{said}");
                rounds += 1;
            }
            rounds
        });

        let number_of_snapshots = SNAPSHOTS.to_string();
        let words = ["--tree", "--every", "1s", "--count", &number_of_snapshots];
        let words = words.into_iter().chain(["--leave", "stopped"]);
        let outcome = store.try_checkpoint(root, &words.collect::<Vec<_>>());
        let lines = outcome.done().lines();
        let all = stopped(&server);
        assert_eq!(lines.len(), SNAPSHOTS);
        let last = &lines[SNAPSHOTS - 1];
        assert_eq!(number(last, "processes"), all.len() as u64, "{last}");
        store.assert_equals_all(number(last, "id"), &all, "a delta under load");
        assert_lines(&lines);

        // And all of it at once.
        let whole = another_store(root);
        let report = whole.checkpoint(root, &["--tree", "--leave", "stopped"]);
        let truth = count(&all);
        whole.assert_equals_all(1, &all, "a full snapshot");
        assert_eq!(
            spaces(&whole, "shm:"),
            truth.objects.len(),
            "{:?}",
            truth.objects
        );
        assert_eq!(spaces(&whole, "mem:"), all.len());
        let stored = number(&report, "stored_pages");
        let Pages {
            once,
            each,
            private,
            ..
        } = truth;
        println!(
            "{} processes, {once} shared pages, {each} by mapping, {private} private; {stored} stored",
            all.len()
        );
        assert!(
            each > 3 * once,
            "they share little: {once} pages, {each} by mapping"
        );
        assert!(
            once > 2000 && stored <= once + private && stored < each / 2,
            "{stored} stored of {once} and {private}"
        );
        drop(all);

        // They run on as if nothing had been.
        assert_eq!(server.ask("select 6 * 7"), "42");
        enough.store(true, Ordering::Relaxed);
        let rounds: u64 = load.join().expect("no client error");
        assert!(rounds > 0, "no load");
    });
    store.assert_sound();
    server.assert_consistent();

    let data = server.scratch.join("server").join("data");
    let stop = ["stop", "-m", "fast", "-t", "100", "-D"];
    let mut pg_ctl = as_postgres(&server.programs.join("pg_ctl"));
    let stopping = std::thread::spawn(move || done(pg_ctl.args(stop).arg(data)));
    assert!(server.postmaster.wait().success());
    stopping.join().expect("a clean end");
    let data = server.scratch.join("server").join("data");
    done(
        as_postgres(&server.programs.join("pg_checksums"))
            .arg("--check")
            .arg(data),
    );
}

fn assert_lines(lines: &[Value]) {
    for (number_so_far, line) in lines.iter().enumerate() {
        let kind = if number_so_far == 0 { "full" } else { "delta" };
        assert_eq!(text(line, "kind"), kind, "{line}");
        assert!(number(line, "processes") > 5, "{line}");
        assert!(list(line, "not_tracked").is_empty(), "{line}");
    }
    let stops: Vec<u64> = lines.iter().map(|line| number(line, "stop_us")).collect();
    println!("stopped for, in microseconds: {stops:?}");
}
