//! What would become of a request for a URL: the steps of the proxy, from the same table and by
//! the same functions.
//!
//! Where nothing serves it, the nearest misses are told: the rule that comes closest, hosts
//! that are like the one asked for, Ingresses that name it and are not ours.

use crate::health::rfc3339;
use crate::model::routes::{
    Action, Certificate, HostPattern, PathKind, PoolKey, Protocol, Routes, Target, VirtualHost,
};
use crate::problem::ObjectKey;
use crate::proxy::matcher::{self, Indexed};
use crate::proxy::target;
use crate::source::Ingress;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// A URL that is asked about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Url {
    pub https: bool,
    /// With the port, as written.
    pub authority: String,
    pub port: u16,
    /// Without query, as written.
    pub path: String,
    /// With its `?`, or empty.
    pub query: String,
}

impl Url {
    /// Reads `http://…` or `https://…`.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (https, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (None, Some(rest)) => (false, rest),
            (None, None) => return Err(format!("{text}: begins with neither http:// nor https://")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (path, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        if authority.is_empty() || authority.contains('@') {
            return Err(format!("{text}: has no host, or a user in front of it"));
        }
        let port = match authority.rfind(':').filter(|colon| !authority[*colon..].contains(']')) {
            None => {
                if https {
                    443
                } else {
                    80
                }
            }
            Some(colon) => {
                authority[colon + 1..].parse().map_err(|_| format!("{text}: has no port behind the colon"))?
            }
        };
        let path = if path.is_empty() { "/" } else { path };
        Ok(Self { https, authority: authority.into(), port, path: path.into(), query: query.into() })
    }
}

/// What an explanation is made from.
pub struct UrlView<'a> {
    pub routes: &'a Routes,
    pub http: &'a [SocketAddr],
    pub https: &'a [SocketAddr],
    pub ingresses: &'a BTreeMap<ObjectKey, Arc<Ingress>>,
    pub is_ours: &'a dyn Fn(&ObjectKey) -> bool,
    /// Why routes are not published yet, if so.
    pub waits: Option<String>,
}

/// The answer of `weir explain URL`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct UrlExplanation {
    pub target: String,
    pub served: bool,
    /// What the proxy itself answers; absent when the endpoint does.
    pub status: Option<u16>,
    pub listener: Option<String>,
    pub certificate: Option<CertificateTold>,
    pub host: Option<String>,
    pub rule: Option<String>,
    pub ingress: Option<String>,
    pub service: Option<String>,
    pub endpoints: Vec<String>,
    pub location: Option<String>,
    /// One sentence for each decision, in order.
    pub steps: Vec<String>,
    pub nearest: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct CertificateTold {
    pub secret: String,
    pub names: Vec<String>,
    pub not_after: String,
    /// No name chose it.
    pub by_default: bool,
}

/// Explains a request.
pub fn explain(
    view: &UrlView<'_>,
    text: &str,
    url: &Url,
    method: &str,
    headers: &[(String, String)],
) -> UrlExplanation {
    let mut told = UrlExplanation { target: text.to_string(), ..UrlExplanation::default() };
    let end = decide(view, url, method, headers, &mut told);
    match end {
        Ok(()) => told.served = true,
        Err(status) => told.status = status,
    }
    told
}

