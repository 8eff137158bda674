//! The corpus of raw messages in `tests/corpus/`, and what runs it: hostile and unusual
//! requests, origin answers and paths, shown to the judges in every split, and to the HTTP
//! library with and without the judge in front; and fuzzers that grow from it.

pub mod answers;
pub mod corpus;
pub mod engine;
pub mod floods;
pub mod fuzz;
mod hello;
pub mod http2;
pub mod paths;
pub mod requests;

/// The files of requests, in the order of the report.
pub const REQUESTS: [(&str, &str); 5] = [
    ("framing", include_str!("../../corpus/requests/framing.txt")),
    ("lines", include_str!("../../corpus/requests/lines.txt")),
    ("host-upgrade-limits", include_str!("../../corpus/requests/host-upgrade-limits.txt")),
    ("chunks", include_str!("../../corpus/requests/chunks.txt")),
    ("valid", include_str!("../../corpus/requests/valid.txt")),
];

pub const ANSWERS: &str = include_str!("../../corpus/answers.txt");
pub const PATHS: &str = include_str!("../../corpus/paths.txt");
/// Read by the client of raw HTTP/2 frames.
pub const HTTP2: &str = include_str!("../../corpus/http2.txt");
