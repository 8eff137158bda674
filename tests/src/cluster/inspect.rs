//! What a node looks like from the machine: its rules, its BPF objects, its agents with their
//! memory and capabilities. Only looks.

use super::Node;
use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What the kernel itself pins in every bpffs.
const KERNELS_OWN: [&str; 2] = ["/sys/fs/bpf/maps.debug", "/sys/fs/bpf/progs.debug"];

/// A process of Weir's on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// As the machine counts.
    pub pid: u32,
    /// `supervisor`, `agent`, `proxy`; the verb for others: `init-node`.
    pub role: String,
    /// Its whole command line.
    pub command: String,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Resident memory with what is shared counted by share, bytes.
    pub pss: u64,
    pub threads: Vec<Thread>,
}

/// What a thread may do (proc(5), `status`), each set as its bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Thread {
    pub name: String,
    pub inheritable: u64,
    pub permitted: u64,
    pub effective: u64,
    pub bounding: u64,
    pub ambient: u64,
    pub no_new_privs: bool,
    /// 0: none, 1: strict, 2: a filter.
    pub seccomp: u8,
    /// Real, effective, saved, for files.
    pub uids: Vec<u32>,
    pub gids: Vec<u32>,
    pub groups: Vec<u32>,
}

/// The BPF objects that belong to a node: what is attached to its devices and cgroups, what
/// is pinned in its bpffs, and what these hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BpfObjects {
    /// Where each attached program is: `tcx ingress eth0`, `cgroup_inet4_connect /`.
    pub attached: BTreeSet<(String, u32)>,
    /// Pinned files below `/sys/fs/bpf`.
    pub pins: BTreeSet<String>,
    /// Ids and names of programs that are attached or that a pin leads to.
    pub programs: BTreeMap<u32, String>,
    /// Ids and names of maps that these programs use.
    pub maps: BTreeMap<u32, String>,
}

impl BpfObjects {
    /// True when the node has nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Those of its programs and maps that the kernel still has, wherever: `prog 12 weir_tc`.
    ///
    /// # Errors
    /// When bpftool cannot be run.
    pub fn still_loaded(&self) -> Result<Vec<String>> {
        let there = |kind| -> Result<BTreeSet<u32>> {
            let list = bpftool(&mut Command::new("bpftool"), &[kind, "show"])?;
            Ok(objects(&list).filter_map(|one| id(one, "id")).collect())
        };
        let (programs, maps) = (there("prog")?, there("map")?);
        let kept = |kind: &str, all: &BTreeMap<u32, String>, there: &BTreeSet<u32>| {
            let kept = all.iter().filter(|(id, _)| there.contains(*id));
            kept.map(|(id, name)| format!("{kind} {id} {name}")).collect::<Vec<_>>()
        };
        Ok([kept("prog", &self.programs, &programs), kept("map", &self.maps, &maps)].concat())
    }
}

impl Node<'_> {
    /// All rules of netfilter, IPv4 and IPv6, without counters: equal texts mean equal rules.
    ///
    /// # Errors
    /// When the node is off or a tool is missing.
    pub fn rules(&self) -> Result<String> {
        let mut text = String::new();
        for tool in ["iptables-save", "ip6tables-save"] {
            text += &without_counters(&self.run(tool, &[])?);
        }
        Ok(text + &self.run("nft", &["--stateless", "list", "ruleset"])?)
    }

    /// Its BPF objects.
    ///
    /// # Errors
    /// When the node is off or bpftool is missing.
    pub fn bpf(&self) -> Result<BpfObjects> {
        let mut found = BpfObjects::default();
        let devices = bpftool(&mut self.command("bpftool", &[])?, &["net", "show"])?;
        found.attached.extend(on_devices(&devices));
        found.attached.extend(self.netns()?.enter(tcx)??);
        for root in super::cgroups::hierarchies()?.iter().filter(|one| one.is_v2()) {
            let tree = root.mount_point.to_string_lossy().into_owned();
            let attached = bpftool(&mut self.command("bpftool", &[])?, &["cgroup", "tree", &tree])?;
            found.attached.extend(on_cgroups(&attached));
        }
        let pins = self.run("find", &["/sys/fs/bpf", "-mindepth", "1", "!", "-type", "d"])?;
        let pins = pins.lines().filter(|pin| !KERNELS_OWN.contains(pin));
        found.pins = pins.map(str::to_owned).collect();
        let programs = bpftool(&mut self.command("bpftool", &["-f"])?, &["prog", "show"])?;
        let attached: BTreeSet<u32> = found.attached.iter().map(|(_, id)| *id).collect();
        let mut maps: BTreeSet<u32> = BTreeSet::new();
        for program in objects(&programs) {
            let Some(number) = id(program, "id") else { continue };
            if is_pinned(program) || attached.contains(&number) {
                found.programs.insert(number, program["name"].as_str().unwrap_or_default().to_owned());
                let used = program["map_ids"].as_array().into_iter().flatten();
                maps.extend(used.filter_map(|id| u32::try_from(id.as_u64()?).ok()));
            }
        }
        let all = bpftool(&mut self.command("bpftool", &["-f"])?, &["map", "show"])?;
        for map in objects(&all) {
            if let Some(number) = id(map, "id").filter(|number| is_pinned(map) || maps.contains(number)) {
                found.maps.insert(number, map["name"].as_str().unwrap_or_default().to_owned());
            }
        }
        Ok(found)
    }

    /// The processes of Weir's on the node, in order of their ids. One that ends while it is
    /// looked at is left out.
    ///
    /// # Errors
    /// When the machine has no cgroups.
    pub fn agents(&self) -> Result<Vec<Agent>> {
        let own = self.processes()?;
        Ok(own.into_iter().filter(|pid| is_weir(*pid)).filter_map(|pid| agent(pid).ok()).collect())
    }
}

