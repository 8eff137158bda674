//! Which certificate a name gets, and what updates change.

use super::*;

fn leaf(certificate: &Arc<Certificate>) -> Option<Vec<u8>> {
    certificate.chain.first().cloned()
}

#[tokio::test]
async fn exact_comes_before_one_label_of_wildcard_before_the_default() {
    let (exact, wild, default) =
        (certificate(&["a.example.com"]), certificate(&["*.example.com"]), certificate(&["ingress.local"]));
    let acceptor = acceptor(&[
        told("exact", &exact),
        told("wild", &wild),
        told("default", &default),
        name("a.example.com", "exact"),
        name("*.example.com", "wild"),
        name("*", "default"),
    ]);
    for (host, expected, by_default) in [
        ("a.example.com", &exact, false),
        ("A.Example.COM", &exact, false),
        ("a.example.com.", &exact, false),
        ("b.example.com", &wild, false),
        ("x.a.example.com", &default, true),
        ("b.a.example.com", &default, true),
        ("example.com", &default, true),
        ("com", &default, true),
        ("other.org", &default, true),
        // An address is no server name: the client sends none.
        ("192.0.2.1", &default, true),
    ] {
        for version in [Version::Tls12, Version::Tls13] {
            let done = shake(&acceptor, &client(version), host).await;
            assert_eq!(done.leaf, leaf(expected), "{host}");
            let facts = done.server.unwrap();
            assert_eq!((facts.by_default, facts.version), (by_default, version), "{host}");
            assert!(facts.covers(host.to_lowercase().trim_end_matches('.')), "{host}");
        }
    }
}

#[tokio::test]
async fn without_a_certificate_the_name_is_unrecognized() {
    let own = certificate(&["a.example.com"]);
    let told_one = [told("own", &own), name("a.example.com", "own")];
    let unrecognized = |done: &Done| {
        matches!(done.client, Err(rustls::Error::AlertReceived(AlertDescription::UnrecognisedName)))
            && matches!(done.server, Err(Refused::UnknownName))
    };
    for version in [Version::Tls12, Version::Tls13] {
        let nothing_told = shake(&acceptor(&[]), &client(version), "a.example.com").await;
        assert!(unrecognized(&nothing_told));
        let other = shake(&acceptor(&told_one), &client(version), "b.example.com").await;
        assert!(unrecognized(&other), "no default");
    }
    let default = certificate(&["ingress.local"]);
    let mut strict = acceptor(&told_one);
    strict.certificates.update(&[told("default", &default), name("*", "default")], false);
    strict.options.unknown_name = UnknownName::Refuse;
    assert!(unrecognized(&shake(&strict, &client(Version::Tls13), "b.example.com").await));
    assert!(unrecognized(&shake(&strict, &client(Version::Tls13), "192.0.2.1").await), "no name at all");
    let done = shake(&strict, &client(Version::Tls13), "a.example.com").await;
    assert_eq!(done.leaf, leaf(&own));
}

#[tokio::test]
async fn a_bad_certificate_costs_its_own_names_only() {
    let (good, default) = (certificate(&["good.example.com"]), certificate(&["ingress.local"]));
    let wild = certificate(&["*.example.com"]);
    let with_key = |key: &[u8]| {
        Arc::new(Certificate {
            chain: certificate(&["bad.example.com"]).chain.clone(),
            key: Zeroizing::new(key.to_vec()),
            names: vec!["bad.example.com".into()],
            not_before: 0,
            not_after: 4_000_000_000,
        })
    };
    let no_chain = Arc::new(Certificate { chain: Vec::new(), ..(*with_key(&good.key)).clone() });
    for bad in [with_key(b"no key"), with_key(&[]), with_key(&good.key), no_chain] {
        let acceptor = acceptor(&[
            told("good", &good),
            told("bad", &bad),
            told("wild", &wild),
            told("default", &default),
            name("good.example.com", "good"),
            name("bad.example.com", "bad"),
            name("gone.example.com", "not there"),
            name("*.example.com", "wild"),
            name("*", "default"),
        ]);
        let client = client(Version::Tls13);
        for (host, expected) in [
            ("bad.example.com", &default),
            // Never the wildcard's: that may be another tenant's.
            ("gone.example.com", &default),
            ("good.example.com", &good),
            ("other.example.com", &wild),
        ] {
            assert_eq!(shake(&acceptor, &client, host).await.leaf, leaf(expected), "{host}");
        }
        let unusable: Vec<_> = acceptor.certificates.expiries();
        let unusable =
            unusable.iter().filter(|expiry| expiry.unusable).map(|e| e.identity.secret.name.as_str());
        assert_eq!(unusable.collect::<Vec<_>>(), ["bad"]);
        // It recovers by itself (I31).
        let healed = certificate(&["bad.example.com"]);
        acceptor.certificates.update(&[told("bad", &healed)], false);
        assert_eq!(shake(&acceptor, &client, "bad.example.com").await.leaf, leaf(&healed));
    }
}

