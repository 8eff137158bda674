use super::*;
use crate::source::Objects;
use serde_json::{Value, json};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// An API server that knows one Service and its own slice, refuses Nodes, and tells of a second
/// Service and of the loss of the first as soon as it is watched.
async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    let line = String::from_utf8_lossy(&request).lines().next().unwrap_or_default().to_owned();
    let path = line.split(' ').nth(1).unwrap_or_default();
    let (resource, query) = path.split_once('?').unwrap_or((path, ""));
    let watching = query.contains("watch=true");
    let list = |kind: &str, items: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"resourceVersion": "7"}, "items": items});
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default", "resourceVersion": "8"},
               "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}})
    };
    let (status, body) = match resource {
        "/version" => (
            200,
            json!({"major": "1", "minor": "36", "gitVersion": "v1.36.3", "gitCommit": "", "gitTreeState": "",
            "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
        ),
        "/api/v1/services" if watching => {
            assert!(query.contains("fieldSelector=spec.clusterIP%21%3DNone"), "{query}");
            let events = [
                json!({"type": "ADDED", "object": service("two")}),
                json!({"type": "DELETED", "object": service("one")}),
            ];
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            for event in events {
                let line = format!("{event}\n");
                stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes()).await?;
            }
            return std::future::pending().await;
        }
        _ if watching => return std::future::pending().await,
        "/api/v1/services" => (200, list("ServiceList", json!([service("one")]))),
        "/apis/discovery.k8s.io/v1/endpointslices" => (
            200,
            list(
                "EndpointSliceList",
                json!([
            {"metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
             "addressType": "IPv4", "ports": [{"name": "https", "port": 6443}],
             "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"], "conditions": {"ready": false}}]},
            {"metadata": {"name": "names", "namespace": "default", "labels": {"kubernetes.io/service-name": "one"}},
             "addressType": "FQDN", "endpoints": []}]),
            ),
        ),
        "/api/v1/pods" => (200, list("PodList", json!([]))),
        "/apis/networking.k8s.io/v1/servicecidrs" => (
            200,
            list(
                "ServiceCIDRList",
                json!([{"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}}]),
            ),
        ),
        _ => (
            403,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "nodes is forbidden"}),
        ),
    };
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await?;
    stream.shutdown().await
}

async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// An address at which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.and_then(|listener| listener.local_addr()).expect("a port")
}

#[tokio::test]
async fn kinds_are_watched_apart_through_the_first_server_that_answers() {
    let dir = tempfile::tempdir().expect("a folder");
    let (live, dead) = (server().await, nobody().await);
    let kubeconfig = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: a, cluster: {{server: 'http://{live}'}}}}]\nusers: []\n\
         contexts: [{{name: a, context: {{cluster: a, user: ''}}}}]\ncurrent-context: a\n"
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let client = ClientOptions {
        kubeconfig: Some(kubeconfig),
        apiserver: Some(format!("http://{dead}")),
        kubelet_kubeconfig: dir.path().join("none"),
        state_dir: dir.path().join("state"),
    };
    let (tx, mut rx) = tokio::sync::mpsc::channel(16);
    let syncs = Arc::new(Syncs::default());
    let source = KubeSource::new(KubeOptions { client, node_name: "node-1".into(), ingress: None });
    let running = tokio::spawn(source.run(tx, Arc::clone(&syncs)));

    let mut objects = Objects::new("node-1");
    let done = |objects: &Objects| {
        let names: Vec<&str> = objects.services.keys().map(|key| key.name.as_str()).collect();
        names == ["two"]
            && objects.slices.len() == 1
            && objects.listed.len() == 4
            && objects.service_cidrs.values().flatten().count() == 2
            && !objects.source_problems.is_empty()
    };
    while !done(&objects) {
        let batch = timeout(PATIENCE, rx.recv()).await.expect("in time").expect("a batch");
        objects.apply_all(batch);
    }
    assert!(!objects.ready_l4(), "Nodes were never listed");
    let problem = &objects.source_problems[0];
    assert_eq!(problem.object.to_string(), "Agent watch of Node");
    assert!(problem.reason.contains("refuses Node (403): nodes is forbidden"), "{}", problem.reason);
    assert_eq!(syncs.origin(), format!("http://{live}/"));
    assert!(syncs.kinds()[&Kind::Service].listed_since.is_some());
    assert!(syncs.kinds()[&Kind::Node].error.is_some());
    let kept: Vec<SocketAddr> = vec!["192.0.2.1:6443".parse().expect("an address")];
    assert_eq!(remembered_endpoints(&dir.path().join("state")), kept, "those that are ready");

    drop(rx);
    timeout(PATIENCE, running).await.expect("stops when nobody listens").expect("no panic");
}

#[tokio::test]
async fn without_any_server_each_address_is_told_with_its_reason() {
    let dir = tempfile::tempdir().expect("a folder");
    let dead = nobody().await;
    let client = ClientOptions {
        kubeconfig: None,
        apiserver: Some(format!("http://{dead}")),
        kubelet_kubeconfig: dir.path().join("none"),
        state_dir: dir.path().to_path_buf(),
    };
    remember_endpoints(dir.path(), &[dead]).expect("kept");
    let error = connect(&client).await.err().expect("nobody is there").to_string();
    assert!(
        error.contains(&format!("http://{dead}/: ")) && error.contains(&format!("https://{dead}/: ")),
        "{error}"
    );
}

#[test]
fn pauses_double_up_to_their_longest_and_vary() {
    for (mut backoff, longest) in [(Backoff::default(), 30), (Backoff::away(), 2)] {
        let mut expected = Backoff::FIRST;
        for _ in 0..40 {
            let pause = backoff.next();
            assert!(pause >= expected / 2 && pause <= expected * 3 / 2, "{pause:?} for {expected:?}");
            expected = (expected * 2).min(Duration::from_secs(longest));
        }
        backoff.reset();
        assert!(backoff.next() <= Backoff::FIRST * 3 / 2);
    }
}
