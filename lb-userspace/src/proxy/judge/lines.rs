//! Finds the lines of a head that comes in pieces, each of them once.

/// How far a head has been looked at. Bytes are shown from the head's first on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lines {
    /// Bytes that have been looked at.
    scanned: usize,
    /// Where the line that is not complete begins.
    line: usize,
}

impl Lines {
    /// The next line, with its LF and where it ends; `None`: it is not complete.
    pub(super) fn next<'a>(&mut self, bytes: &'a [u8]) -> Option<(&'a [u8], usize)> {
        let fresh = bytes.get(self.scanned..)?;
        let Some(end) = memchr::memchr(b'\n', fresh) else {
            self.scanned = bytes.len();
            return None;
        };
        let end = self.scanned + end + 1;
        let line = bytes.get(self.line..end)?;
        (self.scanned, self.line) = (end, end);
        Some((line, end))
    }

    /// The line that is not complete, as far as it has come.
    pub(super) fn rest<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.line..).unwrap_or_default()
    }

    /// Whether nothing of the head has come.
    pub(super) const fn is_new(&self) -> bool {
        self.scanned == 0
    }
}
