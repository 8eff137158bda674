//! Raising a child that needs root, and only that child.
//!
//! [`raised`] is for what changes the machine (packages) and for tests that make
//! namespaces. [`confined`] is for what is tested: it runs as root with the capabilities
//! that Weir ships with and no others, so that nothing passes by a privilege which the
//! installed agent lacks.

use crate::shell::{find, output};
use anyhow::{Result, bail};
use std::ffi::{OsStr, OsString};
use std::process::Command;

/// The environment that a raised child keeps.
const KEPT: [&str; 14] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "WEIR_CACHE",
    "XDG_CACHE_HOME",
    "KUBEBUILDER_ASSETS",
    "WEIR_KUBE_RELEASE_URL",
    "WEIR_BIN",
    "WEIR_BLESS",
    "WEIR_DIFFERENTIAL_SEED",
    "WEIR_INGRESS_CONFORMANCE",
    "CARGO_TARGET_DIR",
];

/// Tells whether we are root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

/// The capabilities that the installed agent has, as setpriv spells them. Here and in the
/// manifests of `deploy/`, nowhere else.
const SHIPPED: [&str; 7] = ["bpf", "perfmon", "net_admin", "net_bind_service", "setgid", "setuid", "setpcap"];

/// Returns the command as root: itself, or below sudo.
///
/// # Errors
/// When we are not root and there is no sudo: tells what to run.
pub(crate) fn raised(program: impl AsRef<OsStr>, args: &[&str]) -> Result<Command> {
    raised_with(&[], program, args)
}

/// As [`raised`], with further variables in the child's environment.
///
/// # Errors
/// As [`raised`].
pub(crate) fn raised_with(
    variables: &[(&str, &OsStr)],
    program: impl AsRef<OsStr>,
    args: &[&str],
) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        let mut command = Command::new(program);
        command.args(args).envs(variables.iter().copied());
        return Ok(command);
    }
    let words = format!("{} {}", program.to_string_lossy(), args.join(" "));
    let Some(sudo) = find("sudo") else {
        bail!("this needs root and there is no sudo; as root run: {}", words.trim());
    };
    let mut command = Command::new(sudo);
    // sudo resets PATH and more; what a child needs to find its way is handed over by name.
    command.arg("env");
    let own = KEPT.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let given = variables.iter().map(|(name, value)| (*name, (*value).to_owned()));
    for (name, value) in own.chain(given) {
        let mut word = OsString::from(name);
        word.push("=");
        word.push(value);
        command.arg(word);
    }
    command.arg(program).args(args);
    Ok(command)
}

/// As [`raised_with`], with no capability beyond [`SHIPPED`], not even later through exec.
///
/// # Errors
/// As [`raised`].
pub(crate) fn confined(
    variables: &[(&str, &OsStr)],
    program: impl AsRef<OsStr>,
    args: &[&str],
) -> Result<Command> {
    let mut command = raised_with(variables, "setpriv", &["--bounding-set", &bounding_set()])?;
    command.arg(program).args(args);
    Ok(command)
}

/// The shipped capabilities as a word for `setpriv --bounding-set`: what a test that starts
/// an agent itself finds in `WEIR_BOUNDING_SET`.
pub(crate) fn bounding_set() -> String {
    let named: String = SHIPPED.iter().map(|name| format!(",+{name}")).collect();
    format!("-all{named}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shipped_capabilities_are_kept() {
        assert_eq!(
            bounding_set(),
            "-all,+bpf,+perfmon,+net_admin,+net_bind_service,+setgid,+setuid,+setpcap"
        );
    }
}
