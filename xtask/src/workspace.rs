//! Where things are: the checkout, the pinned toolchain, and what the commands build.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest.parent().map_or_else(|| manifest.clone(), Path::to_path_buf)
}

/// Everything that no commit holds and that may be deleted at any time.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Where cargo puts what it builds for the host.
pub(crate) fn host_target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(target, PathBuf::from)
}

/// Where cargo keeps the sources of dependencies.
pub(crate) fn cargo_home() -> PathBuf {
    let usual = || env::home_dir().unwrap_or_default().join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(usual, PathBuf::from)
}

/// Tools built for this checkout alone; the user's `~/.cargo/bin` is left as it is.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// Cargo's folder for the kernel programs: apart from the host's, whose builds would otherwise be
/// invalidated by other flags.
pub(crate) fn bpf() -> PathBuf {
    target().join("bpf")
}

/// The kernel programs as one ELF object, where `lb-object/build.rs` looks for it.
pub(crate) fn object() -> PathBuf {
    bpf().join("lb-ebpf.o")
}

/// The same with log calls (`--debug`); beside the other, so that neither overwrites the other.
pub(crate) fn debug_object() -> PathBuf {
    bpf().join("lb-ebpf-log.o")
}

/// The agent as built for the host.
pub(crate) fn agent(release: bool) -> PathBuf {
    let profile = if release { "release" } else { "debug" };
    host_target().join(profile).join("lb-agent")
}

/// The compiler version of `rust-toolchain.toml`.
pub(crate) fn toolchain() -> Result<String> {
    let path = root().join("rust-toolchain.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    channel(&text)
        .map(str::to_owned)
        .with_context(|| format!("{} names no channel", path.display()))
}

fn channel(text: &str) -> Option<&str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(key, _)| key.trim() == "channel")
        .map(|(_, value)| value.trim().trim_matches('"'))
}

/// Files below `folder`, by path; what version control and cargo keep for themselves is left out.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder)
            .with_context(|| format!("cannot list the folder {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            let name = entry.file_name();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if name != "target" && name != ".git" {
                    folders.push(entry.path());
                }
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channel_is_read_from_the_toolchain_file() {
        let text = "[toolchain]\nchannel = \"1.95.0\"\ncomponents = [\"rust-src\"]\n";
        assert_eq!(channel(text), Some("1.95.0"));
        assert_eq!(channel("[toolchain]\ncomponents = []\n"), None);
    }
}
