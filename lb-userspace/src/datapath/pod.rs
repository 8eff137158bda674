//! Any plain-data type of `lb-common` as a map key or value.

use bytemuck::{AnyBitPattern, NoUninit};

/// A value as aya stores it.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: the bound says that the type has no padding and accepts every bit pattern, which
// is what `aya::Pod` asks for; `repr(transparent)` adds nothing to it.
unsafe impl<T: NoUninit + AnyBitPattern> aya::Pod for Raw<T> {}
