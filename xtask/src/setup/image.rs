//! What compiles the image's programs: Rust's library for the platform, a C compiler and musl's
//! headers.
//!
//! A distribution has the headers for its own processor only. Those of another come from the same
//! package of the distribution for that processor, fetched and checked by apt with a state of its
//! own in the cache: the machine's list of architectures is not touched.

use super::packages;
use crate::cache;
use crate::image::compiler::{self, HEADERS};
use crate::image::platform::Platform;
use crate::shell::{find, line, output, run as run_command, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the machine ready to compile for a platform.
pub(super) fn prepare(platform: Platform) -> Result<()> {
    library(platform)?;
    if let Ok(found) = compiler::choose(platform) {
        say(format_args!("{platform}: {}: there", found.cc().display()));
        return Ok(());
    }
    if platform.is_own() {
        packages(&platform.to_string(), &["musl-tools"])?;
    } else {
        let cross = format!("{}-linux-gnu-gcc", platform.processor());
        if find(&cross).is_none() {
            let package = format!("gcc-{}-linux-gnu", platform.processor().replace('_', "-"));
            packages(&platform.to_string(), &[&package])?;
        }
        headers(platform)?;
    }
    compiler::choose(platform).map(drop)
}

/// Rust's standard library for the platform.
fn library(platform: Platform) -> Result<()> {
    let target = platform.target();
    let there = || {
        let folder = output(Command::new("rustc").args(["--print", "target-libdir", "--target", &target]));
        folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
    };
    if there() {
        return Ok(());
    }
    if find("rustup").is_none() {
        bail!("{platform}: no Rust library for {target}, and no rustup to get it with");
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", &target]);
    say(format_args!("{platform}: {}", line(&rustup)));
    run_command(&mut rustup)?;
    if !there() {
        bail!("{platform}: rustup has no library for {target}");
    }
    Ok(())
}

/// Fetches musl's headers and unpacks them into the cache.
fn headers(platform: Platform) -> Result<()> {
    let place = cache::dir()?.join(format!("{HEADERS}-{}", platform.architecture()));
    if compiler::headers(platform)?.join("stdio.h").is_file() {
        return Ok(());
    }
    if find("apt-get").is_none() || find("dpkg-deb").is_none() {
        bail!("{platform}: this is not Debian; install {}-linux-musl-gcc", platform.processor());
    }
    let temporary = place.with_extension(format!("tmp{}", std::process::id()));
    let fetched = fetch(platform, &temporary);
    let placed = fetched.and_then(|unpacked| {
        // Another run may have put them there.
        let _earlier = fs::remove_dir_all(&place);
        fs::rename(unpacked, &place).with_context(|| place.display().to_string())
    });
    let _gone = fs::remove_dir_all(&temporary);
    placed.with_context(|| format!("{platform}: headers of musl"))
}

/// Downloads below `work`; returns the folder with what the package holds.
fn fetch(platform: Platform, work: &Path) -> Result<PathBuf> {
    let folder = |name: &str| -> Result<PathBuf> {
        let folder = work.join(name);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        Ok(folder)
    };
    let (lists, archives, packages) = (folder("lists")?, folder("archives")?, folder("packages")?);
    fs::create_dir_all(lists.join("partial"))?;
    fs::create_dir_all(archives.join("partial"))?;
    let status = work.join("status");
    fs::write(&status, "")?;
    let apt = |verb: &str| {
        let mut apt = Command::new("apt-get");
        apt.arg(verb).args(["-qq", "--option"]);
        apt.arg(format!("APT::Architecture={}", platform.architecture()));
        // Where both are configured, the lists of the other are of no use here.
        apt.args(["--option", &format!("APT::Architectures::={}", platform.architecture())]);
        for (name, path) in [
            ("Dir::State::lists", &lists),
            ("Dir::State::status", &status),
            ("Dir::Cache::archives", &archives),
        ] {
            apt.args(["--option", &format!("{name}={}", path.display())]);
        }
        // In files of its own, so that nobody else's are made smaller or replaced.
        apt.args(["--option", &format!("Dir::Cache::pkgcache={}", work.join("pkgcache.bin").display())]);
        apt.args([
            "--option",
            &format!("Dir::Cache::srcpkgcache={}", work.join("srcpkgcache.bin").display()),
        ]);
        // Its sandbox user may not reach a home folder.
        apt.args(["--option", "APT::Sandbox::User=root"]);
        apt
    };
    say(format_args!("{platform}: apt-get download {HEADERS}:{}", platform.architecture()));
    // A source that has nothing for this processor does not matter if another has.
    let updated = run_command(&mut apt("update"));
    run_command(apt("download").arg(HEADERS).current_dir(&packages))
        .with_context(|| updated.err().map_or_else(String::new, |error| format!("{error:#}")))?;
    let mut found = fs::read_dir(&packages)?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = found.next().context("apt-get left no package")?;
    let unpacked = folder("unpacked")?;
    run_command(Command::new("dpkg-deb").arg("--extract").arg(package).arg(&unpacked))?;
    Ok(unpacked)
}
