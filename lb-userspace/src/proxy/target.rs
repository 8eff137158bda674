//! The agreement rule for paths (H32, I13): every reading of a path selects the same route.
//!
//! A path is forwarded as it was received, and origins differ in what they make of it: some
//! decode `%2f` before they split, some drop `;parameters`, some take `\` for `/`, merge `//`
//! or resolve `..`, and they do so in any order. So the path is routed once for every reading
//! that some order of these steps comes to, and a request whose readings would go to different
//! routes is refused: route, access rules and origin can then never mean different things.
//! What is unusual but stays within one route passes (`/projects/a%2fb` under `/projects`).
//!
//! The decoded form of a path is what one decoding makes of it. A second decoding (`%252e`),
//! overlong UTF-8 (`%c0%ae`) and full-width letters (`%ef%bc%8f`) are mistakes of an origin,
//! not readings of RFC 3986: they never choose the route, but where such a mistake would lead
//! to another one the request is refused too.

use std::borrow::Cow;
use std::collections::HashSet;

/// Most bytes of readings that one path may cost, and most readings: what is long and ambiguous
/// in every way at once is refused, not worked through.
const WORK_LIMIT: usize = 128 * 1024;
const READINGS: usize = 256;

/// Why a path is refused, with 400.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    /// A path that does not begin with `/`.
    Relative,
    /// A `%` without two hex digits behind it.
    Escape,
    /// `%00`.
    Nul,
    /// Two readings of the path select different routes.
    Disagreement,
    /// Too many readings of too long a path.
    TooAmbiguous,
}

impl Refusal {
    /// All of them, in the order of their counters.
    pub const ALL: &[Self] =
        &[Self::Relative, Self::Escape, Self::Nul, Self::Disagreement, Self::TooAmbiguous];

    /// The metric label, and the name in the corpus.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Relative => "path-relative",
            Self::Escape => "path-escape",
            Self::Nul => "path-nul",
            Self::Disagreement => "path-disagreement",
            Self::TooAmbiguous => "path-too-ambiguous",
        }
    }

    /// The status that the client is answered with.
    #[must_use]
    pub const fn status(self) -> u16 {
        400
    }
}

/// What an origin may do to a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Decode,
    /// All but `%2f` and `%5c`.
    DecodeKeepingSlashes,
    /// `.` and `..` are resolved (RFC 3986 5.2.4).
    Resolve,
    /// `//` becomes `/`.
    Merge,
    /// `\` becomes `/`.
    Backslash,
    /// `;parameters` are cut off segments.
    CutParameters,
    /// A decoded `?` or `#` ends the path.
    CutEnd,
    /// Overlong UTF-8 and full-width letters are read as ASCII.
    Mistake,
}

const STEPS: [Step; 8] = [
    Step::Decode,
    Step::DecodeKeepingSlashes,
    Step::Resolve,
    Step::Merge,
    Step::Backslash,
    Step::CutParameters,
    Step::CutEnd,
    Step::Mistake,
];

/// One reading, and how often it was decoded.
type Reading = (u8, Vec<u8>);

/// Returns the route of a path (without its query), when all of its readings have the same.
///
/// `route` is asked once for a plain path, without allocation.
///
/// # Errors
/// When an escape is invalid or `%00`, or readings disagree.
pub fn agree<R: PartialEq>(path: &[u8], mut route: impl FnMut(&[u8]) -> R) -> Result<R, Refusal> {
    if path.first() != Some(&b'/') {
        return Err(Refusal::Relative);
    }
    let raw = route(path);
    if is_plain(path) {
        return Ok(raw);
    }
    check_escapes(path)?;
    let mut seen: HashSet<Reading> = HashSet::new();
    let mut fresh: Vec<Reading> = vec![(0, path.to_vec())];
    let (mut next, mut work) = (Vec::new(), 0);
    while !fresh.is_empty() {
        for (decoded, from) in &fresh {
            for step in STEPS {
                let Some(reading) = step.take(*decoded, from) else { continue };
                if reading.1 == *from && reading.0 == *decoded || seen.contains(&reading) {
                    continue;
                }
                if reading.1 != *from && route(&reading.1) != raw {
                    return Err(Refusal::Disagreement);
                }
                work += reading.1.len();
                if work > WORK_LIMIT || seen.len() >= READINGS {
                    return Err(Refusal::TooAmbiguous);
                }
                seen.insert(reading.clone());
                next.push(reading);
            }
        }
        fresh.clear();
        std::mem::swap(&mut fresh, &mut next);
    }
    Ok(raw)
}

/// Returns the decoded form of a path: what `weir explain` shows beside the raw one.
///
/// # Errors
/// When an escape is invalid or `%00`.
pub fn normalised(path: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if path.first() != Some(&b'/') {
        return Err(Refusal::Relative);
    }
    if is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    check_escapes(path)?;
    let mut read = path.to_vec();
    for step in [Step::Decode, Step::Backslash, Step::CutParameters, Step::Merge, Step::Resolve] {
        read = step.take(0, &read).map_or(read, |(_, read)| read);
    }
    Ok(Cow::Owned(read))
}

