//! Judges of raw bytes: whether what a peer sent is one strict, unambiguous message.
//!
//! They stand between the socket and the HTTP library, which never sees a byte that they have
//! not let through: what a library would mend or guess at (a length beside a transfer coding,
//! a bare line feed, a chunk size with a sign) is refused here, before anything could read it
//! in two ways (H1 to H11, I55). [`request`] and [`response`] find where each HTTP/1 message
//! begins and ends, [`chunked`] follows a chunked body, [`h2`] keeps the books of HTTP/2
//! frames (H15 to H18). All of these are pure: bytes in, a verdict out, no matter how the bytes
//! are split, with bounded work and memory. [`io`] puts them around a connection.

pub mod chunked;
pub mod h2;
pub mod io;
mod lines;
pub mod request;
pub mod response;
mod table;

/// The longest head that is read: request line and fields with their line ends (H22, I57).
pub const HEAD_LIMIT: usize = 32 * 1024;
/// The longest head of an origin's answer, and of its interim answers together (H11).
pub const ANSWER_HEAD_LIMIT: usize = 64 * 1024;
/// The longest request target (H22, I57).
pub const TARGET_LIMIT: usize = 8 * 1024;
/// The most fields in one head: what hyper takes without being told otherwise (H22).
pub const FIELD_COUNT: usize = 100;

/// Tells whether this is a host, with a port if it likes, and nothing else (H9). HTTP/1
/// requests are judged by it; it is here for what came over HTTP/2.
#[must_use]
pub fn is_authority(text: &[u8]) -> bool {
    table::is_authority(text)
}

/// What becomes of the bytes that were shown to a judge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// So many of them, from the first on, may go on; never 0. The rest is shown again.
    Pass(usize),
    /// None may go on before there are more: they are shown again with what follows.
    More,
    /// Nothing of them may go on, now or ever.
    Refuse(Reason),
}

/// Where a message's body ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framing {
    /// After so many bytes; 0: there is no body.
    Length(u64),
    /// After the last chunk and its trailers.
    Chunked,
    /// When the peer closes; answers only.
    Close,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $status:literal;)+) => {
        /// Why an HTTP/1 message is refused.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them, in the order of their counters.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The metric label, and the name in the corpus.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }

            /// The status that a client is answered with. What is wrong with an origin's
            /// answer is told as 502, or by breaking off an answer that has begun (H11).
            #[must_use]
            pub const fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)+
                }
            }
        }
    };
}

reasons! {
    /// More than two empty lines before the request line.
    EmptyLines = "empty-lines", 400;
    /// Not `method SP target SP HTTP/d.d`.
    RequestLine = "request-line", 400;
    /// The method is no token, or too long.
    Method = "method", 400;
    /// CONNECT: a gateway opens no tunnels.
    Connect = "connect", 405;
    /// A target of none of the forms, with bytes that no target has, or of a foreign scheme.
    Target = "target", 400;
    /// A `#` in the target (H10).
    Fragment = "fragment", 400;
    /// The target is longer than [`TARGET_LIMIT`].
    TargetTooLong = "target-too-long", 414;
    /// HTTP, but neither 1.0 nor 1.1.
    Version = "version", 505;
    /// A line that ends in LF alone (H2, H3).
    BareLf = "bare-lf", 400;
    /// A CR that does not end a line (H2).
    BareCr = "bare-cr", 400;
    /// A control byte in the head or in a trailer (H10).
    Control = "control", 400;
    /// A line that continues the one before it, or a field line that begins with white space.
    Fold = "fold", 400;
    /// A field line without a colon.
    NoColon = "no-colon", 400;
    /// White space between a field's name and its colon.
    SpaceBeforeColon = "space-before-colon", 400;
    /// A field's name is no token.
    FieldName = "field-name", 400;
    /// The head is longer than its limit.
    HeadTooLong = "head-too-long", 431;
    /// More than [`FIELD_COUNT`] fields.
    TooManyFields = "too-many-fields", 431;
    /// A Content-Length that is not digits alone, or beyond 2^63 - 1 (H6).
    ContentLength = "content-length", 400;
    /// More than one Content-Length (H6).
    ContentLengthTwice = "content-length-twice", 400;
    /// A Transfer-Encoding that is not `chunked`, plain and alone (H1).
    TransferEncoding = "transfer-encoding", 400;
    /// More than one Transfer-Encoding (H1).
    TransferEncodingTwice = "transfer-encoding-twice", 400;
    /// Content-Length beside Transfer-Encoding (H1).
    LengthAndEncoding = "length-and-encoding", 400;
    /// Transfer-Encoding in a message of HTTP/1.0 (H7).
    OldEncoding = "old-encoding", 400;
    /// A Host, or an authority in the target, that is no name or address with a port (H9).
    Host = "host", 400;
    /// HTTP/1.1 without a Host (H9).
    HostMissing = "host-missing", 400;
    /// More than one Host (H9).
    HostTwice = "host-twice", 400;
    /// An Expect other than one `100-continue` (H8).
    Expect = "expect", 417;
    /// An Upgrade on a request with a body (H8).
    UpgradeWithBody = "upgrade-with-body", 400;
    /// A chunk size that is not hex digits, or beyond 2^63 - 1 (H3).
    ChunkSize = "chunk-size", 400;
    /// A chunk-size line with something wrong behind the size (H3).
    ChunkLine = "chunk-line", 400;
    /// Chunk data not followed by CRLF (H3).
    ChunkEnd = "chunk-end", 400;
    /// Chunk extensions beyond their limits (H4, I55).
    ChunkExtension = "chunk-extension", 400;
    /// A trailer named like a field that frames, routes or authenticates (H5, I55).
    TrailerName = "trailer-name", 400;
    /// Trailers beyond their limits (H5).
    TrailersTooLong = "trailers-too-long", 431;
    /// An answer's status line is none.
    StatusLine = "status-line", 502;
    /// A 101 that nobody asked for.
    Unasked = "unasked-101", 502;
    /// Too many interim answers before the final one.
    Interims = "interim-answers", 502;
    /// Bytes from an origin that owes no answer, or after the end of one.
    Leftover = "leftover", 502;
}
