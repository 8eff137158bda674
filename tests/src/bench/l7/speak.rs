//! What a client says and how it reads the answers: HTTP/1.1 here, HTTP/2 in [`two`].
//!
//! Requests are made once, as bytes. Answers are read strictly: a status other than 200, a body
//! of another length or a byte too many is an error, and one error fails the row.

pub(super) mod two;

use anyhow::{Result, bail, ensure};

/// What an answer must be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) body: usize,
}

/// One HTTP/1.1 connection's reading side; one request at a time.
#[derive(Debug, Default)]
pub(super) struct One {
    /// A head that has not come whole.
    head: Vec<u8>,
    /// Bytes of the body that are to come; none: a head is.
    left: Option<usize>,
    /// The server closes after this answer.
    pub(super) closes: bool,
}

impl One {
    /// Takes bytes of an answer; true when it is whole.
    pub(super) fn take(&mut self, bytes: &[u8], wanted: Wanted) -> Result<bool> {
        let body = match self.left {
            Some(left) => left.checked_sub(bytes.len()),
            None if self.head.is_empty() => {
                let Some(head) = self.head(bytes, wanted)? else {
                    self.head.extend_from_slice(bytes);
                    return Ok(false);
                };
                wanted.body.checked_sub(bytes.len() - head)
            }
            None => {
                let mut all = std::mem::take(&mut self.head);
                all.extend_from_slice(bytes);
                let Some(head) = self.head(&all, wanted)? else {
                    self.head = all;
                    return Ok(false);
                };
                wanted.body.checked_sub(all.len() - head)
            }
        };
        match body {
            None => bail!("more came than the answer is long"),
            Some(0) => {
                self.left = None;
                Ok(true)
            }
            left @ Some(_) => {
                self.left = left;
                Ok(false)
            }
        }
    }

    /// Reads a head; its length once it is whole.
    fn head(&mut self, bytes: &[u8], wanted: Wanted) -> Result<Option<usize>> {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut answer = httparse::Response::new(&mut fields);
        let httparse::Status::Complete(end) = answer.parse(bytes)? else { return Ok(None) };
        ensure!(answer.code == Some(200), "answered with {:?}", answer.code);
        let mut length = None;
        for field in answer.headers.iter() {
            if field.name.eq_ignore_ascii_case("content-length") {
                length = std::str::from_utf8(field.value)?.parse().ok();
            } else if field.name.eq_ignore_ascii_case("connection") {
                self.closes |= field.value.eq_ignore_ascii_case(b"close");
            }
        }
        ensure!(length == Some(wanted.body), "a body of {length:?} bytes, not of {}", wanted.body);
        Ok(Some(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_however_it_is_split() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        let wanted = Wanted { body: 5 };
        for at in 1..answer.len() {
            let mut one = One::default();
            assert!(!one.take(&answer[..at], wanted).expect("half"), "{at}");
            assert!(one.take(&answer[at..], wanted).expect("whole"), "{at}");
            assert!(one.take(answer, wanted).expect("the next"), "{at}");
            assert!(!one.closes);
        }
    }

    #[test]
    fn what_is_not_the_answer_is_an_error() {
        let wanted = Wanted { body: 5 };
        for wrong in [
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello!",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ] {
            assert!(One::default().take(wrong.as_bytes(), wanted).is_err(), "{wrong}");
        }
    }
}
