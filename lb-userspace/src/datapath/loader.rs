//! Loads the programs, pins the maps, and takes over from an agent that was there before.
//!
//! Everything lives below `<bpffs>/weir/v<ABI>/`: `maps/` and `links/`. A new agent opens
//! the pinned maps, loads its own programs over them and replaces the program of each pinned
//! link in place: no packet finds a hook empty, and no flow is forgotten.

use super::{Capacity, Hook, LinkClass, LinkPlan, earlier, layout, sys};
use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Map, MapData};
use aya::programs::links::Link;
use aya::programs::tc::{NlOptions, TcAttachOptions, TcHandle};
use aya::programs::{
    CgroupSockAddr, ProgramInfo, SchedClassifier, SockOps, TcAttachType, TestRun, TestRunOptions, Xdp, tc,
};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use lb_common::abi::{ABI_VERSION, PortRange, Settings, SettingsFlags, map};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[cfg(not(no_object))]
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb-ebpf.o"));

/// The embedded eBPF object.
///
/// # Errors
/// When this build has none.
pub fn object() -> Result<&'static [u8]> {
    #[cfg(not(no_object))]
    return Ok(OBJECT);
    #[cfg(no_object)]
    bail!("this build has no eBPF object: run `cargo xtask build`, or start with --l4 off")
}

/// Where XDP runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum XdpPolicy {
    /// On network cards whose driver runs it; never on veth, bridge, tunnel or bond.
    #[default]
    Auto,
    /// On every external device, by its driver.
    Native,
    /// On every external device, by the kernel's slow generic hook.
    Generic,
    Off,
}

/// What the programs are loaded with.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub bpffs: PathBuf,
    /// The control group whose sockets are translated; `None`: no socket hooks.
    pub cgroup: Option<PathBuf>,
    /// Only those of the host itself are.
    pub host_sockets: bool,
    pub xdp: XdpPolicy,
    pub snat: [PortRange; 2],
    /// All traffic to ClusterIPs takes the node's address (S43).
    pub masquerade_all: bool,
    /// That from others than pods does; which those are is said in the map of prefixes.
    pub cluster_cidrs: bool,
    /// Sizes of maps that do not exist yet.
    pub capacity: Capacity,
    /// aya-log level of the programs, 0 = off.
    pub log_level: u8,
    /// Attach by the older clsact qdisc although the kernel has tcx.
    pub clsact: bool,
    /// The verifier's log goes into errors (tests).
    pub verbose: bool,
}

/// Seed of the flow hash: the same on all nodes of all clusters (decision 6).
pub const HASH_SEED: u32 = 0x5765_6972;

const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const XDP: u32 = 37;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
/// Priority and handle of our filter on a clsact qdisc.
const CLSACT_PRIORITY: u16 = 1;
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x5772);

/// Program, hook's name, attach type (`enum bpf_attach_type`).
const SOCKET_HOOKS: [(&str, &str, u32); 8] = [
    ("connect_v4", "connect4", 10),
    ("connect_v6", "connect6", 11),
    ("sendmsg_v4", "sendmsg4", 14),
    ("sendmsg_v6", "sendmsg6", 15),
    ("recvmsg_v4", "recvmsg4", 19),
    ("recvmsg_v6", "recvmsg6", 20),
    ("getpeername_v4", "getpeername4", 29),
    ("getpeername_v6", "getpeername6", 30),
];
const PACKET_PROGRAMS: [&str; 6] =
    ["outside_ingress", "outside_ingress_l3", "inside_ingress", "inside_ingress_l3", "egress", "egress_l3"];
const XDP_PROGRAM: &str = "early";
/// Program, hook's name, attach type. Without it (kernels before 5.15 lack a helper) pods
/// are known by their namespaces alone.
const LEARNING_HOOK: (&str, &str, u32) = ("connecting", "sock_ops", 3);

/// The folder of everything that one layout version pins.
pub fn pin_folder(bpffs: &Path) -> PathBuf {
    bpffs.join("weir").join(format!("v{ABI_VERSION}"))
}

