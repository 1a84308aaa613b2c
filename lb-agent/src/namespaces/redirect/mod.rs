//! Does a network namespace redirect what its own processes send?
//!
//! Service meshes put rules into the namespace of each pod that lead what is sent to a proxy beside
//! the application, which wants to see the address that the application asked for. What looks for
//! such rules must not leave a trace: no kernel module is loaded and no table is made by asking.

mod iptables;
mod nft;

use std::fmt;
use std::fs;
use std::io;
use std::sync::OnceLock;

use serde::Serialize;

/// Where rules were found by which packets that leave are redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Redirect {
    /// nftables, also by way of `iptables-nft`.
    Nftables,
    /// The older `iptables`.
    Iptables,
    /// The older `ip6tables`.
    Ip6tables,
}

impl fmt::Display for Redirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ip6tables => "ip6tables",
        };
        write!(f, "nat REDIRECT rules in OUTPUT ({by})")
    }
}

/// Looks for such rules in the network namespace of this thread.
pub(super) fn find() -> io::Result<Option<Redirect>> {
    if has_nftables() && nft::redirects()? {
        return Ok(Some(Redirect::Nftables));
    }
    for (family, found) in
        [(iptables::Family::V4, Redirect::Iptables), (iptables::Family::V6, Redirect::Ip6tables)]
    {
        if iptables::redirects(family)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Whether nftables is in the kernel: to ask it otherwise would load its module.
fn has_nftables() -> bool {
    static BUILT_IN: OnceLock<bool> = OnceLock::new();
    // Not there where the kernel knows no modules, and then nothing can be loaded.
    let Ok(modules) = fs::read_to_string("/proc/modules") else { return true };
    loaded(&modules, "nf_tables") || *BUILT_IN.get_or_init(built_in)
}

fn loaded(modules: &str, name: &str) -> bool {
    modules.lines().any(|line| line.split(' ').next() == Some(name))
}

/// The types of the kernel proper include those of what is built into it.
fn built_in() -> bool {
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
    lb_object::Btf::parse(&types).is_some_and(|types| types.function("nft_do_chain").is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_loaded_when_it_is_listed_under_just_that_name() {
        let modules = "nf_tables_set 1 0 - Live 0x0\nnft_chain_nat 2 1 nf_tables, Live 0x0\n";
        assert!(!loaded(modules, "nf_tables"));
        assert!(loaded(modules, "nft_chain_nat"));
    }

    #[test]
    fn this_machine_can_be_asked() {
        // Whatever it answers: rules of the machine that tests run on are its own business. Without
        // rights, the kernel refuses.
        if let Err(error) = find() {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        }
    }
}
