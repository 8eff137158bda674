//! Embeds the eBPF object that `cargo xtask build-ebpf` made, if there is one.
//!
//! It never builds the object: `cargo test` of the pure layers then runs on any machine.
//! Without an object the crate compiles with `cfg(no_object)` and the agent says so.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(no_object)");
    println!("cargo::rerun-if-env-changed=WEIR_EBPF_OBJ");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("lb-ebpf.o");
    let named = env::var_os("WEIR_EBPF_OBJ").filter(|value| !value.is_empty()).map(PathBuf::from);
    let object = match named {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            object
        }
        None => {
            let manifest = env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
            let folder = Path::new(&manifest).join("../target/bpf");
            // A path that is not there would make every build run this script again; a folder
            // that is there is watched for what appears in it. Where it cannot be made (a
            // read-only checkout) nothing can appear either.
            if fs::create_dir_all(&folder).is_ok() {
                println!("cargo::rerun-if-changed={}", folder.display());
            }
            folder.join("lb-ebpf.o")
        }
    };
    if let Err(error) = fs::copy(&object, &out) {
        println!("cargo::rustc-cfg=no_object");
        if error.kind() != std::io::ErrorKind::NotFound {
            println!("cargo::warning=cannot read {}: {error}", object.display());
        }
    }
}
