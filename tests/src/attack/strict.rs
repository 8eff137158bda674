//! Reads HTTP/1.1 requests the way the strictest origin would, and says what it dislikes.
//!
//! Written after RFC 9112 alone. A message with any fault is one that two parties could read
//! differently: a proxy must never send it.

use std::io::{self, BufRead, Read};

/// The longest head that is read.
const HEAD: usize = 256 * 1024;

/// A request as it arrived.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Request {
    pub method: String,
    pub target: String,
    /// Names in lower case, values without surrounding blanks.
    pub fields: Vec<(String, Vec<u8>)>,
    pub body: Vec<u8>,
    pub trailers: Vec<(String, Vec<u8>)>,
    /// What is wrong with it.
    pub faults: Vec<String>,
}

impl Request {
    /// All values of a field, in order.
    pub fn values(&self, name: &str) -> Vec<String> {
        let of_name = self.fields.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
    }
}

/// Reads one request; `None` at a clean end.
///
/// # Errors
/// When the connection breaks inside a message, or a head is too long.
pub fn read(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(head) = read_head(stream)? else { return Ok(None) };
    let mut request = Request::default();
    let mut lines = split_lines(&head, &mut request.faults).into_iter();
    request_line(lines.next().unwrap_or_default(), &mut request);
    for line in lines {
        let field = field(line, &mut request.faults);
        request.fields.extend(field);
    }
    hosts(&mut request);
    match framing(&mut request) {
        Framing::Length(length) => {
            let mut body = Vec::new();
            stream.take(length).read_to_end(&mut body)?;
            if (body.len() as u64) < length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            request.body = body;
        }
        Framing::Chunked => chunks(stream, &mut request)?,
    }
    Ok(Some(request))
}

enum Framing {
    Length(u64),
    Chunked,
}

/// Bytes up to and with the empty line.
fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let before = head.len();
        stream.take((HEAD - before.min(HEAD)) as u64).read_until(b'\n', &mut head)?;
        match (before, head.len()) {
            (0, 0) => return Ok(None),
            (_, HEAD) => return Err(io::Error::other("a head without end")),
            (before, now) if before == now => return Err(io::ErrorKind::UnexpectedEof.into()),
            // Only CRLF CRLF ends it; LF LF would be read as an end by lenient origins.
            _ if head.ends_with(b"\n\n") => {
                return Err(io::Error::other("a head that some read as ended by bare line feeds"));
            }
            _ => {}
        }
    }
    head.truncate(head.len() - 4);
    Ok(Some(head))
}

fn split_lines<'a>(head: &'a [u8], faults: &mut Vec<String>) -> Vec<&'a [u8]> {
    let mut lines = Vec::new();
    for line in head.split(|byte| *byte == b'\n') {
        lines.push(line.strip_suffix(b"\r").unwrap_or(line));
    }
    let feeds = head.iter().filter(|byte| **byte == b'\n').count();
    let pairs = head.windows(2).filter(|pair| pair == b"\r\n").count();
    if feeds != pairs {
        faults.push("bare line feed".into());
    }
    if head.iter().filter(|byte| **byte == b'\r').count() != pairs {
        faults.push("bare carriage return".into());
    }
    lines
}

fn request_line(line: &[u8], request: &mut Request) {
    let text = String::from_utf8_lossy(line).into_owned();
    let parts: Vec<&str> = text.split(' ').collect();
    let [method, target, version] = parts[..] else {
        request.faults.push(format!("request line {text:?}"));
        return;
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        request.faults.push(format!("method {method:?}"));
    }
    if version != "HTTP/1.1" {
        request.faults.push(format!("version {version:?}"));
    }
    let plain = target.bytes().all(|byte| (byte.is_ascii_graphic() || byte >= 0x80) && byte != b'#');
    let origin_form = target.starts_with('/') || (target == "*" && method == "OPTIONS");
    if !plain || !origin_form {
        request.faults.push(format!("target {target:?}"));
    }
    request.method = method.to_owned();
    request.target = target.to_owned();
}

