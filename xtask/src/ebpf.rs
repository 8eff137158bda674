//! Builds the eBPF object.
//!
//! The object is `target/bpf/lb-ebpf.o` of this checkout, also when `CARGO_TARGET_DIR`
//! points elsewhere: two checkouts that share a target folder must not embed each
//! other's programs. It is rewritten only when its bytes change, so that the agent is
//! not rebuilt for nothing.

use crate::remap::{self, Remap};
use crate::shell::{find, is_program, line, root, run, say, target};
use crate::toolchain::{LLVM, TARGET, Toolchain, choose, linker};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the agent's build script looks.
pub(crate) fn object() -> PathBuf {
    root().join("target/bpf/lb-ebpf.o")
}

/// Builds the object and returns its path.
///
/// # Errors
/// When no compiler fits, the build fails or the object cannot be written.
pub(crate) fn build() -> Result<PathBuf> {
    let object = object();
    if let Some(ready) = std::env::var_os("LB_EBPF_OBJ") {
        let bytes = fs::read(&ready).with_context(|| format!("LB_EBPF_OBJ={}", ready.display()))?;
        install(&bytes, &object)?;
        say(format_args!("eBPF object: {} (from LB_EBPF_OBJ)", object.display()));
        return Ok(object);
    }
    let toolchain = choose()?;
    let home = home()?;
    // Held until the object is taken out: another checkout may share this folder.
    let lock = fs::File::create(home.join(".weir-lock"))?;
    lock.lock()?;
    let mut cargo = cargo(&toolchain, "build")?;
    say(format_args!("eBPF programs: {} ({})", line(&cargo), toolchain.source));
    run(&mut cargo)?;

    let built = home.join(TARGET).join("bpf/lb-ebpf");
    let stripped = home.join("lb-ebpf.o");
    strip(&built, &stripped)?;
    let size = install(&fs::read(&stripped)?, &object)?;
    drop(lock);
    say(format_args!("eBPF object: {} ({} KiB)", object.display(), size / 1024));
    Ok(object)
}

/// Where the programs are compiled.
fn home() -> Result<PathBuf> {
    let home = target().join("ebpf");
    fs::create_dir_all(&home).with_context(|| home.display().to_string())?;
    Ok(home)
}

/// A cargo verb over the programs, with the compiler, the flags and the linker that they need.
///
/// # Errors
/// When bpf-linker is missing.
pub(crate) fn cargo(toolchain: &Toolchain, verb: &str) -> Result<Command> {
    let Some(linker) = linker() else { bail!("bpf-linker is missing: run `cargo xtask setup build`") };
    let mut cargo = toolchain.source.cargo();
    cargo.current_dir(root()).args([verb, "--quiet", "--package", "lb-ebpf", "--bin", "lb-ebpf"]);
    cargo.args(["--profile", "bpf", "--target", TARGET, "--target-dir"]).arg(home()?);
    if toolchain.build_std {
        cargo.args(["-Z", "build-std=core"]);
    }
    // aya-ebpf needs features that are not stable yet; the distribution's compiler is a stable one.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    // Line tables stay in the object.
    let remaps = remap::all(|| toolchain.source.rustc())?;
    let flags: Vec<String> = flags().into_iter().chain(remaps.iter().map(Remap::for_rustc)).collect();
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
    Ok(cargo)
}

fn flags() -> [String; 4] {
    [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
    ]
}

/// Drops the DWARF sections; `.BTF`, which the loader reads, stays.
fn strip(from: &Path, to: &Path) -> Result<()> {
    let Some(objcopy) = objcopy() else {
        bail!("llvm-objcopy is missing: run `cargo xtask setup build`");
    };
    run(Command::new(objcopy).arg("--strip-debug").arg(from).arg(to))
}

pub(crate) fn objcopy() -> Option<PathBuf> {
    let own = PathBuf::from(format!("/usr/lib/llvm-{LLVM}/bin/llvm-objcopy"));
    Some(own)
        .filter(|file| is_program(file))
        .or_else(|| find(&format!("llvm-objcopy-{LLVM}")))
        .or_else(|| find("llvm-objcopy"))
}

/// Puts the bytes in place at once, or leaves an equal file untouched. Returns their number.
fn install(bytes: &[u8], to: &Path) -> Result<usize> {
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(bytes.len());
    }
    let dir = to.parent().context("the object has no folder")?;
    fs::create_dir_all(dir)?;
    // Beside the folder, not in it: the agent's build script watches the folder.
    let temporary = dir.with_extension(format!("tmp{}", std::process::id()));
    fs::write(&temporary, bytes)?;
    fs::rename(&temporary, to)?;
    Ok(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_object_is_left_untouched() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("weir-xtask-{}", std::process::id()));
        let file = dir.join("bpf/object.o");
        install(b"one", &file)?;
        let first = fs::metadata(&file)?.modified()?;
        install(b"one", &file)?;
        assert_eq!(fs::metadata(&file)?.modified()?, first);
        install(b"two", &file)?;
        assert_eq!(fs::read(&file)?, b"two");
        assert_eq!(fs::read_dir(&dir)?.count(), 1, "no temporary file is left");
        fs::remove_dir_all(&dir)?;
        Ok(())
    }
}
