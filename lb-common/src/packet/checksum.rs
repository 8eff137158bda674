//! Internet checksums, incrementally (RFC 1071, RFC 1624).

/// A ones-complement difference between old and new contents, in the byte order in which
/// the words lie in memory: what `bpf_l4_csum_replace` takes when `from` is 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(u64);

impl Delta {
    pub const NONE: Self = Self(0);

    /// Adds the change of a 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Adds the change of a 16-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn half(self, old: u16, new: u16) -> Self {
        // !old must stay 16 bits wide: the upper half of a 32-bit complement would count.
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// The difference folded to 32 bits.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        let once = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((once & 0xffff_ffff) + (once >> 32)) as u32
    }

    /// Whether nothing was added.
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Both differences together.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// A checksum field corrected by this difference.
    #[inline(always)]
    pub const fn apply(self, check: u16) -> u16 {
        !fold(((!check) as u64) + self.get() as u64)
    }
}

/// Folds a sum of words to 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// The sum of bytes as 16-bit words in memory order, to be folded by [`fold`]; an odd last
/// byte counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut total = 0u64;
    for pair in bytes.chunks(2) {
        let low = pair.first().copied().unwrap_or(0);
        let high = pair.get(1).copied().unwrap_or(0);
        total += u64::from(u16::from_ne_bytes([low, high]));
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An independent full sum, to compare with.
    fn full(bytes: &[u8]) -> u16 {
        let mut total = 0u32;
        for pair in bytes.chunks(2) {
            total += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
            total = (total & 0xffff) + (total >> 16);
        }
        (!(total as u16)).to_be()
    }

    #[test]
    fn incremental_sum_equals_full_sum() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        for round in 0..10_000 {
            let mut bytes = [0u8; 40];
            for byte in &mut bytes {
                // Extreme bytes often: the interesting carries are at 0 and 0xffff.
                *byte = match random() % 4 {
                    0 => 0,
                    1 => 0xff,
                    _ => random() as u8,
                };
            }
            let before = full(&bytes);
            let (old, old_port) = ([bytes[4], bytes[5], bytes[6], bytes[7]], [bytes[20], bytes[21]]);
            let new = random().to_ne_bytes();
            let new_port = (random() as u16).to_ne_bytes();
            bytes[4..8].copy_from_slice(&new);
            bytes[20..22].copy_from_slice(&new_port);
            let delta = Delta::NONE
                .word(u32::from_ne_bytes(old), u32::from_ne_bytes(new))
                .half(u16::from_ne_bytes(old_port), u16::from_ne_bytes(new_port));
            let (after, whole) = (delta.apply(before), full(&bytes));
            // 0 and 0xffff are the same number in ones complement.
            let same = after == whole || (after ^ whole == 0xffff && (after == 0 || whole == 0));
            assert!(same, "round {round}: {after:04x} is not {whole:04x}");
            assert_eq!(!fold(sum(&bytes)), whole, "round {round}");
        }
    }
}
