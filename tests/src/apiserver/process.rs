//! One program of the control plane: started in the place, its words in a file, killed when
//! dropped and also when its parent dies.

use super::client::Connection;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

#[derive(Debug)]
pub(super) struct Process {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a program in the connection's namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start(
        connection: &Connection,
        dir: &Path,
        program: &Path,
        arguments: Vec<String>,
    ) -> Result<Self> {
        let name = program.file_name().context("a program without a name")?;
        let log = dir.join(name).with_extension("log");
        let child = spawn(connection, program, &arguments, &log)?;
        Ok(Self { program: program.to_path_buf(), arguments, log, child })
    }

    /// Starts it again with the same arguments.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn restart(&mut self, connection: &Connection) -> Result<()> {
        self.kill();
        self.child = spawn(connection, &self.program, &self.arguments, &self.log)?;
        Ok(())
    }

    pub(super) fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// # Errors
    /// When it has ended, with what it said last.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}; it said last:\n{}", self.program.display(), self.last_words());
        }
        Ok(())
    }

    /// The end of the log.
    pub(super) fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(connection: &Connection, program: &Path, arguments: &[String], log: &Path) -> Result<Child> {
    let out = File::options().create(true).append(true).open(log)?;
    // setpriv becomes the program; the kernel then kills that when the thread which started it,
    // the connection's, ends for whatever reason.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    connection.in_place(move || command.spawn())?.with_context(|| format!("starting {}", program.display()))
}
