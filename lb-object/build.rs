//! Puts the kernel programs where this crate embeds them from: `$OUT_DIR/lb-ebpf.o.deflated`, a
//! quarter of their size.
//!
//! `cargo xtask build` builds the object; `MILLRACE_BPF_OBJECT` names another one. Without either
//! the file is empty, so that check, clippy and host tests need no BPF linker; who loads it then says
//! at run time what to do.

use std::env;
use std::fs;
use std::path::PathBuf;

const VARIABLE: &str = "MILLRACE_BPF_OBJECT";
/// Of deflating, from 0 to 10: higher ones take seconds and save next to nothing.
const LEVEL: u8 = 8;

fn main() -> Result<(), String> {
    let folder = |name| {
        env::var_os(name).map(PathBuf::from).ok_or_else(|| format!("cargo did not set {name}"))
    };
    let usual = folder("CARGO_MANIFEST_DIR")?.join("../target/bpf/lb-ebpf.o");
    let named = env::var_os(VARIABLE).map(PathBuf::from);
    let object = match &named {
        Some(path) if !path.is_file() => {
            return Err(format!("{VARIABLE} names {}: no such file", path.display()));
        }
        Some(path) => path,
        None => &usual,
    };
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    // A file that is not there yet counts as changed, and so is looked for at every build.
    println!("cargo::rerun-if-changed={}", object.display());

    let bytes = if object.is_file() {
        fs::read(object).map_err(|error| format!("cannot read {}: {error}", object.display()))?
    } else {
        Vec::new()
    };
    let deflated =
        if bytes.is_empty() { bytes } else { miniz_oxide::deflate::compress_to_vec(&bytes, LEVEL) };
    let embedded = folder("OUT_DIR")?.join("lb-ebpf.o.deflated");
    fs::write(&embedded, deflated)
        .map_err(|error| format!("cannot write {}: {error}", embedded.display()))
}