/// Tells whether a path has one reading only.
fn is_plain(path: &[u8]) -> bool {
    let mut before = 0;
    for (at, &byte) in path.iter().enumerate() {
        match byte {
            b'%' | b'\\' | b';' | 0x80.. => return false,
            b'/' if before == b'/' => return false,
            b'.' if before == b'/' => {
                let dots = &path[at..];
                let dots = dots.strip_prefix(b"..").unwrap_or(dots.get(1..).unwrap_or_default());
                if dots.first().is_none_or(|next| *next == b'/') {
                    return false;
                }
            }
            _ => {}
        }
        before = byte;
    }
    true
}

fn check_escapes(path: &[u8]) -> Result<(), Refusal> {
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'%') {
        match escape(&path[at..]) {
            None => return Err(Refusal::Escape),
            Some(0) => return Err(Refusal::Nul),
            Some(_) => {}
        }
    }
    Ok(())
}

/// The byte that an escape at the beginning of `at` stands for.
fn escape(at: &[u8]) -> Option<u8> {
    let &[b'%', high, low, ..] = at else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

impl Step {
    /// What the step makes of a path that was decoded so often; `None`: nothing that counts.
    fn take(self, decoded: u8, path: &[u8]) -> Option<Reading> {
        let mut out = Vec::with_capacity(path.len());
        let mut level = decoded;
        match self {
            Self::Decode | Self::DecodeKeepingSlashes => {
                let keep: &[u8] = if self == Self::Decode { b"" } else { b"/\\" };
                if decoded >= 2 || !path.contains(&b'%') {
                    return None;
                }
                unescape(path, keep, &mut out);
                level += 1;
            }
            Self::Resolve => resolve(path, &mut out),
            Self::Merge => {
                out.extend_from_slice(path);
                out.dedup_by(|next, before| *next == b'/' && *before == b'/');
            }
            Self::Backslash if path.contains(&b'\\') => {
                out.extend(path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }));
            }
            Self::CutParameters if path.contains(&b';') => cut_parameters(path, &mut out),
            Self::CutEnd if decoded > 0 => {
                out.extend(path.iter().take_while(|byte| !matches!(byte, b'?' | b'#')));
            }
            Self::Mistake if !path.is_ascii() => {
                out.extend_from_slice(path);
                mistake(&mut out);
            }
            Self::Backslash | Self::CutParameters | Self::CutEnd | Self::Mistake => return None,
        }
        Some((level, out))
    }
}

/// Cuts `;` and what follows off every segment.
fn cut_parameters(path: &[u8], out: &mut Vec<u8>) {
    let mut inside = false;
    for &byte in path {
        inside = match byte {
            b'/' => false,
            b';' => true,
            _ => inside,
        };
        if !inside {
            out.push(byte);
        }
    }
}

/// Removes `.` and `..` segments (RFC 3986 5.2.4); above the root there is only the root.
fn resolve(path: &[u8], out: &mut Vec<u8>) {
    let mut segments = path.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." => {}
            b".." => out.truncate(out.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            _ => {
                out.push(b'/');
                out.extend_from_slice(segment);
                continue;
            }
        }
        // `/a/..` is `/`, `/a/b/.` is `/a/b/`.
        if last {
            out.push(b'/');
        }
    }
}

fn unescape(path: &[u8], keep: &[u8], out: &mut Vec<u8>) {
    let mut rest = path;
    while let Some((&byte, after)) = rest.split_first() {
        match escape(rest) {
            Some(decoded) if !keep.contains(&decoded) => {
                out.push(decoded);
                rest = rest.get(3..).unwrap_or_default();
            }
            Some(_) | None => {
                out.push(byte);
                rest = after;
            }
        }
    }
}

/// Reads overlong UTF-8 and full-width letters as the ASCII that lenient decoders see.
fn mistake(path: &mut Vec<u8>) {
    let (mut from, mut to) = (0, 0);
    while let Some(rest) = path.get(from..).filter(|rest| !rest.is_empty()) {
        let (byte, length) = match *rest {
            [a @ (0xc0 | 0xc1), b @ 0x80..=0xbf, ..] => ((a & 1) << 6 | (b & 0x3f), 2),
            [0xe0, a @ (0x80 | 0x81), b @ 0x80..=0xbf, ..] => ((a & 1) << 6 | (b & 0x3f), 3),
            [0xf0, 0x80, a @ (0x80 | 0x81), b @ 0x80..=0xbf, ..] => ((a & 1) << 6 | (b & 0x3f), 4),
            // U+FF01 to U+FF5E are the full-width forms of `!` to `~`.
            [0xef, 0xbc, b @ 0x81..=0xbf, ..] => (b - 0x60, 3),
            [0xef, 0xbd, b @ 0x80..=0x9e, ..] => (b - 0x20, 3),
            _ => (rest.first().copied().unwrap_or_default(), 1),
        };
        if let Some(place) = path.get_mut(to) {
            *place = byte;
        }
        from += length;
        to += 1;
    }
    path.truncate(to);
}
