//! Checks what people should not have to look for: format, clippy, who imports whom, where
//! `unsafe` is, file lengths, tests that no layer runs, licences of dependencies.
//!
//! Every check runs, also after one has failed: the answer is the whole list.

mod rules;

use crate::shell::{cargo, find, root, run as run_command, say};
use crate::{test, toolchain};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Check = fn() -> Result<()>;

pub(crate) fn run() -> Result<()> {
    let checks: [(&str, Check); 6] = [
        ("format", format),
        ("clippy", clippy),
        ("clippy of the eBPF programs", clippy_ebpf),
        ("rules", source_rules),
        ("layers", layers),
        ("dependencies", dependencies),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        say(format_args!("== {name}"));
        if let Err(error) = check() {
            say(format_args!("{error:#}"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {}", failed.join(", "));
    }
    say("lint: nothing to say");
    Ok(())
}

fn format() -> Result<()> {
    run_command(cargo().args(["fmt", "--all", "--check"])).context("`cargo fmt --all` mends it")
}

fn clippy() -> Result<()> {
    run_command(cargo().args(["clippy", "--quiet", "--all-targets", "--", "-D", "warnings"]))
}

/// Clippy with the programs' own compiler and flags; a distribution's compiler may come
/// without it, and building the programs then has to do.
fn clippy_ebpf() -> Result<()> {
    let toolchain = toolchain::choose()?;
    let has_clippy = crate::shell::output(toolchain.source.cargo().args(["clippy", "--version"])).is_ok();
    if !has_clippy {
        say(format_args!("{} has no clippy: the programs are not checked by it", toolchain.source));
        return Ok(());
    }
    let mut command = crate::ebpf::cargo(&toolchain, "clippy")?;
    run_command(command.args(["--", "-D", "warnings"]))
}

fn source_rules() -> Result<()> {
    let mut found = Vec::new();
    let files = rust_files()?;
    for file in &files {
        let name = file.strip_prefix(root())?.to_string_lossy().into_owned();
        let text = fs::read_to_string(file).with_context(|| name.clone())?;
        found.extend(rules::check(&name, &text));
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    say(format_args!("{} files", files.len()));
    Ok(())
}

/// An integration test that no layer of `cargo xtask test` names would never run there.
fn layers() -> Result<()> {
    let mut missing = Vec::new();
    for package in ["lb-common", "lb-userspace", "tests", "xtask"] {
        let Ok(folder) = fs::read_dir(root().join(package).join("tests")) else { continue };
        for entry in folder {
            let path = entry?.path();
            let target =
                path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").is_file();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if target && !test::is_in_a_layer(package, &name) {
                missing.push(format!("{package}/tests/{name}: no layer of `cargo xtask test` runs it"));
            }
        }
    }
    if !missing.is_empty() {
        bail!("{}", missing.join("\n"));
    }
    Ok(())
}

fn dependencies() -> Result<()> {
    if find("cargo-deny").is_none() {
        say(
            "cargo-deny is not installed: licences and advisories are not checked (`cargo install cargo-deny`)",
        );
        return Ok(());
    }
    run_command(Command::new("cargo-deny").current_dir(root()).args(["check", "licenses", "bans", "sources"]))
}

/// Every Rust file of the workspace's packages.
fn rust_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for package in ["lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"] {
        collect(&root().join(package), &mut files)?;
    }
    files.sort();
    Ok(files)
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
