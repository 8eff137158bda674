//! The three configurations: the same duties for each.
//!
//! HTTP and HTTPS with TLS 1.2 and 1.3 and one certificate (ECDSA P-256), HTTP/2 by ALPN;
//! routes by host; a pool of open connections to one origin; bodies streamed; the request's
//! fields about the client that ingress-nginx sets, and that Weir always sets; no access log;
//! one worker. A client's connection is good for 1,000 requests with nginx, as with Weir.

use super::proxies::{Kind, Ports};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

/// What the certificate is for.
const WILDCARD: &str = "*.bench.test";
/// The host over HTTP, where no redirect to HTTPS is asked for.
pub(super) const PLAIN: &str = "plain.bench.test";
/// The host over HTTPS.
pub(super) const SECURE: &str = "secure.bench.test";
/// Objects in each manifest.
const CHUNK: usize = 1000;

/// One of the many hosts.
pub(super) fn host(number: usize) -> String {
    format!("host-{number}.bench.test")
}

/// A certificate and its key, PEM.
pub(super) struct Identity {
    certificate: String,
    key: String,
}

impl Identity {
    pub(super) fn new() -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![WILDCARD.to_owned()])?.self_signed(&key)?;
        Ok(Self { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

/// What is to be served.
pub(super) struct Routes<'a> {
    pub(super) origin: SocketAddr,
    /// Hosts beside [`PLAIN`] and [`SECURE`].
    pub(super) hosts: usize,
    pub(super) identity: &'a Identity,
}

impl Routes<'_> {
    fn names(&self) -> impl Iterator<Item = String> {
        [PLAIN.to_owned(), SECURE.to_owned()].into_iter().chain((0..self.hosts).map(host))
    }
}

/// Writes a configuration below `dir` and returns the command that runs the proxy in the
/// foreground.
pub(super) fn command(kind: Kind, dir: &Path, ports: Ports, routes: &Routes<'_>) -> Result<Command> {
    fs::create_dir_all(dir)?;
    match kind {
        Kind::Nginx => nginx(dir, ports, routes),
        Kind::Haproxy => haproxy(dir, ports, routes),
        Kind::Weir => weir(dir, ports, routes),
    }
}

