//! What the compilers write in place of this machine's folders: messages and line tables of a
//! program then name its sources, and not who built it where. Two checkouts give the same bytes.

use crate::shell::{output, root, target};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder, and what stands for it.
pub(crate) struct Remap {
    folder: PathBuf,
    name: String,
}

/// Returns what is to be replaced; of two that fit a path, compilers take the last.
///
/// # Errors
/// When the compiler does not tell its version and its own folder.
pub(crate) fn all(rustc: impl Fn() -> Command) -> Result<Vec<Remap>> {
    let sysroot = PathBuf::from(output(rustc().args(["--print", "sysroot"]))?.trim());
    let version = output(rustc().arg("-vV"))?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    Ok(listed(&cargo_home()?, &sysroot, commit, &root(), &target()))
}

fn listed(cargo: &Path, sysroot: &Path, commit: &str, root: &Path, target: &Path) -> Vec<Remap> {
    let remap = |folder: PathBuf, name: &str| Remap { folder, name: name.to_owned() };
    vec![
        remap(cargo.to_owned(), "cargo"),
        remap(cargo.join("registry/src"), "cargo"),
        // As in a standard library that was compiled elsewhere.
        remap(sysroot.join("lib/rustlib/src/rust"), &format!("/rustc/{commit}")),
        remap(root.to_owned(), "weir"),
        remap(target.to_owned(), "weir/target"),
    ]
}

impl Remap {
    pub(crate) fn for_rustc(&self) -> String {
        format!("--remap-path-prefix={}={}", self.folder.display(), self.name)
    }

    pub(crate) fn for_cc(&self) -> String {
        format!("-ffile-prefix-map={}={}", self.folder.display(), self.name)
    }

    /// Tells whether something names the folder all the same.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        let folder = self.folder.as_os_str().as_encoded_bytes();
        // One name alone, such as `/src` in a container, is part of many other paths.
        self.folder.components().count() > 2 && bytes.windows(folder.len()).any(|window| window == folder)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Where cargo keeps the sources of others.
fn cargo_home() -> Result<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo"));
    std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home).context("set HOME or CARGO_HOME")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearer_folders_come_later_and_are_found_in_a_program() {
        let path = Path::new;
        let all = listed(path("/h/.cargo"), path("/h/rust"), "abc", path("/src/weir"), path("/tmp/out"));
        let flags: Vec<_> = all.iter().map(Remap::for_rustc).collect();
        assert_eq!(
            flags,
            [
                "--remap-path-prefix=/h/.cargo=cargo",
                "--remap-path-prefix=/h/.cargo/registry/src=cargo",
                "--remap-path-prefix=/h/rust/lib/rustlib/src/rust=/rustc/abc",
                "--remap-path-prefix=/src/weir=weir",
                "--remap-path-prefix=/tmp/out=weir/target",
            ]
        );
        assert_eq!(all[3].for_cc(), "-ffile-prefix-map=/src/weir=weir");
        assert!(all[3].is_in(b"at /src/weir/xtask/a.rs:3"));
        assert!(!all[3].is_in(b"at weir/xtask/a.rs:3"));
        let short = Remap { folder: "/src".into(), name: "weir".into() };
        assert!(!short.is_in(b"at cargo/hyper/src/lib.rs:3"));
    }
}
