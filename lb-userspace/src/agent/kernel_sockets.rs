//! Whether sockets of the kernel itself are safe behind the socket hooks (S85).
//!
//! NFS, SMB and other clients in the kernel keep the address that they connect to and use it
//! again to reconnect. Up to Linux 6.5 a connect hook's rewrite showed through in their own copy
//! of it, so that they stayed with one endpoint for ever (cilium/cilium#21541). Mended for 6.6 by
//! commits 0bdf399342c5 ("net: Avoid address overwrite in kernel_connect"), 26297b4ce1ce for
//! those in net/ and cedc019b9f26 ("smb: use kernel_connect() and kernel_bind()"). Stable series
//! and distributions took them up too; a kernel's number does not tell which have, so older ones
//! are doubted, not condemned.

use crate::args::Config;
use crate::args::value::SocketLb;
use crate::board::agent_problem;
use crate::problem::Problem;

/// The first release whose callers never see a rewritten address.
const MENDED: (u32, u32) = (6, 6);

/// What is to be told of the kernel that runs, if sockets are translated on it.
pub(super) fn check(config: &Config) -> Option<Problem> {
    let translated = config.l4.as_ref().is_some_and(|l4| l4.socket_lb != SocketLb::Off);
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let problem = translated.then(|| judge(release.trim())).flatten()?;
    tracing::warn!(reason = problem.reason, "kernel sockets");
    Some(problem)
}

/// Judges a release such as `6.1.0-18-amd64`; one that cannot be read says nothing.
fn judge(release: &str) -> Option<Problem> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < MENDED).then(|| {
        agent_problem(
            "--socket-lb",
            format!(
                "kernel {release} is older than 6.6: unless its distribution mended it, NFS and SMB mounts \
                 of a Service's address keep to one endpoint and hang once that is gone; mount by an \
                 address that is no Service's, or use a newer kernel"
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_6_are_doubted() {
        for (release, told) in [
            ("5.15.0-91-generic", true),
            ("6.1.0-18-amd64", true),
            ("6.5.13", true),
            ("5.14.0-427.13.1.el9_4.x86_64", true),
            ("6.6.0-rc5", false),
            ("6.6.1", false),
            ("6.18.0", false),
            ("10.0", false),
            ("", false),
            ("6", false),
            ("unknown", false),
        ] {
            let problem = judge(release);
            assert_eq!(problem.is_some(), told, "{release}");
            let named = problem.is_none_or(|p| p.field == "--socket-lb" && p.reason.contains(release));
            assert!(named, "{release}");
        }
    }
}
