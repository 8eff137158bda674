//! The agreement rule for paths (H32, I13): every reading of a path selects the same route.
//!
//! A path is forwarded as it was received, and origins differ in what they make of it: some
//! decode `%2f` before they split, some drop `;parameters`, some take `\` for `/`, merge `//`
//! or resolve `..` early or late. So the path is routed once for each reading that an origin
//! may take, and a request whose readings would go to different routes is refused: route,
//! access rules and origin can then never mean different things. What is unusual but stays
//! within one route passes (`/projects/a%2fb` under `/projects`).
//!
//! The decoded form of a path is what one decoding makes of it. A second decoding (`%252e`),
//! overlong UTF-8 (`%c0%ae`) and full-width letters (`%ef%bc%8f`) are mistakes of an origin,
//! not readings of RFC 3986: they never choose the route, but where such a mistake would lead
//! to another one the request is refused too.

use std::borrow::Cow;

/// Most bytes of readings that one path may cost: what is long and ambiguous in every way at
/// once is refused, not worked through.
const WORK_LIMIT: usize = 128 * 1024;

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

/// How far escapes are decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decoding {
    No,
    /// All but `%2f` and `%5c`.
    KeepSlashes,
    Once,
    /// Again, and with the mistakes that lenient decoders of UTF-8 make.
    Twice,
}

/// Whether `;parameters` are cut off segments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Parameters {
    Keep,
    CutBefore,
    CutAfter,
}

/// When `.` and `..` are resolved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dots {
    Keep,
    After,
    /// Before decoding and after it.
    Both,
}

/// One way to read a path.
#[derive(Clone, Copy, Debug)]
struct Reading {
    decoding: Decoding,
    parameters: Parameters,
    /// `\` is `/`.
    backslash: bool,
    /// `//` is `/`.
    merge: bool,
    dots: Dots,
    /// A decoded `?` or `#` ends the path.
    cut: bool,
}

const PLAIN: Reading = Reading {
    decoding: Decoding::No,
    parameters: Parameters::Keep,
    backslash: false,
    merge: false,
    dots: Dots::Keep,
    cut: false,
};

