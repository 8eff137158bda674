//! A request as a line: one request, one line, whatever its bytes are.
//!
//! The first form is ingress-nginx's default, `upstreaminfo`; the second has the same values
//! as keys of a JSON object, and some more. What a client sent is escaped as nginx does it, so
//! that no header ends a line, closes a quote or adds a key, and is cut where it is long.

use crate::proxy::record::{Attempt, Record};
use std::fmt;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How a line is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// As ingress-nginx writes it.
    #[default]
    Nginx,
    Json,
}

/// Longest text of a client in a line; the judges let targets of 8 KiB through.
const LONGEST: usize = 8 << 10;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Times as text, made once a second.
#[derive(Debug, Default)]
pub(super) struct Clock {
    second: u64,
    text: Option<Stamp>,
}

/// A time in both forms.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// `23/Nov/2026:12:15:35 +0000`.
    local: String,
    /// `2026-11-23T12:15:35+00:00`.
    iso: String,
}

impl Clock {
    pub(super) fn at(&mut self, now: SystemTime) -> &Stamp {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if self.second != second {
            self.text = None;
            self.second = second;
        }
        self.text.get_or_insert_with(|| stamp(second))
    }
}

/// The calendar of a moment, in UTC.
fn stamp(second: u64) -> Stamp {
    let (days, rest) = (second / 86_400, second % 86_400);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    // Days since 1 March of year 0; from there leap days come last in a year, and 400 years
    // have 146,097 days.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let name = usize::try_from(month - 1).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"");
    Stamp {
        local: format!("{day:02}/{name}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000"),
        iso: format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}+00:00"),
    }
}

/// Appends a line.
pub(super) fn write(line: &mut Vec<u8>, format: Format, record: &Record<'_>, now: &Stamp) {
    match format {
        Format::Nginx => nginx(line, record, now),
        Format::Json => json(line, record, now),
    }
    line.push(b'\n');
}

/// Appends formatted text.
fn put(line: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _written = line.write_fmt(text);
}

fn nginx(line: &mut Vec<u8>, record: &Record<'_>, now: &Stamp) {
    put(line, format_args!("{} - - [{}] \"", record.client, now.local));
    quoted(line, record.method.as_bytes());
    line.push(b' ');
    quoted(line, record.target.as_bytes());
    put(line, format_args!(" {:?}\" {} {} \"", record.http, record.status, record.body_bytes));
    quoted(line, record.referer.unwrap_or(b"-"));
    line.extend_from_slice(b"\" \"");
    quoted(line, record.user_agent.unwrap_or(b"-"));
    put(line, format_args!("\" {} {} [", record.request_bytes, Seconds(record.took)));
    quoted(line, upstream_name(record).as_bytes());
    line.extend_from_slice(b"] [] ");
    for what in [Part::Address, Part::Length, Part::Time, Part::Status] {
        attempts(line, record.attempts, what);
        line.push(b' ');
    }
    quoted(line, record.request_id.as_bytes());
}

