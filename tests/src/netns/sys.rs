//! The system calls that std lacks: namespaces, mounts, signals, raw packets.
#![expect(unsafe_code, reason = "raw system calls of the test harness")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Gives the calling thread a new network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: takes flags only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a network namespace.
pub(crate) fn set_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

pub(crate) fn bind_mount(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None, libc::MS_BIND)
}

/// Mounts a file system without a device, such as `bpf`.
pub(crate) fn mount_fs(kind: &str, target: &Path) -> io::Result<()> {
    mount(Some(Path::new(kind)), target, Some(kind), 0)
}

fn mount(source: Option<&Path>, target: &Path, kind: Option<&str>, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map(c_path).transpose()?;
    let target = c_path(target)?;
    let kind = kind.map(CString::new).transpose()?;
    let pointer = |text: &Option<CString>| text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr());
    // SAFETY: every pointer is null or a C string that outlives the call.
    check(unsafe { libc::mount(pointer(&source), target.as_ptr(), pointer(&kind), flags, std::ptr::null()) })
        .map(drop)
}

/// Unmounts now and lets the last user finish.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = c_path(target)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Sends a signal to a process that we started.
pub(crate) fn kill(pid: u32, signal: libc::c_int) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: takes numbers only.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// True while a process of this id exists.
pub(crate) fn alive(pid: u32) -> bool {
    kill(pid, 0).is_ok()
}

/// Makes the child of `command` start in a network namespace and a cgroup: `procs` is the
/// open `cgroup.procs` of that cgroup.
pub(crate) fn start_in(command: &mut Command, netns: RawFd, procs: Option<RawFd>) {
    let hook = move || {
        if let Some(procs) = procs {
            // SAFETY: writes one static byte; "0" means the calling process.
            check(unsafe { libc::write(procs, b"0".as_ptr().cast(), 1) } as libc::c_int)?;
        }
        // SAFETY: takes numbers only; the descriptor was inherited over fork.
        check(unsafe { libc::setns(netns, libc::CLONE_NEWNET) })?;
        Ok(())
    };
    // SAFETY: the hook makes system calls only and allocates nothing, so it may run between
    // fork and exec.
    unsafe { command.pre_exec(hook) };
}

/// Microseconds of the monotonic clock, the same for all processes of this machine.
pub(crate) fn monotonic_us() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is writable for the length of the call.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000
}

/// A raw socket that sends whole Ethernet frames out of one interface.
pub(crate) struct PacketSocket {
    fd: OwnedFd,
    address: libc::sockaddr_ll,
}

impl PacketSocket {
    /// Opens the socket in the calling thread's namespace.
    pub(crate) fn new(interface_index: u32) -> io::Result<Self> {
        // SAFETY: takes numbers only.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: a descriptor that was just made and that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid value of this plain C struct.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = interface_index as i32;
        address.sll_halen = 6;
        Ok(Self { fd, address })
    }

    /// Sends frames in one call; returns how many the kernel took.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> io::Result<usize> {
        let mut address = self.address;
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() })
            .collect();
        let mut headers: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all-zero is a valid value of this plain C struct.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_name = (&raw mut address).cast();
                header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
                header.msg_hdr.msg_iov = part;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        // SAFETY: headers, their parts, the frames and the address outlive the call; the kernel
        // only reads the frames.
        let sent = check(unsafe {
            libc::sendmmsg(self.fd.as_raw_fd(), headers.as_mut_ptr(), headers.len() as u32, 0)
        })?;
        Ok(sent.unsigned_abs() as usize)
    }

    /// Opens a socket that hears what arrives at an interface, for at most so long each time.
    pub(crate) fn hearing(interface_index: u32, patience: std::time::Duration) -> io::Result<Self> {
        let mut socket = Self::new(interface_index)?;
        socket.address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        let timeout = libc::timeval {
            tv_sec: patience.as_secs() as libc::time_t,
            tv_usec: libc::suseconds_t::from(patience.subsec_micros()),
        };
        let fd = socket.fd.as_raw_fd();
        // SAFETY: the timeout outlives the call, which is given its size.
        check(unsafe {
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>() as libc::socklen_t,
            )
        })?;
        // SAFETY: the address outlives the call, which is given its size.
        check(unsafe {
            libc::bind(fd, (&raw const socket.address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        })?;
        Ok(socket)
    }

    /// The next frame that arrived; what we sent ourselves does not count.
    pub(crate) fn hear(&self) -> io::Result<Vec<u8>> {
        loop {
            let mut frame = vec![0_u8; 4096];
            let mut address = self.address;
            let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: frame and address are writable for the lengths that are given.
            let read = check(unsafe {
                libc::recvfrom(
                    self.fd.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw mut address).cast(),
                    &raw mut len,
                )
            } as libc::c_int)?;
            if address.sll_pkttype != libc::PACKET_OUTGOING {
                frame.truncate(read.unsigned_abs() as usize);
                return Ok(frame);
            }
        }
    }
}