#[tokio::test]
async fn a_new_certificate_is_used_at_once_and_connections_go_on() {
    let (old, new) = (certificate(&["a.example.com"]), certificate(&["a.example.com"]));
    let acceptor = acceptor(&[told("own", &old), name("a.example.com", "own")]);
    let (near, far) = duplex(64 << 10);
    let connector = TlsConnector::from(Arc::new(client(Version::Tls13)));
    let host = ServerName::try_from("a.example.com").unwrap();
    let (open, accepted) = tokio::join!(connector.connect(host, near), acceptor.accept(far));
    let (mut open, (mut accepted, _facts)) = (open.unwrap(), accepted.unwrap());
    acceptor.certificates.update(&[told("own", &new)], false);
    let done = shake(&acceptor, &client(Version::Tls13), "a.example.com").await;
    assert_eq!(done.leaf, leaf(&new));
    acceptor.certificates.update(&[], true);
    assert!(shake(&acceptor, &client(Version::Tls13), "a.example.com").await.server.is_err(), "removed");
    open.write_all(b"still here").await.unwrap();
    let mut word = [0; 10];
    accepted.read_exact(&mut word).await.unwrap();
    assert_eq!(&word, b"still here");
}

#[tokio::test]
async fn no_connection_keeps_a_removed_key() {
    let own = certificate(&["a.example.com"]);
    let weak = Arc::downgrade(&own);
    for version in [Version::Tls12, Version::Tls13] {
        let acceptor = acceptor(&[told("own", &own), name("a.example.com", "own")]);
        let (near, far) = duplex(64 << 10);
        let connector = TlsConnector::from(Arc::new(client(version)));
        let host = ServerName::try_from("a.example.com").unwrap();
        let (open, accepted) = tokio::join!(connector.connect(host, near), acceptor.accept(far));
        let (_open, _accepted) = (open.unwrap(), accepted.unwrap());
        let chosen = acceptor.certificates.choose(Some("a.example.com"), UnknownName::Default).unwrap();
        let config = Arc::downgrade(&chosen.config);
        drop(chosen);
        assert!(config.upgrade().is_some());
        acceptor.certificates.update(&[Update::Certificate(secret("own"), None)], false);
        assert!(config.upgrade().is_none(), "{version:?}");
    }
    // Its DER went when the key was first used, or with the certificate.
    drop(own);
    assert!(weak.upgrade().is_none());
}

#[tokio::test]
async fn keys_of_every_kind_and_form_are_served() {
    let sec1 = |pkcs8: &KeyPair| {
        // In PKCS#8 it is an octet string of 0x6d bytes.
        let der = pkcs8.serialize_der();
        let at = der.windows(3).position(|bytes| bytes == [0x04, 0x6d, 0x30]).unwrap();
        der[at + 2..].to_vec()
    };
    let p256 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let mut in_sec1 = (*certificate_with(&["a.example.com"], &p256)).clone();
    in_sec1.key = Zeroizing::new(sec1(&p256));
    for (what, certificate) in [
        ("P-256", certificate_with(&["a.example.com"], &p256)),
        ("P-384", certificate_with(&["a.example.com"], &p384)),
        ("Ed25519", certificate_with(&["a.example.com"], &ed25519)),
        ("P-256 in SEC1", Arc::new(in_sec1)),
    ] {
        let acceptor = acceptor(&[told("own", &certificate), name("a.example.com", "own")]);
        for version in [Version::Tls12, Version::Tls13] {
            let done = shake(&acceptor, &client(version), "a.example.com").await;
            assert_eq!(done.leaf, leaf(&certificate), "{what} {version:?}: {:?}", done.server);
        }
    }
}

#[test]
fn lookups_among_many_names_are_quick() {
    let shared = certificate(&["*.example.com"]);
    let certificates = Certificates::new().unwrap();
    let mut updates = vec![name("*", "s0")];
    for n in 0..10_000 {
        updates.push(told(&format!("s{n}"), &shared));
        updates.push(name(&format!("host-{n}.example.com"), &format!("s{n}")));
    }
    certificates.update(&updates, true);
    let mut took: Vec<Duration> = (0..10_000)
        .map(|n| {
            let host = format!("host-{}.example.com", n * 7919 % 12_000);
            let before = std::time::Instant::now();
            let own = certificates.is_of(&host, &secret("s1"));
            let took = before.elapsed();
            assert_eq!(own.is_some(), n * 7919 % 12_000 < 10_000);
            took
        })
        .collect();
    took.sort();
    assert!(took[9_900] < Duration::from_micros(50), "{:?}", took[9_900]);
}
