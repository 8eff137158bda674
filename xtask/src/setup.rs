//! Finds or installs what is missing, one line for each thing.
//!
//! Packages come from Debian (or a relative of it); elsewhere the line says what to
//! install. Nothing that is there already is touched, and a second run changes nothing.
//! What cannot be had does not stop the rest; the last line counts it.

mod image;
mod kube;

use crate::ebpf;
use crate::image::platform::Platform;
use crate::root::raised;
use crate::shell::{find, line, output, run as run_command, say};
use crate::toolchain::{
    LINKER_VERSION, LLVM, PINNED_NIGHTLY, Source, candidates, choose, has_rustup, linker, linker_home,
};
use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the machine is to be ready for; all of it without a name.
    groups: Vec<Group>,
}

/// What a thing is needed for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Group {
    /// Compiling.
    Build,
    /// The demo.
    Run,
    /// The tests.
    Test,
    /// The benchmarks.
    Bench,
    /// A real cluster on this machine.
    Cluster,
    /// The container image, for every platform.
    Image,
}

/// A program that comes in a package.
struct Tool {
    group: Group,
    program: &'static str,
    package: &'static str,
}

const TOOLS: [Tool; 39] = [
    tool(Group::Build, "cc", "gcc"),
    tool(Group::Run, "ip", "iproute2"),
    tool(Group::Run, "nsenter", "util-linux"),
    tool(Group::Test, "bpftool", "bpftool"),
    tool(Group::Test, "capsh", "libcap2-bin"),
    tool(Group::Test, "nft", "nftables"),
    tool(Group::Test, "iptables", "iptables"),
    tool(Group::Test, "conntrack", "conntrack"),
    tool(Group::Test, "ethtool", "ethtool"),
    tool(Group::Test, "tc", "iproute2"),
    tool(Group::Test, "etcd", "etcd-server"),
    tool(Group::Bench, "nft", "nftables"),
    tool(Group::Bench, "bpftool", "bpftool"),
    tool(Group::Bench, "chrt", "util-linux"),
    tool(Group::Bench, "nginx", "nginx-light"),
    tool(Group::Bench, "haproxy", "haproxy"),
    tool(Group::Cluster, "cc", "gcc"),
    tool(Group::Cluster, "containerd", "containerd"),
    tool(Group::Cluster, "runc", "runc"),
    tool(Group::Cluster, "etcd", "etcd-server"),
    tool(Group::Cluster, "ip", "iproute2"),
    tool(Group::Cluster, "ss", "iproute2"),
    tool(Group::Cluster, "nft", "nftables"),
    tool(Group::Cluster, "iptables", "iptables"),
    tool(Group::Cluster, "conntrack", "conntrack"),
    tool(Group::Cluster, "ipset", "ipset"),
    tool(Group::Cluster, "bpftool", "bpftool"),
    tool(Group::Cluster, "unshare", "util-linux"),
    tool(Group::Cluster, "ipcs", "util-linux"),
    tool(Group::Cluster, "busybox", "busybox-static"),
    tool(Group::Cluster, "dash", "dash"),
    tool(Group::Cluster, "bash", "bash"),
    tool(Group::Cluster, "curl", "curl"),
    tool(Group::Cluster, "wget", "wget"),
    tool(Group::Cluster, "dig", "bind9-dnsutils"),
    tool(Group::Cluster, "host", "bind9-host"),
    tool(Group::Cluster, "nc.openbsd", "netcat-openbsd"),
    tool(Group::Cluster, "iperf", "iperf"),
    tool(Group::Cluster, "setpriv", "util-linux"),
];

const fn tool(group: Group, program: &'static str, package: &'static str) -> Tool {
    Tool { group, program, package }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let every = [Group::Build, Group::Run, Group::Test, Group::Bench, Group::Cluster, Group::Image];
    prepare(if args.groups.is_empty() { &every } else { &args.groups })
}

/// Makes the machine ready for these groups.
///
/// # Errors
/// When something is missing and could not be installed.
pub(crate) fn prepare(groups: &[Group]) -> Result<()> {
    let mut missing = Vec::new();
    let wanted: Vec<_> = TOOLS.iter().filter(|tool| groups.contains(&tool.group)).collect();
    let absent: BTreeSet<_> =
        wanted.iter().filter(|tool| find(tool.program).is_none()).map(|tool| tool.package).collect();
    if absent.is_empty() {
        let there: BTreeSet<_> = wanted.iter().map(|tool| tool.program).collect();
        say(format_args!("tools: {}: there", there.into_iter().collect::<Vec<_>>().join(" ")));
    } else {
        note(&mut missing, packages("tools", &absent.into_iter().collect::<Vec<_>>()));
    }
    if groups.contains(&Group::Build) && std::env::var_os("LB_EBPF_OBJ").is_none() {
        note(&mut missing, bpf_linker());
        note(&mut missing, object_tools());
        note(&mut missing, compiler());
    }
    if groups.contains(&Group::Test) {
        note(&mut missing, kube::programs());
        note(&mut missing, kube::suites());
    }
    if groups.contains(&Group::Cluster) {
        note(&mut missing, kube::cluster());
    }
    if groups.contains(&Group::Image) {
        for platform in Platform::ALL {
            note(&mut missing, image::prepare(platform));
        }
    }
    sum(&missing)
}

