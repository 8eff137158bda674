//! `weir cleanup` leaves no trace (S83).

use crate::rig::Rig;
use lab::agent::{cleanup, start_cleanup};
use lab::topology::{Place, Topology};
use lab::wait;
use lab::wire::{Ask, Proto};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Ids of the programs that are attached in the lab: to node1's devices and to its cgroup.
pub(crate) fn attached(lab: &Topology) -> BTreeSet<u64> {
    let devices = lab.node1().output("bpftool", &["-j", "net", "show"]).unwrap();
    let cgroup = lab.node_cgroup().unwrap();
    let sockets =
        Command::new("bpftool").args(["-j", "cgroup", "show", cgroup.to_str().unwrap()]).output().unwrap();
    let mut ids = BTreeSet::new();
    for text in [devices.into_bytes(), sockets.stdout] {
        if let Ok(told) = serde_json::from_slice(&text) {
            collect(&told, &mut ids);
        }
    }
    ids
}

/// Values of the keys that bpftool gives program ids.
fn collect(value: &Value, ids: &mut BTreeSet<u64>) {
    match value {
        Value::Array(all) => all.iter().for_each(|value| collect(value, ids)),
        Value::Object(all) => {
            for (key, value) in all {
                match value.as_u64() {
                    Some(id) if key == "id" || key == "prog_id" => drop(ids.insert(id)),
                    _ => collect(value, ids),
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

pub(crate) fn names(dir: &Path) -> BTreeSet<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

pub(crate) fn exists(kind: &str, id: u64) -> bool {
    let out = Command::new("bpftool").args(["-j", kind, "show", "id", &id.to_string()]).output().unwrap();
    out.status.success()
}

pub(crate) fn maps_of(program: u64) -> Vec<u64> {
    let out =
        Command::new("bpftool").args(["-j", "prog", "show", "id", &program.to_string()]).output().unwrap();
    let told: Value = serde_json::from_slice(&out.stdout).unwrap();
    let maps = told.pointer("/map_ids").and_then(Value::as_array);
    maps.into_iter().flatten().filter_map(Value::as_u64).collect()
}

#[test]
fn cleanup_leaves_no_program_map_pin_or_rule() {
    let rig = Rig::new();
    // The kernel itself may keep iterators there.
    let pins_before = names(&rig.lab.scratch().bpffs());
    let rules_before = rig.lab.node1().output("nft", &["list", "ruleset"]).unwrap();
    let qdiscs_before = rig.lab.node1().output("tc", &["qdisc", "show"]).unwrap();
    let agent = rig.agent();
    let programs = attached(&rig.lab);
    assert!(programs.len() >= 4, "hooks of devices and cgroup: {programs:?}");
    let maps: BTreeSet<u64> = programs.iter().flat_map(|program| maps_of(*program)).collect();
    assert!(!maps.is_empty());
    agent.terminate(Duration::from_secs(10)).unwrap();

    let out = cleanup(&rig.lab).unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(attached(&rig.lab), BTreeSet::new());
    assert_eq!(names(&rig.lab.scratch().bpffs()), pins_before);
    wait::until("programs and maps are gone", Duration::from_secs(5), || {
        let left: Vec<_> = programs.iter().filter(|id| exists("prog", **id)).collect();
        anyhow::ensure!(left.is_empty(), "programs {left:?}");
        let left: Vec<_> = maps.iter().filter(|id| exists("map", **id)).collect();
        anyhow::ensure!(left.is_empty(), "maps {left:?}");
        Ok(())
    })
    .unwrap();
    assert_eq!(rig.lab.node1().output("nft", &["list", "ruleset"]).unwrap(), rules_before);
    assert_eq!(rig.lab.node1().output("tc", &["qdisc", "show"]).unwrap(), qdiscs_before);

    let answer = rig.lab.at(&Place::unhooked("client")).unwrap();
    let answer = answer.ask(Ask::new(Proto::Tcp, "10.96.10.1:80".parse().unwrap()).timeout_ms(300)).unwrap();
    assert!(!answer.ok(), "still translated: {answer:?}");
}

#[test]
fn nothing_is_drained_to_nobody() {
    let rig = Rig::new();
    let agent = rig.agent();
    let programs = attached(&rig.lab);
    agent.terminate(Duration::from_secs(10)).unwrap();
    let drain = |flags: &[&str]| start_cleanup(&rig.lab, flags).unwrap().wait_with_output().unwrap();

    let out = drain(&["--drain", "1s"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("no rules of kube-proxy's are here"), "{said}");
    assert_eq!(attached(&rig.lab), programs);
    let client = rig.lab.at(&Place::unhooked("client")).unwrap();
    let answer = client.ask(Ask::new(Proto::Tcp, "10.96.10.1:80".parse().unwrap())).unwrap();
    assert!(answer.ok(), "new connections are Weir's still: {answer:?}");

    let out = drain(&["--drain", "1s", "--force"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(attached(&rig.lab), BTreeSet::new());
}
