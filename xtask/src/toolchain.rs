//! Which compiler and linker build the eBPF programs.
//!
//! Two kinds are known to work: a rustup nightly with its library sources (core is built
//! along), and a distribution's Rust that ships a ready core for the BPF target. Both
//! emit bitcode that bpf-linker reads, so their LLVM must be the linker's.

use crate::cache;
use crate::shell::{find, is_program, output};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of the programs: little-endian hosts only.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The LLVM that bpf-linker is built with; bitcode of a newer one it cannot read.
pub(crate) const LLVM: u32 = 22;
/// The bpf-linker that is installed when none is found.
pub(crate) const LINKER_VERSION: &str = "0.13.0";
/// The nightly that setup installs: the last one seen to work.
pub(crate) const PINNED_NIGHTLY: &str = "nightly-2026-05-20";

/// A compiler that can build the eBPF programs.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    pub(crate) source: Source,
    /// Core has to be built along.
    pub(crate) build_std: bool,
}

/// Where a compiler comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A rustup toolchain, by name.
    Rustup(String),
    /// The distribution's own cargo and rustc.
    Distribution { cargo: PathBuf, rustc: PathBuf },
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rustup(name) => write!(f, "rustup toolchain {name}"),
            Self::Distribution { rustc, .. } => write!(f, "{}", rustc.display()),
        }
    }
}

impl Source {
    /// Returns this compiler.
    pub(crate) fn rustc(&self) -> Command {
        match self {
            Self::Rustup(name) => rustup_run(name, "rustc"),
            Self::Distribution { rustc, .. } => Command::new(rustc),
        }
    }

    /// Returns this compiler's cargo, without what an outer cargo may have set.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = match self {
            Self::Rustup(name) => rustup_run(name, "cargo"),
            Self::Distribution { cargo, rustc } => {
                let mut command = Command::new(cargo);
                command.env("RUSTC", rustc);
                command
            }
        };
        for name in [
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_BUILD_RUSTFLAGS",
            "CARGO_TARGET_DIR",
            "RUSTUP_TOOLCHAIN",
        ] {
            command.env_remove(name);
        }
        if matches!(self, Self::Rustup(_)) {
            command.env_remove("RUSTC");
        }
        command
    }

    /// Looks at the compiler and says why it cannot be used.
    ///
    /// # Errors
    /// When it is not there, has another LLVM, or neither a core for the target nor the
    /// sources of one.
    pub(crate) fn probe(&self) -> Result<Toolchain> {
        let Ok(version) = output(self.rustc().arg("-vV")) else { bail!("{self}: not there") };
        match llvm_version(&version) {
            Some(LLVM) => {}
            Some(other) => bail!("{self}: LLVM {other}, and bpf-linker {LINKER_VERSION} reads LLVM {LLVM}"),
            None => bail!("{self}: does not tell its LLVM"),
        }
        let sysroot = PathBuf::from(output(self.rustc().args(["--print", "sysroot"]))?.trim());
        let rustlib = sysroot.join("lib/rustlib");
        let build_std = if rustlib.join(TARGET).join("lib").is_dir() {
            false
        } else if rustlib.join("src/rust/library/Cargo.lock").is_file() {
            true
        } else {
            bail!("{self}: neither a core for {TARGET} nor library sources");
        };
        Ok(Toolchain { source: self.clone(), build_std })
    }
}

fn rustup_run(toolchain: &str, program: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, program]);
    command
}

fn llvm_version(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// Returns the compilers to try, in order.
///
/// `LB_EBPF_TOOLCHAIN` names one (`debian` for the distribution's) and is then the only
/// one: who asked for a compiler wants to hear that it does not work.
pub(crate) fn candidates() -> Vec<Source> {
    match std::env::var("LB_EBPF_TOOLCHAIN") {
        Ok(name) if name == "debian" => distribution().into_iter().collect(),
        Ok(name) if !name.is_empty() => vec![Source::Rustup(name)],
        _ => {
            let rustup = ["nightly", PINNED_NIGHTLY].map(|name| Source::Rustup(name.to_owned()));
            let rustup = if has_rustup() { rustup.to_vec() } else { Vec::new() };
            rustup.into_iter().chain(distribution()).collect()
        }
    }
}

pub(crate) fn has_rustup() -> bool {
    find("rustup").is_some()
}

/// The distribution's compiler, where packages put it; rustup's proxies elsewhere in
/// `PATH` are not meant.
fn distribution() -> Option<Source> {
    let (cargo, rustc) = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
    (is_program(&cargo) && is_program(&rustc)).then_some(Source::Distribution { cargo, rustc })
}

/// Returns the first compiler that fits.
///
/// # Errors
/// When none does: says what was tried and the ways out.
pub(crate) fn choose() -> Result<Toolchain> {
    let mut refused = Vec::new();
    for source in candidates() {
        match source.probe() {
            Ok(toolchain) => return Ok(toolchain),
            Err(why) => refused.push(format!("\n  {why}")),
        }
    }
    bail!(
        "no compiler for the eBPF programs; tried:{}\nRun `cargo xtask setup`, or name a rustup toolchain in \
         LB_EBPF_TOOLCHAIN, or a ready object in LB_EBPF_OBJ.",
        if refused.is_empty() { "\n  nothing is installed".to_owned() } else { refused.concat() }
    )
}

/// Where setup puts bpf-linker when it has to build one.
///
/// # Errors
/// When there is no cache folder.
pub(crate) fn linker_home() -> Result<PathBuf> {
    Ok(cache::dir()?.join(format!("bpf-linker-{LINKER_VERSION}-llvm-{LLVM}")))
}

/// Finds the bpf-linker of our version: in `PATH`, where cargo installs, in the cache.
pub(crate) fn linker() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let places = [
        find("bpf-linker"),
        home.map(|dir| dir.join("bin/bpf-linker")),
        linker_home().ok().map(|dir| dir.join("bin/bpf-linker")),
    ];
    places.into_iter().flatten().find(|file| is_program(file) && linker_fits(file))
}

fn linker_fits(file: &Path) -> bool {
    output(Command::new(file).arg("--version"))
        .is_ok_and(|version| version.split_whitespace().any(|word| word == LINKER_VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_read_from_the_compilers_own_words() {
        let text = "rustc 1.97.0-nightly\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(llvm_version(text), Some(22));
        assert_eq!(llvm_version("rustc 1.97.0"), None);
    }
}
