//! Whose sockets does the socket engine serve? The flags that say so, each checked before anything is
//! done.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lb_agent::datapath::Scope;
use lb_agent::namespaces;
use lb_common::abi::{BYPASS_CGROUPS, BypassCgroup};

use super::args;
use super::error::Error;

/// Whose sockets are translated when they connect. The packet engine serves pods in any case.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Socket engine")]
pub(super) struct SocketArgs {
    /// Whose sockets are translated when they connect; others leave it to the packet engine
    #[arg(long, value_enum, value_name = "WHOSE", default_value = "all")]
    socket_engine: Engine,
    /// Cgroup whose processes' sockets are left alone, with all below it; up to eight times
    ///
    /// Pods that redirect what they send, as service meshes do, are found without it.
    #[arg(long, value_name = "DIR", value_parser = args::absolute)]
    bypass_cgroup: Vec<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Engine {
    /// Those of all processes below the node's cgroup
    All,
    /// Those in the node's own network namespace
    Host,
    /// Nobody's: host processes reach no Service
    Off,
}

impl SocketArgs {
    /// Whose.
    pub(super) fn scope(&self) -> Scope {
        match self.socket_engine {
            Engine::All => Scope::All,
            Engine::Host => Scope::Host,
            Engine::Off => Scope::Off,
        }
    }

    /// The cgroups that are left alone.
    pub(super) fn bypass(&self) -> Result<Vec<BypassCgroup>, Error> {
        const FLAG: &str = "--bypass-cgroup";
        if self.bypass_cgroup.len() > BYPASS_CGROUPS as usize {
            let reason = format!(
                "given {} times, and at most {BYPASS_CGROUPS} are possible; name a cgroup above them",
                self.bypass_cgroup.len()
            );
            return Err(Error::flag(FLAG, reason));
        }
        let each = self.bypass_cgroup.iter().map(|path| {
            namespaces::bypass_cgroup(path).map_err(|error| Error::flag(FLAG, error.to_string()))
        });
        each.collect()
    }

    /// The cookie of the node's network namespace; 0 if the kernel does not tell. Call it there.
    pub(super) fn node_netns(&self) -> Result<u64, Error> {
        match namespaces::own_cookie() {
            Ok(cookie) => Ok(cookie),
            Err(error) if self.socket_engine == Engine::Host => Err(Error::flag(
                "--socket-engine",
                format!(
                    "`host` needs a kernel that tells network namespaces apart (SO_NETNS_COOKIE, \
                     5.14): {error}"
                ),
            )),
            Err(_) => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(cgroups: &[&str]) -> SocketArgs {
        let bypass_cgroup = cgroups.iter().map(PathBuf::from).collect();
        SocketArgs { socket_engine: Engine::All, bypass_cgroup }
    }

    #[test]
    fn cgroups_that_cannot_be_left_alone_are_refused_by_the_flags_name() {
        for (bad, why) in [
            (&["/proc"][..], "/proc is not a folder of cgroup2"),
            (&["/no/such/folder"], "/no/such/folder"),
            (&["/proc"; 9], "given 9 times"),
        ] {
            let error = arguments(bad).bypass().unwrap_err().to_string();
            assert!(error.starts_with("--bypass-cgroup: ") && error.contains(why), "{error}");
        }
        assert_eq!(arguments(&[]).bypass().unwrap(), []);
    }
}
