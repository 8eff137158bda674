//! Supervisor, agent and proxy as real processes on loopback, killed, upgraded and stopped
//! while requests run (H43, H56 to H58, I72, I73). `--l4 off` needs no privilege; what only
//! root can show is looked at when root runs the tests, as `cargo xtask test netns` does.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// What is found in a process's environment if it leaks.
const SECRET: &str = "hush-hush-token";

/// A folder with the state and the program that is upgraded.
struct Place {
    dir: tempfile::TempDir,
    http: u16,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("manifests")).unwrap();
        let backend = backend();
        fs::write(dir.path().join("manifests/web.yaml"), manifests(backend)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_weir"), dir.path().join("weir")).unwrap();
        Self { dir, http: free_port() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// Answers every request with its name, a moment later under `/slow`.
fn backend() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    port
}

fn answer(mut stream: TcpStream) -> Option<()> {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
            let slow = seen.starts_with(b"GET /slow");
            seen.drain(..end + 4);
            if slow {
                std::thread::sleep(Duration::from_millis(1500));
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nbackend").ok()?;
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        seen.extend_from_slice(&buffer[..read]);
    }
}

fn manifests(backend: u16) -> String {
    format!(
        "
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{ports: [{{port: 80, targetPort: {backend}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{port: {backend}}}]
endpoints: [{{addresses: [127.0.0.1], conditions: {{ready: true}}}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: web}}
spec:
  rules:
  - http:
      paths:
      - {{path: /, pathType: Prefix, backend: {{service: {{name: web, port: {{number: 80}}}}}}}}
"
    )
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A running `weir run`. Dropping it kills all of its processes.
struct Weir {
    child: Child,
    log: PathBuf,
    socket: PathBuf,
    metrics: u16,
}

impl Weir {
    fn start(place: &Place, name: &str) -> Self {
        Self::start_with(place, name, &["--access-log=off"])
    }

    fn start_with(place: &Place, name: &str, more: &[&str]) -> Self {
        let program = place.path("weir");
        let mut command = match std::env::var_os("WEIR_BOUNDING_SET") {
            None => Command::new(program),
            Some(set) => {
                let mut command = Command::new("setpriv");
                command.arg("--bounding-set").arg(set).arg(program);
                command
            }
        };
        let metrics = free_port();
        let (log, socket) = (place.path(&format!("{name}.log")), place.path(&format!("{name}.sock")));
        command
            .args(["run", "--l4=off", "--node-name=here", "--log-level=debug"])
            .args(["--proxy-workers=2", "--drain-delay=0s", "--drain-timeout=5s"])
            .args(["--allow-endpoint-cidr=127.0.0.0/8", "--healthz-listen=127.0.0.1:0"])
            .arg(format!("--metrics-listen=127.0.0.1:{metrics}"))
            .arg(format!("--manifests={}", place.path("manifests").display()))
            .arg(format!("--state-dir={}", place.path("state").display()))
            .arg(format!("--admin-socket={}", socket.display()))
            .arg(format!("--http-listen=127.0.0.1:{}", place.http))
            .arg("--https-listen=127.0.0.1:0")
            .args(more)
            .env("KUBECONFIG", SECRET)
            .env("SOME_TOKEN", SECRET)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .process_group(0);
        // A process that another test starts at this moment may hold the copy open for writing.
        let child = loop {
            match command.spawn() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {
                    std::thread::sleep(Duration::from_millis(10));
                }
                child => break child.unwrap(),
            }
        };
        Self { child, log, socket, metrics }
    }

    /// A weir that serves.
    fn serving(place: &Place, name: &str) -> Self {
        let weir = Self::start(place, name);
        weir.until("it serves", || request(place.http, "/").is_ok());
        weir
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: not in time; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its processes of that role.
    fn of(&self, role: &str) -> Vec<u32> {
        processes()
            .into_iter()
            .filter(|(_, it)| it.parent == self.pid() && it.is(role))
            .map(|it| it.0)
            .collect()
    }

    /// The process of that role, once there is one that is not `other`.
    fn one(&self, role: &str, other: Option<u32>) -> u32 {
        self.until("the process is there", || self.of(role).iter().any(|pid| Some(*pid) != other));
        *self.of(role).iter().find(|pid| Some(**pid) != other).unwrap()
    }

    fn status(&self) -> serde_json::Value {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(weir::cli::get(&self.socket, "/v1/status", &[])).unwrap_or_default()
    }

    fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end; the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), self.log());
        }
        // The group outlives its leader.
        let group = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        let _gone = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _gone = self.child.wait();
    }
}

struct Process {
    parent: u32,
    words: Vec<String>,
}

impl Process {
    fn is(&self, role: &str) -> bool {
        self.words.iter().any(|word| word.strip_prefix("--role=") == Some(role))
    }
}