/// Loaded programs and their maps.
pub struct Loaded {
    ebpf: Ebpf,
    links: PathBuf,
    options: LoadOptions,
    xdp_loaded: bool,
}

impl Loaded {
    /// Opens or creates the pinned maps and loads the programs. Nothing is attached yet.
    ///
    /// # Errors
    /// Without an object, without privilege, on a pinned map of another layout, and when the
    /// verifier refuses a program.
    pub fn new(options: LoadOptions) -> Result<Self> {
        let folder = pin_folder(&options.bpffs);
        let (maps, links) = (folder.join("maps"), folder.join("links"));
        for dir in [&maps, &links] {
            std::fs::create_dir_all(dir)
                .with_context(|| format!("create {}: is a bpf file system mounted there?", dir.display()))?;
        }
        let mut ebpf = load_object(&options, Some(&maps))?;
        layout::check(&ebpf)?;
        load_programs(&mut ebpf, options.cgroup.is_some())?;
        if options.cgroup.is_some()
            && let Err(error) = learning_program(&mut ebpf)?.load()
        {
            tracing::info!(error = %error, "session affinity will not know pods by their addresses");
        }
        Ok(Self { ebpf, links, options, xdp_loaded: false })
    }

    /// Takes a map out, to be used by the data path.
    pub(super) fn take_map(&mut self, name: &str) -> Result<Map> {
        self.ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))
    }

    /// The object itself: aya-log's reader needs it.
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Runs a packet program once on a frame, as if it had come in by `ifindex`.
    pub(super) fn test_run(&mut self, name: &str, frame: &[u8], ifindex: u32) -> Result<(u32, Vec<u8>)> {
        let mut out = vec![0; frame.len() + 256];
        let result = if name == XDP_PROGRAM {
            let program: &mut Xdp =
                self.ebpf.program_mut(name).context("the object has no XDP program")?.try_into()?;
            if !self.xdp_loaded {
                program.load()?;
                self.xdp_loaded = true;
            }
            // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
            let context = [0, frame.len() as u32, 0, ifindex, 0, 0];
            program.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(bytemuck::bytes_of(&context)),
                ..TestRunOptions::default()
            })?
        } else {
            // struct __sk_buff: ifindex is the eleventh word.
            let mut context = [0u32; 48];
            context[10] = ifindex;
            classifier(&mut self.ebpf, name)?.test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(bytemuck::bytes_of(&context)),
                ..TestRunOptions::default()
            })?
        };
        out.truncate(result.data_size_out as usize);
        Ok((result.return_value, out))
    }

    /// Attaches the socket hooks; an older agent's are replaced in place.
    pub(super) fn attach_sockets(&mut self) -> Vec<Hook> {
        let Some(cgroup) = self.options.cgroup.clone() else {
            self.remove_cgroup_links(None);
            return Vec::new();
        };
        // A control group is known by its inode: links of another one are of no use here.
        let inode = std::fs::metadata(&cgroup).map_or(0, |found| found.ino());
        self.remove_cgroup_links(Some(inode));
        let place = cgroup.display().to_string();
        let dir = std::fs::File::open(&cgroup);
        let mut hooks = Vec::new();
        for (program, hook, attach_type) in SOCKET_HOOKS.into_iter().chain([LEARNING_HOOK]) {
            let program = if hook == LEARNING_HOOK.1 {
                learning_program(&mut self.ebpf).map(|program| program.fd().ok())
            } else {
                socket_program(&mut self.ebpf, program).map(|program| program.fd().ok())
            };
            let result = match (&dir, program) {
                // Not loaded: told when that was tried.
                (_, Ok(None)) if hook == LEARNING_HOOK.1 => continue,
                (_, Ok(None)) => Err(anyhow!("the program is not loaded")),
                (_, Err(error)) => Err(error),
                (Err(error), _) => Err(anyhow!("open control group: {error}")),
                (Ok(dir), Ok(Some(program))) => {
                    let pin = self.links.join(cgroup_pin(inode, hook));
                    let target = sys_number(dir.as_fd());
                    ensure_link(&pin, program.as_fd(), target, attach_type, 0).map_err(Into::into)
                }
            };
            hooks.push(Hook {
                place: place.clone(),
                hook: hook.into(),
                error: result.err().map(|e| format!("{e:#}")),
            });
        }
        hooks
    }

    /// Unpins the links of all control groups but one, which detaches them.
    fn remove_cgroup_links(&self, but: Option<u64>) {
        for entry in std::fs::read_dir(&self.links).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kept = but.is_some_and(|inode| name.starts_with(&cgroup_pin(inode, "")));
            if name.starts_with("cgroup-") && !kept {
                // Gone already: nothing to do.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Puts the packet programs on these devices and, unless `keep_unknown`, takes them off all
    /// others.
    pub(super) fn attach_devices(&mut self, plan: &[LinkPlan], keep_unknown: bool) -> Vec<Hook> {
        let mut hooks = Vec::new();
        let mut wanted = BTreeSet::new();
        for link in plan {
            let ingress = match (link.class, link.l3) {
                (LinkClass::External, false) => "outside_ingress",
                (LinkClass::External, true) => "outside_ingress_l3",
                (LinkClass::Pod, false) => "inside_ingress",
                (LinkClass::Pod, true) => "inside_ingress_l3",
            };
            let egress = if link.l3 { "egress_l3" } else { "egress" };
            // Egress first: a reply must not leave untranslated for want of it.
            for (program, outward) in [(egress, true), (ingress, false)] {
                let pin = packet_pin(outward, link.ifindex);
                let (hook, result) = self.attach_packet(link, program, outward, &pin);
                wanted.insert(pin);
                hooks.push(Hook {
                    place: link.name.clone(),
                    hook,
                    error: result.err().map(|e| format!("{e:#}")),
                });
            }
            if let Some((mode, flags)) = self.xdp_mode(link) {
                let pin = format!("xdp-{}", link.ifindex);
                let result = self.attach_xdp(link, flags, &pin);
                wanted.insert(pin);
                let error = result.err().map(|e| format!("{e:#}"));
                // A driver without XDP is no fault where it was not asked for by name.
                if error.is_none() || self.options.xdp != XdpPolicy::Auto {
                    hooks.push(Hook { place: link.name.clone(), hook: format!("xdp {mode}"), error });
                }
            }
        }
        if !keep_unknown {
            self.remove_other_links(&wanted, plan);
        }
        hooks
    }

    fn attach_packet(
        &mut self,
        link: &LinkPlan,
        program: &str,
        outward: bool,
        pin: &str,
    ) -> (String, Result<()>) {
        let side = if outward { "egress" } else { "ingress" };
        if !self.options.clsact {
            let attach_type = if outward { TCX_EGRESS } else { TCX_INGRESS };
            let pin = self.links.join(pin);
            let result = classifier(&mut self.ebpf, program).and_then(|program| {
                let program = program.fd().context("the program is not loaded")?;
                Ok(ensure_link(&pin, program.as_fd(), link.ifindex, attach_type, sys::BPF_F_BEFORE)?)
            });
            match result {
                // Before 6.6 there is no tcx.
                Err(error) if is_os_error(&error, libc::EINVAL) && !has_tcx() => self.options.clsact = true,
                result => return (format!("tcx {side}"), result),
            }
        }
        (format!("clsact {side}"), self.attach_clsact(link, program, outward))
    }

    /// The older way: a filter on the device's clsact qdisc, which stays when we go.
    fn attach_clsact(&mut self, link: &LinkPlan, program: &str, outward: bool) -> Result<()> {
        // There already, by us or by somebody else.
        let _ = tc::qdisc_add_clsact(&link.name);
        let attach_type = if outward { TcAttachType::Egress } else { TcAttachType::Ingress };
        let options = NlOptions { priority: CLSACT_PRIORITY, handle: CLSACT_HANDLE, classid: None };
        let classifier = classifier(&mut self.ebpf, program)?;
        let attached =
            classifier.attach_with_options(&link.name, attach_type, TcAttachOptions::Netlink(options));
        let id = match attached {
            Ok(id) => id,
            Err(_) => {
                // A former agent's filter: replaced in place.
                let old = tc::SchedClassifierLink::attached(
                    &link.name,
                    attach_type,
                    CLSACT_PRIORITY,
                    CLSACT_HANDLE,
                    None,
                )?;
                classifier.attach_to_link(old)?
            }
        };
        // Dropping it would detach the filter.
        std::mem::forget(classifier.take_link(id)?);
        Ok(())
    }

    fn xdp_mode(&self, link: &LinkPlan) -> Option<(&'static str, u32)> {
        if link.class != LinkClass::External || link.l3 {
            return None;
        }
        match self.options.xdp {
            XdpPolicy::Off => None,
            XdpPolicy::Auto if !link.xdp_capable => None,
            XdpPolicy::Auto | XdpPolicy::Native => Some(("native", XDP_FLAGS_DRV_MODE)),
            XdpPolicy::Generic => Some(("generic", XDP_FLAGS_SKB_MODE)),
        }
    }

    fn attach_xdp(&mut self, link: &LinkPlan, flags: u32, pin: &str) -> Result<()> {
        let program: &mut Xdp =
            self.ebpf.program_mut(XDP_PROGRAM).context("the object has no XDP program")?.try_into()?;
        if !self.xdp_loaded {
            program.load().with_context(|| format!("load program {XDP_PROGRAM}"))?;
            self.xdp_loaded = true;
        }
        let program = program.fd().context("the program is not loaded")?;
        Ok(ensure_link(&self.links.join(pin), program.as_fd(), link.ifindex, XDP, flags)?)
    }

    /// Unpins the links of devices that are no longer in the plan, which detaches them.
    fn remove_other_links(&mut self, wanted: &BTreeSet<String>, plan: &[LinkPlan]) {
        for entry in std::fs::read_dir(&self.links).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("cgroup-") && !wanted.contains(&name) {
                // Gone already: nothing to do.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        if !self.options.clsact {
            return;
        }
        // A filter leaves no pin to find it by, also not one of an earlier agent.
        for name in devices().filter(|name| !plan.iter().any(|link| link.name == *name)) {
            detach_clsact(&name, false);
            detach_clsact(&name, true);
        }
    }
}

fn cgroup_pin(inode: u64, hook: &str) -> String {
    format!("cgroup-{inode}-{hook}")
}

fn packet_pin(outward: bool, ifindex: u32) -> String {
    format!("{}-{ifindex}", if outward { "egress" } else { "ingress" })
}

/// Removes our filter, known by its priority and handle, from a device; says whether there
/// was one.
fn detach_clsact(device: &str, outward: bool) -> bool {
    let attach_type = if outward { TcAttachType::Egress } else { TcAttachType::Ingress };
    tc::SchedClassifierLink::attached(device, attach_type, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        .is_ok_and(|link| link.detach().is_ok())
}

/// Names of the devices of this network namespace.
fn devices() -> impl Iterator<Item = String> {
    let indexes = nix::net::if_::if_nameindex().into_iter();
    indexes.flat_map(|list| {
        let names: Vec<String> =
            list.iter().map(|device| device.name().to_string_lossy().into_owned()).collect();
        names
    })
}

/// Whether the kernel has tcx (6.6).
fn has_tcx() -> bool {
    kernel_at_least(6, 6)
}

fn kernel_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

fn is_os_error(error: &anyhow::Error, code: i32) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.raw_os_error() == Some(code)))
}

