//! Reads an archive back as those who load it do, and says what is in it.
//!
//! Every blob must have the bytes that its name says, every reference must lead somewhere, and
//! nothing may lie there that nobody asks for.

use super::layout::{INDEX, MANIFEST, digest};
use super::platform::Platform;
use super::rootfs::PROGRAM;
use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

/// What an archive holds.
#[derive(Debug)]
pub(super) struct Found {
    /// What the image is known by: of its index, or of its one manifest.
    pub(super) digest: String,
    pub(super) images: Vec<FoundImage>,
}

/// One platform's image.
#[derive(Debug)]
pub(super) struct FoundImage {
    pub(super) platform: Platform,
    pub(super) digest: String,
    /// Bytes that are fetched: manifest, configuration, layers.
    pub(super) compressed: usize,
    /// Bytes of its layers as they lie on a node.
    pub(super) uncompressed: usize,
}

/// Checks the bytes of an archive.
///
/// # Errors
/// Says what does not fit.
pub(super) fn check(archive: &[u8], name: &str) -> Result<Found> {
    let mut layout = Layout { files: read(archive)?, used: BTreeSet::new() };
    let version = layout.json("oci-layout")?;
    ensure!(version["imageLayoutVersion"] == "1.0.0", "oci-layout: {version}");
    let index = layout.json("index.json")?;
    let [top] = list(&index["manifests"])? else { bail!("index.json: not one image") };
    let named = &top["annotations"]["io.containerd.image.name"];
    ensure!(named == name, "index.json: the image is called {named}");
    let (_, tag) = name.rsplit_once(':').context("a name without a tag")?;
    ensure!(top["annotations"]["org.opencontainers.image.ref.name"] == tag, "index.json: not tagged {tag}");
    let manifests = match top["mediaType"].as_str() {
        Some(MANIFEST) => vec![top.clone()],
        Some(INDEX) => {
            let index: Value = serde_json::from_slice(layout.blob(top)?)?;
            list(&index["manifests"])?.to_vec()
        }
        other => bail!("index.json: leads to {other:?}"),
    };
    let images = manifests.iter().map(|manifest| layout.image(manifest)).collect::<Result<Vec<_>>>()?;
    layout.docker(name)?;
    for path in layout.files.keys() {
        ensure!(layout.used.contains(path), "{path}: nobody asks for it");
    }
    Ok(Found { digest: text(&top["digest"])?.to_owned(), images })
}

struct Layout {
    files: BTreeMap<String, Vec<u8>>,
    used: BTreeSet<String>,
}

impl Layout {
    fn file(&mut self, path: &str) -> Result<&[u8]> {
        self.used.insert(path.to_owned());
        self.files.get(path).map(Vec::as_slice).with_context(|| format!("{path}: missing"))
    }

    fn json(&mut self, path: &str) -> Result<Value> {
        serde_json::from_slice(self.file(path)?).with_context(|| path.to_owned())
    }

    /// The bytes that a descriptor stands for.
    fn blob(&mut self, descriptor: &Value) -> Result<&[u8]> {
        let wanted = text(&descriptor["digest"])?.to_owned();
        let size = descriptor["size"].as_u64();
        let bytes = self.file(&format!("blobs/{}", wanted.replace(':', "/")))?;
        ensure!(digest(bytes) == wanted, "{wanted}: other bytes");
        ensure!(Some(bytes.len() as u64) == size, "{wanted}: {} bytes, {size:?} told", bytes.len());
        Ok(bytes)
    }

