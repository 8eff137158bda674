//! Taking from the proxy's process its view of the file system (H43).
//!
//! A process without privileges still reads what everybody may read: in a Pod the service
//! account's token or the kubelet's files, on a node much more. With Landlock, which needs no
//! privilege itself, it opens, makes and removes nothing but what [`Needs`] names, reaches no
//! socket that has a path or an abstract name, binds no port and signals nobody. What it was
//! handed stays its own: listening sockets, the links, standard output. Called while the process
//! has one thread: threads that are started later are bound as well.

use crate::proxy::control::View;
use crate::proxy::pressure;
use anyhow::{Context, ensure};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope, make_bitflags, path_beneath_rules,
};
use std::path::{Path, PathBuf};

/// What is asked for. A kernel that knows less gives what it knows.
const NEWEST: ABI = ABI::V10;

/// What is known of a kernel that confines nothing.
const NONE: &str = "the kernel has no Landlock (Linux 5.13, CONFIG_SECURITY_LANDLOCK, `landlock` in its \
                    list of security modules), or a seccomp profile forbids it";

/// What the process opens by name after its start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Needs {
    /// The access log: written, and made anew in its folder once it was renamed.
    pub(super) log: Option<PathBuf>,
    /// The control group whose memory is minded: its figures are read.
    pub(super) memory: Option<PathBuf>,
}

/// Gives up all that is not needed, for good; says what the kernel made of it.
///
/// # Errors
/// When the kernel has Landlock and refuses, or says that it confines and does not.
pub(super) fn confine(needs: &Needs) -> anyhow::Result<View> {
    let net = make_bitflags!(AccessNet::{BindTcp | BindUdp | ConnectSendUdp});
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(net))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .context("Landlock")?;
    for (path, access) in needs.grants() {
        // What is not there, or not within reach, cannot be used either.
        rules = rules
            .add_rules(path_beneath_rules([&path], access))
            .with_context(|| format!("Landlock: {}", path.display()))?;
    }
    let status = rules.restrict_self().context("Landlock")?;
    let LandlockStatus::Available { effective_abi, .. } = status.landlock else {
        return Ok(View::Open { reason: NONE.into() });
    };
    ensure!(status.ruleset != RulesetStatus::NotEnforced, "Landlock is there and enforces nothing");
    for path in ["/", "/proc/self/status"] {
        ensure!(std::fs::File::open(path).is_err(), "{path} can be read in spite of Landlock");
    }
    Ok(View::Confined { landlock: effective_abi as u32 })
}

impl Needs {
    fn grants(&self) -> Vec<(PathBuf, BitFlags<AccessFs>)> {
        let figures = self.memory.iter().flat_map(|folder| pressure::files(folder));
        let figures = figures.map(|file| (file, AccessFs::ReadFile.into()));
        figures.chain(self.log.as_deref().and_then(log)).collect()
    }
}