fn processes() -> BTreeMap<u32, Process> {
    let pids =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid: u32| Some((pid, process(pid)?))).collect()
}

/// `None` for one that is gone, dead ones included.
fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let words = words.split('\0').map(String::from).collect();
    (!["Z", "X"].contains(&state)).then_some(Process { parent, words })
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

const KILL: rustix::process::Signal = rustix::process::Signal::KILL;
const TERM: rustix::process::Signal = rustix::process::Signal::TERM;
const USR2: rustix::process::Signal = rustix::process::Signal::USR2;

/// One request on a connection of its own.
fn request(port: u16, path: &str) -> Result<(), String> {
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
        .map_err(|error| format!("connect: {error}"))?;
    ask(&mut stream, path).map_err(|error| format!("request: {error}"))
}

fn ask(stream: &mut TcpStream, path: &str) -> Result<(), String> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).map_err(|error| error.to_string())?;
    finish(stream)
}

/// Reads the answer to its end.
fn finish(stream: &mut TcpStream) -> Result<(), String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.to_string())?;
    if answer.starts_with("HTTP/1.1 200") && answer.ends_with("backend") { Ok(()) } else { Err(answer) }
}

/// Requests one after the other on each of some threads.
struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Clone, Default, Debug)]
struct Seen {
    served: u64,
    failed: Vec<String>,
    last_served: Option<Instant>,
    longest_gap: Duration,
}

impl Load {
    const THREADS: usize = 6;

    fn start(port: u16) -> Self {
        let (stop, seen) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Seen>>::default());
        let threads = (0..Self::THREADS).map(|_| {
            let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let result = request(port, "/");
                    let mut seen = seen.lock().unwrap();
                    let now = Instant::now();
                    match result {
                        Ok(()) => {
                            seen.served += 1;
                            if let Some(last) = seen.last_served.replace(now) {
                                seen.longest_gap = seen.longest_gap.max(now - last);
                            }
                        }
                        Err(error) => seen.failed.push(error),
                    }
                    drop(seen);
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        });
        Self { threads: threads.collect(), stop, seen }
    }

    fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for so many more answers.
    fn more(&self, weir: &Weir, answers: u64) {
        let before = self.seen().served;
        weir.until("requests are served", || self.seen().served >= before + answers);
    }

    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        self.seen.lock().unwrap().clone()
    }
}

fn none(failed: &[String]) -> bool {
    failed.is_empty()
}

#[test]
fn a_killed_proxy_refuses_nobody_and_requests_are_served_within_a_second() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    let load = Load::start(place.http);
    load.more(&weir, 100);
    for _ in 0..3 {
        let proxy = weir.one("proxy", None);
        signal(proxy, KILL);
        weir.one("proxy", Some(proxy));
        load.more(&weir, 100);
    }
    let seen = load.stop();
    assert!(seen.failed.iter().all(|error| !error.starts_with("connect")), "refused: {seen:?}");
    // What was in flight went with the process.
    assert!(seen.failed.len() <= 3 * Load::THREADS, "{seen:?}");
    assert!(seen.longest_gap <= Duration::from_secs(1), "{seen:?}");
}

#[test]
fn a_killed_agent_costs_no_request() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    let load = Load::start(place.http);
    let mut agent = weir.one("agent", None);
    for _ in 0..4 {
        load.more(&weir, 50);
        signal(agent, KILL);
        agent = weir.one("agent", Some(agent));
    }
    load.more(&weir, 100);
    let seen = load.stop();
    assert!(none(&seen.failed), "{seen:?}");
    // The new agent is listened to.
    weir.until("the new agent's table is taken", || {
        let text = weir.log();
        text.matches("table updated").count() >= 2
    });
    weir.until("the new agent knows of the listeners", || {
        weir.status()["listeners"].to_string().contains("--http-listen")
    });
}

#[test]
fn an_upgrade_loses_no_connection_and_lets_old_ones_end() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    let load = Load::start(place.http);
    let old = weir.one("proxy", None);
    // The program on disk is another file now.
    fs::copy(env!("CARGO_BIN_EXE_weir"), place.path("fresh")).unwrap();
    fs::rename(place.path("fresh"), place.path("weir")).unwrap();
    let long = std::thread::spawn({
        let port = place.http;
        move || request(port, "/slow")
    });
    load.more(&weir, 50);
    signal(weir.pid(), USR2);
    let new = weir.one("proxy", Some(old));
    weir.until("the old proxy drains", || weir.log().contains("the proxy drains"));
    assert!(process(old).is_some(), "the old proxy ended under a request");
    load.more(&weir, 100);
    assert_eq!(long.join().unwrap(), Ok(()));
    weir.until("the old proxy ends", || process(old).is_none());
    load.more(&weir, 100);
    let seen = load.stop();
    assert!(none(&seen.failed), "{seen:?}");
    assert_eq!(weir.of("proxy"), [new]);
    assert_eq!(fs::read_link(format!("/proc/{new}/exe")).unwrap(), place.path("weir"));
}