/// Makes the machine ready to build the image for these platforms.
///
/// # Errors
/// As [`prepare`].
pub(crate) fn for_image(platforms: &[Platform]) -> Result<()> {
    prepare(&[Group::Build])?;
    let mut missing = Vec::new();
    for platform in platforms {
        note(&mut missing, image::prepare(*platform));
    }
    sum(&missing)
}

fn sum(missing: &[()]) -> Result<()> {
    match missing.len() {
        0 => Ok(()),
        n => bail!("setup: {n} missing, see above"),
    }
}

fn note(missing: &mut Vec<()>, step: Result<()>) {
    if let Err(error) = step {
        say(format_args!("MISSING: {error:#}"));
        missing.push(());
    }
}

/// Installs packages, or says which.
fn packages(what: &str, names: &[&str]) -> Result<()> {
    if find("apt-get").is_none() {
        bail!(
            "{what}: this is not Debian; install what your distribution calls (Debian's names): {}",
            names.join(" ")
        );
    }
    let known =
        |name: &&&str| output(Command::new("apt-cache").args(["show", "--no-all-versions", name])).is_ok();
    if !names.iter().all(|name| known(&name)) {
        // The lists may be empty on a fresh machine.
        run_command(raised("apt-get", &["update", "-qq"])?.env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    if let Some(name) = names.iter().find(|name| !known(name)) {
        bail!("{what}: no package {name} in this release; install it by hand");
    }
    // The packages of daemons (etcd) would start them; RUNLEVEL keeps that from happening.
    let fixed =
        ["RUNLEVEL=1", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-remove"];
    let words: Vec<&str> = fixed.iter().chain(names).copied().collect();
    let mut apt = raised("env", &words)?;
    say(format_args!("{what}: {}", line(&apt)));
    run_command(&mut apt).with_context(|| format!("{what}: {}", names.join(" ")))
}

/// bpf-linker of our version, linked to the LLVM of the compilers.
fn bpf_linker() -> Result<()> {
    if let Some(file) = linker() {
        say(format_args!("bpf-linker {LINKER_VERSION}: {}: there", file.display()));
        return Ok(());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{LLVM}"));
    let llvm = format!("llvm-{LLVM}-dev");
    if !prefix.join("bin/llvm-config").exists() {
        packages("bpf-linker", &[&llvm, "zlib1g-dev", "libzstd-dev"])?;
    } else if find("dpkg-query").is_some() {
        let absent: Vec<_> =
            ["zlib1g-dev", "libzstd-dev"].into_iter().filter(|name| !is_installed(name)).collect();
        if !absent.is_empty() {
            packages("bpf-linker", &absent)?;
        }
    }
    let home = linker_home()?;
    let feature = format!("llvm-{LLVM}");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"]);
    cargo.args(["--features", &feature, "--root"]).arg(&home);
    // Away from the checkout's settings, with its own target folder.
    cargo.current_dir("/").env("LLVM_PREFIX", &prefix).env_remove("CARGO_TARGET_DIR");
    say(format_args!("bpf-linker: LLVM_PREFIX={} {} (a minute or two)", prefix.display(), line(&cargo)));
    run_command(&mut cargo).context("bpf-linker")
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", package]))
        .is_ok_and(|status| status.starts_with("ii"))
}

/// llvm-objcopy, which strips the object.
fn object_tools() -> Result<()> {
    if let Some(file) = ebpf::objcopy() {
        say(format_args!("llvm-objcopy: {}: there", file.display()));
        return Ok(());
    }
    packages("llvm-objcopy", &[&format!("llvm-{LLVM}")])
}

/// A compiler for the eBPF programs: what is there, else rustup's, else the distribution's.
fn compiler() -> Result<()> {
    if let Ok(toolchain) = choose() {
        let core = if toolchain.build_std { "builds core along" } else { "brings core" };
        say(format_args!("eBPF compiler: {}, {core}: there", toolchain.source));
        return Ok(());
    }
    if std::env::var_os("LB_EBPF_TOOLCHAIN").is_some() {
        // Asked for by name: the refusal is the answer, unless it is the distribution's.
        if std::env::var("LB_EBPF_TOOLCHAIN").is_ok_and(|name| name == "debian") {
            packages("eBPF compiler", &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
        }
        return choose().map(drop);
    }
    if has_rustup() {
        let mut tries: Vec<Vec<&str>> = Vec::new();
        if candidates().iter().any(|source| is_nightly(source) && has_our_llvm(source)) {
            tries.push(vec!["component", "add", "rust-src", "--toolchain", "nightly"]);
        }
        tries.push(vec![
            "toolchain",
            "install",
            PINNED_NIGHTLY,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ]);
        for words in tries {
            let mut rustup = Command::new("rustup");
            rustup.args(words);
            say(format_args!("eBPF compiler: {}", line(&rustup)));
            match run_command(&mut rustup) {
                Ok(()) if choose().is_ok() => return Ok(()),
                Ok(()) => {}
                // rustup cannot download everywhere; the distribution's compiler does as well.
                Err(error) => say(format_args!("eBPF compiler: {error:#}; going on without it")),
            }
        }
    }
    packages("eBPF compiler", &["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"])?;
    choose().map(drop)
}

fn is_nightly(source: &Source) -> bool {
    *source == Source::Rustup("nightly".to_owned())
}

fn has_our_llvm(source: &Source) -> bool {
    // The only refusal that rust-src cures comes after the LLVM check.
    source.probe().is_err_and(|why| why.to_string().contains("library sources"))
}