fn nginx(dir: &Path, ports: Ports, routes: &Routes<'_>) -> Result<Command> {
    fs::write(dir.join("crt.pem"), &routes.identity.certificate)?;
    fs::write(dir.join("key.pem"), &routes.identity.key)?;
    let Ports { http, https } = ports;
    let mut servers = String::new();
    for name in routes.names() {
        servers.push_str(&format!(
            "server {{ listen 127.0.0.1:{http}; listen 127.0.0.1:{https} ssl http2; server_name {name};
               location / {{ proxy_pass http://origin; }} }}\n"
        ));
    }
    let config = format!(
        "user root; daemon off; master_process on; worker_processes 1;
         pid {0}/pid; error_log stderr error;
         events {{ worker_connections 8192; }}
         http {{
           access_log off; server_names_hash_max_size 65536; server_names_hash_bucket_size 128;
           client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0};
           uwsgi_temp_path {0}; scgi_temp_path {0};
           ssl_certificate {0}/crt.pem; ssl_certificate_key {0}/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
           keepalive_timeout 60s; keepalive_requests 1000; client_max_body_size 1m;
           map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
           proxy_http_version 1.1; proxy_set_header Host $http_host;
           proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
           proxy_set_header X-Request-ID $request_id; proxy_set_header X-Real-IP $remote_addr;
           proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $http_host;
           proxy_set_header X-Forwarded-Port $server_port; proxy_set_header X-Forwarded-Proto $scheme;
           proxy_set_header X-Forwarded-Scheme $scheme; proxy_set_header X-Scheme $scheme;
           proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for; proxy_set_header Proxy '';
           {NGINX_BODIES}
           upstream origin {{ server {1}; keepalive 320; keepalive_requests 10000; }}
           server {{ listen 127.0.0.1:{http} default_server; listen 127.0.0.1:{https} ssl http2 default_server;
             return 404; }}
           {servers}
         }}",
        dir.display(),
        routes.origin
    );
    let file = dir.join("nginx.conf");
    fs::write(&file, config).context("nginx.conf")?;
    let mut command = Command::new("nginx");
    command.arg("-c").arg(file).arg("-p").arg(dir).args(["-e", "stderr"]);
    Ok(command)
}

/// Answers in memory of a size that nginx does well with, none on disk; request bodies of a
/// buffer's size in memory, as is nginx's own default.
const NGINX_BODIES: &str = "proxy_buffering on; proxy_buffer_size 16k; proxy_buffers 8 16k;
    proxy_busy_buffers_size 32k; proxy_max_temp_file_size 0; client_body_buffer_size 16k;";

fn haproxy(dir: &Path, ports: Ports, routes: &Routes<'_>) -> Result<Command> {
    let pem = format!("{}{}", routes.identity.certificate, routes.identity.key);
    fs::write(dir.join("crt.pem"), pem)?;
    let hosts: String = routes.names().map(|name| format!("{name} origin\n")).collect();
    fs::write(dir.join("hosts"), hosts)?;
    let fields = "
           http-request set-header X-Request-ID %[uuid()]
           http-request set-header X-Real-IP %[src]
           http-request set-header X-Forwarded-For %[src]
           http-request set-header X-Forwarded-Host %[req.hdr(host)]
           http-request set-header X-Forwarded-Port %[dst_port]
           http-request set-header X-Forwarded-Proto http if !{ ssl_fc }
           http-request set-header X-Forwarded-Proto https if { ssl_fc }
           http-request set-header X-Forwarded-Scheme http if !{ ssl_fc }
           http-request set-header X-Forwarded-Scheme https if { ssl_fc }
           http-request set-header X-Scheme http if !{ ssl_fc }
           http-request set-header X-Scheme https if { ssl_fc }
           http-request del-header Proxy";
    let config = format!(
        "global
           nbthread 1
           maxconn 8192
           ssl-default-bind-options ssl-min-ver TLSv1.2
         defaults
           mode http
           timeout connect 5s
           timeout client 60s
           timeout server 60s
           timeout http-request 60s
           timeout http-keep-alive 60s
         frontend all
           bind 127.0.0.1:{http}
           bind 127.0.0.1:{https} ssl crt {0}/crt.pem alpn h2,http/1.1
{fields}
           use_backend %[req.hdr(host),field(1,:),lower,map({0}/hosts,none)]
         backend origin
           http-reuse always
           server one {1} pool-max-conn 320
         backend none
           http-request return status 404\n",
        dir.display(),
        routes.origin,
        http = ports.http,
        https = ports.https,
    );
    let file = dir.join("haproxy.cfg");
    fs::write(&file, config).context("haproxy.cfg")?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(file);
    Ok(command)
}

fn weir(dir: &Path, ports: Ports, routes: &Routes<'_>) -> Result<Command> {
    let manifests = dir.join("manifests");
    fs::create_dir_all(&manifests)?;
    let put = |name: &str, objects: &[Value]| {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        fs::write(manifests.join(name), serde_json::to_vec(&list)?).with_context(|| format!("writing {name}"))
    };
    let mut objects = vec![
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "origin", "namespace": "default" },
            "spec": { "ports": [{ "port": 80 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "origin-1", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "origin" },
            },
            "addressType": "IPv4", "ports": [{ "port": routes.origin.port() }],
            "endpoints": [{ "addresses": [routes.origin.ip().to_string()] }],
        }),
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": { "name": "wildcard", "namespace": "default" },
            "stringData": { "tls.crt": routes.identity.certificate, "tls.key": routes.identity.key },
        }),
    ];
    objects.push(ingress(SECURE, true));
    objects.push(ingress(PLAIN, false));
    put("base.json", &objects)?;
    let hosts: Vec<Value> = (0..routes.hosts).map(|number| ingress(&host(number), false)).collect();
    for (number, some) in hosts.chunks(CHUNK).enumerate() {
        put(&format!("hosts-{number}.json"), some)?;
    }
    let mut command = crate::agent::confined(&crate::agent::program()?);
    command
        .args(["run", "--l4", "off", "--node-name", "node1", "--access-log", "off", "--proxy-workers", "1"])
        .args(["--allow-endpoint-cidr", "127.0.0.0/8", "--drain-timeout", "1s", "--drain-delay", "0s"])
        .args(["--default-ssl-certificate", "default/wildcard"])
        .arg(format!("--http-listen=127.0.0.1:{}", ports.http))
        .arg(format!("--https-listen=127.0.0.1:{}", ports.https))
        .arg(format!("--healthz-listen=127.0.0.1:{}", ports.http + 20))
        .arg(format!("--metrics-listen=127.0.0.1:{}", ports.http + 40))
        .arg("--state-dir")
        .arg(dir.join("state"))
        .arg("--manifests")
        .arg(&manifests);
    Ok(command)
}

fn ingress(host: &str, tls: bool) -> Value {
    let name = host.split('.').next().unwrap_or_default();
    let backend = json!({ "service": { "name": "origin", "port": { "number": 80 } } });
    let mut spec = json!({
        "rules": [{
            "host": host,
            "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] },
        }],
    });
    if tls {
        spec["tls"] = json!([{ "hosts": [host], "secretName": "wildcard" }]);
    }
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
        "metadata": { "name": name, "namespace": "default" }, "spec": spec,
    })
}