#[test]
fn a_killed_supervisor_leaves_a_proxy_that_the_next_one_relieves() {
    let place = Place::new();
    let mut first = Weir::serving(&place, "first");
    let load = Load::start(place.http);
    let (agent, proxy) = (first.one("agent", None), first.one("proxy", None));
    load.more(&first, 50);
    signal(first.pid(), KILL);
    assert!(!first.ended().success());
    first.until("the agent ends with its supervisor", || process(agent).is_none());
    load.more(&first, 100);
    let second = Weir::start(&place, "second");
    first.until("the old proxy ends", || process(proxy).is_none());
    load.more(&second, 100);
    let seen = load.stop();
    assert!(none(&seen.failed), "{seen:?}");
    assert_eq!(second.of("proxy").len(), 1);
}

#[test]
fn an_orphan_that_nobody_relieves_ends_by_itself() {
    let place = Place::new();
    let mut weir = Weir::serving(&place, "weir");
    let proxy = weir.one("proxy", None);
    let killed = Instant::now();
    signal(weir.pid(), KILL);
    weir.ended();
    assert_eq!(request(place.http, "/"), Ok(()));
    weir.until("the proxy ends", || process(proxy).is_none());
    assert!(killed.elapsed() >= Duration::from_secs(5), "before its time: {:?}", killed.elapsed());
    assert!(request(place.http, "/").unwrap_err().starts_with("connect"));
}

#[test]
fn the_next_weir_takes_over_while_the_last_one_stops() {
    let place = Place::new();
    let mut first = Weir::serving(&place, "first");
    let load = Load::start(place.http);
    load.more(&first, 50);
    let mut second = Weir::start(&place, "second");
    second.until("it stands by", || second.log().contains("standing by"));
    first.until("it is asked", || first.log().contains("asks for the listeners"));
    load.more(&first, 50);
    signal(first.pid(), TERM);
    assert!(first.ended().success());
    load.more(&second, 100);
    let seen = load.stop();
    assert!(none(&seen.failed), "{seen:?}");

    // And the last one: what is in flight is served, then nobody is.
    let long = std::thread::spawn({
        let port = place.http;
        move || request(port, "/slow")
    });
    second.until("the request is on its way", || second.status()["state"] == "ready");
    std::thread::sleep(Duration::from_millis(300));
    signal(second.pid(), TERM);
    assert!(second.ended().success());
    assert_eq!(long.join().unwrap(), Ok(()));
    assert!(request(place.http, "/").unwrap_err().starts_with("connect"));
}

#[test]
fn a_second_wish_to_end_is_heard_at_once() {
    let place = Place::new();
    let mut weir = Weir::serving(&place, "weir");
    let proxy = weir.one("proxy", None);
    let long = std::thread::spawn({
        let port = place.http;
        move || request(port, "/slow")
    });
    std::thread::sleep(Duration::from_millis(300));
    let told = Instant::now();
    signal(weir.pid(), TERM);
    weir.until("the proxy drains", || weir.log().contains("the proxy drains"));
    signal(weir.pid(), TERM);
    weir.ended();
    assert!(told.elapsed() < Duration::from_millis(1200), "{:?}", told.elapsed());
    weir.until("the proxy ends", || process(proxy).is_none());
    assert!(long.join().unwrap().is_err());
}

#[test]
fn a_taken_port_is_told_and_tried_again() {
    let place = Place::new();
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, place.http)).unwrap();
    let weir = Weir::start(&place, "weir");
    let problem = || weir.status()["problems"].to_string().contains("--http-listen");
    weir.until("the port is told", problem);
    drop(taken);
    weir.until("it serves", || request(place.http, "/").is_ok());
    weir.until("the problem is over", || weir.status()["problems"].as_array().is_some_and(Vec::is_empty));
}

#[test]
fn a_proxy_that_does_not_stay_up_is_told_and_slowed_down() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    let mut proxy = weir.one("proxy", None);
    for _ in 0..3 {
        signal(proxy, KILL);
        proxy = weir.one("proxy", Some(proxy));
    }
    weir.until("the trouble is told", || weir.status()["problems"].to_string().contains("the proxy ended"));
    weir.until("it serves", || request(place.http, "/").is_ok());
}

#[test]
fn an_agent_that_cannot_start_is_a_failure_of_the_whole() {
    let place = Place::new();
    // Where the lock should be, there is a folder.
    fs::create_dir_all(place.path("state/lock")).unwrap();
    let mut weir = Weir::start(&place, "weir");
    assert_eq!(weir.ended().code(), Some(1));
    assert!(weir.log().contains("state/lock"), "{}", weir.log());
    let left = || {
        processes()
            .values()
            .any(|it| it.words.join(" ").contains(&*place.path("state").display().to_string()))
    };
    weir.until("nothing is left", || !left());
}

