//! Loads each program under the shipped capability set and prints what the verifier says.

use crate::shell::run as run_command;
use crate::{ebpf, root, test};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    ebpf::build()?;
    let verify = test::program("verify", &[])?;
    run_command(&mut root::confined(&[], &verify, &[])?)
}
