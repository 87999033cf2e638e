//! Prevents that the processes of a database server, their shared buffers, locks and files are not of one instant after a
//! restore: then its sums do not match, its checksums are wrong, or its own recovery fails.

use pagetide_tests::{Scratch, Subject, free_port, number, skipped, text};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    programs.filter(|path| path.join("postgres").exists()).max()
}

struct Server {
    programs: PathBuf,
    data: PathBuf,
    port: String,
}

impl Server {
    /// A command that does not run as root, which the server refuses.
    fn as_postgres(&self, program: &str) -> Command {
        let program = self.programs.join(program);
        let mut command = if rustix::process::geteuid().is_root() {
            let mut command = Command::new("setpriv");
            command
                .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir("/");
        command
    }

    fn server(&self) -> Command {
        let mut command = self.as_postgres("postgres");
        command.arg("-D").arg(&self.data).args(["-p", &self.port]);
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "shared_buffers=16MB",
        ] {
            command.args(["-c", setting]);
        }
        command
    }

    fn client(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.args(["-h", "127.0.0.1", "-p", &self.port, "-U", "postgres"]);
        command
    }

    fn ask(&self, query: &str) -> Option<String> {
        let output = self
            .client("psql")
            .args(["-At", "-c", query, "postgres"])
            .output();
        let output = output.expect("run psql");
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Whatever was committed is there, and nothing of what was not.
    #[track_caller]
    fn assert_consistent(&self) {
        let sums = self.ask(
            "select (select count(*) from pgbench_accounts), (select sum(abalance) from pgbench_accounts), \
             (select sum(bbalance) from pgbench_branches), (select sum(tbalance) from pgbench_tellers), \
             (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let sums = sums.expect("an answer");
        let numbers: Vec<&str> = sums.split('|').collect();
        assert_eq!(numbers[0], "100000", "{sums}");
        assert!(numbers[1..].iter().all(|sum| *sum == numbers[1]), "{sums}");
    }
}

#[track_caller]
fn done(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

/// The files as they were: what was changed is written, and what came later removed. What is open must stay the same file.
fn put_back(from: &Path, to: &Path) {
    done(Command::new("cp").arg("-rp").arg(from.join(".")).arg(to));
    let list = |directory: &Path| {
        let output = done(Command::new("find").arg(".").current_dir(directory));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let known = list(from);
    for name in list(to).iter().filter(|name| !known.contains(name)) {
        let _ = std::fs::remove_file(to.join(name));
    }
}

#[test]
fn a_server_under_pgbench() {
    let Some(programs) = programs() else {
        return skipped("a_server_under_pgbench", "there is no PostgreSQL server");
    };
    let scratch = Scratch::new();
    let all = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scratch.path(), all).expect("let the server in");
    let server = Server {
        programs,
        data: scratch.join("data"),
        port: free_port().to_string(),
    };
    let words = [
        "--data-checksums",
        "--auth=trust",
        "--no-sync",
        "--username=postgres",
        "-D",
    ];
    done(server.as_postgres("initdb").args(words).arg(&server.data));
    let subject = Subject::start(&server.server(), scratch);
    let mut subject = subject
        .checkpoint_with(&["--tree"])
        .restore_with(&["--tcp", "reset"]);
    let answers = |subject: &Subject| {
        subject.wait_until("an answer", || server.ask("select 1").is_some());
    };
    answers(&subject);
    done(
        server
            .client("pgbench")
            .args(["-i", "-q", "-s", "1", "postgres"]),
    );

    let (enough, transactions) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Whoever waits for this thread has told it to end, also when an assertion fails.
        struct Tell<'a>(&'a AtomicBool);
        impl Drop for Tell<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _tell = Tell(&enough);
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                // It fails while the server is away.
                let mut pgbench = server.client("pgbench");
                let output = pgbench
                    .args(["-n", "-c", "2", "-t", "30", "postgres"])
                    .output();
                if output.expect("run pgbench").status.success() {
                    transactions.fetch_add(60, Ordering::Relaxed);
                }
            }
        });
        let goes_on = |subject: &Subject| {
            answers(subject);
            let before = transactions.load(Ordering::Relaxed);
            subject.wait_until("transactions", || {
                transactions.load(Ordering::Relaxed) > before
            });
            server.assert_consistent();
        };
        let mut snapshots: Vec<(u64, PathBuf)> = Vec::new();
        for round in 0..2 {
            goes_on(&subject);
            let (report, truth) = subject.stop_and_read();
            let id = number(&report, "id");
            if round > 0 {
                assert_eq!(text(&report, "kind"), "delta", "{report}");
            }
            let files = subject.path(&format!("files {id}"));
            done(Command::new("cp").arg("-a").arg(&server.data).arg(&files));
            subject.kill();
            subject.restore_and_compare(id, &truth);
            snapshots.push((id, files));
        }
        goes_on(&subject);
        // The older one, with the files of that instant.
        subject.kill();
        let (id, files) = &snapshots[0];
        put_back(files, &server.data);
        subject.restore(&["--at", &id.to_string()]);
        goes_on(&subject);
    });
    subject.kill();

    // Killed in mid-work after all that, it recovers by itself.
    let again = Subject::start(&server.server(), Scratch::new());
    again.wait_until("an answer", || server.ask("select 1").is_some());
    server.assert_consistent();
    drop(again);
    let _ = std::fs::remove_file(server.data.join("postmaster.pid"));
    subject.store().assert_sound();
}
