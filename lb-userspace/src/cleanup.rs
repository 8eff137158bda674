//! `weir cleanup`: removes what Weir put on this node, and nothing else (S83); with `--drain`
//! only when its open connections have ended (S82).

use crate::datapath::retire::{self, Left, Open};
use crate::lock;
use crate::netfilter::{Netfilter, TABLE};
use anyhow::Context;
use lb_common::abi::FlowKey;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often flows are counted.
const LOOK: Duration = Duration::from_millis(500);
/// Seconds by which entries that keep a port outlive the wait, should nobody remove them.
const MARGIN: u32 = 60;
/// How often their number is told.
const TELL: Duration = Duration::from_secs(10);

/// Removes links, filters, maps, our table of netfilter's and the state folder. Refuses while
/// an agent runs.
///
/// With `drain` every new connection is left to whoever takes over, at once; the rest waits
/// until no open one is left, or for so long.
///
/// # Errors
/// When an agent holds the node, something cannot be removed, or nobody is there to drain to.
pub fn run(bpffs: &Path, state_dir: &Path, drain: Option<Drain>) -> anyhow::Result<()> {
    // Without a state folder no agent ran here, or its folder is another: pins still go.
    let lock = match state_dir.is_dir() {
        false => None,
        true => Some(lock::try_acquire(state_dir)?.with_context(|| {
            format!("an agent runs here (lock in {}): stop it first", state_dir.display())
        })?),
    };
    // An agent with another state folder uses the same maps.
    let _maps_lock = match bpffs.join("weir").is_dir() {
        false => None,
        true => Some(lock::try_acquire_maps(bpffs)?.with_context(|| {
            format!("an agent runs here (lock on {}): stop it first", bpffs.join("weir").display())
        })?),
    };
    let kept = match drain {
        Some(drain) => wait_for_flows(bpffs, drain)?,
        None => Vec::new(),
    };
    let removed = crate::datapath::loader::cleanup(bpffs)?;
    if let Err(error) = Netfilter::default().forget(&kept) {
        println!("{} entries of netfilter's conntrack are left until they expire: {error}", kept.len());
    }
    for link in &removed.links {
        println!("removed link {link}");
    }
    for map in &removed.maps {
        println!("removed map {map}");
    }
    let table = release_netfilter();
    if table {
        println!("removed table inet {TABLE}");
    }
    if lock.is_some() {
        remove_state(state_dir)?;
        println!("removed {}", state_dir.display());
    }
    if removed.links.is_empty() && removed.maps.is_empty() && lock.is_none() && !table {
        println!("nothing to remove");
    }
    Ok(())
}

/// How connections are left to whoever takes over.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// How long open ones are waited for.
    pub patience: Duration,
    /// Also where no rules of kube-proxy's are.
    pub force: bool,
}

/// Leaves every new connection to whoever takes over and waits until the open ones have ended.
/// Answers what is to be forgotten of netfilter's when no program is there any more.
fn wait_for_flows(bpffs: &Path, Drain { patience, force }: Drain) -> anyhow::Result<Vec<FlowKey>> {
    let mut netfilter = Netfilter::default();
    let Some(mut left) = retire::left(bpffs)? else { return Ok(Vec::new()) };
    if !force {
        let rules = netfilter.kube_proxy().context("looking for kube-proxy's rules")?;
        anyhow::ensure!(
            !rules.is_empty(),
            "no rules of kube-proxy's are here, so every new connection would fail: start it and wait until it \
             has written them; --force drains to something else"
        );
    }
    // netfilter sees no packet of a flow that goes past the stack: it would give its source port
    // to a connection of its own. Once before it gets any, and again for what came meanwhile.
    let seconds = u32::try_from(patience.as_secs()).unwrap_or(u32::MAX).saturating_add(MARGIN);
    let mut kept = reserve(&mut netfilter, &left, seconds);
    left.retire()?;
    kept.extend(reserve(&mut netfilter, &left, seconds));
    println!("new connections are no longer Weir's");
    wait(&left, patience)?;
    Ok(kept)
}

/// Keeps the source ports of masqueraded flows from netfilter; answers those that it keeps.
fn reserve(netfilter: &mut Netfilter, left: &Left, seconds: u32) -> Vec<FlowKey> {
    let kept = left.masqueraded().and_then(|flows| netfilter.reserve(flows, seconds));
    kept.unwrap_or_else(|error| {
        println!("source ports cannot be kept from netfilter, so some new connections may fail: {error}");
        Vec::new()
    })
}

fn wait(left: &Left, patience: Duration) -> anyhow::Result<()> {
    let (end, mut tell) = (Instant::now() + patience, Instant::now());
    loop {
        let open = left.open().context("read the flows")?;
        let now = Instant::now();
        if !open.any() {
            println!("no connection is left");
            return Ok(());
        }
        let Open { tcp, udp } = open;
        if now >= end {
            println!("{tcp} TCP and {udp} UDP connections are left, and end now");
            return Ok(());
        }
        if now >= tell {
            tell = now + TELL;
            println!("waiting for {tcp} TCP and {udp} UDP connections");
        }
        std::thread::sleep(LOOK.min(end - now));
    }
}

/// Removes our table; says whether there was one. Without nf_tables there is none.
fn release_netfilter() -> bool {
    let mut netfilter = Netfilter::default();
    netfilter.held().unwrap_or(false) && netfilter.hold(false).is_ok()
}

/// Removes the files that an agent makes, and the folder if nothing else is in it.
fn remove_state(state_dir: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(state_dir)? {
        let path = entry?.path();
        let names = ["lock", "apiservers", "kubelet-apiserver"];
        let ours = path.file_name().is_some_and(|name| names.iter().any(|ours| name == *ours))
            || path.extension().is_some_and(|extension| extension == "sock");
        if ours {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    match std::fs::remove_dir(state_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        // A mount point, such as a volume of the pod: empty is enough.
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        result => result.with_context(|| format!("remove {}", state_dir.display())),
    }
}
