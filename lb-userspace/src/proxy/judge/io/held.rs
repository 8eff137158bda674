//! What came over a connection and was not handed on: the same for every judge.
//!
//! What is judged good as it comes stays where it was read, without a copy. Only what has to
//! wait (half a head, a byte that is refused) is kept here, and goes on from here once more of
//! it has come.

use tokio::io::ReadBuf;

/// Bytes that wait, in order; the first `good` of them may go on.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: Vec<u8>,
    good: usize,
}

impl Held {
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Hands on what is good, as far as there is room; false when there is nothing.
    #[inline]
    pub(super) fn hand_on(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        if self.good == 0 {
            return false;
        }
        let count = self.good.min(buf.remaining());
        buf.put_slice(self.bytes.get(..count).unwrap_or_default());
        self.bytes.drain(..count);
        self.good -= count;
        true
    }

    /// Takes what was read into `buf` from `before` on; `judge` is shown all that waits and says
    /// how much of it may go on. True when something stands in `buf` to be handed on.
    #[inline]
    pub(super) fn take(
        &mut self,
        buf: &mut ReadBuf<'_>,
        before: usize,
        judge: impl FnOnce(&[u8]) -> usize,
    ) -> bool {
        let fresh = buf.filled().get(before..).unwrap_or_default();
        if self.bytes.is_empty() {
            let good = judge(fresh);
            self.bytes.extend_from_slice(fresh.get(good..).unwrap_or_default());
            buf.set_filled(before + good);
            return good > 0;
        }
        self.bytes.extend_from_slice(fresh);
        buf.set_filled(before);
        self.judge(judge);
        false
    }

    /// Judges anew what waits: something else than bytes has changed.
    pub(super) fn judge(&mut self, judge: impl FnOnce(&[u8]) -> usize) {
        self.good = judge(&self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads `bytes` behind what `buf` holds, and takes them; `good`: what the judge says.
    fn read(held: &mut Held, buf: &mut ReadBuf<'_>, bytes: &[u8], good: usize) -> bool {
        let before = buf.filled().len();
        buf.put_slice(bytes);
        held.take(buf, before, |shown| good.min(shown.len()))
    }

    #[test]
    fn what_is_good_stays_and_the_rest_waits() {
        let (mut room, mut held) = ([0; 16], Held::default());
        let mut buf = ReadBuf::new(&mut room);
        assert!(read(&mut held, &mut buf, b"abcd", 3));
        assert_eq!((buf.filled(), held.len()), (&b"abc"[..], 1));
        assert!(!held.hand_on(&mut buf), "nothing that waits is good");

        assert!(!read(&mut held, &mut buf, b"ef", 2), "it waits behind what waits already");
        assert_eq!((buf.filled(), held.len()), (&b"abc"[..], 3));
        assert!(held.hand_on(&mut buf));
        assert_eq!((buf.filled(), held.len()), (&b"abcde"[..], 1));

        held.judge(<[u8]>::len);
        let mut small = [0; 1];
        let mut small = ReadBuf::new(&mut small);
        assert!(held.hand_on(&mut small) && held.is_empty());
        assert_eq!(small.filled(), b"f");
    }
}
