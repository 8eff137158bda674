//! What must hold of the demo's Ingresses (I76): requests from outside and from inside, by
//! both families, and what the program tells about them.

use super::Outcome;
use crate::agent::Agent;
use crate::authority::Authority;
use crate::manifests::PodSpec;
use crate::topology::{CLIENT, NODE1, Place, Topology};
use crate::web::{Fetch, Fetched, Seen, Version};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// The Secret that `my-ingress` names, and its host.
pub const SECRET: &str = "tls-secret";
pub const HOST: &str = "example.com";
/// Where the ExternalName Service leads: a server outside of the cluster, in the client's
/// namespace.
pub const EXTERNAL: (&str, u16) = ("shop.example.net", 8080);
/// The server there calls itself so.
const OUTSIDE: &str = "outside";
const API: &[&str] = &["api-1", "api-2"];
const WEB: &[&str] = &["web-1", "web-2"];
/// Requests of a spread: all on one of two pods by chance once in 10^9 runs.
const SPREAD: u32 = 30;

/// Starts the server outside that the ExternalName Service leads to, and the name server that
/// knows its address; returns where that is.
///
/// # Errors
/// When a port is taken.
pub fn serve_outside(lab: &Topology) -> Result<IpAddr> {
    let outside = PodSpec { name: OUTSIDE.into(), tcp: vec![EXTERNAL.1], ..PodSpec::default() };
    let helper = lab.at(&Place::Outside)?;
    helper.serve(&outside)?;
    helper.serve_names([(EXTERNAL.0.to_owned(), vec![CLIENT.0.into(), CLIENT.1.into()])].into())?;
    Ok(CLIENT.0.into())
}

/// What must come of a request.
enum Expect {
    /// One of these pods, having seen this path.
    Pod(&'static [&'static str]),
    /// Both pods, in the course of many requests.
    Both(&'static [&'static str]),
    Status(u16),
    /// 308 to this location.
    Moved(&'static str),
    /// A WebSocket that echoes.
    Socket,
    /// Sees the client's address, the scheme and the host that were asked for (I46).
    Forwarded,
}

struct Case {
    name: String,
    from: Place,
    fetch: Fetch,
    expect: Expect,
}

/// Runs all of them in order.
pub fn run(lab: &Topology, authority: &Authority, mut each: impl FnMut(&Outcome)) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for case in all(authority) {
        let said = case.judge(lab).map_err(|error| format!("{error:#}"));
        let outcome = Outcome { name: case.name, said };
        each(&outcome);
        outcomes.push(outcome);
    }
    outcomes
}

fn all(authority: &Authority) -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        let ip: IpAddr = if v6 { NODE1.1.into() } else { NODE1.0.into() };
        let family = if v6 { "IPv6" } else { "IPv4" };
        let secure = SocketAddr::new(ip, 443);
        let https = |target: &str| Fetch::https(secure, HOST, target).trusting(authority.root());
        let plain = |host: &str, target: &str| Fetch::http(SocketAddr::new(ip, 80), host, target);
        let mut add = |name: &str, from: Place, fetch: Fetch, expect: Expect| {
            cases.push(Case { name: format!("Ingress {family} {name}"), from, fetch, expect });
        };
        let outside = || Place::Outside;
        for (target, pods) in
            [("/api", API), ("/api/x", API), ("/api/", API), ("/web", WEB), ("/web/a%20b?c=d", WEB)]
        {
            add(&format!("https {target}"), outside(), https(target), Expect::Pod(pods));
            let fetch = https(target).over(Version::Two);
            add(&format!("https {target} by h2"), outside(), fetch, Expect::Pod(pods));
        }
        for target in ["/apix", "/", "/API"] {
            add(&format!("https {target}"), outside(), https(target), Expect::Status(404));
        }
        add("https /api spreads", outside(), https("/api"), Expect::Both(API));
        add("https /web from a pod", Place::pod("client"), https("/web"), Expect::Pod(WEB));
        add("https /api from the node", Place::Host, https("/api"), Expect::Pod(API));
        add("https /api tells the client", outside(), https("/api"), Expect::Forwarded);
        let post = https("/api").method("POST").body(&"0123456789abcdef".repeat(1024));
        add("https POST /api 16 KiB", outside(), post, Expect::Pod(API));
        add("WebSocket /web", outside(), https("/web").over(Version::WebSocket), Expect::Socket);
        let early = https("/api").over(Version::Early);
        add("https /api in the handshake's last packet", outside(), early, Expect::Pod(API));
        let moved = Expect::Moved("https://example.com/api/x?q=1");
        add("http /api/x?q=1", outside(), plain(HOST, "/api/x?q=1"), moved);
        add("http unknown host", outside(), plain("other.test", "/api"), Expect::Status(404));
        let other_case = Fetch { host: "EXAMPLE.com:443".into(), ..https("/api") };
        add("https Host: EXAMPLE.com:443", outside(), other_case, Expect::Pod(API));
        // I34: the certificate of the connection does not name that host.
        let misdirected = Fetch { host: "other.test".into(), ..https("/api") };
        add("https, another host than the certificate's", outside(), misdirected, Expect::Status(421));
        let external = plain("elsewhere.example.com", "/");
        add("http to an ExternalName", outside(), external, Expect::Pod(&[OUTSIDE]));
    }
    cases
}

