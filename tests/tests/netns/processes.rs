//! Who holds what, with L4 and L7 on: the agent alone has the kernel's maps and programs (H43).

use crate::rig::Rig;
use std::collections::BTreeMap;
use std::fs;

/// By role, the processes that a `weir run` started; itself is "supervisor".
fn family(leader: u32) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::from([("supervisor".to_owned(), leader)]);
    for entry in fs::read_dir("/proc").unwrap() {
        let Some(pid) = entry.unwrap().file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // Gone again, perhaps.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        if parent == Some(leader) {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let role = words.split('\0').find_map(|word| word.strip_prefix("--role="));
            found.insert(role.unwrap_or("none").to_owned(), pid);
        }
    }
    found
}

fn files(pid: u32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    entries.filter_map(|entry| Some(fs::read_link(entry.ok()?.path()).ok()?.display().to_string())).collect()
}

#[test]
fn only_the_agent_holds_maps_and_programs() {
    let rig = Rig::new();
    let agent = rig.agent();
    let family = family(agent.pid());
    let names: Vec<&str> = family.keys().map(String::as_str).collect();
    assert_eq!(names, ["agent", "proxy", "supervisor"]);
    let of_bpf = |role: &str| files(family[role]).iter().filter(|file| file.contains("bpf")).count();
    assert!(of_bpf("agent") > 0, "the test sees nothing: {:?}", files(family["agent"]));
    assert_eq!((of_bpf("supervisor"), of_bpf("proxy")), (0, 0));
    let status = fs::read_to_string(format!("/proc/{}/status", family["proxy"])).unwrap();
    for line in ["Uid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(status.lines().any(|told| told == line), "{line}: {status}");
    }
}
