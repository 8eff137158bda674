//! Builds the image: an archive that `ctr`, `kind`, `podman` and `docker` load, without any of them.
//!
//! Compiles the program for each platform, puts it with the little else that it needs into a
//! layer, writes the archive and reads it back. The same sources give the same bytes.

mod check;
pub(crate) mod compiler;
mod layout;
pub(crate) mod platform;
mod program;
mod rootfs;

use crate::ebpf;
use crate::setup;
use crate::shell::{output, root, say, target};
use anyhow::{Context, Result, bail};
use layout::{About, Image};
use platform::Platform;
use program::Profile;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the manifests of `deploy/` ask for.
const NAME: &str = "docker.io/library/weir:dev";
/// The most that an image of one platform may have to fetch.
const LARGEST: usize = 25 << 20;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For which platforms, with commas between; this machine's without the option.
    #[arg(long, value_delimiter = ',', value_name = "linux/amd64,linux/arm64")]
    platform: Vec<Platform>,
    /// How the program is compiled.
    #[arg(long, value_enum, default_value = "release")]
    profile: Profile,
    /// The image's name.
    #[arg(long, default_value = NAME)]
    name: String,
    /// The archive; `target/weir-image.tar` without the option.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the image's files below this folder, and no archive: for a Dockerfile.
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    rootfs: Option<PathBuf>,
}

/// Writes this machine's image where it is looked for, and returns where that is.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn for_this_machine() -> Result<PathBuf> {
    built(Profile::Release, default_file())
}

/// The same for a test of each change: quickly compiled, in a file of its own.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn for_tests() -> Result<PathBuf> {
    built(Profile::Ci, target().join("weir-image-ci.tar"))
}

fn built(profile: Profile, file: PathBuf) -> Result<PathBuf> {
    let output = Some(file.clone());
    run(&Args { platform: Vec::new(), profile, name: NAME.into(), output, rootfs: None })?;
    Ok(file)
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let own = Platform::own();
    let mut platforms = args.platform.clone();
    if platforms.is_empty() {
        platforms.push(Platform::own()?);
    }
    platforms.sort_unstable();
    platforms.dedup();
    if args.rootfs.is_some() && platforms.len() > 1 {
        bail!("--rootfs: a folder holds one platform");
    }
    setup::for_image(&platforms)?;
    // One object for all: a BPF program does not know the processor.
    ebpf::build()?;
    let time = time()?;
    let mut images = Vec::new();
    for platform in platforms {
        let licence = |name| fs::read(root().join(name)).with_context(|| String::from(name));
        let licences = [licence("LICENSE-APACHE")?, licence("LICENSE-GPL")?];
        let entries = rootfs::entries(program::build(platform, args.profile)?, licences);
        if let Some(folder) = &args.rootfs {
            rootfs::unpack(&entries, folder)?;
            say(format_args!("{platform}: {}", folder.display()));
            return Ok(());
        }
        images.push(Image { platform, layer: rootfs::layer(&entries, time)? });
    }
    let about = About { name: &args.name, time, labels: labels() };
    let first = images.first().map(|image| image.platform);
    let archive = layout::archive(&about, &images, own.ok().or(first).context("no platform")?)?;
    let file = args.output.clone().unwrap_or_else(default_file);
    write(&file, &archive)?;
    report(&file, &args.name, args.profile)
}

pub(crate) fn default_file() -> PathBuf {
    target().join("weir-image.tar")
}

/// Reads the archive back from the disk, and prints what is in it.
fn report(file: &Path, name: &str, profile: Profile) -> Result<()> {
    let archive = fs::read(file).with_context(|| file.display().to_string())?;
    let found = check::check(&archive, name).with_context(|| file.display().to_string())?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    println!("{} ({:.1} MiB): {name}, {}", file.display(), mib(archive.len()), found.digest);
    for image in &found.images {
        println!(
            "{}: {:.1} MiB compressed, {:.1} MiB uncompressed, {}",
            image.platform,
            mib(image.compressed),
            mib(image.uncompressed),
            image.digest
        );
        if profile == Profile::Release && image.compressed > LARGEST {
            bail!("{}: more than {:.0} MiB", image.platform, mib(LARGEST));
        }
    }
    Ok(())
}

/// Puts the whole file in place at once.
fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let temporary = file.with_extension(format!("tmp{}", std::process::id()));
    let written = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // What is left of it helps nobody.
        let _absent = fs::remove_file(&temporary);
    }
    written.with_context(|| file.display().to_string())
}

/// The time that everything in the image gets: `SOURCE_DATE_EPOCH`, else 0.
fn time() -> Result<u64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.parse().with_context(|| format!("SOURCE_DATE_EPOCH={text}")),
        Err(_) => Ok(0),
    }
}

/// What tools show of an image (OCI image-spec, annotations).
fn labels() -> BTreeMap<String, String> {
    let mut labels: BTreeMap<String, String> = [
        ("title", "weir"),
        ("description", "Load balancer for Kubernetes nodes: Services in eBPF, Ingress over HTTP"),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("version", env!("CARGO_PKG_VERSION")),
    ]
    .into_iter()
    .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned()))
    .collect();
    let git = |args: &[&str]| output(Command::new("git").current_dir(root()).args(args));
    // A source archive has no history to tell of.
    if let (Ok(head), Ok(changed)) = (git(&["rev-parse", "HEAD"]), git(&["status", "--porcelain"])) {
        let dirty = if changed.is_empty() { "" } else { "-dirty" };
        labels.insert("org.opencontainers.image.revision".to_owned(), format!("{}{dirty}", head.trim()));
    }
    labels
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn labels_have_their_full_names() {
        let labels = labels();
        assert!(labels.keys().all(|name| name.starts_with("org.opencontainers.image.")));
        assert_eq!(labels["org.opencontainers.image.licenses"], "Apache-2.0 OR GPL-2.0-only");
        assert!(labels["org.opencontainers.image.source"].starts_with("https://"));
    }

    #[test]
    fn an_archive_is_written_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("folder/image.tar");
        write(&file, b"one").unwrap();
        write(&file, b"two").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path().join("folder")).unwrap().count(), 1);
    }

    /// The Dockerfile says the same of the image as the archive does.
    #[test]
    fn the_dockerfile_starts_the_same() {
        let text = fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
        for line in ["ENV PATH=/usr/bin", "ENTRYPOINT [\"/weir\"]", "CMD [\"run\"]"] {
            assert!(text.lines().any(|told| told == line), "{line}");
        }
    }
}