    fn image(&mut self, descriptor: &Value) -> Result<FoundImage> {
        let manifest = self.blob(descriptor)?;
        let mut compressed = manifest.len();
        let manifest: Value = serde_json::from_slice(manifest)?;
        let config = self.blob(&manifest["config"])?;
        compressed += config.len();
        let config: Value = serde_json::from_slice(config)?;
        for field in ["os", "architecture"] {
            let (told, own) = (&descriptor["platform"][field], &config[field]);
            ensure!(told == own, "{field}: {told} in the index, {own} in the image");
        }
        let platform = format!("{}/{}", text(&config["os"])?, text(&config["architecture"])?);
        let platform = platform.parse().map_err(anyhow::Error::msg)?;
        let (layers, ids) = (list(&manifest["layers"])?, list(&config["rootfs"]["diff_ids"])?);
        ensure!(layers.len() == ids.len(), "{platform}: {} layers, {} told", layers.len(), ids.len());
        let mut uncompressed = 0;
        let mut paths = BTreeSet::new();
        for (layer, id) in layers.iter().zip(ids) {
            let bytes = self.blob(layer)?;
            compressed += bytes.len();
            let mut unpacked = Vec::new();
            GzDecoder::new(bytes).read_to_end(&mut unpacked)?;
            ensure!(id == &digest(&unpacked), "{platform}: the layer is not {id}");
            uncompressed += unpacked.len();
            paths.extend(read(&unpacked)?.into_keys());
        }
        let start = text(&config["config"]["Entrypoint"][0])?.trim_start_matches('/').to_owned();
        for path in [&start, PROGRAM] {
            ensure!(paths.contains(path), "{platform}: /{path}: not in the image");
        }
        Ok(FoundImage { platform, digest: text(&descriptor["digest"])?.to_owned(), compressed, uncompressed })
    }

    /// What `docker load` reads.
    fn docker(&mut self, name: &str) -> Result<()> {
        let manifest = self.json("manifest.json")?;
        let [image] = list(&manifest)? else { bail!("manifest.json: not one image") };
        ensure!(image["RepoTags"][0] == name, "manifest.json: the image is called {}", image["RepoTags"]);
        self.json(text(&image["Config"])?)?;
        for layer in list(&image["Layers"])? {
            self.file(text(layer)?)?;
        }
        Ok(())
    }
}

/// The files of an archive, links without content among them; folders are passed over.
fn read(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_dir() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let path = entry.path()?.to_str().context("a path that is no text")?.to_owned();
            ensure!(!files.contains_key(&path), "{path}: there twice");
            files.insert(path, bytes);
        }
    }
    Ok(files)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().with_context(|| format!("{value}: no text"))
}

fn list(value: &Value) -> Result<&[Value]> {
    value.as_array().map(Vec::as_slice).with_context(|| format!("{value}: no list"))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::layout::{About, Image, archive};
    use super::super::rootfs;
    use super::*;

    const NAME: &str = "docker.io/library/weir:dev";

    fn made() -> BTreeMap<String, Vec<u8>> {
        let layer = rootfs::layer(&rootfs::entries(vec![1; 100], [vec![], vec![]]), 0).unwrap();
        let images = [Image { platform: Platform::Amd64, layer }];
        let about = About { name: NAME, time: 0, labels: BTreeMap::new() };
        read(&archive(&about, &images, Platform::Amd64).unwrap()).unwrap()
    }

    fn packed(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes.as_slice()).unwrap();
        }
        archive.into_inner().unwrap()
    }

    #[test]
    fn whatever_is_changed_or_missing_is_found() {
        let whole = made();
        check(&packed(&whole), NAME).unwrap();
        assert!(check(&packed(&whole), "docker.io/library/weir:other").is_err());
        for path in whole.keys() {
            let mut without = whole.clone();
            without.remove(path);
            assert!(check(&packed(&without), NAME).is_err(), "without {path}");
            let mut changed = whole.clone();
            if let Some(byte) = changed.get_mut(path).unwrap().last_mut() {
                *byte ^= 1;
            }
            assert!(check(&packed(&changed), NAME).is_err(), "{path} changed");
        }
        let mut with = whole;
        with.insert("blobs/sha256/0".into(), Vec::new());
        assert!(check(&packed(&with), NAME).unwrap_err().to_string().contains("nobody asks"));
    }
}
