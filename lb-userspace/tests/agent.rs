//! The whole agent over the simulated data path: a manifests folder in, answers of the
//! admin socket and the health ports out. Needs no privilege.
#![expect(clippy::unwrap_used, reason = "tests")]

use serde_json::Value;
use std::ffi::OsString;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use weir::args::{Config, Task, parse};
use weir::cli::{get, probe};
use weir::datapath::Capacity;
use weir::datapath::sim::Sim;

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: empty}
spec:
  clusterIP: 10.96.0.11
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, labels: {app: web}}
spec: {nodeName: here}
status: {podIPs: [{ip: 10.244.0.5}]}
";

const BROKEN: &str = "
apiVersion: v1
kind: Service
metadata: {name: broken}
spec:
  clusterIP: 10.96.300.1
  clusterIPs: [10.96.300.1]
  selector: {app: web}
  ports: [{port: 80}]
";

/// A folder of its own for each test, gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weir-agent-{}-{name}", std::process::id()));
        std::fs::create_dir_all(path.join("manifests")).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: &str) {
        // Written aside and renamed, so that no half is ever read.
        let aside = self.0.join(name);
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, self.0.join("manifests").join(name)).unwrap();
    }

    fn socket(&self, state: &str) -> PathBuf {
        self.0.join(state).join("admin.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn config(folder: &Folder, health: u16, metrics: u16) -> Config {
    let args = [
        "weir".to_string(),
        "run".into(),
        "--node-name=here".into(),
        "--log-level=off".into(),
        format!("--manifests={}", folder.0.join("manifests").display()),
        format!("--state-dir={}", folder.0.join("state").display()),
        format!("--bpffs={}", folder.0.join("bpf").display()),
        format!("--healthz-listen=127.0.0.1:{health}"),
        format!("--metrics-listen=127.0.0.1:{metrics}"),
    ];
    match parse(args.map(OsString::from)) {
        Ok(Task::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

/// A running agent and the means to stop it.
struct Agent {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Agent {
    fn start(config: Config) -> Self {
        let (stop, stopped) = oneshot::channel();
        let room = Capacity {
            frontends: 1024,
            backends: 1024,
            table_blocks: 4096,
            flows: 1024,
            transient: 1024,
            services: 1024,
            prefixes: 1024,
        };
        let task = tokio::spawn(weir::agent::serve(
            config,
            move || Ok(Box::new(Sim::new(room)) as Box<dyn weir::datapath::Datapath>),
            async {
                let _ = stopped.await;
            },
        ));
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

async fn ask(socket: &Path, path: &str, query: &[(&str, &str)]) -> anyhow::Result<Value> {
    get(socket, path, query).await
}

/// Asks until the answer is as wanted.
async fn until(socket: &Path, path: &str, query: &[(&str, &str)], wanted: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = ask(socket, path, query).await;
        match answer {
            Ok(value) if wanted(&value) => return value,
            answer if Instant::now() > deadline => panic!("{path} {query:?}: {answer:?}"),
            _ => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn http(port: u16, path: &str) -> (u16, String) {
    let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (code, answer)
}

fn served(value: &Value) -> bool {
    value["served"] == true
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_become_answers() {
    let folder = Folder::new("answers");
    folder.write("services.yaml", SERVICES);
    let (health, metrics) = (free_port(), free_port());
    let agent = Agent::start(config(&folder, health, metrics));
    let socket = folder.socket("state");
    let target = [("target", "10.96.0.10:80")];
    let told = until(&socket, "/v1/explain", &target, served).await;
    assert_eq!(told["endpoints"][0]["address"], "10.244.0.5:8080");
    assert_eq!(told["endpoints"][0]["local"], true);

    let services = ask(&socket, "/v1/services", &[("service", "default/web")]).await.unwrap();
    let port = &services["services"][0]["ports"][0];
    assert_eq!(port["frontends"].as_array().unwrap().len(), 2, "{services}");
    assert_eq!(port["frontends"][0]["programmed"], true);
    assert!(
        ask(&socket, "/v1/services", &[("service", "default/none")])
            .await
            .unwrap_err()
            .to_string()
            .contains("no Service")
    );
    let refused = ask(&socket, "/v1/explain", &[("target", "svc/default/empty:80")]).await.unwrap();
    assert_eq!((refused["served"].as_bool(), refused["outcome"].as_str()), (Some(false), Some("refused")));

    let status = ask(&socket, "/v1/status", &[]).await.unwrap();
    assert_eq!(
        (status["state"].as_str(), status["programmed"]["services"].as_u64()),
        (Some("ready"), Some(2))
    );
    assert_eq!(status["source"]["kinds"]["Service"]["error"], Value::Null);
    let dump = ask(&socket, "/v1/dump", &[]).await.unwrap();
    assert_eq!(dump["programmed"]["backends"].as_array().unwrap().len(), 1);
    assert!(ask(&socket, "/v1/flows", &[]).await.unwrap()["flows"].is_array());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    assert_eq!(http(health, "/healthz").await.0, 200);
    assert!(http(health, "/healthz").await.1.contains("\"nodeEligible\":true"));
    assert_eq!(http(health, "/readyz").await.0, 200);
    assert!(http(metrics, "/proxyMode").await.1.ends_with("ebpf"));
    assert!(
        http(metrics, "/metrics").await.1.contains("lb_reconcile_programmed_count{kind=\"backend\"} 1\n")
    );
    agent.stop().await;
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_of_files_are_followed_and_faults_are_told() {
    let folder = Folder::new("changes");
    folder.write("services.yaml", SERVICES);
    let agent = Agent::start(config(&folder, free_port(), free_port()));
    let socket = folder.socket("state");
    let target = [("target", "10.96.0.10:80")];
    until(&socket, "/v1/explain", &target, served).await;

    folder.write("broken.yaml", BROKEN);
    let problems = |value: &Value| value["problems"].as_array().unwrap().len();
    let told = until(&socket, "/v1/problems", &[], |value| problems(value) > 0).await;
    assert!(told.to_string().contains("10.96.300.1"), "{told}");
    assert!(served(&ask(&socket, "/v1/explain", &target).await.unwrap()));
    std::fs::remove_file(folder.0.join("manifests/broken.yaml")).unwrap();
    until(&socket, "/v1/problems", &[], |value| problems(value) == 0).await;

    folder.write(
        "services.yaml",
        &SERVICES.replace("app: web}}\nspec: {nodeName", "app: gone}}\nspec: {nodeName"),
    );
    until(&socket, "/v1/explain", &target, |value| value["outcome"] == "refused").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_stands_by_and_a_taken_port_is_only_a_problem() {
    let folder = Folder::new("standby");
    folder.write("services.yaml", SERVICES);
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let health = [free_port(), free_port()];
    let metrics = taken.local_addr().unwrap().port();
    let first = Agent::start(config(&folder, health[0], metrics));
    let socket = folder.socket("state");
    until(&socket, "/v1/problems", &[], |value| value.to_string().contains("--metrics-listen")).await;
    let target = [("target", "10.96.0.10:80")];
    until(&socket, "/v1/explain", &target, served).await;
    drop(taken);
    until(&socket, "/v1/problems", &[], |value| value["problems"].as_array().unwrap().is_empty()).await;

    let second = Agent::start(config(&folder, health[1], free_port()));
    let standing_by = async {
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, health[1])).await.is_err()
            || !http(health[1], "/readyz").await.1.contains("standing by")
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), standing_by).await.unwrap();
    // Ready to take over; what it will do is done by the other one.
    let mut codes = Vec::new();
    for path in ["/readyz/rollout", "/readyz", "/healthz"] {
        codes.push(http(health[1], path).await.0);
    }
    assert_eq!(codes, [200, 503, 503]);
    first.stop().await;
    until(&socket, "/v1/explain", &target, served).await;
    assert_eq!(http(health[1], "/readyz").await.0, 200);
    second.stop().await;
}

/// As in Pods of one node: the state folder is shared, the admin socket is each agent's own.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_stands_by_says_so_at_a_socket_of_its_own() {
    let folder = Folder::new("own-socket");
    folder.write("services.yaml", SERVICES);
    let first = Agent::start(config(&folder, free_port(), free_port()));
    let (socket, own) = (folder.socket("state"), folder.socket("pod"));
    let target = [("target", "10.96.0.10:80")];
    until(&socket, "/v1/explain", &target, served).await;
    assert_eq!(probe(&socket, "/readyz").await.unwrap(), (true, "l4: ok; l7: ok".into()));

    let mut config = config(&folder, free_port(), free_port());
    config.http.admin_socket = own.clone();
    let second = Agent::start(config);
    let standing_by = async {
        while !probe(&own, "/readyz/rollout").await.is_ok_and(|(ready, _)| ready) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), standing_by).await.unwrap();
    let (ready, line) = probe(&own, "/readyz").await.unwrap();
    assert!(!ready && line.contains("l4: standing by"), "{line}");
    assert!(probe(&own, "/livez").await.unwrap().0);
    let refused = get(&own, "/v1/status", &[]).await.unwrap_err().to_string();
    assert!(refused.contains("standing by"), "{refused}");
    assert!(served(&get(&socket, "/v1/explain", &target).await.unwrap()), "asked as before");

    first.stop().await;
    until(&own, "/v1/explain", &target, served).await;
    assert!(probe(&own, "/readyz").await.unwrap().0);
    second.stop().await;
}

/// H60: nobody can ask then, and the rest goes on.
#[tokio::test(flavor = "multi_thread")]
async fn an_admin_socket_that_cannot_be_made_is_only_a_problem() {
    let folder = Folder::new("no-admin");
    folder.write("services.yaml", SERVICES);
    let in_the_way = folder.0.join("admin");
    std::fs::write(&in_the_way, "a file").unwrap();
    let (health, socket) = (free_port(), in_the_way.join("admin.sock"));
    let mut config = config(&folder, health, free_port());
    config.http.admin_socket = socket.clone();
    let agent = Agent::start(config);
    let ready = async {
        while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, health)).await.is_err()
            || http(health, "/readyz").await.0 != 200
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), ready).await.unwrap();
    assert!(!socket.exists());
    std::fs::remove_file(&in_the_way).unwrap();
    until(&socket, "/v1/problems", &[], |value| value["problems"].as_array().unwrap().is_empty()).await;
    agent.stop().await;
}