fn is_weir(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "weir"))
}

fn agent(pid: u32) -> Result<Agent> {
    let folder = Path::new("/proc").join(pid.to_string());
    let command = fs::read(folder.join("cmdline"))?;
    let words: Vec<String> =
        command.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    let memory = fs::read_to_string(folder.join("smaps_rollup"))?;
    let kilobytes = |key| field(&memory, key).and_then(|value| value.split(' ').next()?.parse::<u64>().ok());
    let mut threads = Vec::new();
    for task in fs::read_dir(folder.join("task"))? {
        threads.push(thread(&fs::read_to_string(task?.path().join("status"))?));
    }
    Ok(Agent {
        pid,
        role: role(&words),
        command: words.join(" ").trim().to_owned(),
        rss: kilobytes("Rss").context("no Rss")? * 1024,
        pss: kilobytes("Pss").context("no Pss")? * 1024,
        threads,
    })
}

/// The role of a command line: `weir run --role proxy`.
fn role(words: &[String]) -> String {
    let told = words.iter().position(|word| word == "--role").and_then(|at| words.get(at + 1));
    let joined = words.iter().find_map(|word| word.strip_prefix("--role="));
    let verb = words.get(1).map_or("", String::as_str);
    let other = if verb == "run" { "supervisor" } else { verb };
    told.map(String::as_str).or(joined).unwrap_or(other).to_owned()
}

/// Reads `/proc/PID/task/TID/status`.
fn thread(status: &str) -> Thread {
    let bits =
        |key| field(status, key).and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or_default();
    let number = |key| field(status, key).and_then(|text| text.parse::<u8>().ok()).unwrap_or_default();
    let numbers = |key| -> Vec<u32> {
        let text = field(status, key).unwrap_or_default();
        text.split_whitespace().filter_map(|one| one.parse().ok()).collect()
    };
    Thread {
        name: field(status, "Name").unwrap_or_default().to_owned(),
        inheritable: bits("CapInh"),
        permitted: bits("CapPrm"),
        effective: bits("CapEff"),
        bounding: bits("CapBnd"),
        ambient: bits("CapAmb"),
        no_new_privs: number("NoNewPrivs") == 1,
        seccomp: number("Seccomp"),
        uids: numbers("Uid"),
        gids: numbers("Gid"),
        groups: numbers("Groups"),
    }
}

fn field<'t>(text: &'t str, key: &str) -> Option<&'t str> {
    text.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim()))
}

/// Chains' counters, `[12:345]`, count packets.
fn without_counters(saved: &str) -> String {
    let kept = saved.lines().filter(|line| !line.starts_with('#'));
    let line = |line: &str| match line.split_once(" [") {
        Some((chain, _)) if line.starts_with(':') => format!("{chain}\n"),
        _ => format!("{line}\n"),
    };
    kept.map(line).collect()
}

fn bpftool(command: &mut Command, words: &[&str]) -> Result<Value> {
    let out = command.arg("-j").args(words).output().context("bpftool is not installed")?;
    let said = String::from_utf8_lossy(&out.stdout);
    let told = || format!("bpftool {}: {said}{}", words.join(" "), String::from_utf8_lossy(&out.stderr));
    // An empty tree is printed as nothing.
    if said.trim().is_empty() && out.status.success() {
        return Ok(Value::Null);
    }
    serde_json::from_str(said.trim()).with_context(told)
}