/// Ends with the status of the refusal; `None`: nobody answers at all.
fn decide(
    view: &UrlView<'_>,
    url: &Url,
    method: &str,
    headers: &[(String, String)],
    told: &mut UrlExplanation,
) -> Result<(), Option<u16>> {
    listener(view, url, told).ok_or(None)?;
    if let Some(waits) = &view.waits {
        told.steps.push(format!("L7 is not ready: {waits}. What follows is from the objects known so far."));
    }
    let field = |name: &str| {
        headers.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    };
    let authority = field("host").unwrap_or(&url.authority);
    let name = matcher::host_name(authority);
    if url.https {
        certificate(view, &matcher::host_name(&url.authority), &name, told).map_err(Some)?;
    }
    if method.eq_ignore_ascii_case("CONNECT") {
        told.steps.push("CONNECT is not served: 405.".into());
        return Err(Some(405));
    }
    let Some((pattern, host)) = owner(view.routes, &name) else {
        told.steps.push(format!("No rule is for host {name}, and none for all hosts: 404."));
        other_hosts(view, &name, told);
        return Err(Some(404));
    };
    told.host = Some(pattern.to_string());
    told.steps.push(match &pattern {
        HostPattern::Exact(_) => format!("Host {name} has {}; no other host's are looked at.", rules(host)),
        HostPattern::Wildcard(_) => format!("Host {name} is one of {pattern}, which has {}.", rules(host)),
        HostPattern::Any => {
            format!("No rule names host {name}; those for all hosts are looked at: {}.", rules(host))
        }
    });
    let action = route(host, url, told)?;
    told.ingress = Some(action.ingress.to_string());
    let acme = url.path.starts_with("/.well-known/acme-challenge/");
    if let Some(status) = action.https_redirect.filter(|_| !url.https && !acme) {
        let port = match view.https.first().map_or(443, SocketAddr::port) {
            443 => String::new(),
            port => format!(":{port}"),
        };
        let location = format!("https://{name}{port}{}{}", url.path, url.query);
        told.steps.push(format!("The host has TLS: {status} to {location}."));
        told.status = Some(status);
        told.location = Some(location);
        return Ok(());
    }
    match &action.target {
        Target::Unavailable(reason) => {
            told.steps.push(format!("There is no way to its Service: {reason}: 503."));
            Err(Some(503))
        }
        Target::Pool(pool) => endpoints(view, pool, told).map_err(Some),
    }
}

fn listener(view: &UrlView<'_>, url: &Url, told: &mut UrlExplanation) -> Option<()> {
    let (own, other) = if url.https { (view.https, view.http) } else { (view.http, view.https) };
    let (scheme, flag) = if url.https { ("HTTPS", "--https-listen") } else { ("HTTP", "--http-listen") };
    if let Some(listener) = own.iter().find(|listener| listener.port() == url.port) {
        told.listener = Some(listener.to_string());
        told.steps.push(format!("{scheme} on port {} comes to listener {listener}.", url.port));
        return Some(());
    }
    told.steps.push(format!("No {scheme} listener has port {}.", url.port));
    let ports = |listeners: &[SocketAddr]| {
        listeners.iter().map(|listener| listener.port().to_string()).collect::<Vec<_>>().join(", ")
    };
    told.nearest.push(format!("{flag} has port {}.", ports(own)));
    if other.iter().any(|listener| listener.port() == url.port) {
        let other = if url.https { "HTTP" } else { "HTTPS" };
        told.nearest.push(format!("Port {} speaks {other}.", url.port));
    }
    None
}

/// The certificate that a name is served with, and whether that name chose it.
pub fn certificate_of<'a>(
    routes: &'a Routes,
    name: &str,
) -> (Option<(&'a ObjectKey, &'a Arc<Certificate>)>, bool) {
    let exact = match name.strip_prefix("*.") {
        Some(parent) => HostPattern::Wildcard(parent.into()),
        None => HostPattern::Exact(name.into()),
    };
    let own = routes.names.get(&exact).or_else(|| {
        let (label, parent) = name.split_once('.')?;
        routes.names.get(&HostPattern::Wildcard(parent.into())).filter(|_| !label.is_empty())
    });
    let key = own.or_else(|| routes.names.get(&HostPattern::Any));
    let found = key.and_then(|key| Some((key, routes.certificates.get(key)?)));
    (found, own.is_none())
}

/// Tells the certificate; 421 where a host is asked for that it is not for (I34).
fn certificate(view: &UrlView<'_>, sni: &str, name: &str, told: &mut UrlExplanation) -> Result<(), u16> {
    let (Some((secret, certificate)), by_default) = certificate_of(view.routes, sni) else {
        told.steps.push("There is no certificate at all, and no handshake.".into());
        return Err(421);
    };
    let told_certificate = CertificateTold {
        secret: secret.to_string(),
        names: certificate.names.iter().take(8).cloned().collect(),
        not_after: rfc3339(u64::try_from(certificate.not_after).unwrap_or(0).saturating_mul(1000)),
        by_default,
    };
    let named = |name: &str| {
        certificate.names.iter().any(|own| {
            own == name
                || own.strip_prefix("*.").is_some_and(|of| name.split_once('.').is_some_and(|(_, p)| p == of))
        })
    };
    let why = if by_default {
        format!("the default one, as no tls section is for {sni}")
    } else {
        format!("chosen by the name {sni}")
    };
    let names = told_certificate.names.join(", ");
    let trust = if named(sni) { "" } else { "; it does not name the host, so clients will refuse it" };
    told.steps.push(format!(
        "Certificate {secret}, {why}: for {names}, until {}{trust}.",
        told_certificate.not_after
    ));
    told.certificate = Some(told_certificate);
    let (of_host, host_by_default) = certificate_of(view.routes, name);
    let same = if host_by_default { named(name) } else { of_host.is_some_and(|(of, _)| of == secret) };
    if by_default || name == sni || same {
        return Ok(());
    }
    told.steps.push(format!("A connection for {sni} is not for host {name}: 421."));
    Err(421)
}