/// Where the log may be written: the folder of a file, so that it can be made again; of a pipe
/// or device that one alone.
fn log(path: &Path) -> Option<(PathBuf, BitFlags<AccessFs>)> {
    let rotated = make_bitflags!(AccessFs::{WriteFile | MakeReg});
    // Links are followed now and not any more later on.
    match path.canonicalize() {
        Ok(real) if real.is_file() => Some((real.parent()?.into(), rotated)),
        Ok(real) => Some((real, AccessFs::WriteFile.into())),
        Err(_) => {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            Some((folder.unwrap_or(Path::new(".")).into(), rotated))
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::io::{ErrorKind, Write};
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

    /// A thread is confined for itself, so one that ends bears the test. A kernel without
    /// Landlock cannot run it: that is a failure.
    fn confined(needs: Needs, then: impl FnOnce(u32) + Send + 'static) {
        let thread = std::thread::spawn(move || match confine(&needs).unwrap() {
            View::Confined { landlock } => then(landlock),
            other @ (View::Open { .. } | View::Untold) => panic!("{other:?}: this test needs Landlock"),
        });
        thread.join().unwrap();
    }

    fn append(path: &Path) -> std::io::Result<()> {
        OpenOptions::new().append(true).create(true).open(path)?.write_all(b"line\n")
    }

    fn denied<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn nothing_is_read_listed_made_or_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        let world = path.join("world-readable");
        fs::write(&world, "token").unwrap();
        confined(Needs::default(), move |_| {
            assert!(denied(fs::read(&world)));
            assert!(denied(fs::read("/etc/passwd")));
            assert!(denied(fs::read("/proc/self/environ")));
            assert!(denied(fs::read_dir(&path)));
            assert!(denied(append(&path.join("new"))));
            assert!(denied(append(&world)));
            assert!(denied(fs::create_dir(path.join("folder"))));
            assert!(denied(fs::remove_file(&world)));
            assert!(denied(std::process::Command::new("/proc/self/exe").status()));
        });
    }

    #[test]
    fn the_log_is_written_and_made_again_in_its_folder_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| dir.path().join(name);
        fs::create_dir(place("logs")).unwrap();
        fs::create_dir(place("other")).unwrap();
        let (log, other) = (place("logs/access.log"), place("other/file"));
        fs::write(&log, "").unwrap();
        fs::write(&other, "").unwrap();
        // Another thread rotates it, as another process would.
        let rotated = place("logs/access.log.1");
        let (rotate, rotating) = std::sync::mpsc::sync_channel::<()>(0);
        let (again, done) = std::sync::mpsc::sync_channel::<()>(0);
        let rotating = std::thread::spawn({
            let (log, rotated) = (log.clone(), rotated.clone());
            move || {
                rotating.recv().unwrap();
                fs::rename(log, rotated).unwrap();
                again.send(()).unwrap();
            }
        });
        let written = log.clone();
        confined(Needs { log: Some(log), memory: None }, move |_| {
            append(&written).unwrap();
            assert!(denied(fs::read(&written)), "written, not read");
            rotate.send(()).unwrap();
            done.recv().unwrap();
            append(&written).unwrap();
            append(&written).unwrap();
            assert!(denied(append(&other)));
        });
        rotating.join().unwrap();
        assert_eq!(fs::read_to_string(rotated).unwrap(), "line\n");
        assert_eq!(fs::read_to_string(place("logs/access.log")).unwrap(), "line\nline\n");
    }

    #[test]
    fn a_log_that_is_a_device_gives_no_folder() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        assert_eq!(log(&device), Some(("/dev/null".into(), AccessFs::WriteFile.into())));
        let folder = dir.path().canonicalize().unwrap();
        let absent = log(&folder.join("none/access.log")).unwrap();
        assert_eq!(absent.0, folder.join("none"));
        assert_eq!(log(Path::new("access.log")).unwrap().0, Path::new("."));
    }

    #[test]
    fn memory_is_still_minded() {
        let group = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        put("memory.max", "1000000");
        put("memory.current", "990000");
        put("memory.stat", "anon 5\ninactive_file 0\n");
        put("cgroup.procs", "1\n");
        let folder = group.path().to_owned();
        confined(Needs { log: None, memory: Some(folder.clone()) }, move |_| {
            assert!(pressure::Pressure::new(Some(folder.clone())).is_high(0));
            assert!(denied(fs::read(folder.join("cgroup.procs"))));
        });
    }

    #[test]
    fn what_was_handed_over_works_and_new_doors_stay_shut() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let name = SocketAddr::from_abstract_name(format!("weir-confine-{}", std::process::id())).unwrap();
        let outside = UnixListener::bind_addr(&name).unwrap();
        confined(Needs::default(), move |landlock| {
            // Served and forwarded.
            let _client = TcpStream::connect(address).unwrap();
            let _served = listener.accept().unwrap();
            File::open("/dev/null").unwrap_err();
            if landlock >= 4 {
                assert!(denied(TcpListener::bind("127.0.0.1:0")));
            }
            if landlock >= 6 {
                assert!(denied(UnixStream::connect_addr(&name)));
            }
            if landlock >= 10 {
                assert!(denied(UdpSocket::bind("127.0.0.1:0")));
            }
        });
        drop(outside);
    }
}