fn json(line: &mut Vec<u8>, record: &Record<'_>, now: &Stamp) {
    let mut object = Object { line, first: true };
    object.text("time_iso8601", &[now.iso.as_bytes()]);
    object.plain("remote_addr", format_args!("\"{}\"", record.client));
    object.plain("client", format_args!("\"{}\"", record.peer));
    object.text("host", &[record.host.as_bytes()]);
    let version = format!("{:?}", record.http);
    object.text(
        "request",
        &[record.method.as_bytes(), b" ", record.target.as_bytes(), b" ", version.as_bytes()],
    );
    object.plain("status", format_args!("{}", record.status));
    object.plain("body_bytes_sent", format_args!("{}", record.body_bytes));
    object.text("http_referer", &[record.referer.unwrap_or(b"-")]);
    object.text("http_user_agent", &[record.user_agent.unwrap_or(b"-")]);
    object.plain("request_length", format_args!("{}", record.request_bytes));
    object.plain("request_time", format_args!("{}", Seconds(record.took)));
    object.plain("duration", format_args!("{:.6}", record.took.as_secs_f64()));
    object.text("proxy_upstream_name", &[upstream_name(record).as_bytes()]);
    object.text("proxy_alternative_upstream_name", &[]);
    for (key, what) in [
        ("upstream_addr", Part::Address),
        ("upstream_response_length", Part::Length),
        ("upstream_response_time", Part::Time),
        ("upstream_status", Part::Status),
    ] {
        let mut value = Vec::new();
        attempts(&mut value, record.attempts, what);
        object.text(key, &[&value]);
    }
    object.text("req_id", &[record.request_id.as_bytes()]);
    object.plain("retries", format_args!("{}", record.attempts.len().saturating_sub(1)));
    object.plain("ssl_protocol", format_args!("\"{}\"", record.tls.map_or("-", |tls| tls.label())));
    if let Some(route) = &record.route {
        object.text("ingress", &[route.ingress.to_string().as_bytes()]);
    }
    if let Some(reason) = record.local {
        object.text("reason", &[reason.as_bytes()]);
    }
    line.push(b'}');
}

/// As nginx writes `$request_time`.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0.as_secs(), self.0.subsec_millis())
    }
}

/// `namespace-service-port`.
fn upstream_name(record: &Record<'_>) -> String {
    match record.route.and_then(|route| route.pool) {
        Some(pool) => format!("{}-{}-{}", pool.service.namespace, pool.service.name, pool.port),
        None => "-".into(),
    }
}

#[derive(Clone, Copy)]
enum Part {
    Address,
    Length,
    Time,
    Status,
}

/// One value of each attempt, as nginx lists them.
fn attempts(line: &mut Vec<u8>, attempts: &[Attempt], part: Part) {
    if attempts.is_empty() {
        line.push(b'-');
    }
    for (at, attempt) in attempts.iter().enumerate() {
        if at > 0 {
            line.extend_from_slice(b", ");
        }
        match part {
            Part::Address => put(line, format_args!("{}", attempt.address)),
            Part::Length => put(line, format_args!("{}", attempt.bytes)),
            Part::Time => put(line, format_args!("{}", Seconds(attempt.response))),
            // nginx calls an origin that did not answer 502.
            Part::Status => put(line, format_args!("{}", attempt.status.unwrap_or(502))),
        }
    }
}

/// What a client sent, within quotes: nginx's default escaping.
fn quoted(line: &mut Vec<u8>, text: &[u8]) {
    for &byte in text.iter().take(LONGEST) {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7f.. => put(line, format_args!("\\x{byte:02X}")),
            _ => line.push(byte),
        }
    }
}

/// A JSON object that is being written.
struct Object<'a> {
    line: &'a mut Vec<u8>,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        self.line.push(if self.first { b'{' } else { b',' });
        self.first = false;
        put(self.line, format_args!("\"{key}\":"));
    }

    /// A number, or a string that needs no escaping.
    fn plain(&mut self, key: &str, value: fmt::Arguments<'_>) {
        self.key(key);
        put(self.line, value);
    }

    /// A string of several parts.
    fn text(&mut self, key: &str, parts: &[&[u8]]) {
        self.key(key);
        self.line.push(b'"');
        for part in parts {
            escaped(self.line, part.get(..LONGEST).unwrap_or(part));
        }
        self.line.push(b'"');
    }
}

/// A JSON string's inside. Bytes that are no UTF-8 become U+FFFD; control characters, those
/// above ASCII and the separators of lines and paragraphs included, are escaped.
fn escaped(line: &mut Vec<u8>, text: &[u8]) {
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' => line.extend_from_slice(b"\\\""),
                '\\' => line.extend_from_slice(b"\\\\"),
                '\u{2028}' | '\u{2029}' => put(line, format_args!("\\u{:04x}", u32::from(character))),
                _ if character.is_control() => put(line, format_args!("\\u{:04x}", u32::from(character))),
                _ => line.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            line.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}
