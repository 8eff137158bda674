//! Loads each program under the shipped capability set and prints what the verifier says.

use crate::shell::line;
use crate::{ebpf, root, test};
use anyhow::{Context, Result, bail};
use std::process::{Command, Stdio};

pub(crate) fn run() -> Result<()> {
    ebpf::build()?;
    load().map(drop)
}

/// Loads the object that was built last, and returns how many programs are in it.
///
/// # Errors
/// When the kernel refuses one.
pub(crate) fn load() -> Result<u64> {
    let verify = test::program("verify", &[])?;
    let mut command = root::confined(&[], &verify, &[])?;
    report(&mut command)
}

/// Shows what the loader prints; its last line begins with the number of programs.
fn report(command: &mut Command) -> Result<u64> {
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start {}", line(command)))?;
    let text = String::from_utf8_lossy(&out.stdout);
    print!("{text}");
    if !out.status.success() {
        bail!("{} failed ({})", line(command), out.status);
    }
    let last = text.lines().next_back().unwrap_or_default();
    let number = last.split(' ').next().unwrap_or_default().parse();
    number.with_context(|| format!("{}: no number of programs in {last:?}", line(command)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_counted_and_a_refusal_is_an_error() {
        let script = |text: &str| report(Command::new("sh").args(["-c", text]));
        assert_eq!(script("echo a 1; echo '15 programs, all fine'").ok(), Some(15));
        assert!(script("echo '15 programs'; exit 1").is_err());
        assert!(script("true").is_err());
    }
}
