//! The demo's manifests, read for what the lab must build: pods and their servers.
//!
//! Addresses are written once, in `deploy/demo`: a Pod's `status.podIPs` become the
//! addresses of a namespace, its `containerPorts` the ports of a server.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A pod as the lab builds it.
#[derive(Clone, Debug, Default)]
pub struct PodSpec {
    pub name: String,
    /// `spec.nodeName`.
    pub node: String,
    /// What its HTTP answers say beside its name.
    pub about: BTreeMap<String, String>,
    pub ips: Vec<IpAddr>,
    pub tcp: Vec<u16>,
    pub udp: Vec<u16>,
}

impl PodSpec {
    /// Reads a Pod object.
    ///
    /// # Errors
    /// When it lacks what the lab needs.
    pub fn from_object(object: &Value) -> Result<Self> {
        let name = text(object, "/metadata/name")?;
        let node = text(object, "/spec/nodeName")?;
        let mut spec = Self { name, node, about: BTreeMap::new(), ips: vec![], tcp: vec![], udp: vec![] };
        for entry in list(object, "/status/podIPs") {
            spec.ips.push(text(entry, "/ip")?.parse()?);
        }
        for container in list(object, "/spec/containers") {
            for port in list(container, "/ports") {
                let number =
                    port.pointer("/containerPort").and_then(Value::as_u64).context("containerPort")?;
                let number = u16::try_from(number)?;
                match port.pointer("/protocol").and_then(Value::as_str).unwrap_or("TCP") {
                    "TCP" => spec.tcp.push(number),
                    "UDP" => spec.udp.push(number),
                    other => bail!("{}: the lab has no {other} server", spec.name),
                }
            }
        }
        Ok(spec)
    }
}

/// Where the demo's manifests lie in the source tree.
pub fn demo_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/demo")
}

/// Every object of the YAML files of a folder, in the order of the file names.
///
/// # Errors
/// When a file cannot be read.
pub fn read_dir(dir: &Path) -> Result<Vec<Value>> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)
        .with_context(|| format!("reading {}", dir.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(&text).with_context(|| format!("in {}", file.display()))?;
        objects.extend(documents);
    }
    Ok(objects)
}

/// The pods among objects.
///
/// # Errors
/// As [`PodSpec::from_object`].
pub fn pods(objects: &[Value]) -> Result<Vec<PodSpec>> {
    objects.iter().filter(|object| kind(object) == "Pod").map(PodSpec::from_object).collect()
}

/// `kind` of an object; empty without one.
pub fn kind(object: &Value) -> &str {
    object.pointer("/kind").and_then(Value::as_str).unwrap_or_default()
}

/// Copies a folder's manifests, for tests that rewrite them.
///
/// # Errors
/// When a file cannot be copied.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Replaces a file in one step, so that a watcher never reads half of it.
///
/// # Errors
/// When it cannot be written.
pub fn replace(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)?;
    Ok(())
}

/// Writes an object as a manifest, in one step.
///
/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, object: &Value) -> Result<()> {
    // JSON is YAML.
    replace(path, &serde_json::to_string_pretty(object)?)
}

/// As [`write()`]; without an object the manifest is removed.
///
/// # Errors
/// When it cannot be written or removed.
pub fn write_or_remove(path: &Path, object: Option<&Value>) -> Result<()> {
    match object {
        Some(object) => write(path, object),
        None => Ok(fs::remove_file(path)?),
    }
}

fn text(object: &Value, at: &str) -> Result<String> {
    let value = object.pointer(at).and_then(Value::as_str);
    value.map(str::to_owned).with_context(|| format!("{at} is missing in {object}"))
}

fn list<'a>(object: &'a Value, at: &str) -> &'a [Value] {
    object.pointer(at).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demo_pods_have_both_families_and_live_on_both_nodes() {
        let pods = pods(&read_dir(&demo_dir()).expect("manifests")).expect("pods");
        for pod in &pods {
            assert_eq!(pod.ips.iter().filter(|ip| ip.is_ipv4()).count(), 1, "{}", pod.name);
            assert_eq!(pod.ips.iter().filter(|ip| ip.is_ipv6()).count(), 1, "{}", pod.name);
        }
        for node in ["node1", "node2"] {
            assert!(pods.iter().any(|pod| pod.node == node), "{node}");
        }
    }
}
