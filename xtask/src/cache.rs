//! Where things that are fetched or built once are kept: outside of the checkout, so that
//! a fresh clone finds them again.

use anyhow::{Context, Result};
use std::path::PathBuf;

/// Returns the cache folder: `$WEIR_CACHE`, else `$XDG_CACHE_HOME/weir`, else
/// `~/.cache/weir`.
///
/// # Errors
/// When none of the three variables is set.
pub(crate) fn dir() -> Result<PathBuf> {
    choose(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
        .context("no place for the cache: set WEIR_CACHE or HOME")
}

fn choose(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    var("WEIR_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("weir")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/weir")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearer_variable_wins() {
        let all = |name: &str| Some(PathBuf::from(format!("/{name}")));
        assert_eq!(choose(all), Some(PathBuf::from("/WEIR_CACHE")));
        assert_eq!(
            choose(|name| all(name).filter(|_| name != "WEIR_CACHE")),
            Some(PathBuf::from("/XDG_CACHE_HOME/weir"))
        );
        assert_eq!(
            choose(|name| all(name).filter(|_| name == "HOME")),
            Some(PathBuf::from("/HOME/.cache/weir"))
        );
        assert_eq!(choose(|_| None), None);
    }
}
