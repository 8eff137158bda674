//! Which virtual host and which rule a request belongs to.
//!
//! Pure, and the same function for the proxy's table and for `weir explain URL`. The most
//! specific host pattern owns the request (I6 to I8); within it the first rule that matches
//! wins, since rules stand in order of precedence (I9 to I11). Nothing here decodes a path:
//! the agreement of raw and decoded form is judged by the caller, with this function.

use crate::model::routes::{Action, HostPattern, PathKind, PathRule, Routes, VirtualHost};
use index::Index;
use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

mod index;

/// So many rules are tried one by one, which is quicker than to hash the path.
const FEW: usize = 16;

/// Virtual hosts by pattern.
pub trait Hosts {
    type Host;
    fn exact(&self, name: &str) -> Option<&Self::Host>;
    /// By the parent: `example.com` for `*.example.com`.
    fn wildcard(&self, parent: &str) -> Option<&Self::Host>;
    fn any(&self) -> Option<&Self::Host>;
}

/// A virtual host whose rules can be looked up.
#[derive(Debug)]
pub struct Indexed {
    host: Arc<VirtualHost>,
    /// `None`: there are few rules.
    index: Option<Index>,
}

impl Indexed {
    pub fn new(host: Arc<VirtualHost>) -> Self {
        let index = (host.rules.len() > FEW).then(|| Index::of(&host.rules));
        Self { host, index }
    }
}

impl Deref for Indexed {
    type Target = VirtualHost;

    fn deref(&self) -> &VirtualHost {
        &self.host
    }
}

/// What a request was matched to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Matched<'a> {
    /// Position of the rule; none: the host's default took it.
    pub rule: Option<usize>,
    pub action: &'a Action,
}

/// Returns the host of an authority as it is compared: lower case, without port and without
/// one trailing dot (I6). Brackets of an IPv6 address stay.
pub fn host_name(authority: &str) -> Cow<'_, str> {
    let end = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => colon,
        _ => authority.len(),
    };
    let name = &authority[..end];
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

/// Returns the virtual host that owns a name, which is in the form of [`host_name`]: the exact
/// one, else the wildcard that stands for exactly its first label (I6), else the one for all
/// names that nothing else is for (I8).
pub fn virtual_host<'a, H: Hosts>(hosts: &'a H, name: &str) -> Option<&'a H::Host> {
    let wildcard = || {
        let (label, parent) = name.split_once('.')?;
        if label.is_empty() { None } else { hosts.wildcard(parent) }
    };
    hosts.exact(name).or_else(wildcard).or_else(|| hosts.any())
}

/// Returns what the host does with a path: its first rule that matches, else its default (I7);
/// none is the answer 404 (I15). The path has no query. It is
/// bytes, since readings of it need not be UTF-8.
pub fn action<'a>(host: &'a Indexed, path: &[u8]) -> Option<Matched<'a>> {
    match rule(host, path) {
        Some((at, rule)) => Some(Matched { rule: Some(at), action: &rule.action }),
        None => host.default.as_ref().map(|action| Matched { rule: None, action }),
    }
}

/// Returns the first rule that matches, with its position.
pub fn rule<'a>(host: &'a Indexed, path: &[u8]) -> Option<(usize, &'a PathRule)> {
    let at = match &host.index {
        Some(index) => index.find(&host.rules, path)?,
        None => host.rules.iter().position(|rule| matches(rule, path))?,
    };
    Some((at, host.rules.get(at)?))
}

/// Tells whether a rule takes a path: byte by byte (I9), or element by element (I10).
pub fn matches(rule: &PathRule, path: &[u8]) -> bool {
    match rule.kind {
        PathKind::Exact => rule.path.as_bytes() == path,
        PathKind::Prefix => {
            path.strip_prefix(rule.path.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
        }
    }
}

/// Returns the rule that comes closest to a path that none takes: the one that shares the most
/// bytes with it from the start. For explanations only.
pub fn nearest_miss<'a>(host: &'a VirtualHost, path: &[u8]) -> Option<&'a PathRule> {
    let shared =
        |rule: &PathRule| rule.path.bytes().zip(path.iter().copied()).take_while(|(a, b)| a == b).count();
    let misses = host.rules.iter().filter(|rule| !matches(rule, path));
    // The first of equals: `max_by_key` alone gives the last.
    misses.rev().max_by_key(|rule| shared(rule))
}

impl Hosts for Routes {
    type Host = Arc<VirtualHost>;

