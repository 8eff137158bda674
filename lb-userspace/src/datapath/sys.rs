//! The few raw system calls that aya 0.14 lacks: link create and update by file descriptor,
//! batch lookup, and memory-mapped arrays.

use bytemuck::{Pod, Zeroable};
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

const BPF_OBJ_PIN: i64 = 6;
const BPF_OBJ_GET: i64 = 7;
const BPF_MAP_LOOKUP_BATCH: i64 = 24;
const BPF_LINK_CREATE: i64 = 28;
const BPF_LINK_UPDATE: i64 = 29;

/// `BPF_F_BEFORE`: in front of all other programs of the hook when no other is named (tcx).
pub(super) const BPF_F_BEFORE: u32 = 1 << 3;

/// `union bpf_attr` as far as the commands below use it; the kernel wants what it does not
/// know to be zero.
type Attr = [u64; 16];

fn bpf(command: i64, attr: &mut Attr) -> io::Result<i32> {
    // SAFETY: the attribute block is valid for its whole length; pointers in it outlive the
    // call, as each caller sees to.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of::<Attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

const fn pair(low: u32, high: u32) -> u64 {
    if cfg!(target_endian = "little") {
        low as u64 | (high as u64) << 32
    } else {
        high as u64 | (low as u64) << 32
    }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor in hand is never negative.
    fd.as_raw_fd() as u32
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel just returned this descriptor to us, and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Opens a pinned object.
pub(super) fn open_pin(pin: &Path) -> io::Result<OwnedFd> {
    let pin = path(pin)?;
    let mut attr = Attr::default();
    attr[0] = pin.as_ptr() as u64;
    bpf(BPF_OBJ_GET, &mut attr).map(owned)
}

/// Pins an object, so that it outlives us.
pub(super) fn pin(object: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let pin = path(pin)?;
    let mut attr = Attr::default();
    attr[0] = pin.as_ptr() as u64;
    attr[1] = pair(fd_number(object), 0);
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Attaches a program by a link. `target` is a control group's descriptor or an interface
/// index, as the attach type asks.
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: u32,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = Attr::default();
    attr[0] = pair(fd_number(program), target);
    attr[1] = pair(attach_type, flags);
    bpf(BPF_LINK_CREATE, &mut attr).map(owned)
}

/// Replaces a link's program in place. Fails with ENOLINK when what it was attached to is
/// gone, or somebody detached it.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = Attr::default();
    attr[0] = pair(fd_number(link), fd_number(program));
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Visits every entry of a hash map in batches (kernel 5.6). Entries that come and go
/// meanwhile may be missed.
pub(super) fn for_each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut room = 4096usize;
    let mut cursor = [0u64; 16];
    let mut first = true;
    loop {
        let mut keys = vec![K::zeroed(); room];
        let mut values = vec![V::zeroed(); room];
        let mut next = [0u64; 16];
        let mut attr = Attr::default();
        attr[0] = if first { 0 } else { cursor.as_ptr() as u64 };
        attr[1] = next.as_mut_ptr() as u64;
        attr[2] = keys.as_mut_ptr() as u64;
        attr[3] = values.as_mut_ptr() as u64;
        attr[4] = pair(room as u32, fd_number(map));
        let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
        let count = if cfg!(target_endian = "little") { attr[4] as u32 } else { (attr[4] >> 32) as u32 };
        let done = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            // One bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        for (key, value) in keys.iter().zip(&values).take(count as usize) {
            visit(key, value);
        }
        if done {
            return Ok(());
        }
        cursor = next;
        first = false;
    }
}

/// A memory-mapped array map (`BPF_F_MMAPABLE`, kernel 5.5): writes need no system call.
pub(super) struct Mapped<T> {
    start: NonNull<T>,
    len: usize,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl<T: Send> Send for Mapped<T> {}

impl<T: Pod + Zeroable> Mapped<T> {
    /// Maps an array of `len` elements. The kernel rounds each up to 8 bytes.
    pub(super) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        assert!(size_of::<T>().is_multiple_of(8), "an element of a mapped array is a multiple of 8 bytes");
        let bytes = len * size_of::<T>();
        // SAFETY: a new mapping at an address of the kernel's choice; the kernel checks the length.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { start, len, bytes })
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, index: usize) -> Option<T> {
        // SAFETY: inside the mapping; programs may write meanwhile, hence volatile.
        (index < self.len).then(|| unsafe { self.start.add(index).read_volatile() })
    }

    /// Writes an element; false past the end. Programs may read it half-written: the order
    /// of a plan sees to it that none refers to it yet, or that either half is right.
    pub(super) fn set(&mut self, index: usize, value: T) -> bool {
        if index >= self.len {
            return false;
        }
        // SAFETY: inside the mapping.
        unsafe { self.start.add(index).write_volatile(value) };
        true
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Cookie of the network namespace that we are in (SO_NETNS_COOKIE, kernel 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("::1", 0)))
        .or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer and its length are valid.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if failed == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// The machine's boot-time clock as programs see it (CLOCK_MONOTONIC), in nanoseconds.
pub(super) fn monotonic_nanos() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid buffer and a clock that always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
