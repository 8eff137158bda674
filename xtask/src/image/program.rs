//! Compiles the program of an image: static, stripped, for one platform.

use super::compiler;
use super::platform::Platform;
use crate::remap::{self, Remap};
use crate::shell::{cargo, run, say, target};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::fs;
use std::process::Command;
use std::time::Instant;

/// How the program is compiled: profiles of the workspace's `Cargo.toml`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Profile {
    /// As it is shipped: optimised as a whole, minutes.
    Release,
    /// To try an installation: hardly optimised, in a fraction of the time, larger and slower.
    Ci,
}

impl Profile {
    fn name(self) -> &'static str {
        match self {
            Self::Release => "image",
            Self::Ci => "image-ci",
        }
    }
}

/// Builds the program and returns its bytes.
///
/// # Errors
/// When it does not compile, is not static, or names folders of this machine.
pub(super) fn build(platform: Platform, profile: Profile) -> Result<Vec<u8>> {
    let started = Instant::now();
    let remaps = remap::all(|| Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())))?;
    let name = platform.target();
    let mut build = cargo();
    build.args(["build", "--quiet", "--package", "lb-userspace", "--bin", "weir", "--target", &name]);
    build.args(["--profile", profile.name()]);
    for variable in ["RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CFLAGS", "CC"] {
        build.env_remove(variable);
    }
    let flags: Vec<String> = remaps.iter().map(Remap::for_rustc).collect();
    build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    // What a C compiler writes for __DATE__ and __TIME__.
    build.env("SOURCE_DATE_EPOCH", super::time()?.to_string());
    compiler::choose(platform)?.tell(&mut build, platform, &remaps);
    say(format_args!("{platform}: profile {}", profile.name()));
    run(&mut build)?;
    let program = target().join(&name).join(profile.name()).join("weir");
    let bytes = fs::read(&program).with_context(|| program.display().to_string())?;
    inspect(&bytes, platform, &remaps).with_context(|| program.display().to_string())?;
    say(format_args!("{platform}: {} ({:.0} s)", program.display(), started.elapsed().as_secs_f64()));
    Ok(bytes)
}

/// Checks what a person would look at with `file`, `ldd` and `strings`.
fn inspect(bytes: &[u8], platform: Platform, remaps: &[Remap]) -> Result<()> {
    let elf = Elf::read(bytes).context("no program of 64 bits, little-endian")?;
    let machine = match platform {
        Platform::Amd64 => 62,
        Platform::Arm64 => 183,
    };
    if elf.machine != machine {
        bail!("a program for machine {}, not {machine}", elf.machine);
    }
    if elf.interpreted {
        bail!("not static: it asks for a loader, and the image has none");
    }
    if let Some(named) = remaps.iter().find(|remap| remap.is_in(bytes)) {
        bail!("names {}, a folder of this machine", named.folder().display());
    }
    Ok(())
}

/// What is asked of a program's header (ELF-64, little-endian).
struct Elf {
    machine: u16,
    /// It has a PT_INTERP: a loader is to start it.
    interpreted: bool,
}

impl Elf {
    fn read(bytes: &[u8]) -> Option<Self> {
        let small = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(small(54)?), usize::from(small(56)?));
        let interpreted = (0..count).any(|n| {
            let at = table + n * size;
            bytes.get(at..at + 4) == Some(&3_u32.to_le_bytes()[..])
        });
        Some(Self { machine: small(18)?, interpreted })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// A header, and one program header of that kind.
    fn elf(machine: u16, kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes
    }

    #[test]
    fn a_program_of_another_machine_or_with_a_loader_is_refused() {
        inspect(&elf(62, 1), Platform::Amd64, &[]).unwrap();
        inspect(&elf(183, 1), Platform::Arm64, &[]).unwrap();
        assert!(inspect(&elf(62, 1), Platform::Arm64, &[]).is_err());
        assert!(inspect(&elf(62, 3), Platform::Amd64, &[]).unwrap_err().to_string().contains("not static"));
        assert!(inspect(b"#!/bin/sh", Platform::Amd64, &[]).is_err());
    }
}
