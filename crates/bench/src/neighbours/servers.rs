//! The servers that are measured: what they need, how each is started, and its end.

use super::connection::{Connection, KEYS, Protocol};
use anyhow::{Context, bail, ensure};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a server may take to answer at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that can be started.
pub struct Server {
    /// For the table.
    pub name: &'static str,
    program: &'static str,
    package: &'static str,
    protocol: Protocol,
    command: fn(&Path, u16) -> anyhow::Result<Command>,
    prepare: fn(u16) -> anyhow::Result<()>,
}

/// All of them.
pub const ALL: [Server; 5] = [
    Server {
        name: "redis, 100 MB",
        program: "redis-server",
        package: "redis-server",
        protocol: Protocol::Redis,
        command: redis,
        prepare: fill_redis,
    },
    Server {
        name: "nginx, 2 workers",
        program: "nginx",
        package: "nginx-light",
        protocol: Protocol::Http,
        command: nginx,
        prepare: |_| Ok(()),
    },
    Server {
        name: "PostgreSQL, 8 backends",
        program: "postgres",
        package: "postgresql",
        protocol: Protocol::Postgres,
        command: postgres,
        prepare: fill_postgres,
    },
    Server {
        name: "JVM, 100 MB of objects",
        program: "javac",
        package: "openjdk-17-jdk-headless",
        protocol: Protocol::Http,
        command: java,
        prepare: |_| Ok(()),
    },
    Server {
        name: "node, 100 MB of objects",
        program: "node",
        package: "nodejs",
        protocol: Protocol::Http,
        command: node,
        prepare: |_| Ok(()),
    },
];

/// The packages of what is not installed, with blanks between them.
pub fn missing() -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    places.extend(postgres_programs());
    let is_there = |server: &&Server| {
        places
            .iter()
            .any(|place| place.join(server.program).exists())
    };
    let missing = ALL.iter().filter(|server| !is_there(server));
    let packages: Vec<&str> = missing.map(|server| server.package).collect();
    packages.join(" ")
}

impl Server {
    /// Starts it with its files in this directory, waits until it answers, and fills it.
    pub fn start(&self, directory: &Path) -> anyhow::Result<Running> {
        // Servers that give up root read them as another user.
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
        let port = free_port()?;
        let mut command = (self.command)(directory, port)?;
        let log = std::fs::File::create(directory.join("log"))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut running = Running {
            child,
            port,
            protocol: self.protocol,
        };
        running
            .wait_until_it_answers()
            .with_context(|| std::fs::read_to_string(directory.join("log")).unwrap_or_default())?;
        (self.prepare)(port)?;
        Ok(running)
    }
}

/// A server that runs. Dropped: asked to end, and waited for.
pub struct Running {
    child: Child,
    /// Where it listens, on loopback.
    pub port: u16,
    /// What it speaks.
    pub protocol: Protocol,
}

impl Running {
    /// Its first process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let is_up = match self.protocol {
                Protocol::Postgres => Connection::open(self.protocol, self.port).is_ok(),
                _ => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok(),
            };
            if is_up {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("it has ended: {status}");
            }
            ensure!(Instant::now() < deadline, "it does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed());
        if let Some(pid) = pid {
            // SIGINT: PostgreSQL ends its backends, the others themselves.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        }
        let _ = self.child.wait();
    }
}

fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

fn redis(directory: &Path, port: u16) -> anyhow::Result<Command> {
    let mut command = Command::new("redis-server");
    command
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
        .args(["--save", "", "--appendonly", "no"])
        .args(["--enable-debug-command", "yes"])
        .args(["--dir".as_ref(), directory.as_os_str()]);
    Ok(command)
}

fn fill_redis(port: u16) -> anyhow::Result<()> {
    let mut connection = Connection::open(Protocol::Redis, port)?;
    connection.command(&["DEBUG", "POPULATE", &KEYS.to_string(), "key", "1024"])
}

