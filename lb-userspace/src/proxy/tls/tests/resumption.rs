//! Which sessions are taken up again, and which are not (H30).

use super::*;

const BOTH: [Version; 2] = [Version::Tls12, Version::Tls13];

async fn resumed(acceptor: &Acceptor, client: &ClientConfig, host: &str) -> bool {
    let done = shake(acceptor, client, host).await;
    let facts = done.server.unwrap();
    assert_eq!(done.client.unwrap() == Some(HandshakeKind::Resumed), facts.resumed);
    facts.resumed
}

/// A client that offers whatever session it has, to any name.
#[derive(Debug)]
struct OneMemory(rustls::client::ClientSessionMemoryCache);

impl rustls::client::ClientSessionStore for OneMemory {
    fn set_kx_hint(&self, _: ServerName<'static>, group: rustls::NamedGroup) {
        self.0.set_kx_hint(any(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<rustls::NamedGroup> {
        self.0.kx_hint(&any())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(any(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&any())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&any());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(any(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&any())
    }
}

fn any() -> ServerName<'static> {
    ServerName::try_from("any.invalid").unwrap()
}

fn careless(version: Version) -> ClientConfig {
    let mut client = client(version);
    let memory = OneMemory(rustls::client::ClientSessionMemoryCache::new(8));
    client.resumption = rustls::client::Resumption::store(Arc::new(memory))
        .tls12_resumption(rustls::client::Tls12Resumption::SessionIdOrTickets);
    client
}

#[tokio::test]
async fn a_session_is_taken_up_again_by_the_same_name() {
    let own = certificate(&["a.example.com"]);
    let acceptor = acceptor(&[told("own", &own), name("a.example.com", "own")]);
    for version in BOTH {
        let client = client(version);
        assert!(!resumed(&acceptor, &client, "a.example.com").await);
        assert!(resumed(&acceptor, &client, "a.example.com").await, "{version:?}");
        // Told again unchanged, as after a restart of the agent.
        acceptor.certificates.update(&[told("own", &own), name("a.example.com", "own")], true);
        assert!(resumed(&acceptor, &client, "a.example.com").await, "{version:?}");
    }
}

#[tokio::test]
async fn no_session_crosses_names() {
    let (a, b, default) =
        (certificate(&["a.example.com"]), certificate(&["b.example.com"]), certificate(&["ingress.local"]));
    let shared = certificate(&["c.example.com", "d.example.com"]);
    let acceptor = acceptor(&[
        told("a", &a),
        told("b", &b),
        told("shared", &shared),
        told("default", &default),
        name("a.example.com", "a"),
        name("b.example.com", "b"),
        name("c.example.com", "shared"),
        name("d.example.com", "shared"),
        name("*", "default"),
    ]);
    for version in BOTH {
        for (first, second) in [
            ("a.example.com", "b.example.com"),
            ("a.example.com", "unknown.example.com"),
            ("unknown.example.com", "a.example.com"),
            // One certificate, one resumption domain: the name decides even so.
            ("c.example.com", "d.example.com"),
            ("unknown.example.com", "stranger.example.com"),
            // Without a name.
            ("192.0.2.1", "a.example.com"),
            ("a.example.com", "192.0.2.1"),
            ("c.example.com", "192.0.2.1"),
        ] {
            let client = careless(version);
            assert!(!resumed(&acceptor, &client, first).await);
            assert!(!resumed(&acceptor, &client, second).await, "{version:?} {first} {second}");
            let client = careless(version);
            assert!(!resumed(&acceptor, &client, first).await);
            assert!(resumed(&acceptor, &client, first).await, "{version:?} {first}: the client does try");
        }
    }
}

#[tokio::test]
async fn no_session_outlives_its_certificate() {
    let (old, new) = (certificate(&["a.example.com"]), certificate(&["a.example.com"]));
    let default = certificate(&["ingress.local"]);
    let own_name = name("a.example.com", "own");
    let begin = [told("own", &old), own_name.clone(), told("default", &default), name("*", "default")];
    let replaced = vec![told("own", &new)];
    let removed = vec![Update::Certificate(secret("own"), None)];
    let unnamed = vec![Update::Name(pattern("a.example.com"), None)];
    let moved = vec![told("other", &old), name("a.example.com", "other")];
    let came_back = vec![removed[0].clone(), told("own", &old)];
    for version in BOTH {
        for (what, step) in [
            ("replaced", &replaced),
            ("removed", &removed),
            ("unnamed", &unnamed),
            ("moved", &moved),
            ("came back", &came_back),
        ] {
            let acceptor = acceptor(&begin);
            let client = client(version);
            assert!(!resumed(&acceptor, &client, "a.example.com").await);
            assert!(resumed(&acceptor, &client, "a.example.com").await);
            acceptor.certificates.update(step, false);
            assert!(!resumed(&acceptor, &client, "a.example.com").await, "{version:?} {what}");
        }
    }
}

#[tokio::test]
async fn early_data_is_not_offered() {
    let own = certificate(&["a.example.com"]);
    let acceptor = acceptor(&[told("own", &own), name("a.example.com", "own")]);
    let mut client = client(Version::Tls13);
    client.enable_early_data = true;
    assert!(!resumed(&acceptor, &client, "a.example.com").await);
    let mut again =
        rustls::ClientConnection::new(Arc::new(client), ServerName::try_from("a.example.com").unwrap())
            .unwrap();
    assert!(again.early_data().is_none(), "the ticket allows none");
}