impl Case {
    fn judge(&self, lab: &Topology) -> Result<String> {
        let helper = lab.at(&self.from)?;
        if let Expect::Both(pods) = self.expect {
            let mut found = BTreeSet::new();
            for _ in 0..SPREAD {
                found.insert(seen(&helper.fetch(self.fetch.clone())?)?.pod);
            }
            let wanted: BTreeSet<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
            ensure!(found == wanted, "answered by {found:?}");
            return Ok(format!("→ {}", pods.join(" and ")));
        }
        let fetched = helper.fetch(self.fetch.clone())?;
        if self.fetch.tls.as_ref().is_some_and(|tls| tls.roots.is_some()) {
            let names = fetched.certificate.as_ref().map(|shown| shown.names.as_slice());
            ensure!(names == Some(&[HOST.to_owned()]), "certificate for {names:?}: {fetched:?}");
        }
        match self.expect {
            Expect::Pod(pods) => {
                let seen = seen(&fetched)?;
                ensure!(pods.contains(&seen.pod.as_str()), "answered by {}", seen.pod);
                ensure!(seen.path == self.fetch.target, "it saw {}", seen.path);
                ensure!(seen.length == self.fetch.body.len(), "it saw {} bytes", seen.length);
                ensure!(seen.method == self.fetch.method, "it saw {}", seen.method);
                Ok(format!("→ {}, {}", seen.pod, fetched.version))
            }
            Expect::Both(_) => Ok(String::new()),
            Expect::Status(status) => {
                ensure!(fetched.status == Some(status), "{fetched:?}");
                Ok(format!("→ {status}"))
            }
            Expect::Moved(to) => {
                ensure!(fetched.status == Some(308), "{fetched:?}");
                ensure!(fetched.header("location") == Some(to), "to {:?}", fetched.header("location"));
                Ok(format!("→ 308 {to}"))
            }
            Expect::Socket => {
                ensure!(fetched.status == Some(101), "{fetched:?}");
                Ok("→ echoed".into())
            }
            Expect::Forwarded => {
                let seen = seen(&fetched)?;
                let v6 = self.fetch.to.is_ipv6();
                let client = if v6 { CLIENT.1.to_string() } else { CLIENT.0.to_string() };
                for (name, value) in [
                    ("X-Forwarded-For", client.as_str()),
                    ("X-Real-Ip", &client),
                    ("X-Forwarded-Proto", "https"),
                ] {
                    let values = seen.headers.get(name).map(Vec::as_slice);
                    ensure!(values == Some(&[value.to_owned()]), "{name}: {values:?}");
                }
                ensure!(seen.host == HOST, "Host: {}", seen.host);
                Ok(format!("→ {}, X-Forwarded-For: {client}", seen.pod))
            }
        }
    }
}

/// What a pod saw of a request that was answered with 200.
fn seen(fetched: &Fetched) -> Result<Seen> {
    ensure!(fetched.status == Some(200), "{fetched:?}");
    fetched.seen().with_context(|| format!("no pod's answer: {fetched:?}"))
}

/// What the program tells of the same Ingress (`weir explain`, `weir routes`).
pub fn told(agent: &Agent<'_>) -> Vec<Outcome> {
    let asks: [(&[&str], i32, &[&str]); 4] = [
        (&["explain", "https://example.com/api"], 0, &["default/my-ingress", "default/api-service", SECRET]),
        (&["explain", "https://example.com/web/x"], 0, &["default/web-service"]),
        (&["explain", "https://example.com/apix"], 3, &["/api"]),
        (&["routes"], 0, &[HOST, "/api", "/web", "default/my-ingress"]),
    ];
    asks.into_iter()
        .map(|(words, code, wanted)| {
            let judged = || {
                let out = agent.verb(words)?;
                let said = String::from_utf8_lossy(&out.stdout).into_owned();
                let all = format!("{}: {said}{}", out.status, String::from_utf8_lossy(&out.stderr));
                ensure!(out.status.code() == Some(code), "{all}");
                for word in wanted {
                    ensure!(said.contains(word), "{word} is missing: {all}");
                }
                Ok(format!("→ exit code {code}, names {}", wanted.join(", ")))
            };
            let said: Result<String> = judged();
            Outcome {
                name: format!("weir {}", words.join(" ")),
                said: said.map_err(|error| format!("{error:#}")),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let cases = all(&Authority::new().expect("an authority"));
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }
}