fn field(line: &[u8], faults: &mut Vec<String>) -> Option<(String, Vec<u8>)> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        faults.push("folded line".into());
        return None;
    }
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        faults.push(format!("line without a colon {:?}", String::from_utf8_lossy(line)));
        return None;
    };
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if name.is_empty() || !name.iter().copied().all(is_token) {
        faults.push(format!("name {:?}", String::from_utf8_lossy(name)));
    }
    if value.iter().any(|byte| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f) {
        faults.push(format!("value of {:?}", String::from_utf8_lossy(name)));
    }
    Some((String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
}

fn hosts(request: &mut Request) {
    let hosts = request.values("host");
    let bad = |host: &str| {
        host.is_empty() || host.bytes().any(|byte| !byte.is_ascii_graphic() || b",/@?#\\".contains(&byte))
    };
    match &hosts[..] {
        [host] if !bad(host) => {}
        _ => request.faults.push(format!("hosts {hosts:?}")),
    }
}

/// How the body is delimited, by the one field that may say so.
fn framing(request: &mut Request) -> Framing {
    let (lengths, codings) = (request.values("content-length"), request.values("transfer-encoding"));
    match (&lengths[..], &codings[..]) {
        ([], []) => Framing::Length(0),
        ([], [coding]) if coding == "chunked" => Framing::Chunked,
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            Framing::Length(length.parse().unwrap_or_else(|_| {
                request.faults.push(format!("length {length}"));
                0
            }))
        }
        _ => {
            request.faults.push(format!("lengths {lengths:?}, codings {codings:?}"));
            Framing::Length(0)
        }
    }
}

fn chunks(stream: &mut impl BufRead, request: &mut Request) -> io::Result<()> {
    loop {
        let line = read_line(stream, &mut request.faults)?;
        let text = String::from_utf8_lossy(&line).into_owned();
        let plain = !text.is_empty() && text.len() <= 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !plain {
            request.faults.push(format!("chunk size {text:?}"));
        }
        let Ok(size) = u64::from_str_radix(&text, 16) else {
            return Err(io::Error::other("a chunk without size"));
        };
        if size == 0 {
            break;
        }
        let before = request.body.len() as u64;
        stream.take(size).read_to_end(&mut request.body)?;
        if request.body.len() as u64 - before < size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !read_line(stream, &mut request.faults)?.is_empty() {
            request.faults.push("bytes after a chunk".into());
        }
    }
    loop {
        let line = read_line(stream, &mut request.faults)?;
        if line.is_empty() {
            return Ok(());
        }
        if let Some((name, value)) = field(&line, &mut request.faults) {
            const NEVER: [&str; 9] = [
                "content-length",
                "transfer-encoding",
                "host",
                "authorization",
                "connection",
                "te",
                "trailer",
                "content-encoding",
                "cookie",
            ];
            if NEVER.contains(&name.as_str()) {
                request.faults.push(format!("trailer {name}"));
            }
            request.trailers.push((name, value));
        }
    }
}

fn read_line(stream: &mut impl BufRead, faults: &mut Vec<String>) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    stream.take(HEAD as u64).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if line.pop() != Some(b'\r') {
        faults.push("bare line feed".into());
    }
    Ok(line)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        match read(&mut text.as_bytes()) {
            Ok(Some(request)) => request.faults,
            Ok(None) => vec!["nothing".into()],
            Err(error) => vec![error.to_string()],
        }
    }

    #[test]
    fn plain_requests_have_no_fault() {
        for text in [
            "GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a:80\r\nContent-Length: 2\r\n\r\nab",
            "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx: y\r\n\r\n",
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(faults(text), Vec::<String>::new(), "{text:?}");
        }
    }

    #[test]
    fn whatever_can_be_read_in_two_ways_is_a_fault() {
        for text in [
            "GET / HTTP/1.1\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\x01\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0;a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n\r\n",
        ] {
            assert_ne!(faults(text), Vec::<String>::new(), "{text:?}");
        }
    }
}
