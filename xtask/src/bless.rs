//! Rewrites the expected output of the golden tests; the change is for a person to read.

use crate::shell::{cargo, run as run_command};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    let mut command = cargo();
    run_command(command.args(["test", "--package", "tests", "--test", "golden"]).env("WEIR_BLESS", "1"))
}