/// The virtual host that owns a name, and its pattern.
pub fn owner<'a>(routes: &'a Routes, name: &str) -> Option<(HostPattern, &'a Arc<VirtualHost>)> {
    let host = matcher::virtual_host(routes, name)?;
    let parent = name.split_once('.').map(|(_, parent)| HostPattern::Wildcard(parent.into()));
    let patterns = [Some(HostPattern::Exact(name.into())), parent, Some(HostPattern::Any)];
    let found = patterns
        .into_iter()
        .flatten()
        .find(|pattern| routes.hosts.get(pattern).is_some_and(|of| Arc::ptr_eq(of, host)));
    Some((found?, host))
}

fn route<'a>(
    host: &'a Arc<VirtualHost>,
    url: &Url,
    told: &mut UrlExplanation,
) -> Result<&'a Action, Option<u16>> {
    let indexed = Indexed::new(Arc::clone(host));
    let select = |path: &[u8]| matcher::action(&indexed, path).map(|matched| matched.rule);
    let selected = target::agree(url.path.as_bytes(), select).map_err(|refusal| {
        told.steps.push(format!(
            "Path {} is refused ({}): its readings must all be for one route: 400.",
            url.path,
            refusal.label()
        ));
        Some(400)
    })?;
    match selected {
        Some(Some(at)) => {
            let rule = host.rules.get(at).ok_or(Some(404))?;
            let spelled = spell(rule.kind, &rule.path);
            told.steps
                .push(format!("Path {} matches {spelled}, of Ingress {}.", url.path, rule.action.ingress));
            told.rule = Some(spelled);
            Ok(&rule.action)
        }
        Some(None) => {
            let action = host.default.as_ref().ok_or(Some(404))?;
            told.rule = Some("default backend".into());
            told.steps.push(format!(
                "No rule matches path {}: the default backend of Ingress {} takes it.",
                url.path, action.ingress
            ));
            Ok(action)
        }
        None => {
            told.steps
                .push(format!("No rule matches path {}, and there is no default backend: 404.", url.path));
            if let Some(rule) = matcher::nearest_miss(host, url.path.as_bytes()) {
                let spelled = spell(rule.kind, &rule.path);
                told.nearest.push(format!("{spelled}, of Ingress {}, comes closest.", rule.action.ingress));
            }
            Err(Some(404))
        }
    }
}

fn endpoints(view: &UrlView<'_>, key: &PoolKey, told: &mut UrlExplanation) -> Result<(), u16> {
    told.service = Some(key.to_string());
    let pool = view.routes.pools.get(key);
    let found = pool.map_or(&[][..], |pool| &pool.endpoints);
    if found.is_empty() {
        told.steps.push(format!(
            "Service {} port {} has no endpoint that may be used: 503.",
            key.service, key.port
        ));
        return Err(503);
    }
    told.endpoints = found.iter().map(ToString::to_string).collect();
    let spoken = pool.map_or("", |pool| protocol(pool.protocol));
    let shown = some(&told.endpoints);
    let which = match found.len() {
        1 => "its only endpoint".to_string(),
        count => format!("the less busy of two of its {count} endpoints"),
    };
    told.steps.push(format!(
        "It goes to Service {} port {}, over {spoken}, to {which}: {shown}.",
        key.service, key.port
    ));
    Ok(())
}

/// What is spoken, for people.
pub fn protocol(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Http1 => "HTTP/1.1",
        Protocol::H2c => "HTTP/2",
    }
}

/// The first few.
pub fn some(all: &[String]) -> String {
    let mut text = all.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
    if all.len() > 4 {
        text.push_str(&format!(" and {} more", all.len() - 4));
    }
    text
}

