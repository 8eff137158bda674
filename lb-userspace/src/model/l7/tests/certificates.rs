//! From Secrets to the certificates that names are served with.

use super::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use zeroize::Zeroizing;

/// A certificate for these names, and its key, as PEM.
struct Made {
    certificate: String,
    key: String,
}

fn made_between(names: &[&str], years: (i32, i32)) -> Made {
    let mut params =
        CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
    params.not_before = date_time_ymd(years.0, 1, 1);
    params.not_after = date_time_ymd(years.1, 1, 1);
    let key = KeyPair::generate().unwrap();
    Made { certificate: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

fn made(names: &[&str]) -> Made {
    made_between(names, (2020, 2100))
}

fn secret(name: &str, certificate: &str, private_key: &str) -> Secret {
    Secret {
        key: key(name),
        kind: "kubernetes.io/tls".into(),
        certificate: Some(certificate.as_bytes().to_vec()),
        private_key: Some(Zeroizing::new(private_key.as_bytes().to_vec())),
    }
}

fn put_secret(objects: &mut Objects, secret: Secret) {
    objects.secrets.insert(secret.key.clone(), Arc::new(secret));
}

fn self_signed() -> Arc<Certificate> {
    let made = made(&["weir.invalid"]);
    Arc::new(tls::read(&secret("x", &made.certificate, &made.key)).unwrap())
}

fn input() -> L7Input {
    L7Input { now: NOW, self_signed: Some(self_signed()), ..L7Input::default() }
}

/// All Secrets that there are, are known.
fn objects() -> Objects {
    let mut objects = Objects::default();
    objects.listed.insert(Kind::Secret);
    web(&mut objects, "web", "10.0.0.1");
    objects
}

/// Names and their certificates, but the default one.
fn names(model: &L7Model) -> Vec<String> {
    let names = model.routes().names.iter().filter(|(pattern, _)| **pattern != HostPattern::Any);
    names.map(|(pattern, key)| format!("{pattern} {key}")).collect()
}

const CRT: &str = include_str!("data/rsa.crt");
const PKCS1: &str = include_str!("data/rsa-pkcs1.key");
const SEC1: (&str, &str) = (include_str!("data/ec.crt"), include_str!("data/ec-sec1.key"));

#[test]
fn what_a_served_certificate_says_of_itself_is_told() {
    let mut params =
        CertificateParams::new(vec!["*.b.example".to_string(), "a.example".to_string()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "An authority");
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "A company".repeat(100));
    params.serial_number = Some(rcgen::SerialNumber::from(vec![1, 0]));
    let private = KeyPair::generate().unwrap();
    let own = params.self_signed(&private).unwrap().pem();
    let mut objects = objects();
    put_secret(&mut objects, secret("own", &own, &private.serialize_pem()));
    put_secret(&mut objects, secret("rsa", CRT, PKCS1));
    let lines = ["a.example P / web:80", "tls own a.example", "tls rsa rsa.example", "tls gone x.example"];
    put_ingress(&mut objects, ingress("a", 0, &lines));
    let model = built_with(options(), &objects, &input());
    let issued: BTreeMap<_, _> = model.issued(10).into_iter().collect();
    assert_eq!(issued.keys().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["own", "rsa"]);
    let own = &issued[&key("own")];
    assert_eq!((own.host.as_str(), own.algorithm), ("*.b.example", "ECDSA"));
    assert_eq!((own.serial_number.as_str(), own.identifier.as_str()), ("256", "-256"));
    assert_eq!((own.issuer_common_name.as_str(), own.issuer_organization.len()), ("An authority", 200));
    assert_eq!(issued[&key("rsa")].algorithm, "RSA");
    assert_eq!(model.issued(1).len(), 1);
}

#[test]
fn keys_come_in_three_forms() {
    let ed25519 = {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let params = CertificateParams::new(vec!["ed.example".to_string()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let pkcs8 = made(&["A.example", "*.b.example"]);
    for (name, certificate, private_key, names) in [
        ("PKCS#8", &*pkcs8.certificate, &*pkcs8.key, &["a.example", "*.b.example"][..]),
        ("PKCS#1", CRT, PKCS1, &["rsa.example"]),
        ("SEC1, with its parameters in front", SEC1.0, SEC1.1, &["ec.example"]),
        ("Ed25519", &ed25519.0, &ed25519.1, &["ed.example"]),
    ] {
        let found = tls::read(&secret("x", certificate, private_key));
        assert_eq!(found.unwrap().names, names, "{name}");
    }
}

#[test]
fn a_bad_secret_is_told_with_its_reason_and_the_default_takes_its_place() {
    let (good, other) = (made(&["x.example"]), made(&["x.example"]));
    let text = |text: &str| Some(text.as_bytes().to_vec());
    let whole = || secret("s", &good.certificate, &good.key);
    let chain = format!("{}{}", other.certificate, good.certificate);
    let many = good.certificate.repeat(17);
    let late = made_between(&["x.example"], (2001, 2002));
    let early = made_between(&["x.example"], (2090, 2091));
    #[rustfmt::skip]
    let rows: Vec<(&str, Option<Secret>, &str)> = vec![
        ("absent", None, "there is no such Secret"),
        ("type", Some(Secret { kind: "Opaque".into(), ..whole() }), "it is of type Opaque"),
        ("no certificate", Some(Secret { certificate: None, ..whole() }), "it has no tls.crt"),
        ("no key", Some(Secret { private_key: None, ..whole() }), "it has no tls.key"),
        ("not PEM", Some(Secret { certificate: text("hello"), ..whole() }), "it has no certificate in tls.crt"),
        ("cut", Some(Secret { certificate: text(&good.certificate[..200]), ..whole() }), "tls.crt that is not PEM"),
        ("not X.509", Some(Secret { certificate: text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), ..whole() }),
            "something else than X.509"),
        ("certificate for a key", Some(secret("s", &good.certificate, &good.certificate)), "it has no private key"),
        ("damaged key", Some(secret("s", &good.certificate, "-----BEGIN PRIVATE KEY-----\nMAAA\n-----END PRIVATE KEY-----\n")), "tls.key"),
        ("another's key", Some(secret("s", &good.certificate, &other.key)), "does not belong"),
        ("leaf not first", Some(secret("s", &chain, &good.key)), "the leaf as certificate 2 of tls.crt"),
        ("long chain", Some(secret("s", &many, &good.key)), "more than 16 certificates"),
        ("expired", Some(secret("s", &late.certificate, &late.key)), "it has expired"),
        ("not yet", Some(secret("s", &early.certificate, &early.key)), "it is not valid yet"),
    ];
    let fine = made(&["fine.example"]);
    for (name, bad, reason) in rows {
        let mut objects = objects();
        bad.into_iter().for_each(|bad| put_secret(&mut objects, bad));
        put_secret(&mut objects, secret("fine", &fine.certificate, &fine.key));
        let lines =
            ["x.example P / web:80", "tls s x.example", "fine.example P / web:80", "tls fine fine.example"];
        put_ingress(&mut objects, ingress("a", 0, &lines));
        let mut model = built_with(options(), &objects, &input());
        assert_eq!(names(&model), ["fine.example default/fine", "x.example self-signed"], "{name}");
        assert_told(&model, &[reason]);
        assert!(
            told(&model).contains("Ingress default/a: spec.tls[0].secretName: Secret default/s: "),
            "{name}"
        );
        let to = "default/web:80 (default/a) 308";
        assert_eq!(rules(&model), [format!("fine.example P  {to}"), format!("x.example P  {to}")], "{name}");
        // By itself, once the Secret is right.
        put_secret(&mut objects, whole());
        let touched = Touched { secrets: [key("s")].into(), ..Touched::default() };
        model.update(
            &objects,
            &L7Input { self_signed: model.input.self_signed.clone(), ..input() },
            &touched,
        );
        assert_eq!(names(&model), ["fine.example default/fine", "x.example default/s"], "{name}");
        assert_eq!(told(&model), "", "{name}");
    }
}

#[test]
fn time_alone_changes_what_is_served() {
    let soon = made_between(&["x.example"], (2030, 2040));
    let certificate = tls::read(&secret("s", &soon.certificate, &soon.key)).unwrap();
    let mut objects = objects();
    put_secret(&mut objects, secret("s", &soon.certificate, &soon.key));
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80", "tls s x.example"]));
    let base = input();
    let at = |now: i64| L7Input { now, ..base.clone() };
    let mut model = built_with(options(), &objects, &at(NOW));
    let nothing = Touched::default();
    for (now, serves) in [
        (certificate.not_before - 1, false),
        (certificate.not_before, true),
        (certificate.not_after, true),
        (certificate.not_after + 1, false),
        // The clock is set back.
        (certificate.not_after, true),
    ] {
        model.update(&objects, &at(now), &nothing);
        let expected = if serves { "x.example default/s" } else { "x.example self-signed" };
        assert_eq!(names(&model), [expected], "{now}");
        assert_eq!(model.routes().certificates.len(), 1 + usize::from(serves));
    }
    assert_eq!(model.next_time(), Some(certificate.not_after + 1));
}

#[test]
fn entries_without_hosts_are_for_what_the_certificate_names() {
    let mut objects = objects();
    let wide = made(&["a.example", "*.b.example", "else.example"]);
    put_secret(&mut objects, secret("s", &wide.certificate, &wide.key));
    let lines = ["a.example P / web:80", "x.b.example P / web:80", "y.x.b.example P / web:80", "tls s"];
    put_ingress(&mut objects, ingress("a", 0, &lines));
    let model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["a.example default/s", "x.b.example default/s"], "I28");
    let to = "default/web:80 (default/a)";
    let expected = [
        format!("a.example P  {to} 308"),
        format!("x.b.example P  {to} 308"),
        format!("y.x.b.example P  {to}"),
    ];
    assert_eq!(rules(&model), expected);
    // A rule for all hosts is for all names of the certificate.
    put_ingress(&mut objects, ingress("a", 0, &["* P / web:80", "tls s"]));
    let model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["a.example default/s", "else.example default/s", "*.b.example default/s"]);
    // Without a Secret: the default certificate (I29), and the redirect.
    put_ingress(&mut objects, ingress("a", 0, &["a.example P / web:80", "tls -"]));
    let model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["a.example self-signed"]);
    assert_eq!(rules(&model), [format!("a.example P  {to} 308")]);
}

#[test]
fn the_oldest_keeps_a_name_whatever_its_secret_is_worth() {
    let mut objects = objects();
    for name in ["a/s", "b/s"] {
        let made = made(&["x.example", "*.x.example"]);
        put_secret(&mut objects, secret(name, &made.certificate, &made.key));
    }
    put_ingress(&mut objects, ingress("b/old", 1, &["tls s x.example", "tls s *.x.example"]));
    put_ingress(&mut objects, ingress("a/new", 2, &["tls s x.example", "tls s other.example"]));
    let model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["other.example a/s", "x.example b/s", "*.x.example b/s"]);
    assert_told(
        &model,
        &[
            "Ingress a/new: spec.tls[0]: x.example: held by Ingress b/old, which is older",
            "does not name other.example",
        ],
    );
    objects.secrets.remove(&key("b/s"));
    let model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["other.example a/s", "x.example self-signed", "*.x.example self-signed"]);
}

