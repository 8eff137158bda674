//! Rewrites the expected output of the golden tests, and records anew what netfilter makes of
//! the packets in `tests/cases/netfilter`; the change is for a person to read.

use crate::shell::{cargo, run as run_command};
use crate::{root, test};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    let mut command = cargo();
    run_command(command.args(["test", "--package", "tests", "--test", "golden"]).env("WEIR_BLESS", "1"))?;
    let capture = test::program("capture", &[])?;
    run_command(&mut root::raised(&capture, &[])?)
}