fn nginx(directory: &Path, port: u16) -> anyhow::Result<Command> {
    let place = directory.display();
    let settings = format!(
        "daemon off;\nworker_processes 2;\npid {place}/pid;\nerror_log {place}/errors;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; keepalive_requests 100000000; root {place};\n\
         client_body_temp_path {place}/t1; proxy_temp_path {place}/t2; fastcgi_temp_path {place}/t3;\n\
         uwsgi_temp_path {place}/t4; scgi_temp_path {place}/t5;\n\
         server {{ listen 127.0.0.1:{port}; location / {{ try_files /page =404; }} }} }}\n"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, settings)?;
    std::fs::write(directory.join("page"), [b'x'; 1024])?;
    let nginx = if Path::new("/usr/sbin/nginx").exists() {
        "/usr/sbin/nginx"
    } else {
        "nginx"
    };
    let mut command = Command::new(nginx);
    command.args(["-c".as_ref(), file.as_os_str()]);
    command.args(["-e".as_ref(), directory.join("errors").as_os_str()]);
    Ok(command)
}

/// The newest programs of PostgreSQL that are installed, which are on nobody's path.
fn postgres_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    programs.filter(|path| path.join("postgres").exists()).max()
}

/// PostgreSQL refuses to run as root.
fn as_postgres(program: &str) -> Command {
    let path = postgres_programs().unwrap_or_default().join(program);
    if !rustix::process::geteuid().is_root() {
        Command::new(path)
    } else {
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(path);
        command
    }
}

fn postgres(directory: &Path, port: u16) -> anyhow::Result<Command> {
    let data = directory.join("data");
    std::fs::create_dir(&data)?;
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o700))?;
    if rustix::process::geteuid().is_root() {
        let chown = Command::new("chown")
            .arg("postgres:postgres")
            .arg(&data)
            .status()?;
        ensure!(chown.success(), "chown: {chown}");
    }
    let made = as_postgres("initdb")
        .args(["--auth=trust", "--username=postgres", "--no-sync", "-D"])
        .arg(&data)
        .stdout(Stdio::null())
        .status()?;
    ensure!(made.success(), "initdb: {made}");
    let mut command = as_postgres("postgres");
    command.arg("-D").arg(&data);
    for setting in [
        format!("port={port}"),
        format!("unix_socket_directories={}", data.display()),
        "listen_addresses=127.0.0.1".to_owned(),
        "fsync=off".to_owned(),
        "shared_buffers=64MB".to_owned(),
    ] {
        command.args(["-c", &setting]);
    }
    Ok(command)
}

fn fill_postgres(port: u16) -> anyhow::Result<()> {
    let mut connection = Connection::open(Protocol::Postgres, port)?;
    connection
        .query("CREATE TABLE accounts (id int PRIMARY KEY, balance int) WITH (fillfactor = 50)")?;
    let last = KEYS - 1;
    connection.query(&format!(
        "INSERT INTO accounts SELECT id, 0 FROM generate_series(0, {last}) AS id"
    ))?;
    connection.query("VACUUM ANALYZE accounts")
}

fn java(directory: &Path, port: u16) -> anyhow::Result<Command> {
    let source = directory.join("Server.java");
    std::fs::write(&source, include_str!("Server.java"))?;
    let compiled = Command::new("javac")
        .arg("-d")
        .arg(directory)
        .arg(&source)
        .status()?;
    ensure!(compiled.success(), "javac: {compiled}");
    let mut command = Command::new("java");
    command.args(["-Xmx512m", "-cp"]).arg(directory);
    command.args(["Server", &port.to_string(), &KEYS.to_string()]);
    Ok(command)
}

fn node(directory: &Path, port: u16) -> anyhow::Result<Command> {
    let script = directory.join("server.js");
    std::fs::write(&script, include_str!("server.js"))?;
    let mut command = Command::new("node");
    command
        .arg(script)
        .args([port.to_string(), KEYS.to_string()]);
    Ok(command)
}
