//! Records what the kernel's netfilter makes of packets, into `cases/netfilter`; called by
//! `cargo xtask bless`, as root.

use anyhow::Result;
use lab::packets::{capture, netfilter};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

fn main() -> Result<()> {
    let folder = netfilter::folder();
    let cases = capture::record(&folder)?;
    // The files belong to whom the checkout belongs, although root wrote them.
    let owner = Path::new(env!("CARGO_MANIFEST_DIR")).metadata()?;
    for entry in std::fs::read_dir(&folder)? {
        chown(entry?.path(), Some(owner.uid()), Some(owner.gid()))?;
    }
    chown(&folder, Some(owner.uid()), Some(owner.gid()))?;
    println!("{cases} cases recorded in {}", folder.display());
    Ok(())
}
