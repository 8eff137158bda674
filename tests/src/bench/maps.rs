//! What the kernel says about pinned maps and programs: by bpftool, and read as programs do.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use lb_common::abi::{Backend, Be16, Frontend, FrontendKey, Proto, TABLE_BLOCK, map};
use serde_json::Value;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs bpftool and reads its JSON.
pub(super) fn bpftool(words: &[&OsStr]) -> Result<Value> {
    let out = Command::new("bpftool")
        .arg("--json")
        .args(words)
        .stdin(Stdio::null())
        .output()
        .context("bpftool is not installed")?;
    ensure!(out.status.success(), "bpftool {words:?}: {}", String::from_utf8_lossy(&out.stdout));
    Ok(serde_json::from_slice(&out.stdout)?)
}

/// A pinned map and the memory that the kernel charges for it.
#[derive(Debug)]
pub(super) struct MapMemory {
    pub(super) name: String,
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// Pins of one kind (`maps`, `links`) in a scratch bpffs.
pub(super) fn pins(bpffs: &Path, kind: &str) -> Result<Vec<PathBuf>> {
    let root = bpffs.join("weir");
    let mut found = Vec::new();
    for version in fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        for pin in fs::read_dir(version?.path().join(kind))? {
            found.push(pin?.path());
        }
    }
    found.sort();
    Ok(found)
}

/// All pinned maps, the largest first.
pub(super) fn memory(bpffs: &Path) -> Result<Vec<MapMemory>> {
    let mut maps = Vec::new();
    for pin in pins(bpffs, "maps")? {
        let map = bpftool(&["map".as_ref(), "show".as_ref(), "pinned".as_ref(), pin.as_os_str()])?;
        maps.push(MapMemory {
            name: pin.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            entries: map["max_entries"].as_u64().unwrap_or(0),
            bytes: map["bytes_memlock"].as_u64().unwrap_or(0),
        });
    }
    maps.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    Ok(maps)
}

/// The maps that decide about new flows, opened by their pins and read as programs do.
pub(super) struct Pinned {
    frontends: HashMap<MapData, [u8; size_of::<FrontendKey>()], [u8; size_of::<Frontend>()]>,
    tables: Array<MapData, [u32; TABLE_BLOCK]>,
    backends: Array<MapData, [u8; size_of::<Backend>()]>,
}

impl Pinned {
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        let pins = pins(bpffs, "maps")?;
        let open = |name: &str| -> Result<MapData> {
            let pin =
                pins.iter().find(|pin| pin.ends_with(name)).with_context(|| format!("no map {name}"))?;
            Ok(MapData::from_pin(pin)?)
        };
        Ok(Self {
            frontends: Map::HashMap(open(map::FRONTENDS)?).try_into()?,
            tables: Map::Array(open(map::TABLES)?).try_into()?,
            backends: Map::Array(open(map::BACKENDS)?).try_into()?,
        })
    }

    /// How many frontends there are.
    pub(super) fn frontends(&self) -> Result<usize> {
        let mut count = 0;
        for key in self.frontends.keys() {
            key?;
            count += 1;
        }
        Ok(count)
    }

    /// A TCP frontend's value, as bytes.
    pub(super) fn frontend(
        &self,
        address: Ipv4Addr,
        port: u16,
    ) -> Result<Option<[u8; size_of::<Frontend>()]>> {
        let key = FrontendKey::new(address.into(), Be16::new(port), Proto::TCP);
        match self.frontends.get(&bytemuck::cast(key), 0) {
            Ok(value) => Ok(Some(value)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Addresses of the backends that a frontend's new flows go to.
    pub(super) fn backends(&self, address: Ipv4Addr, port: u16) -> Result<BTreeSet<Ipv4Addr>> {
        let bytes = self.frontend(address, port)?.context("no such frontend")?;
        let frontend: Frontend = bytemuck::cast(bytes);
        let mut addresses = BTreeSet::new();
        for slot in 0..frontend.inside.count {
            let block = TABLE_BLOCK as u32;
            let ids = self.tables.get(&(frontend.inside.slots + slot / block), 0)?;
            let id = ids.get((slot % block) as usize).copied().unwrap_or(0);
            let backend: Backend = bytemuck::cast(self.backends.get(&id, 0)?);
            if let IpAddr::V4(address) = backend.addr.into() {
                addresses.insert(address);
            }
        }
        Ok(addresses)
    }
}