fn sys_number(fd: BorrowedFd<'_>) -> u32 {
    use std::os::fd::AsRawFd;
    fd.as_raw_fd() as u32
}

/// Replaces the program of a pinned link, or makes and pins a new one.
fn ensure_link(
    pin: &Path,
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<()> {
    match sys::open_pin(pin) {
        Ok(link) => match sys::update_link(link.as_fd(), program) {
            Ok(()) => return Ok(()),
            // Its device or control group is gone, or somebody detached it.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => std::fs::remove_file(pin)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let link: OwnedFd = sys::create_link(program, target, attach_type, flags)?;
    sys::pin(link.as_fd(), pin)
}

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn socket_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut CgroupSockAddr> {
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn learning_program(ebpf: &mut Ebpf) -> Result<&mut SockOps> {
    let name = LEARNING_HOOK.0;
    Ok(ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

fn load_object(options: &LoadOptions, pins: Option<&Path>) -> Result<Ebpf> {
    let mut flags = SettingsFlags::default();
    if kernel_at_least(5, 18) {
        flags = flags.with(SettingsFlags::SET_RETVAL);
    }
    if kernel_at_least(6, 16) {
        flags = flags.with(SettingsFlags::CSUM_IPV6);
    }
    if options.masquerade_all {
        flags = flags.with(SettingsFlags::MASQUERADE_ALL);
    }
    if options.host_sockets {
        flags = flags.with(SettingsFlags::HOST_SOCKETS);
    }
    if options.cluster_cidrs {
        flags = flags.with(SettingsFlags::CLUSTER_CIDR);
    }
    let settings = Settings {
        host_netns_cookie: sys::netns_cookie().unwrap_or(0),
        flags,
        hash_seed: HASH_SEED,
        snat: options.snat,
        earlier: pins.map_or(PortRange::EMPTY, |maps| earlier::ports(maps, options.snat)),
        pad: 0,
    };
    let bytes = bytemuck::bytes_of(&settings);
    let Capacity { frontends, backends, table_blocks, flows, transient, services, prefixes } =
        options.capacity;
    let mut loader = EbpfLoader::new();
    loader
        .verifier_log_level(if options.verbose {
            VerifierLogLevel::VERBOSE | VerifierLogLevel::STATS
        } else {
            VerifierLogLevel::DISABLE
        })
        .override_global("SETTINGS", bytes, true)
        .override_global("AYA_LOG_LEVEL", &options.log_level, false)
        .map_max_entries(map::FRONTENDS, frontends)
        .map_max_entries(map::BACKENDS, backends)
        .map_max_entries(map::TABLES, table_blocks)
        .map_max_entries(map::FLOWS, flows)
        .map_max_entries(map::TRANSIENT, transient)
        .map_max_entries(map::FOREIGN, flows)
        .map_max_entries(map::SERVICE_COUNTERS, services)
        .map_max_entries(map::PREFIXES, prefixes);
    if let Some(dir) = pins {
        for name in map::PINNED {
            loader.map_pin_path(name, dir.join(name));
        }
    }
    loader.load(object()?).context("load the eBPF object")
}

/// The map inside aya's enum of types.
pub(super) fn data(map: &Map) -> Result<&MapData> {
    if let Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::SkStorage(data)
    | Map::LpmTrie(data)
    | Map::Unsupported(data) = map
    {
        Ok(data)
    } else {
        bail!("unexpected map type: {map:?}")
    }
}

/// The programs that the data path cannot be without. XDP is none of them: a device that cannot
/// have it is served without.
fn load_programs(ebpf: &mut Ebpf, sockets: bool) -> Result<()> {
    for name in PACKET_PROGRAMS {
        classifier(ebpf, name)?.load().with_context(|| format!("load program {name}"))?;
    }
    for (name, ..) in SOCKET_HOOKS.iter().filter(|_| sockets) {
        socket_program(ebpf, name)?.load().with_context(|| format!("load program {name}"))?;
    }
    Ok(())
}

/// Tries what [`Loaded::new`] will do, without touching anything that the agent at work uses:
/// loads the programs over small maps of its own, which go again with this call, and looks at the
/// layout of the maps that are pinned.
///
/// # Errors
/// As [`Loaded::new`].
pub fn rehearse(options: &LoadOptions) -> Result<()> {
    let mut ebpf = load_object(&LoadOptions { capacity: Capacity::SMALL, ..options.clone() }, None)?;
    load_programs(&mut ebpf, options.cgroup.is_some())?;
    layout::check_pinned(&pin_folder(&options.bpffs).join("maps"))
}

/// One program's size, as `cargo xtask verify` prints it.
#[derive(Clone, Debug)]
pub struct ProgramReport {
    pub name: String,
    /// Instructions that the verifier walked.
    pub verified: u32,
    pub jited_bytes: u32,
}

/// Loads every program over fresh, small maps that are not pinned.
///
/// # Errors
/// When the verifier refuses one; its log is in the error.
pub fn verify_report() -> Result<Vec<ProgramReport>> {
    let options = LoadOptions {
        bpffs: PathBuf::new(),
        cgroup: None,
        host_sockets: true,
        xdp: XdpPolicy::Native,
        snat: [PortRange { first: 10_000, last: 29_999 }, PortRange { first: 61_000, last: 65_535 }],
        // The larger programs.
        masquerade_all: false,
        cluster_cidrs: true,
        capacity: Capacity::SMALL,
        log_level: 0,
        clsact: false,
        verbose: true,
    };
    let mut ebpf = load_object(&options, None)?;
    let mut report = Vec::new();
    let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let program = ebpf.program_mut(&name).context("listed a moment ago")?;
        let info: ProgramInfo = if PACKET_PROGRAMS.contains(&name.as_str()) {
            let program: &mut SchedClassifier = program.try_into()?;
            program.load().with_context(|| format!("load program {name}"))?;
            program.info()?
        } else if name == XDP_PROGRAM {
            let program: &mut Xdp = program.try_into()?;
            program.load().with_context(|| format!("load program {name}"))?;
            program.info()?
        } else if name == LEARNING_HOOK.0 {
            let program: &mut SockOps = program.try_into()?;
            program.load().with_context(|| format!("load program {name}"))?;
            program.info()?
        } else {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load().with_context(|| format!("load program {name}"))?;
            program.info()?
        };
        report.push(ProgramReport {
            verified: info.verified_instruction_count().unwrap_or(0),
            jited_bytes: info.size_jitted(),
            name,
        });
    }
    Ok(report)
}

/// What [`cleanup`] removed.
#[derive(Clone, Debug, Default)]
pub struct Cleaned {
    pub links: Vec<String>,
    pub maps: Vec<String>,
}

/// Removes every link and map that any version of Weir pinned below `bpffs`, and filters on
/// clsact qdiscs of the devices of this network namespace.
///
/// # Errors
/// When a pin cannot be removed.
pub fn cleanup(bpffs: &Path) -> Result<Cleaned> {
    let mut cleaned = Cleaned::default();
    let root = bpffs.join("weir");
    for device in devices() {
        for (outward, side) in [(false, "ingress"), (true, "egress")] {
            if detach_clsact(&device, outward) {
                cleaned.links.push(format!("{device} clsact {side}"));
            }
        }
    }
    let versions = match std::fs::read_dir(&root) {
        Ok(versions) => versions,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cleaned),
        Err(error) => return Err(error).with_context(|| format!("read {}", root.display())),
    };
    for version in versions.flatten() {
        // Links first: programs go before the maps that they use.
        for (kind, names) in [("links", &mut cleaned.links), ("maps", &mut cleaned.maps)] {
            let dir = version.path().join(kind);
            for pin in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                std::fs::remove_file(pin.path())
                    .with_context(|| format!("unpin {}", pin.path().display()))?;
                names.push(pin.file_name().to_string_lossy().into_owned());
            }
            let _ = std::fs::remove_dir(&dir);
        }
        std::fs::remove_dir(version.path())
            .with_context(|| format!("remove {}", version.path().display()))?;
    }
    std::fs::remove_dir(&root).with_context(|| format!("remove {}", root.display()))?;
    Ok(cleaned)
}