/// What one decoding makes of a path, parameters cut, slashes merged, dots resolved.
const NORMAL: Reading = Reading {
    decoding: Decoding::Once,
    parameters: Parameters::CutAfter,
    backslash: true,
    merge: true,
    dots: Dots::After,
    cut: false,
};

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
    let readings = readings(path);
    if readings.count().saturating_mul(path.len()) > WORK_LIMIT {
        return Err(Refusal::TooAmbiguous);
    }
    let (mut read, mut spare) = (Vec::with_capacity(path.len()), Vec::new());
    for reading in readings.all() {
        reading.read(path, &mut read, &mut spare);
        if read != path && route(&read) != raw {
            return Err(Refusal::Disagreement);
        }
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
    let (mut read, mut spare) = (Vec::with_capacity(path.len()), Vec::new());
    NORMAL.read(path, &mut read, &mut spare);
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

/// The readings that can differ for one path: each choice that could matter.
#[derive(Debug)]
struct Readings {
    decodings: &'static [Decoding],
    parameters: &'static [Parameters],
    backslash: &'static [bool],
    merge: &'static [bool],
    dots: &'static [Dots],
    cut: &'static [bool],
}

fn readings(path: &[u8]) -> Readings {
    const NO: &[bool] = &[false];
    const BOTH: &[bool] = &[false, true];
    let (mut decoded, mut deeper) = (Vec::with_capacity(path.len()), Vec::new());
    decode(path, Decoding::Once, &mut decoded);
    decode(path, Decoding::Twice, &mut deeper);
    let again = decoded != deeper;
    let last = if again { &deeper } else { &decoded };
    let has = |byte| last.contains(&byte);
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let segments =
        || last.split(is_slash).map(|segment| segment.split(|b| *b == b';').next().unwrap_or_default());
    let escaped = path.contains(&b'%');
    let cut = escaped && last.iter().any(|byte| matches!(byte, b'?' | b'#'));
    // A segment that is empty, or is once its parameters are gone, makes `//`. So does one
    // that dots leave behind, which changes nothing that merging would.
    let empty = segments().skip(1).any(<[u8]>::is_empty);
    let dots = segments().any(|segment| matches!(segment, b"." | b".."))
        || (cut
            && last
                .split(|b| is_slash(b) || matches!(b, b'?' | b'#' | b';'))
                .any(|s| matches!(s, b"." | b"..")));
    Readings {
        decodings: match (escaped, again) {
            (_, true) => &[Decoding::No, Decoding::KeepSlashes, Decoding::Once, Decoding::Twice],
            (true, false) => &[Decoding::No, Decoding::KeepSlashes, Decoding::Once],
            (false, false) => &[Decoding::No],
        },
        parameters: match (has(b';'), escaped) {
            (false, _) => &[Parameters::Keep],
            (true, false) => &[Parameters::Keep, Parameters::CutAfter],
            (true, true) => &[Parameters::Keep, Parameters::CutBefore, Parameters::CutAfter],
        },
        backslash: if has(b'\\') { BOTH } else { NO },
        merge: if empty { BOTH } else { NO },
        dots: match (dots, escaped) {
            (false, _) => &[Dots::Keep],
            (true, false) => &[Dots::Keep, Dots::After],
            (true, true) => &[Dots::Keep, Dots::After, Dots::Both],
        },
        cut: if cut { BOTH } else { NO },
    }
}

impl Readings {
    fn count(&self) -> usize {
        self.decodings.len()
            * self.parameters.len()
            * self.backslash.len()
            * self.merge.len()
            * self.dots.len()
            * self.cut.len()
    }

    fn all(&self) -> impl Iterator<Item = Reading> + '_ {
        (0..self.count()).map(|number| {
            let mut number = number;
            let mut choose = |of: usize| {
                let chosen = number % of;
                number /= of;
                chosen
            };
            let (decoding, parameters) = (choose(self.decodings.len()), choose(self.parameters.len()));
            let (backslash, merge) = (choose(self.backslash.len()), choose(self.merge.len()));
            let (dots, cut) = (choose(self.dots.len()), choose(self.cut.len()));
            Reading {
                decoding: self.decodings.get(decoding).copied().unwrap_or(PLAIN.decoding),
                parameters: self.parameters.get(parameters).copied().unwrap_or(PLAIN.parameters),
                backslash: backslash == 1,
                merge: merge == 1,
                dots: self.dots.get(dots).copied().unwrap_or(PLAIN.dots),
                cut: cut == 1,
            }
        })
    }
}

impl Reading {
    /// Writes what the path is in this reading to `read`; `spare` is room to work in.
    fn read(self, path: &[u8], read: &mut Vec<u8>, spare: &mut Vec<u8>) {
        spare.clear();
        spare.extend_from_slice(path);
        let swap = |read: &mut Vec<u8>, spare: &mut Vec<u8>| std::mem::swap(read, spare);
        // Each step reads `spare`, writes `read`, and swaps.
        if self.parameters == Parameters::CutBefore {
            cut_parameters(spare, read);
            swap(read, spare);
        }
        if self.dots == Dots::Both {
            resolve(spare, read);
            swap(read, spare);
        }
        decode(spare, self.decoding, read);
        swap(read, spare);
        if self.cut {
            let end = spare.iter().position(|byte| matches!(byte, b'?' | b'#')).unwrap_or(spare.len());
            spare.truncate(end);
        }
        if self.backslash {
            spare.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
        }
        if self.parameters != Parameters::Keep {
            // What was cut before is not there any more, and what decoding made stays.
            if self.parameters == Parameters::CutAfter {
                cut_parameters(spare, read);
                swap(read, spare);
            }
        }
        if self.merge {
            spare.dedup_by(|next, before| *next == b'/' && *before == b'/');
        }
        if self.dots == Dots::Keep {
            swap(read, spare);
        } else {
            resolve(spare, read);
        }
    }
}

fn cut_parameters(path: &[u8], out: &mut Vec<u8>) {
    out.clear();
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
    out.clear();
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

fn decode(path: &[u8], how: Decoding, out: &mut Vec<u8>) {
    out.clear();
    let keep: &[u8] = if how == Decoding::KeepSlashes { b"/\\" } else { b"" };
    if how == Decoding::No {
        out.extend_from_slice(path);
        return;
    }
    unescape(path, keep, out);
    if how == Decoding::Twice {
        let once = out.clone();
        out.clear();
        unescape(&once, b"", out);
        mistake(out);
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