#[test]
fn the_proxy_has_no_privilege_no_secret_and_nothing_of_bpf() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    let proxy = weir.one("proxy", None);
    // The agent knows every private key: no core of it either.
    let agent = weir.one("agent", None);
    let limits = fs::read_to_string(format!("/proc/{agent}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    let root = rustix::process::getuid().is_root();
    let threads: Vec<PathBuf> =
        fs::read_dir(format!("/proc/{proxy}/task")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(threads.len() >= 3, "workers are looked at too: {threads:?}");
    for thread in threads {
        let status = fs::read_to_string(thread.join("status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(field(set), "0".repeat(16), "{set}: {status}");
        }
        assert_eq!(field("NoNewPrivs"), "1", "{status}");
        if root {
            assert_eq!(field("CapBnd"), "0".repeat(16), "{status}");
            assert_eq!((field("Uid"), field("Gid")), (["65532"; 4].join(" "), ["65532"; 4].join(" ")));
            assert_eq!(field("Groups"), "");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{proxy}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().take(2).map(String::from).collect::<Vec<_>>()
    };
    let files = limit("Max open files");
    assert_eq!(files[0], files[1]);
    assert_eq!(limit("Max core file size"), ["0", "0"]);
    if root {
        // Of another process that gave itself up only root may see these.
        for entry in fs::read_dir(format!("/proc/{proxy}/fd")).unwrap() {
            let entry = entry.unwrap();
            let target = fs::read_link(entry.path()).unwrap().display().to_string();
            let known = ["socket:", "pipe:", "anon_inode:[event", "/dev/null"];
            let log = weir.log.display().to_string();
            assert!(known.iter().any(|known| target.starts_with(known)) || target == log, "holds {target}");
            assert!(!target.contains("bpf"), "holds {target}");
        }
        let environment = fs::read(format!("/proc/{proxy}/environ")).unwrap();
        assert!(!String::from_utf8_lossy(&environment).contains(SECRET));
    }
    assert!(!process(proxy).unwrap().words.join(" ").contains(SECRET));
    let supervisor = fs::read_dir(format!("/proc/{}/fd", weir.pid())).unwrap();
    for entry in supervisor {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default().display().to_string();
        assert!(!target.contains("bpf"), "the supervisor holds {target}");
    }
}

/// H43: the proxy's user may write both folders, the proxy its log's alone.
#[test]
fn the_log_outlives_a_rotation_and_leads_the_proxy_nowhere_else() {
    let place = Place::new();
    let (log, elsewhere) = (place.path("logs/access.log"), place.path("elsewhere"));
    fs::create_dir(place.path("logs")).unwrap();
    fs::write(&elsewhere, "").unwrap();
    for (path, mode) in [(place.path(""), 0o755), (place.path("logs"), 0o777), (elsewhere.clone(), 0o666)] {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let weir = Weir::start_with(&place, "weir", &[&format!("--access-log={}", log.display())]);
    let logged = || {
        // Asked again and again: the file's name is looked at with new lines only.
        let asked = request(place.http, "/").is_ok();
        asked && fs::read_to_string(&log).is_ok_and(|text| text.contains("\"GET / HTTP/1.1\" 200"))
    };
    weir.until("the request is logged", logged);
    let confined = weir.status()["processes"]["proxies"][0]["view"]["confined"]["landlock"].as_u64();
    assert!(confined >= Some(1), "this test needs Landlock: {}", weir.status());
    fs::rename(&log, place.path("logs/access.log.1")).unwrap();
    weir.until("the log is made again", logged);
    fs::remove_file(&log).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &log).unwrap();
    weir.until("the link is refused", || {
        request(place.http, "/").is_ok() && weir.log().contains("the access log cannot be written")
    });
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "");
    fs::remove_file(&log).unwrap();
    weir.until("the log is back", logged);
}

#[test]
fn metrics_of_the_proxy_name_the_node() {
    let place = Place::new();
    let weir = Weir::serving(&place, "weir");
    weir.until("the request is counted under the node's name", || {
        let text = metrics(weir.metrics).unwrap_or_default();
        let counted = |line: &&str| line.starts_with("nginx_ingress_controller_requests{");
        text.lines().filter(counted).any(|line| line.contains("controller_pod=\"here\""))
    });
}

fn metrics(port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn roles_are_not_for_people() {
    for role in ["agent", "proxy"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let state = std::env::temp_dir().join("weir-no-such-state");
        command.args(["run", "--l4=off", "--role", role]).arg("--state-dir").arg(&state);
        let out = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(said.contains("--role: for processes that weir run starts itself"), "{said}");
        assert!(!Path::new(&state).exists());
    }
}
