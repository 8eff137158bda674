//! What is in the image: the program, who its users are, the folders that it needs, its licence.
//!
//! Nothing else: no shell, no library, no certificate authority (the API server's comes with the
//! credential). Written as a layer, or as a plain folder for those who build with Docker.

use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use tar::{Builder, EntryType, Header};

/// The user that the proxy becomes, `--proxy-user`'s default.
pub(super) const PROXY_USER: u32 = 65532;

/// The program's place. `kubectl exec` finds it by its name, containers start it as `/weir`.
pub(super) const PROGRAM: &str = "usr/bin/weir";

/// One thing in the image.
pub(super) struct Entry {
    /// Without a leading slash; folders stand before what is in them.
    path: &'static str,
    mode: u32,
    content: Content,
}

enum Content {
    Folder,
    File(Vec<u8>),
    Link(&'static str),
}

/// Returns all of it, sorted by path.
pub(super) fn entries(program: Vec<u8>, licences: [Vec<u8>; 2]) -> Vec<Entry> {
    let [apache, gpl] = licences;
    let passwd =
        format!("root:x:0:0:root:/:/none\nweir:x:{PROXY_USER}:{PROXY_USER}:the proxy of weir:/:/none\n");
    let group = format!("root:x:0:\nweir:x:{PROXY_USER}:\n");
    let folder = |path| Entry { path, mode: 0o755, content: Content::Folder };
    let file = |path, mode, bytes| Entry { path, mode, content: Content::File(bytes) };
    let mut entries = vec![
        folder("etc"),
        file("etc/group", 0o644, group.into_bytes()),
        file("etc/passwd", 0o644, passwd.into_bytes()),
        folder("run"),
        folder("run/weir"),
        folder("usr"),
        folder("usr/bin"),
        file(PROGRAM, 0o755, program),
        folder("usr/share"),
        folder("usr/share/doc"),
        folder("usr/share/doc/weir"),
        file("usr/share/doc/weir/LICENSE-APACHE", 0o644, apache),
        file("usr/share/doc/weir/LICENSE-GPL", 0o644, gpl),
        Entry { path: "weir", mode: 0o777, content: Content::Link(PROGRAM) },
    ];
    entries.sort_by_key(|entry| entry.path);
    entries
}

/// Writes the entries as a layer: owned by root, all of the same time.
///
/// # Errors
/// Never but for want of memory.
pub(super) fn layer(entries: &[Entry], time: u64) -> Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(time);
        match &entry.content {
            Content::Folder => {
                header.set_entry_type(EntryType::Directory);
                header.set_size(0);
                layer.append_data(&mut header, format!("{}/", entry.path), std::io::empty())?;
            }
            Content::File(bytes) => {
                header.set_entry_type(EntryType::Regular);
                header.set_size(bytes.len() as u64);
                layer.append_data(&mut header, entry.path, bytes.as_slice())?;
            }
            Content::Link(to) => {
                header.set_entry_type(EntryType::Symlink);
                header.set_size(0);
                layer.append_link(&mut header, entry.path, to)?;
            }
        }
    }
    layer.into_inner().context("the layer")
}

/// Writes the entries below a folder, which is made.
///
/// # Errors
/// When something is there already, or the folder cannot be written.
pub(super) fn unpack(entries: &[Entry], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = folder.join(entry.path);
        let written = match &entry.content {
            Content::Folder => fs::create_dir(&path),
            Content::File(bytes) => fs::File::create_new(&path).and_then(|mut file| file.write_all(bytes)),
            Content::Link(to) => symlink(to, &path),
        };
        written.with_context(|| path.display().to_string())?;
        if !matches!(entry.content, Content::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read;

    fn some() -> Vec<Entry> {
        entries(b"program".to_vec(), [b"apache".to_vec(), b"gpl".to_vec()])
    }

    #[test]
    fn a_layer_is_sorted_and_nobodys() {
        let layer = layer(&some(), 7).unwrap();
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut paths = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 7));
            paths.push(entry.path().unwrap().display().to_string());
        }
        assert!(paths.is_sorted(), "{paths:?}");
        for path in &paths {
            let folder = Path::new(path).parent().unwrap().display().to_string();
            assert!(folder.is_empty() || paths.contains(&format!("{folder}/")), "{path} lies nowhere");
        }
    }

    #[test]
    fn the_program_is_found_by_its_name_and_as_weir_at_the_root() {
        let layer = layer(&some(), 0).unwrap();
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(layer.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let (path, mode) = (entry.path().unwrap().into_owned(), entry.header().mode().unwrap());
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let link = entry.link_name().unwrap().map(|link| link.display().to_string());
            found.insert(path.display().to_string(), (mode, text, link));
        }
        assert_eq!(found["usr/bin/weir"], (0o755, "program".into(), None));
        assert_eq!(found["weir"].2.as_deref(), Some("usr/bin/weir"));
        assert!(found["etc/passwd"].1.contains("\nweir:x:65532:65532:"));
        assert!(found.contains_key("run/weir/"));
    }

    #[test]
    fn a_folder_holds_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("rootfs");
        unpack(&some(), &folder).unwrap();
        assert_eq!(fs::read(folder.join("weir")).unwrap(), b"program");
        let mode = fs::metadata(folder.join("usr/bin/weir")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        assert!(unpack(&some(), &folder).is_err(), "over another");
    }
}
