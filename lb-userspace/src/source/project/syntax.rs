//! Names, hosts and paths as the API server accepts them.
//!
//! Each check follows `k8s.io/apimachinery/pkg/util/validation` and the validation of
//! `networking.k8s.io/v1`, and answers with the beginning of a sentence that says what is wrong.

use std::net::IpAddr;

/// Longest DNS name.
const LONGEST_NAME: usize = 253;
/// Longest path of a rule: longer targets are refused by any server in front of it.
const LONGEST_PATH: usize = 4096;
/// Longest text that is repeated in a reason.
const LONGEST_QUOTE: usize = 80;

/// A text in quotes, cut where it is long: a reason is no place for a megabyte.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(LONGEST_QUOTE) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

/// Whether a text is one label: lower-case letters, digits and inner hyphens.
fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Labels joined by dots, at most 253 bytes.
pub(super) fn subdomain(text: &str) -> Result<(), String> {
    if text.len() <= LONGEST_NAME && text.split('.').all(is_label) {
        return Ok(());
    }
    Err(format!("{} is not a DNS name (lower-case letters, digits, - and .)", quoted(text)))
}

/// The name of a Service: one label, at most 63 bytes.
pub(super) fn service_name(text: &str) -> Result<(), String> {
    if text.len() <= 63 && is_label(text) {
        return Ok(());
    }
    Err(format!("{} is not a name of a Service", quoted(text)))
}

/// The name of a port: at most 15 bytes, a letter among them, no two hyphens in a row.
pub(super) fn port_name(text: &str) -> Result<(), String> {
    let has_letter = text.bytes().any(|c| c.is_ascii_lowercase());
    if text.len() <= 15 && is_label(text) && has_letter && !text.contains("--") {
        return Ok(());
    }
    Err(format!("{} is not a name of a port", quoted(text)))
}

/// A host of a rule: a DNS name, its first label `*` or none of them; never an address.
pub(super) fn host(text: &str) -> Result<(), String> {
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("{} is an IP address, and a host is a DNS name", quoted(text)));
    }
    if !text.contains('*') {
        return subdomain(text);
    }
    match text.strip_prefix("*.").filter(|_| text.len() <= LONGEST_NAME).map(subdomain) {
        Some(Ok(())) => Ok(()),
        _ => Err(format!("{}: a wildcard is a whole first label, as in *.example.com", quoted(text))),
    }
}

/// A path of type Exact or Prefix: absolute, and such that no two readings of it differ.
pub(super) fn path(text: &str) -> Result<(), String> {
    absolute_path(text)?;
    let forbidden = ["//", "/./", "/../", "%2f", "%2F"].into_iter().find(|part| text.contains(part));
    let forbidden = forbidden.or_else(|| ["/..", "/."].into_iter().find(|end| text.ends_with(end)));
    match forbidden {
        None => Ok(()),
        Some(part) => Err(format!("{} holds {part:?}", quoted(text))),
    }
}

/// A path of any type.
pub(super) fn absolute_path(text: &str) -> Result<(), String> {
    if text.len() > LONGEST_PATH {
        return Err(format!("{} is longer than {LONGEST_PATH} bytes", quoted(text)));
    }
    if text.starts_with('/') {
        return Ok(());
    }
    Err(format!("{} does not begin with /", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_with_at_most_one_leading_wildcard() {
        let long = format!("{}.example", "a.".repeat(130));
        for (text, good) in [
            ("example.com", true),
            ("a-1.b", true),
            ("localhost", true),
            ("*.example.com", true),
            ("*.com", true),
            ("xn--bcher-kva.example", true),
            ("", false),
            ("Example.com", false),
            ("example.com.", false),
            (".example.com", false),
            ("a..b", false),
            ("-a.b", false),
            ("a-.b", false),
            ("a_b.c", false),
            ("bücher.example", false),
            ("example.com:80", false),
            ("example.com/x", false),
            ("*", false),
            ("*.", false),
            ("*.*.example.com", false),
            ("a.*.example.com", false),
            ("*a.example.com", false),
            ("192.0.2.1", false),
            ("2001:db8::1", false),
            ("*.192.0.2.1", true),
            (long.as_str(), false),
        ] {
            assert_eq!(host(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn paths_have_one_reading() {
        for (text, good) in [
            ("/", true),
            ("/api", true),
            ("/api/", true),
            ("/a.b/..c", true),
            ("/a%20b", true),
            ("", false),
            ("api", false),
            ("/a//b", false),
            ("/a/./b", false),
            ("/a/../b", false),
            ("/a/..", false),
            ("/a/.", false),
            ("/a%2fb", false),
            ("/a%2Fb", false),
        ] {
            assert_eq!(path(text).is_ok(), good, "{text}");
        }
        assert!(path(&format!("/{}", "a".repeat(LONGEST_PATH))).is_err());
        assert!(absolute_path("/a//b").is_ok());
    }

    #[test]
    fn names_of_services_and_ports_have_their_own_bounds() {
        for (text, service, port) in [
            ("web", true, true),
            ("web-1", true, true),
            ("a--b", true, false),
            ("80", true, false),
            ("fifteen-bytes-x", true, true),
            ("sixteen-bytes-xx", true, false),
            ("Web", false, false),
            ("a.b", false, false),
            ("", false, false),
            ("-a", false, false),
        ] {
            assert_eq!((service_name(text).is_ok(), port_name(text).is_ok()), (service, port), "{text}");
        }
        assert!(service_name(&"a".repeat(64)).is_err());
    }

    #[test]
    fn a_quote_is_short() {
        assert_eq!(quoted("a\"b"), "\"a\\\"b\"");
        assert!(quoted(&"é".repeat(1_000_000)).len() < 200);
    }
}