/// H41: who serves a host with the default certificate, or with that of the wildcard above, is
/// not given another one by a newcomer.
#[test]
fn a_newcomer_from_elsewhere_gives_no_host_its_certificate() {
    let mut objects = objects();
    web(&mut objects, "a/web", "10.0.0.2");
    web(&mut objects, "b/web", "10.0.0.3");
    for name in ["a/s", "b/s"] {
        let made = made(&["shop.example", "x.wide.example", "*.wide.example"]);
        put_secret(&mut objects, secret(name, &made.certificate, &made.key));
    }
    let lines = ["shop.example P / web:80", "*.wide.example P / web:80", "tls s *.wide.example"];
    put_ingress(&mut objects, ingress("a/old", 1, &lines));
    let lines =
        ["shop.example P /b web:80", "x.wide.example P /b web:80", "tls s shop.example x.wide.example"];
    put_ingress(&mut objects, ingress("b/new", 2, &lines[2..]));
    let mut model = built_with(options(), &objects, &input());
    assert_eq!(names(&model), ["*.wide.example a/s"]);
    let told = [
        "Ingress b/new: spec.tls[0]: shop.example: held by Ingress a/old, which is older",
        "Ingress b/new: spec.tls[0]: x.wide.example: held by Ingress a/old, which is older",
    ];
    assert_told(&model, &told);
    // The holder itself, and another one of its namespace, may.
    put_ingress(&mut objects, ingress("a/newer", 3, &["tls s shop.example"]));
    // When it goes, what it held is free.
    model.update(&objects, &input(), &everything(&objects));
    assert_eq!(names(&model), ["shop.example a/s", "*.wide.example a/s"]);
    objects.ingresses.remove(&key("a/old"));
    model.update(&objects, &input(), &Touched { ingresses: [key("a/old")].into(), ..Touched::default() });
    assert_eq!(names(&model), ["shop.example b/s", "x.wide.example b/s"]);
    // A host of its own below somebody's wildcard is the newcomer's, and its certificate.
    put_ingress(&mut objects, ingress("a/old", 1, &["*.wide.example P / web:80"]));
    put_ingress(&mut objects, ingress("b/new", 2, &lines));
    let model = built_with(options(), &objects, &input());
    assert!(names(&model).contains(&"x.wide.example b/s".to_string()));
}

