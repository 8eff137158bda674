//! The platforms that an image is made for, under the names that each side gives them.

use anyhow::{Result, bail};
use std::str::FromStr;

/// Linux on one kind of processor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Platform {
    Amd64,
    Arm64,
}

impl Platform {
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// This machine's.
    ///
    /// # Errors
    /// When it is none of those.
    pub(crate) fn own() -> Result<Self> {
        match Self::ALL.into_iter().find(|platform| platform.processor() == std::env::consts::ARCH) {
            Some(platform) => Ok(platform),
            None => bail!("no image for {}: name one with --platform", std::env::consts::ARCH),
        }
    }

    pub(crate) fn is_own(self) -> bool {
        self.processor() == std::env::consts::ARCH
    }

    /// The architecture as images call it.
    pub(crate) fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The architecture as compilers call it.
    pub(crate) fn processor(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// What Rust calls programs for it that are linked to musl.
    pub(crate) fn target(self) -> String {
        format!("{}-unknown-linux-musl", self.processor())
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "linux/{}", self.architecture())
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|platform| platform.to_string() == text);
        known.ok_or_else(|| format!("linux/amd64 or linux/arm64, not {text:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_read_as_they_are_written() {
        for platform in Platform::ALL {
            assert_eq!(platform.to_string().parse(), Ok(platform));
        }
        assert!("arm64".parse::<Platform>().is_err());
        assert_eq!(Platform::Arm64.target(), "aarch64-unknown-linux-musl");
    }
}
