//! The loaded programs as a [`Runner`]: every packet goes through the kernel's test-run, in a
//! namespace that is the node of [`super::world`], over maps in a private bpffs.

use super::row::{Hook, Row, Snat};
use super::run::{CAPACITY, Code, Flows, Outcome, Runner, timeless, went_up};
use super::world::{self, ETH0, ETH1, facts_of};
use crate::netns::Netns;
use crate::scratch::Scratch;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, connect, socket};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use weir::datapath::bpf::Bpf;
use weir::datapath::loader::{LoadOptions, XdpPolicy};
use weir::datapath::{Datapath, LinkClass, LinkPlan};
use weir::plan::op::Op;

const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// Back out of the device that it came in by.
const XDP_TX: u32 = 3;

/// The programs, loaded once for each range of source ports: the range is a constant of a load.
pub struct Kernel {
    loads: Vec<(Snat, Bpf)>,
    current: usize,
    /// Sockets of the host that a row asks for.
    sockets: Vec<OwnedFd>,
}

/// Runs `f` with the programs, in the thread and namespace where they are loaded.
///
/// # Errors
/// Without root, without a built object, or when the verifier refuses a program; and what `f`
/// says.
pub fn with_kernel<T: Send>(f: impl FnOnce(&mut Kernel) -> Result<T> + Send) -> Result<T> {
    let scratch = Scratch::new()?;
    let netns = world::namespace(format!("{}-node", scratch.id()))?;
    inside(&netns, &scratch, f)
}

fn inside<T: Send>(
    netns: &Netns,
    scratch: &Scratch,
    f: impl FnOnce(&mut Kernel) -> Result<T> + Send,
) -> Result<T> {
    netns.enter(|| {
        let mut loads = Vec::new();
        for snat in Snat::LOADED {
            let mut bpf = Bpf::new(LoadOptions {
                bpffs: scratch.bpffs(),
                cgroup: None,
                host_sockets: false,
                xdp: XdpPolicy::Native,
                snat: snat.ranges(),
                masquerade_all: snat == Snat::MasqueradeAll,
                cluster_cidrs: snat == Snat::ClusterCidr,
                capacity: CAPACITY,
                log_level: 0,
                clsact: false,
                verbose: false,
            })?;
            // XDP's test-run wants a device whose receive queues are set up for it.
            let links = [("eth0", ETH0), ("eth1", ETH1)].map(|(name, ifindex)| LinkPlan {
                ifindex,
                name: name.into(),
                class: LinkClass::External,
                l3: false,
                xdp_capable: true,
            });
            for hook in bpf.attach(&links, false) {
                ensure!(hook.error.is_none(), "{hook:?}");
            }
            loads.push((snat, bpf));
        }
        f(&mut Kernel { loads, current: 0, sockets: Vec::new() })
    })?
}

impl Kernel {
    fn bpf(&mut self) -> Result<&mut Bpf> {
        self.loads.get_mut(self.current).map(|(_, bpf)| bpf).context("nothing is loaded")
    }

    fn program(&mut self, name: &str, device: u32, frame: &[u8]) -> Result<(u32, Outcome)> {
        let bpf = self.bpf()?;
        let before = bpf.counters();
        let (code, bytes) = bpf.test_run(name, frame, device).with_context(|| format!("running {name}"))?;
        let counted = went_up(&before, &bpf.counters());
        Ok((code, Outcome { code: Code::Pass, counted, bytes, verdict: None }))
    }

    /// Forgets what packets left behind.
    ///
    /// # Errors
    /// When a map cannot be read or written.
    pub fn forget(&mut self) -> Result<()> {
        self.bpf()?.forget()
    }

    /// All counters, summed over CPUs.
    ///
    /// # Errors
    /// When nothing is loaded.
    pub fn counters(&mut self) -> Result<Vec<u64>> {
        Ok(self.bpf()?.counters())
    }

