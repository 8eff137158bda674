//! Which byte may stand where: the character classes of RFC 9110 and RFC 9112, as tables.

use super::Reason;

const TOKEN: u8 = 1;
/// A byte of a field's value: visible, space, tab, or beyond ASCII.
const VALUE: u8 = 2;
/// A byte of a target's path; what hyper takes there, less the fragment's `#`.
const PATH: u8 = 4;
const QUERY: u8 = 8;
/// A byte of a host name, or of an IPv4 address: unreserved.
const HOST: u8 = 16;

const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "below 256")]
        let byte = index as u8;
        let mut class = 0;
        let alphanumeric = byte.is_ascii_alphanumeric();
        if alphanumeric
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            class |= TOKEN;
        }
        if byte == b'\t' || (byte >= b' ' && byte != 0x7f) {
            class |= VALUE;
        }
        let visible = byte > b' ' && byte != 0x7f;
        if visible && !matches!(byte, b'#' | b'<' | b'>' | b'`' | b'?') {
            class |= PATH;
        }
        if visible && !matches!(byte, b'#' | b'<' | b'>' | b'"') {
            class |= QUERY;
        }
        if alphanumeric || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            class |= HOST;
        }
        table[index] = class;
        index += 1;
    }
    table
};

fn all(bytes: &[u8], class: u8) -> bool {
    bytes.iter().all(|byte| CLASSES[usize::from(*byte)] & class != 0)
}

/// Tells whether these bytes are a token (RFC 9110 5.6.2).
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Tells whether a byte may stand in a field's value or a chunk extension.
pub(super) fn is_value_byte(byte: u8) -> bool {
    CLASSES[usize::from(byte)] & VALUE != 0
}

/// Says which byte of a value may not stand there.
pub(super) fn check_value(value: &[u8]) -> Result<(), Reason> {
    // Without an early end the compiler looks at many bytes at once.
    let good =
        value.iter().fold(true, |good, byte| good & ((*byte >= b' ') & (*byte != 0x7f) | (*byte == b'\t')));
    match good {
        true => Ok(()),
        false if value.contains(&b'\r') => Err(Reason::BareCr),
        false => Err(Reason::Control),
    }
}

/// Tells whether these bytes are a target's path, maybe with a query.
pub(super) fn is_path_and_query(bytes: &[u8]) -> bool {
    let path = bytes.iter().position(|byte| *byte == b'?').unwrap_or(bytes.len());
    let (path, query) = bytes.split_at_checked(path).unwrap_or_default();
    let query = query.strip_prefix(b"?").unwrap_or_default();
    all(path, PATH) && all(query, QUERY) && (bytes.is_ascii() || std::str::from_utf8(bytes).is_ok())
}

/// Tells whether this is a host with or without a port, and nothing else (H9): a name or an
/// IPv4 address of unreserved characters, or an IPv6 address in brackets. User information,
/// lists, paths, escapes, zone identifiers and empty labels are no part of one.
pub(super) fn is_authority(authority: &[u8]) -> bool {
    let (host, port) = if authority.first() == Some(&b'[') {
        let Some(end) = authority.iter().position(|byte| *byte == b']') else { return false };
        let (host, rest) = authority.split_at_checked(end + 1).unwrap_or_default();
        let address = host.get(1..end).and_then(|inner| std::str::from_utf8(inner).ok());
        if address.is_none_or(|address| address.parse::<std::net::Ipv6Addr>().is_err()) {
            return false;
        }
        (None, rest)
    } else {
        let end = authority.iter().position(|byte| *byte == b':').unwrap_or(authority.len());
        let (host, rest) = authority.split_at_checked(end).unwrap_or_default();
        (Some(host), rest)
    };
    let good_host = host.is_none_or(|host| {
        // 253 characters of a name, and the dot at its end (RFC 1035 2.3.4).
        let name = host.strip_suffix(b".").unwrap_or(host);
        !name.is_empty()
            && name.len() <= 253
            && all(name, HOST)
            && !name.split(|b| *b == b'.').any(<[u8]>::is_empty)
    });
    good_host && (port.is_empty() || is_port(port))
}

/// Tells whether this is `:` and a port, 1 to 65535.
fn is_port(port: &[u8]) -> bool {
    let Some(digits) = port.strip_prefix(b":") else { return false };
    let number = digits.iter().try_fold(0_u32, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    });
    !digits.is_empty() && digits.len() <= 5 && number.is_some_and(|number| (1..=65_535).contains(&number))
}

/// A field line, without its line end, as name and value; the value without white space around.
pub(super) fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Reason::Fold);
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        // A control byte explains a line better than the colon that it lacks.
        check_value(line)?;
        return Err(Reason::NoColon);
    };
    let (name, value) = line.split_at_checked(colon).unwrap_or_default();
    if !is_token(name) {
        return Err(match name.last() {
            Some(b' ' | b'\t') => Reason::SpaceBeforeColon,
            _ if name.contains(&b'\r') => Reason::BareCr,
            _ => Reason::FieldName,
        });
    }
    let value = value.get(1..).unwrap_or_default();
    check_value(value)?;
    Ok((name, trim(value)))
}

/// Takes optional white space off both ends.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A length in decimal digits, at most 2^63 - 1.
pub(super) fn length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |sum, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })?;
    (number <= i64::MAX.unsigned_abs()).then_some(number)
}
