//! Writes an image archive without an engine: one layer, in the layout that `docker save`
//! writes and containerd imports. What goes in is named file by file; a program of the
//! machine's brings the libraries that it is linked to. Times and owners are zero, so the
//! same input gives the same archive.

use super::programs::installed;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use tar::{Builder, EntryType, Header};

/// One place in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Folder { mode: u32 },
    File { source: PathBuf, mode: u32 },
    Text { text: String },
    Link { target: String },
}

/// An image that is being put together.
#[derive(Debug, Clone, Default)]
pub(super) struct Image {
    /// By path without a leading slash: parents sort before what is in them.
    entries: BTreeMap<String, Entry>,
    entrypoint: Vec<String>,
    command: Vec<String>,
    user: String,
}

impl Image {
    /// A folder of this mode.
    pub(super) fn folder(&mut self, path: &str, mode: u32) -> &mut Self {
        self.put(path, Entry::Folder { mode })
    }

    /// A file of the machine's, with this mode.
    pub(super) fn file(&mut self, path: &str, source: &Path, mode: u32) -> &mut Self {
        self.put(path, Entry::File { source: source.to_owned(), mode })
    }

    pub(super) fn text(&mut self, path: &str, text: &str) -> &mut Self {
        self.put(path, Entry::Text { text: text.to_owned() })
    }

    pub(super) fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.put(path, Entry::Link { target: target.to_owned() })
    }

    /// An installed program at a path of the image, and the libraries that it is linked to.
    ///
    /// # Errors
    /// When it is not installed.
    pub(super) fn program(&mut self, path: &str, name: &str) -> Result<&mut Self> {
        self.linked(path, &installed(name)?.canonicalize()?)
    }

    /// A program of any place at a path of the image, and the libraries that it is linked to.
    ///
    /// # Errors
    /// When a library is not there.
    pub(super) fn linked(&mut self, path: &str, source: &Path) -> Result<&mut Self> {
        self.libraries_of(source)?;
        Ok(self.file(path, source, 0o755))
    }

    /// Every file right below a folder, at the same path, and the libraries that they need.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn plugins(&mut self, folder: &Path) -> Result<&mut Self> {
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let source = path.canonicalize()?;
            self.libraries_of(&source)?;
            self.file(&path.to_string_lossy(), &source, 0o755);
        }
        Ok(self)
    }

    pub(super) fn entrypoint(&mut self, words: &[&str]) -> &mut Self {
        self.entrypoint = words.iter().map(ToString::to_string).collect();
        self
    }

    pub(super) fn command(&mut self, words: &[&str]) -> &mut Self {
        self.command = words.iter().map(ToString::to_string).collect();
        self
    }

    pub(super) fn user(&mut self, user: &str) -> &mut Self {
        user.clone_into(&mut self.user);
        self
    }

    fn libraries_of(&mut self, program: &Path) -> Result<()> {
        let said = Command::new("ldd").arg(program).output().context("starting ldd")?;
        for (path, source) in libraries(&String::from_utf8_lossy(&said.stdout)) {
            let source = source.canonicalize().with_context(|| source.display().to_string())?;
            self.file(&path, &source, 0o755);
        }
        Ok(())
    }

    fn put(&mut self, path: &str, entry: Entry) -> &mut Self {
        let path = path.trim_matches('/');
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Folder { mode: 0o755 });
        }
        self.entries.insert(path.to_owned(), entry);
        self
    }

    /// Writes the archive under a name and tag.
    ///
    /// # Errors
    /// When a file cannot be read or the archive cannot be written.
    pub(super) fn write(&self, name: &str, to: &Path) -> Result<()> {
        let layer = to.with_extension("layer");
        let written = self.write_layer(&layer).and_then(|digest| {
            let config = serde_json::to_vec(&self.config(&digest))?;
            let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
            let manifest =
                json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer/layer.tar"] }]);
            let mut archive = Builder::new(io::BufWriter::new(File::create(to)?));
            append(&mut archive, &config_name, &config)?;
            append(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?)?;
            let mut file = File::open(&layer)?;
            let mut header = header(EntryType::Regular, 0o644, file.metadata()?.len());
            archive.append_data(&mut header, "layer/layer.tar", &mut file)?;
            Ok(archive.into_inner()?.flush()?)
        });
        // Gone too when nothing came of it.
        let _ = fs::remove_file(&layer);
        written.with_context(|| format!("writing {}", to.display()))
    }

    /// Writes the layer and returns its digest.
    fn write_layer(&self, to: &Path) -> Result<String> {
        let mut layer =
            Builder::new(Hashing { inner: io::BufWriter::new(File::create(to)?), hash: Sha256::new() });
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder { mode } => {
                    layer.append_data(&mut header(EntryType::Directory, *mode, 0), path, io::empty())?;
                }
                Entry::Link { target } => {
                    layer.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?;
                }
                Entry::Text { text } => append(&mut layer, path, text.as_bytes())?,
                Entry::File { source, mode } => {
                    let mut file = File::open(source).with_context(|| source.display().to_string())?;
                    let mut header = header(EntryType::Regular, *mode, file.metadata()?.len());
                    layer.append_data(&mut header, path, &mut file)?;
                }
            }
        }
        let mut done = layer.into_inner()?;
        done.flush()?;
        Ok(hex(&done.hash.finalize()))
    }

    fn config(&self, layer: &str) -> Value {
        json!({
            "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Entrypoint": self.entrypoint, "Cmd": self.command, "User": self.user, "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
            "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "weir" }],
        })
    }
}