    fn exact(&self, name: &str) -> Option<&Arc<VirtualHost>> {
        self.hosts.get(&HostPattern::Exact(name.into()))
    }

    fn wildcard(&self, parent: &str) -> Option<&Arc<VirtualHost>> {
        self.hosts.get(&HostPattern::Wildcard(parent.into()))
    }

    fn any(&self) -> Option<&Arc<VirtualHost>> {
        self.hosts.get(&HostPattern::Any)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::model::routes::{PoolKey, Target};
    use crate::problem::ObjectKey;
    use proptest::prelude::*;

    fn act(name: &str) -> Action {
        let service = Arc::new(ObjectKey::new("default", name));
        Action {
            ingress: Arc::new(ObjectKey::new("default", name)),
            target: Target::Pool(PoolKey { service, port: 80 }),
            https_redirect: None,
        }
    }

    /// Rules in the order that the model gives; `=/foo` is Exact, `/foo` is Prefix.
    fn host(rules: &[&str], default: Option<&str>) -> VirtualHost {
        let rules = rules
            .iter()
            .map(|text| {
                let (kind, path) = match text.strip_prefix('=') {
                    Some(path) => (PathKind::Exact, path),
                    None => (PathKind::Prefix, text.trim_end_matches('/')),
                };
                PathRule { kind, path: path.into(), action: act(text) }
            })
            .collect();
        VirtualHost { rules, default: default.map(act) }
    }

    /// The host with its rules tried one by one, and with them looked up, however few.
    fn both(host: VirtualHost) -> [Indexed; 2] {
        let host = Arc::new(host);
        let index = Some(Index::of(&host.rules));
        [Indexed { host: Arc::clone(&host), index: None }, Indexed { host, index }]
    }

    /// What both ways of looking come to.
    fn action_of(host: &VirtualHost, path: &str) -> (Option<usize>, String) {
        let [one, other] = both(host.clone()).map(|host| {
            let matched = action(&host, path.as_bytes());
            (matched.and_then(|matched| matched.rule), name_of(matched).to_string())
        });
        assert_eq!(one, other, "{path}");
        one
    }

    fn name_of<'a>(matched: Option<Matched<'a>>) -> &'a str {
        matched.map_or("404", |matched| matched.action.ingress.name.as_str())
    }

    #[test]
    fn hosts_are_compared_in_one_form() {
        for (authority, name) in [
            ("foo.com", "foo.com"),
            ("FOO.Com", "foo.com"),
            ("foo.com:80", "foo.com"),
            ("foo.com.", "foo.com"),
            ("foo.com.:8080", "foo.com"),
            ("foo.com..", "foo.com."),
            ("foo.com:", "foo.com"),
            ("[2001:DB8::1]:80", "[2001:db8::1]"),
            ("[::1]", "[::1]"),
            ("10.0.0.1:80", "10.0.0.1"),
            ("", ""),
        ] {
            assert_eq!(host_name(authority), name, "{authority}");
        }
    }

    #[test]
    fn the_most_specific_host_owns_a_name() {
        let mut routes = Routes::default();
        let patterns = [
            HostPattern::Exact("foo.com".into()),
            HostPattern::Exact("a.foo.com".into()),
            HostPattern::Wildcard("foo.com".into()),
            HostPattern::Wildcard("b.foo.com".into()),
            HostPattern::Any,
        ];
        for pattern in patterns {
            let host = Arc::new(host(&[], Some(&pattern.to_string())));
            routes.hosts.insert(pattern, host);
        }
        for (name, owner) in [
            ("foo.com", "foo.com"),
            ("a.foo.com", "a.foo.com"),
            ("b.foo.com", "*.foo.com"),
            ("x.foo.com", "*.foo.com"),
            // A wildcard is for exactly one label (I6).
            ("x.a.foo.com", "*"),
            ("x.b.foo.com", "*.b.foo.com"),
            (".foo.com", "*"),
            ("com", "*"),
            ("xfoo.com", "*"),
            ("", "*"),
        ] {
            let found = virtual_host(&routes, name).unwrap();
            assert_eq!(found.default.as_ref().unwrap().ingress.name, owner, "{name}");
        }
        routes.hosts.remove(&HostPattern::Any);
        assert!(virtual_host(&routes, "x.a.foo.com").is_none());
    }

    #[test]
    fn what_the_owner_does_not_match_goes_to_no_other_host() {
        // I7: the exact host has no rule for it; the wildcard's and Any's rules do not count.
        let mut routes = Routes::default();
        routes.hosts.insert(HostPattern::Exact("a.foo.com".into()), Arc::new(host(&["/x"], None)));
        routes.hosts.insert(HostPattern::Wildcard("foo.com".into()), Arc::new(host(&["/"], None)));
        routes.hosts.insert(HostPattern::Any, Arc::new(host(&["/"], None)));
        let owner = virtual_host(&routes, "a.foo.com").unwrap();
        assert_eq!(action_of(owner, "/y").1, "404");
        assert_eq!(action_of(&host(&["/x"], Some("default")), "/y").1, "default");
    }

    #[test]
    fn one_rule_takes_what_it_says() {
        for (rule, path, taken) in [
            // I9
            ("=/foo", "/foo", true),
            ("=/foo", "/foo/", false),
            ("=/foo/", "/foo", false),
            ("=/foo", "/FOO", false),
            ("=/", "/", true),
            ("=/", "/foo", false),
            // I10
            ("/", "/", true),
            ("/", "/any/thing", true),
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/", true),
            ("/foo", "/foo/bar", true),
            ("/foo", "/foobar", false),
            ("/foo", "/FOO", false),
            ("/aaa/bb", "/aaa/bbb", false),
            ("/aaa/bbb", "/aaa/bbb/ccc", true),
            ("/aaa/bbb/", "/aaa/bbb", true),
            ("/admin", "/adminx", false),
            ("/", "*", false),
        ] {
            let host = host(&[rule], None);
            assert_eq!(action_of(&host, path).0.is_some(), taken, "{rule} {path}");
        }
    }

    #[test]
    fn the_first_rule_that_matches_wins() {
        // I11: longest first, Exact before Prefix, as the model orders them.
        let host = host(&["=/foo/bar", "/foo/bar", "=/foo", "/foo", "/"], Some("default"));
        for (path, rule) in [
            ("/foo/bar", "=/foo/bar"),
            ("/foo/bar/", "/foo/bar"),
            ("/foo/bar/x", "/foo/bar"),
            ("/foo", "=/foo"),
            ("/foo/", "/foo"),
            ("/foo/barx", "/foo"),
            ("/other", "/"),
            ("*", "default"),
        ] {
            assert_eq!(action_of(&host, path).1, rule, "{path}");
        }
        assert_eq!(action_of(&host, "/foo").0, Some(2));
        assert_eq!(action_of(&host, "*").0, None);
    }

    proptest! {
        #[test]
        fn looking_up_finds_what_trying_finds(
            rules in prop::collection::vec("=?(/[ab]{0,2}){0,4}", 0..40),
            paths in prop::collection::vec("/?[ab]{0,2}(/[ab\\xff]{0,2}){0,6}", 1..20),
        ) {
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            let host = host(&rules, Some("default"));
            for path in &paths {
                action_of(&host, path);
            }
            prop_assert_eq!(Indexed::new(Arc::new(host)).index.is_some(), rules.len() > FEW);
        }
    }

    #[test]
    fn many_rules_cost_what_few_cost() {
        // Of one host, and as many readings of a path as are judged at most (H32).
        let quickest = |rules: usize| {
            let rules: Vec<String> = (0..rules).map(|n| format!("/shop/items/{n:06}")).collect();
            let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
            let host = Indexed::new(Arc::new(host(&rules, None)));
            let once = |_| {
                let began = std::time::Instant::now();
                assert!((0..256).all(|n| action(&host, format!("/shop/items/x{n}").as_bytes()).is_none()));
                began.elapsed()
            };
            (0..20).map(once).min().unwrap()
        };
        let (few, many) = (quickest(20), quickest(20_000));
        assert!(many < few * 20, "{few:?} for 20 rules, {many:?} for 20,000");
    }

    #[test]
    fn the_nearest_miss_shares_most_of_the_path() {
        let host = host(&["=/api/v1", "/web", "/api"], None);
        assert_eq!(&*nearest_miss(&host, b"/api/v").unwrap().path, "/api/v1");
        assert_eq!(&*nearest_miss(&host, b"/webx").unwrap().path, "/web");
        // Rules that do match are no misses.
        assert_eq!(&*nearest_miss(&host, b"/api/v1").unwrap().path, "/web");
        assert!(nearest_miss(&VirtualHost::default(), b"/").is_none());
    }
}
