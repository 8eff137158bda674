//! Which hosts a connection is for; the others are answered with 421 (I34).

use super::*;

#[tokio::test]
async fn a_connection_is_for_the_hosts_of_its_certificate() {
    let acceptor = acceptor(&[
        told("a", &certificate(&["a.example.com", "also-a.example.com", "*.a.example.com"])),
        told("b", &certificate(&["b.example.com"])),
        told("wild", &certificate(&["*.example.com"])),
        told("default", &certificate(&["ingress.local"])),
        name("a.example.com", "a"),
        name("second-a.example.org", "a"),
        name("b.example.com", "b"),
        name("*.wild.org", "wild"),
        name("broken.example.com", "missing"),
        name("explicit.example.com", "default"),
        name("*", "default"),
    ]);
    for (sni, host, covered) in [
        ("a.example.com", "a.example.com", true),
        // Told to be served with the same Secret.
        ("a.example.com", "second-a.example.org", true),
        // Without one of their own, and in the certificate: a browser reuses the connection.
        ("a.example.com", "also-a.example.com", true),
        ("a.example.com", "x.a.example.com", true),
        ("a.example.com", "x.y.a.example.com", false),
        ("a.example.com", "b.example.com", false),
        ("a.example.com", "unknown.example.org", false),
        ("a.example.com", "", false),
        ("a.example.com", "192.0.2.1", false),
        ("a.example.com", "broken.example.com", false),
        ("b.example.com", "a.example.com", false),
        ("x.wild.org", "x.wild.org", true),
        ("x.wild.org", "y.wild.org", true),
        ("x.wild.org", "x.y.wild.org", false),
        // Named by that certificate, but with one of their own.
        ("x.wild.org", "b.example.com", false),
        ("x.wild.org", "c.example.com", true),
        // Served by default: no name was chosen.
        ("unknown.example.org", "a.example.com", true),
        ("unknown.example.org", "unknown.example.net", true),
        ("broken.example.com", "broken.example.com", true),
        ("192.0.2.1", "b.example.com", true),
        // The default certificate, but chosen by name.
        ("explicit.example.com", "explicit.example.com", true),
        ("explicit.example.com", "b.example.com", false),
    ] {
        let facts = shake(&acceptor, &client(Version::Tls13), sni).await.server.unwrap();
        assert_eq!(facts.covers(host), covered, "{sni} {host}");
    }
}

#[tokio::test]
async fn what_is_covered_follows_updates() {
    let (a, b) = (certificate(&["a.example.com"]), certificate(&["b.example.com"]));
    let acceptor =
        acceptor(&[told("a", &a), told("b", &b), name("a.example.com", "a"), name("b.example.com", "b")]);
    let facts = shake(&acceptor, &client(Version::Tls13), "a.example.com").await.server.unwrap();
    assert!(!facts.covers("b.example.com"));
    acceptor.certificates.update(&[name("b.example.com", "a")], false);
    assert!(facts.covers("b.example.com"));
    acceptor.certificates.update(&[], true);
    assert!(!facts.covers("b.example.com"));
    assert!(facts.covers("a.example.com"), "its own name; what becomes of it is the routes' to say");
}
