//! The archive: an OCI image layout, readable by `docker load` as well.
//!
//! A pure function of its input: blobs are named by their SHA-256, files stand in one order, times
//! are given, nothing of the machine goes in. `index.json` carries the annotations that
//! containerd (`ctr images import`, `kind load image-archive`) and podman take the name from;
//! `manifest.json` says the same to Docker, which loads one platform only.
//! Formats: OCI image-spec 1.1; Docker's image specification 1.2 for `manifest.json`.

use super::platform::Platform;
use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write;
use tar::{Builder, EntryType, Header};

pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What is said of every platform's image.
pub(super) struct About<'a> {
    /// The whole name: registry, repository, tag.
    pub(super) name: &'a str,
    /// Seconds since the epoch.
    pub(super) time: u64,
    pub(super) labels: BTreeMap<String, String>,
}

/// One platform's image.
pub(super) struct Image {
    pub(super) platform: Platform,
    /// What goes into its one layer, as tar.
    pub(super) layer: Vec<u8>,
}

/// The files of a layout, by path.
type Files = BTreeMap<String, Vec<u8>>;

/// Writes the archive of these images; there is at least one. `own`: Docker loads this one.
///
/// # Errors
/// Never but for want of memory.
pub(super) fn archive(about: &About<'_>, images: &[Image], own: Platform) -> Result<Vec<u8>> {
    let mut files = Files::new();
    let mut manifests = Vec::new();
    let mut docker = Vec::new();
    for image in images {
        let (manifest, of_docker) = add(&mut files, about, image)?;
        manifests.push(manifest);
        docker.push((image.platform, of_docker));
    }
    let mut top = match <[Value; 1]>::try_from(manifests) {
        Ok([one]) => one,
        Err(several) => {
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": several });
            blob(&mut files, INDEX, to_bytes(&index)?)
        }
    };
    let tag = about.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    top["annotations"] =
        json!({ "io.containerd.image.name": about.name, "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [top] });
    files.insert("index.json".into(), to_bytes(&index)?);
    let of_docker = docker.iter().find(|(platform, _)| *platform == own).or(docker.first());
    let (_, of_docker) = of_docker.context("an image of no platform")?;
    files.insert("manifest.json".into(), to_bytes(&json!([of_docker]))?);
    files.insert("oci-layout".into(), to_bytes(&json!({ "imageLayoutVersion": "1.0.0" }))?);
    packed(&files, about.time)
}

/// Adds one platform's blobs; returns its descriptor, and its entry for Docker.
fn add(files: &mut Files, about: &About<'_>, image: &Image) -> Result<(Value, Value)> {
    let created = timestamp(about.time);
    let config = json!({
        "created": created,
        "architecture": image.platform.architecture(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin"],
            "Entrypoint": ["/weir"],
            "Cmd": ["run"],
            "WorkingDir": "/",
            "Labels": about.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&image.layer)] },
        "history": [{ "created": created, "created_by": "cargo xtask image" }],
    });
    let config = blob(files, CONFIG, to_bytes(&config)?);
    let layer = blob(files, LAYER, compressed(&image.layer)?);
    let of_docker = json!({ "Config": path(&config), "RepoTags": [about.name], "Layers": [path(&layer)] });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
        "annotations": about.labels,
    });
    let mut manifest = blob(files, MANIFEST, to_bytes(&manifest)?);
    manifest["platform"] = json!({ "architecture": image.platform.architecture(), "os": "linux" });
    Ok((manifest, of_docker))
}

/// Adds a blob and returns its descriptor.
fn blob(files: &mut Files, media_type: &str, bytes: Vec<u8>) -> Value {
    let descriptor = json!({ "mediaType": media_type, "digest": digest(&bytes), "size": bytes.len() });
    files.insert(path(&descriptor), bytes);
    descriptor
}

/// Where a descriptor's blob lies.
fn path(descriptor: &Value) -> String {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    format!("blobs/{}", digest.replace(':', "/"))
}

/// `sha256:` and the hash.
pub(super) fn digest(bytes: &[u8]) -> String {
    let hash: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hash}")
}

/// With a time of 0 and no name, so that the same bytes come out.
fn compressed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?)
}

fn to_bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).context("JSON")
}

fn packed(files: &Files, time: u64) -> Result<Vec<u8>> {
    let mut archive = Builder::new(Vec::new());
    let mut folders: Vec<String> = Vec::new();
    for (path, bytes) in files {
        for (at, _) in path.match_indices('/') {
            let folder = &path[..=at];
            if !folders.iter().any(|made| made == folder) {
                let mut header = header(EntryType::Directory, 0o755, 0, time);
                archive.append_data(&mut header, folder, std::io::empty())?;
                folders.push(folder.to_owned());
            }
        }
        let mut header = header(EntryType::Regular, 0o644, bytes.len() as u64, time);
        archive.append_data(&mut header, path, bytes.as_slice())?;
    }
    archive.into_inner().context("the archive")
}

fn header(kind: EntryType, mode: u32, size: u64, time: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size);
    header.set_mtime(time);
    header
}

/// Seconds since the epoch as RFC 3339, in UTC.
fn timestamp(time: u64) -> String {
    let (mut year, mut day) = (1970, time / 86_400);
    let length = |year: u64| {
        let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        if leap { 366 } else { 365 }
    };
    while day >= length(year) {
        day -= length(year);
        year += 1;
    }
    let february = length(year) - 337;
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hour, minute, second) = (time / 3_600 % 24, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::check::check;
    use super::*;

    const NAME: &str = "docker.io/library/weir:dev";

    fn about() -> About<'static> {
        let labels = BTreeMap::from([("org.opencontainers.image.title".to_owned(), "weir".to_owned())]);
        About { name: NAME, time: 0, labels }
    }

    fn image(platform: Platform) -> Image {
        let entries = super::super::rootfs::entries(platform.to_string().into_bytes(), [vec![], vec![]]);
        Image { platform, layer: super::super::rootfs::layer(&entries, 0).unwrap() }
    }

    fn made(platforms: &[Platform]) -> Vec<u8> {
        let images: Vec<Image> = platforms.iter().map(|platform| image(*platform)).collect();
        archive(&about(), &images, Platform::Amd64).unwrap()
    }

    #[test]
    fn every_layout_resolves_from_its_index_to_its_layers() {
        for platforms in [&Platform::ALL[..], &[Platform::Amd64], &[Platform::Arm64]] {
            let found = check(&made(platforms), NAME).unwrap();
            assert_eq!(found.images.iter().map(|image| image.platform).collect::<Vec<_>>(), platforms);
        }
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_and_another_time_others() {
        let twice = [made(&Platform::ALL), made(&Platform::ALL)];
        assert_eq!(digest(&twice[0]), digest(&twice[1]));
        let later =
            archive(&About { time: 1, ..about() }, &[image(Platform::Amd64)], Platform::Amd64).unwrap();
        assert_ne!(digest(&later), digest(&made(&[Platform::Amd64])));
        check(&later, NAME).unwrap();
    }

    #[test]
    fn a_digest_is_that_of_the_bytes() {
        assert_eq!(digest(b"abc"), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn times_are_calendar_times() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
        ] {
            assert_eq!(timestamp(time), text);
        }
    }
}