fn other_hosts(view: &UrlView<'_>, name: &str, told: &mut UrlExplanation) {
    let foreign = view.ingresses.values().filter(|ingress| {
        !(view.is_ours)(&ingress.key) && ingress.rules.iter().any(|rule| rule.host.eq_ignore_ascii_case(name))
    });
    for ingress in foreign.take(3) {
        let class = match (&ingress.class, &ingress.class_annotation) {
            (Some(class), _) | (None, Some(class)) => format!("its class is {class}"),
            (None, None) => "it has no class".into(),
        };
        told.nearest.push(format!("Ingress {} names this host and is not ours: {class}.", ingress.key));
    }
    let like = |pattern: &&HostPattern| match pattern {
        HostPattern::Exact(host) => host.ends_with(name) || name.ends_with(&**host),
        HostPattern::Wildcard(parent) => name == &**parent || name.ends_with(&format!(".{parent}")),
        HostPattern::Any => false,
    };
    for pattern in view.routes.hosts.keys().filter(like).take(3) {
        let why = if matches!(pattern, HostPattern::Wildcard(_)) {
            "; its * stands for exactly one label"
        } else {
            ""
        };
        told.nearest.push(format!("There are rules for {pattern}{why}."));
    }
}

fn rules(host: &VirtualHost) -> String {
    let count = host.rules.len();
    let default = if host.default.is_some() { " and a default backend" } else { "" };
    format!("{count} rule{}{default}", if count == 1 { "" } else { "s" })
}

/// `Prefix /api`.
pub fn spell(kind: PathKind, path: &str) -> String {
    format!("{kind:?} {}", if path.is_empty() { "/" } else { path })
}