fn objects(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn id(object: &Value, key: &str) -> Option<u32> {
    object[key].as_u64()?.try_into().ok()
}

/// True when a pin of somebody's leads to the object.
fn is_pinned(object: &Value) -> bool {
    objects(&object["pinned"]).filter_map(Value::as_str).any(|pin| !KERNELS_OWN.contains(&pin))
}

/// Reads `bpftool net show`: lists by kind of hook, in one object.
fn on_devices(shown: &Value) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for hooks in objects(shown).filter_map(Value::as_object) {
        for (kind, list) in hooks {
            for one in objects(list) {
                let at = one["devname"].as_str().unwrap_or_default();
                let how = one["kind"].as_str().or(one["mode"].as_str()).unwrap_or_default();
                // Those are asked for by themselves.
                if how.starts_with("tcx") {
                    continue;
                }
                let number = id(one, "prog_id").or_else(|| id(one, "id"));
                found.extend(number.map(|number| (format!("{kind} {how} {at}"), number)));
            }
        }
    }
    found
}

/// The programs of tcx on the devices of the calling thread's network namespace: bpftool
/// before 7.3 does not know them.
fn tcx() -> Result<Vec<(String, u32)>> {
    let mut found = Vec::new();
    for device in nix::net::if_::if_nameindex()?.iter() {
        let name = device.name().to_string_lossy();
        for (way, hook) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            // A device may go between the two calls, with all that is on it.
            let Ok((_, programs)) = SchedClassifier::query_tcx(&name, hook) else { continue };
            found.extend(programs.iter().map(|program| (format!("tcx {way} {name}"), program.id())));
        }
    }
    Ok(found)
}

/// Reads `bpftool cgroup tree`: a list of cgroups with their programs.
fn on_cgroups(shown: &Value) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for cgroup in objects(shown) {
        let at = cgroup["cgroup"].as_str().unwrap_or_default();
        for program in objects(&cgroup["programs"]) {
            let how = program["attach_type"].as_str().unwrap_or_default();
            found.extend(id(program, "id").map(|number| (format!("{how} {at}"), number)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn thread_is_read_from_its_status() {
        let status = "Name:\tweir\nUid:\t65532\t65532\t65532\t65532\nGid:\t65532\t65532\t65532\t65532\n\
                      Groups:\t \nCapInh:\t0000000000000000\nCapPrm:\t000000c000001400\nCapEff:\t000000c000001400\n\
                      CapBnd:\t000000c0000015c0\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
                      Seccomp_filters:\t1\n";
        let thread = thread(status);
        assert_eq!((thread.effective, thread.bounding), (0xc0_0000_1400, 0xc0_0000_15c0));
        assert_eq!((thread.no_new_privs, thread.seccomp, thread.uids[0]), (true, 2, 65532));
        assert!(thread.groups.is_empty());
    }

    #[test]
    fn roles_are_told_from_command_lines() {
        let role = |line: &str| role(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(role("weir run --l4 on"), "supervisor");
        assert_eq!(role("weir run --l4 on --role proxy --x"), "proxy");
        assert_eq!(role("/weir run --role=agent"), "agent");
        assert_eq!(role("weir init-node --bpffs=/bpf"), "init-node");
    }

    #[test]
    fn counters_do_not_tell_rules_apart() {
        let one = "# made at noon\n*nat\n:PREROUTING ACCEPT [12:345]\n-A PREROUTING -j X\nCOMMIT\n";
        let two = "# made later\n*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j X\nCOMMIT\n";
        assert_eq!(without_counters(one), without_counters(two));
        assert_ne!(without_counters(one), without_counters(&two.replace("-j X", "-j Y")));
    }

    #[test]
    fn attached_programs_are_read_from_bpftool() {
        let net = json!([{
            "xdp": [{ "devname": "eth0", "ifindex": 2, "mode": "driver", "id": 7 }],
            "tc": [
                { "devname": "eth0", "kind": "tcx/ingress", "name": "weir_tc", "prog_id": 9 },
                { "devname": "eth0", "kind": "clsact/ingress", "name": "weir_tc", "id": 8 },
            ],
            "flow_dissector": [], "netfilter": [],
        }]);
        let wanted = [("tc clsact/ingress eth0".to_owned(), 8), ("xdp driver eth0".to_owned(), 7)];
        let mut found = on_devices(&net);
        found.sort();
        assert_eq!(found, wanted);
        let tree = json!([{ "cgroup": "/sys/fs/cgroup", "programs": [{ "id": 9, "attach_type": "cgroup_inet4_connect" }] }]);
        assert_eq!(on_cgroups(&tree), [("cgroup_inet4_connect /sys/fs/cgroup".to_owned(), 9)]);
        assert!(on_cgroups(&Value::Null).is_empty());
    }
}