/// The archive's own name for this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The names that an archive gives its images.
///
/// # Errors
/// When the file is no archive that `docker save` could have written, nor an OCI archive.
pub(super) fn names(archive: &Path) -> Result<Vec<String>> {
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    for entry in tar::Archive::new(io::BufReader::new(file)).entries()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        if path == Path::new("manifest.json") {
            let manifest: Value = serde_json::from_reader(entry)?;
            return Ok(texts(&manifest, "RepoTags"));
        }
        if path == Path::new("index.json") {
            let index: Value = serde_json::from_reader(entry)?;
            let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
            let name = |manifest: &Value| {
                let annotations = &manifest["annotations"];
                let name = &annotations["io.containerd.image.name"];
                name.as_str().or(annotations["org.opencontainers.image.ref.name"].as_str()).map(str::to_owned)
            };
            let mut names: Vec<String> = manifests.iter().filter_map(name).collect();
            names.dedup();
            return Ok(names);
        }
    }
    bail!("{}: neither manifest.json nor index.json in it", archive.display())
}

fn texts(list: &Value, key: &str) -> Vec<String> {
    let all = list.as_array().into_iter().flatten().filter_map(|one| one[key].as_array()).flatten();
    all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

/// Reads what `ldd` prints: where a library is to be, and where it is.
fn libraries(said: &str) -> Vec<(String, PathBuf)> {
    said.lines()
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [name, "=>", path, ..] if path.starts_with('/') => {
                    let place = if name.starts_with('/') { name } else { path };
                    Some(((*place).to_owned(), PathBuf::from(path)))
                }
                [path, ..] if path.starts_with('/') => Some(((*path).to_owned(), PathBuf::from(path))),
                _ => None,
            }
        })
        .collect()
}

fn append(archive: &mut Builder<impl Write>, path: &str, bytes: &[u8]) -> Result<()> {
    Ok(archive.append_data(&mut header(EntryType::Regular, 0o644, bytes.len() as u64), path, bytes)?)
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Sums what passes through.
struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn libraries_are_read_from_ldd() {
        let said = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n\tlibgone.so => not found\n";
        let found: Vec<String> = libraries(said).into_iter().map(|(place, _)| place).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn archive_holds_what_was_put_in_and_is_the_same_each_time() -> Result<()> {
        let folder = std::env::temp_dir().join(format!("weir-archive-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut image = Image::default();
        image.text("/etc/passwd", "root:x:0:0::/:/\n").link("/bin/sh", "dash").folder("/tmp", 0o1777);
        image.entrypoint(&["/a"]).command(&["b"]);
        let (one, two) = (folder.join("one.tar"), folder.join("two.tar"));
        image.write("weir.test/a:dev", &one)?;
        image.write("weir.test/a:dev", &two)?;
        let same = fs::read(&one)? == fs::read(&two)?;
        let named = names(&one)?;
        let mut paths = Vec::new();
        for entry in tar::Archive::new(File::open(&one)?).entries()? {
            let mut entry = entry?;
            if entry.path()? == Path::new("layer/layer.tar") {
                let mut layer = Vec::new();
                entry.read_to_end(&mut layer)?;
                for inner in tar::Archive::new(layer.as_slice()).entries()? {
                    let inner = inner?;
                    paths.push((inner.path()?.to_string_lossy().into_owned(), inner.header().mode()?));
                }
            }
        }
        let left: Vec<_> = fs::read_dir(&folder)?.collect();
        fs::remove_dir_all(&folder)?;
        assert!(same, "two runs differ");
        assert_eq!(named, ["weir.test/a:dev"]);
        assert_eq!(left.len(), 2, "the layer's own file is gone");
        let paths: Vec<(&str, u32)> =
            paths.iter().map(|(path, mode)| (path.trim_end_matches('/'), *mode)).collect();
        let wanted =
            [("bin", 0o755), ("bin/sh", 0o777), ("etc", 0o755), ("etc/passwd", 0o644), ("tmp", 0o1777)];
        assert_eq!(paths, wanted);
        Ok(())
    }
}