impl UrlExplanation {
    /// For people: the verdict, then the steps.
    pub fn text(&self) -> String {
        let verdict = match (self.served, self.status) {
            (true, Some(status)) => format!("answered with {status}"),
            (true, None) => "served".into(),
            (false, Some(status)) => format!("NOT served: {status}"),
            (false, None) => "NOT served: nobody listens".into(),
        };
        let mut text = format!("{}: {verdict}\n", self.target);
        for step in &self.steps {
            text.push_str(&format!("  {step}\n"));
        }
        if !self.nearest.is_empty() {
            text.push_str("Nearest:\n");
            for near in &self.nearest {
                text.push_str(&format!("  {near}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::model::routes::{PathRule, Pool};

    fn action(name: &str, target: Target, redirect: bool) -> Action {
        let ingress = Arc::new(ObjectKey::new("default", name));
        Action { ingress, target, https_redirect: redirect.then_some(308) }
    }

    fn pool(name: &str) -> PoolKey {
        PoolKey { service: Arc::new(ObjectKey::new("default", name)), port: 80 }
    }

    /// The seed's Ingress, and a few more.
    fn routes() -> Routes {
        let mut routes = Routes::default();
        let rule = |path: &str, to: &str, redirect| PathRule {
            kind: PathKind::Prefix,
            path: path.into(),
            action: action("my-ingress", Target::Pool(pool(to)), redirect),
        };
        let host = |rules| Arc::new(VirtualHost { rules, default: None });
        let seed = host(vec![rule("/api", "api-service", true), rule("/web", "web-service", true)]);
        routes.hosts.insert(HostPattern::Exact("example.com".into()), seed);
        let gone = action("other", Target::Unavailable("there is no Service default/gone".into()), false);
        let wild = VirtualHost { rules: vec![], default: Some(gone) };
        routes.hosts.insert(HostPattern::Wildcard("wild.example".into()), Arc::new(wild));
        let endpoints = vec!["10.0.0.1:8080".parse().unwrap(), "[2001:db8::1]:8080".parse().unwrap()];
        routes.pools.insert(pool("api-service"), Arc::new(Pool { protocol: Protocol::Http1, endpoints }));
        routes.pools.insert(pool("web-service"), Arc::new(Pool::default()));
        for (pattern, key, names) in [
            (
                HostPattern::Exact("example.com".into()),
                ObjectKey::new("default", "tls-secret"),
                vec!["example.com"],
            ),
            (HostPattern::Any, ObjectKey::new("", "self-signed"), vec!["ingress.weir.invalid"]),
        ] {
            let certificate = Certificate {
                chain: vec![],
                key: zeroize::Zeroizing::new(vec![]),
                names: names.into_iter().map(Into::into).collect(),
                not_before: 0,
                not_after: 1_900_000_000,
            };
            routes.certificates.insert(key.clone(), Arc::new(certificate));
            routes.names.insert(pattern, key);
        }
        routes
    }

    fn ask(url: &str, method: &str, headers: &[(&str, &str)]) -> UrlExplanation {
        let routes = routes();
        let foreign = Ingress {
            key: ObjectKey::new("default", "foreign"),
            class: Some("nginx".into()),
            rules: vec![crate::source::IngressRule { index: 0, host: "foreign.example".into(), paths: None }],
            ..Ingress::default()
        };
        let view = UrlView {
            routes: &routes,
            http: &["[::]:80".parse().unwrap()],
            https: &["[::]:443".parse().unwrap()],
            ingresses: &BTreeMap::from([(foreign.key.clone(), Arc::new(foreign))]),
            is_ours: &|_| false,
            waits: None,
        };
        let headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        explain(&view, url, &Url::parse(url).unwrap(), method, &headers)
    }

    #[test]
    fn each_end_is_told_with_its_reason() {
        /// URL, method, header, served, status, part of the text.
        type Row<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], bool, Option<u16>, &'a str);
        #[rustfmt::skip]
        let rows: &[Row<'_>] = &[
            ("https://example.com/api/x?q", "GET", &[], true, None, "its 2 endpoints: 10.0.0.1:8080, [2001:db8::1]:8080"),
            ("https://example.com/api", "GET", &[], true, None, "Certificate default/tls-secret, chosen by the name example.com"),
            ("https://EXAMPLE.com./api", "GET", &[], true, None, "matches Prefix /api, of Ingress default/my-ingress"),
            ("https://example.com/apix", "GET", &[], false, Some(404), "Prefix /api, of Ingress default/my-ingress, comes closest"),
            ("https://example.com/", "GET", &[], false, Some(404), "No rule matches path /"),
            ("https://example.com/web", "GET", &[], false, Some(503), "no endpoint that may be used"),
            ("http://example.com/api?q=1", "GET", &[], true, Some(308), "308 to https://example.com/api?q=1"),
            ("http://example.com/.well-known/acme-challenge/x", "GET", &[], false, Some(404), "No rule matches"),
            ("https://example.com/api/%2e%2e/web", "GET", &[], false, Some(400), "path-disagreement"),
            ("https://example.com/api%00", "GET", &[], false, Some(400), "path-nul"),
            ("https://example.com/api", "CONNECT", &[], false, Some(405), "CONNECT is not served"),
            ("https://example.com/api", "GET", &[("Host", "a.wild.example")], false, Some(421), "not for host a.wild.example"),
            ("https://10.0.0.1/api", "GET", &[("host", "example.com")], true, None, "the default one"),
            ("http://a.wild.example/", "GET", &[], false, Some(503), "there is no Service default/gone"),
            ("http://a.b.wild.example/", "GET", &[], false, Some(404), "stands for exactly one label"),
            ("http://foreign.example/", "GET", &[], false, Some(404), "is not ours: its class is nginx"),
            ("http://example.com:8080/api", "GET", &[], false, None, "--http-listen has port 80"),
            ("http://example.com:443/api", "GET", &[], false, None, "Port 443 speaks HTTPS"),
        ];
        for (url, method, headers, served, status, part) in rows {
            let told = ask(url, method, headers);
            assert_eq!((told.served, told.status), (*served, *status), "{url}: {}", told.text());
            assert!(told.text().contains(part), "{url}: {part:?}:\n{}", told.text());
        }
    }

    #[test]
    fn urls_keep_what_was_written() {
        let url = Url::parse("https://[2001:db8::1]:8443/a%2Fb?x=/#f").unwrap();
        assert_eq!((url.port, &*url.path, &*url.query), (8443, "/a%2Fb", "?x=/"));
        let url = Url::parse("http://example.com?x").unwrap();
        assert_eq!((url.port, &*url.path, &*url.query), (80, "/", "?x"));
        for bad in ["ftp://x/", "http:///x", "http://user@x/", "http://x:/", "https://x:99999/"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }
}