    /// As [`Runner::run`], without a look at the counters: a few system calls less.
    ///
    /// # Errors
    /// When the program cannot be run at all.
    pub fn run_quickly(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Result<(Code, Vec<u8>)> {
        let (code, bytes) = self.bpf()?.test_run(program(hook), frame, device)?;
        Ok((tc_code(code)?, bytes))
    }
}

const fn program(hook: Hook) -> &'static str {
    match hook {
        Hook::Outside => "outside_ingress",
        Hook::OutsideL3 => "outside_ingress_l3",
        Hook::Inside => "inside_ingress",
        Hook::InsideL3 => "inside_ingress_l3",
        Hook::Egress => "egress",
        Hook::EgressL3 => "egress_l3",
    }
}

fn tc_code(code: u32) -> Result<Code> {
    match code {
        TC_ACT_UNSPEC => Ok(Code::Pass),
        TC_ACT_REDIRECT => Ok(Code::Redirect),
        TC_ACT_SHOT => Ok(Code::Drop),
        other => bail!("the program returned {other}"),
    }
}

/// A TCP socket that waits for its peer's answer.
fn connecting(own: SocketAddr, peer: SocketAddr) -> Result<OwnedFd> {
    let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
    let connected = match (own, peer) {
        (SocketAddr::V4(own), SocketAddr::V4(peer)) => {
            bind(fd.as_raw_fd(), &SockaddrIn::from(own))?;
            connect(fd.as_raw_fd(), &SockaddrIn::from(peer))
        }
        (SocketAddr::V6(own), SocketAddr::V6(peer)) => {
            bind(fd.as_raw_fd(), &SockaddrIn6::from(own))?;
            connect(fd.as_raw_fd(), &SockaddrIn6::from(peer))
        }
        _ => bail!("{own} and {peer} are of two families"),
    };
    match connected {
        Err(Errno::EINPROGRESS) | Ok(()) => Ok(fd),
        Err(error) => Err(error).context("connecting a socket of the host"),
    }
}

impl Runner for Kernel {
    fn reset(&mut self, row: &Row) -> Result<()> {
        self.current = self.loads.iter().position(|(of, _)| *of == row.snat).context("not loaded")?;
        self.sockets.clear();
        for address in &row.sockets {
            self.sockets.push(TcpListener::bind(address)?.into());
            self.sockets.push(UdpSocket::bind(address)?.into());
        }
        for (own, peer) in &row.connected {
            let udp = UdpSocket::bind(own)?;
            udp.connect(peer)?;
            self.sockets.push(udp.into());
            self.sockets.push(connecting(*own, *peer)?);
        }
        let bpf = self.bpf()?;
        bpf.forget()?;
        let programmed = bpf.read()?;
        let frontends = programmed.frontends.keys().map(|key| Op::DeleteFrontend(*key));
        let backends = programmed.backends.keys().map(|id| Op::DeleteBackend(*id));
        let prefixes = programmed.prefixes.iter().chain(programmed.reach.keys());
        let prefixes = prefixes.map(|prefix| Op::DeletePrefix(*prefix));
        let ops: Vec<Op> = frontends.chain(backends).chain(prefixes).collect();
        self.apply(&ops)?;
        self.bpf()?.set_foreign(&row.foreign)?;
        self.bpf()?.set_node(&facts_of(row))
    }

    fn apply(&mut self, ops: &[Op]) -> Result<()> {
        self.bpf()?.apply(ops).into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(())
    }

    fn wait(&mut self, seconds: u64) -> Result<()> {
        self.bpf()?.age(seconds)
    }

    fn run(&mut self, hook: Hook, device: u32, frame: &[u8]) -> Result<Outcome> {
        let (code, outcome) = self.program(program(hook), device, frame)?;
        Ok(Outcome { code: tc_code(code)?, ..outcome })
    }

    fn early(&mut self, device: u32, frame: &[u8]) -> Result<Outcome> {
        let (code, outcome) = self.program("early", device, frame)?;
        let code = match code {
            XDP_PASS => Code::Pass,
            XDP_TX => Code::Redirect,
            XDP_DROP => Code::Drop,
            other => bail!("XDP returned {other}"),
        };
        Ok(Outcome { code, ..outcome })
    }

    fn flows(&mut self) -> Result<Flows> {
        let mut flows = Flows::new();
        self.bpf()?.for_each_flow(|confirmed, key, flow| {
            flows.insert((confirmed, *key), timeless(*flow));
        })?;
        Ok(flows)
    }
}