#[test]
fn the_default_certificate_is_the_secret_of_the_flag_else_self_signed() {
    let options = || L7Options { default_certificate: Some(key("ops/default")), ..options() };
    let mut objects = objects();
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80", "tls - x.example"]));
    let mut model = built_with(options(), &objects, &input());
    assert_eq!(model.wanted_secrets(), BTreeSet::from([key("ops/default")]));
    assert_eq!(names(&model), ["x.example self-signed"]);
    assert_told(&model, &["Secret ops/default: --default-ssl-certificate: there is no such Secret"]);
    let made = made(&["d.example"]);
    put_secret(&mut objects, secret("ops/default", &made.certificate, &made.key));
    let touched = Touched { secrets: [key("ops/default")].into(), ..Touched::default() };
    model.update(&objects, &input(), &touched);
    assert_eq!(names(&model), ["x.example ops/default"]);
    assert_eq!(model.routes().names[&HostPattern::Any], key("ops/default"));
    assert_eq!(model.routes().certificates.keys().collect::<Vec<_>>(), [&key("ops/default")]);
    assert_eq!(told(&model), "");
}

#[test]
fn only_secrets_that_are_referred_to_are_wanted_and_kept() {
    let mut objects = Objects::default();
    let made = made(&["x.example"]);
    put_ingress(
        &mut objects,
        ingress("a", 0, &["x.example P / web:80", "tls s x.example", "tls s y.example"]),
    );
    let mut model = built_with(options(), &objects, &input());
    assert_eq!(model.wanted_secrets(), BTreeSet::from([key("s")]));
    // No answer came yet: nothing is told of it.
    assert!(model.awaits() && !told(&model).contains("Secret"), "{}", told(&model));
    put_secret(&mut objects, secret("s", &made.certificate, &made.key));
    model.update(&objects, &input(), &Touched { secrets: [key("s")].into(), ..Touched::default() });
    assert!(!model.awaits() && model.routes().certificates.contains_key(&key("s")));
    objects.ingresses.clear();
    let touched = Touched { ingresses: [key("a")].into(), ..Touched::default() };
    let updates = model.update(&objects, &input(), &touched);
    assert_eq!(updates.last(), Some(&Update::Certificate(key("s"), None)), "{updates:?}");
    assert!(model.wanted_secrets().is_empty());
}

#[test]
fn no_output_holds_a_key() {
    let mut objects = objects();
    let made = made(&["x.example"]);
    put_secret(&mut objects, secret("s", &made.certificate, &made.key));
    put_ingress(&mut objects, ingress("a", 0, &["x.example P / web:80", "tls s x.example"]));
    let model = built_with(options(), &objects, &input());
    let shown = format!("{model:?} {objects:?} {:?}", model.routes().updates());
    let line = made.key.lines().nth(1).unwrap();
    let numbers = format!("{:?}", &model.routes().certificates[&key("s")].key[40..60]);
    assert!(!shown.contains(line) && !shown.contains(numbers.trim_matches(['[', ']'])));
}
