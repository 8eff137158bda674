//! Which C compiler and linker make programs for a platform that are linked to musl.
//!
//! Rust brings its own musl to link with; the C parts (aws-lc) need a compiler for the processor
//! and musl's headers. A musl compiler of the platform's own is taken first (`musl-gcc` on a
//! machine of its kind, `aarch64-linux-musl-gcc` where somebody installed one), else the
//! distribution's cross compiler, with the headers that setup unpacked into the cache.

use super::platform::Platform;
use crate::cache;
use crate::remap::Remap;
use crate::shell::{find, output};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::process::Command;

/// Musl's headers of Debian, whose version is part of the folder's name in the cache.
pub(crate) const HEADERS: &str = "musl-dev";

/// A way to compile and link for a platform.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Compiler {
    cc: PathBuf,
    flags: Vec<String>,
    /// `None`: the one that Rust takes by itself.
    linker: Option<PathBuf>,
}

/// Finds the compiler.
///
/// # Errors
/// Says what is missing.
pub(crate) fn choose(platform: Platform) -> Result<Compiler> {
    let own = platform.is_own().then(|| find("musl-gcc")).flatten();
    if let Some(cc) = own {
        return Ok(Compiler { cc, flags: Vec::new(), linker: None });
    }
    let processor = platform.processor();
    if let Some(cc) = find(&format!("{processor}-linux-musl-gcc")) {
        return Ok(Compiler { linker: Some(cc.clone()), cc, flags: Vec::new() });
    }
    let Some(cc) = find(&format!("{processor}-linux-gnu-gcc")).filter(|_| !platform.is_own()) else {
        bail!("no C compiler for {platform}: run `cargo xtask setup image`");
    };
    let headers = headers(platform)?;
    if !headers.join("stdio.h").is_file() {
        bail!("no headers of musl for {platform} in {}: run `cargo xtask setup image`", headers.display());
    }
    let own = output(Command::new(&cc).arg("-print-file-name=include"))?;
    let mut flags: Vec<String> = ["-nostdinc", "-isystem", own.trim(), "-isystem"].map(String::from).to_vec();
    flags.push(headers.display().to_string());
    // The kernel's headers lie among those of the other C library, which must not come first.
    flags.extend(["-idirafter".to_owned(), format!("/usr/{processor}-linux-gnu/include")]);
    // Checked functions are the other C library's too.
    flags.extend(["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=0"].map(String::from));
    if platform == Platform::Arm64 {
        // They would be this compiler's library's.
        flags.push("-mno-outline-atomics".to_owned());
    }
    Ok(Compiler { linker: Some(cc.clone()), cc, flags })
}

/// Where setup unpacks musl's headers for a platform.
///
/// # Errors
/// When there is no cache folder.
pub(crate) fn headers(platform: Platform) -> Result<PathBuf> {
    let name = format!("{HEADERS}-{}", platform.architecture());
    Ok(cache::dir()?.join(name).join(format!("usr/include/{}-linux-musl", platform.processor())))
}

impl Compiler {
    pub(crate) fn cc(&self) -> &std::path::Path {
        &self.cc
    }

    /// Tells a cargo command of it.
    pub(super) fn tell(&self, cargo: &mut Command, platform: Platform, remaps: &[Remap]) {
        let target = platform.target();
        let low = target.replace('-', "_");
        let flags: Vec<String> = self.flags.iter().cloned().chain(remaps.iter().map(Remap::for_cc)).collect();
        cargo.env(format!("CC_{low}"), &self.cc).env(format!("CFLAGS_{low}"), flags.join(" "));
        if let Some(linker) = &self.linker {
            cargo.env(format!("CARGO_TARGET_{}_LINKER", low.to_uppercase()), linker);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_told_in_the_targets_own_variables() {
        let compiler = Compiler { cc: "/cc".into(), flags: vec!["-a".into()], linker: Some("/ld".into()) };
        let mut cargo = Command::new("cargo");
        compiler.tell(&mut cargo, Platform::Arm64, &[]);
        let told: Vec<_> = cargo
            .get_envs()
            .map(|(name, value)| (name.to_string_lossy(), value.unwrap_or_default().to_string_lossy()))
            .collect();
        let wanted = [
            ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "/ld"),
            ("CC_aarch64_unknown_linux_musl", "/cc"),
            ("CFLAGS_aarch64_unknown_linux_musl", "-a"),
        ];
        assert_eq!(told, wanted.map(|(name, value)| (name.into(), value.into())));
    }
}
