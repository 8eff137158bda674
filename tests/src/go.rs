//! Go programs that the tests run: built once from a module below `tests/` that pins them, and
//! kept in the cache outside of the checkout for all checkouts.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes a file of the cache unless it is there; `make` is given a temporary name for it.
///
/// # Errors
/// With what went wrong in `make`.
pub(crate) fn once(folder: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let file = folder.join(name);
    if file.is_file() {
        return Ok(file);
    }
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    // Several tests may want it at once; the second finds what the first made.
    let lock = File::create(folder.join(".lock"))?;
    lock.lock()?;
    if !file.is_file() {
        let temporary = folder.join(format!(".{name}"));
        make(&temporary)?;
        fs::rename(&temporary, &file)?;
    }
    Ok(file)
}

/// Builds a package from the module `tests/MODULE`, gently.
///
/// # Errors
/// When there is no Go that can.
pub(crate) fn build(module: &str, package: &str, linker_flags: &str, to: &Path) -> Result<()> {
    compile(&["build"], module, package, linker_flags, to)
}

/// As [`build`], the tests of a package.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_test(module: &str, package: &str, linker_flags: &str, to: &Path) -> Result<()> {
    compile(&["test", "-c", "-vet=off"], module, package, linker_flags, to)
}

fn compile(verb: &[&str], module: &str, package: &str, linker_flags: &str, to: &Path) -> Result<()> {
    let mut go = Command::new("nice");
    go.args(["-n", "10"]).arg(compiler()).args(verb);
    go.args(["-trimpath", "-buildvcs=false", "-ldflags", linker_flags, "-o"]).arg(to).arg(package);
    go.current_dir(folder(module)).env("CGO_ENABLED", "0");
    if !go.status().context("starting go")?.success() {
        bail!("go {} {package} in tests/{module} failed", verb[0]);
    }
    Ok(())
}

/// The folder of a module that `tests/MODULE` requires, as Go keeps it.
///
/// # Errors
/// When Go cannot get it.
pub(crate) fn module_folder(module: &str, required: &str) -> Result<PathBuf> {
    let mut go = Command::new(compiler());
    go.args(["mod", "download", "-json", required]).current_dir(folder(module));
    let out = go.output().context("starting go")?;
    let answer: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let found = answer["Dir"].as_str().map(PathBuf::from);
    found.with_context(|| format!("{required}: {}", String::from_utf8_lossy(&out.stderr)))
}

fn folder(module: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(module)
}

/// The Go that `cargo xtask setup` fetched where the machine's is too old, else the machine's.
fn compiler() -> PathBuf {
    let fetched = cache().map(|cache| cache.join("go1.26.8/bin/go"));
    fetched.ok().filter(|go| go.is_file()).unwrap_or_else(|| "go".into())
}

/// The cache folder, as `cargo xtask` finds it.
///
/// # Errors
/// When there is no place for it.
pub(crate) fn cache() -> Result<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("WEIR_CACHE")
        .or_else(|| var("XDG_CACHE_HOME").map(|dir| dir.join("weir")))
        .or_else(|| var("HOME").map(|dir| dir.join(".cache/weir")))
        .context("no place for the cache: set WEIR_CACHE or HOME")
}

/// Says what takes long, also from within a test, whose prints are held back.
pub(crate) fn say(what: &str) {
    // With no one listening there is no one to tell.
    let _ = writeln!(std::io::stderr(), "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_the_cache_is_not_made_again() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("weir-once-{}", std::process::id()));
        let made = once(&folder, "program", |to| Ok(fs::write(to, "one")?));
        let again = once(&folder, "program", |_| bail!("made twice"));
        let failed = once(&folder, "other", |_| bail!("cannot"));
        fs::remove_dir_all(&folder)?;
        assert_eq!(made?, again?);
        assert!(failed.is_err());
        Ok(())
    }
}
