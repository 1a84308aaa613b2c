//! What do the network namespaces of this node mean for its sockets?
//!
//! A thread of its own knows which there are. Of each it tells the programs the addresses, so that
//! session affinity knows a client before it has an address, and whether it is to be left alone,
//! because it redirects what it sends itself, as service meshes do. And when backends go, it ends the
//! UDP sockets that are connected to them, wherever they are.
//!
//! The loop only says what it has committed, and that interfaces have changed; nothing here ever
//! holds it up.

mod cgroup;
mod changed;
mod destroyer;
mod keeper;
mod ledger;
mod look;
mod netlink;
mod redirect;
mod scan;
mod sock_diag;
mod sockopt;
pub mod survey;
mod visit;

use std::path::PathBuf;
use std::sync::Arc;

use lb_common::abi::{BypassCgroup, MetaWord};

use self::changed::Changed;
use self::keeper::{Keeper, Signal};
use crate::datapath::namespaces::{NamespaceMaps, is_udp};
use crate::datapath::{Error, Grace, Maps, Scope};
use crate::diff::Op;

pub use self::cgroup::bypass as bypass_cgroup;

/// The cookie of this thread's network namespace; `ENOPROTOOPT` before kernel 5.14.
pub fn own_cookie() -> std::io::Result<u64> {
    sockopt::netns_cookie(netlink::Netlink::open(netlink_sys::protocols::NETLINK_ROUTE)?.socket())
}

/// What the thread needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of pins.
    pub folder: PathBuf,
    /// The node's cgroup.
    pub cgroup: PathBuf,
    /// Whose sockets are served.
    pub scope: Scope,
    /// The cgroups that are left alone; at most [`lb_common::abi::BYPASS_CGROUPS`].
    pub bypass: Vec<BypassCgroup>,
}

/// How the loop tells what has happened.
#[derive(Debug)]
pub struct Handle {
    maps: Arc<Maps>,
    signal: Arc<Signal>,
}

/// Stores what is to be left alone, and starts the thread. Call it before hooks are attached, on a
/// thread in the node's network namespace.
pub fn start(config: &Config, shared: &Arc<Maps>, grace: Grace) -> Result<Handle, Error> {
    let mut maps = NamespaceMaps::open(&config.folder, Arc::clone(shared))?;
    maps.set_bypass_cgroups(&config.bypass)?;
    maps.maps().set_meta(MetaWord::SocketScope, config.scope.word());
    let signal = Arc::new(Signal::default());
    let keeper = Keeper::new(config, maps, grace, Arc::clone(&signal))?;
    std::thread::Builder::new()
        .name("namespaces".into())
        .spawn(move || keeper.run())
        .map_err(Error::system("start the thread that looks after namespaces"))?;
    Ok(Handle { maps: Arc::clone(shared), signal })
}

impl Handle {
    /// These operations are in force.
    pub fn committed(&self, ops: &[Op]) {
        let udp_port = |id| {
            let id = self.maps.backend(id)?.service_port;
            self.maps.name(id).filter(is_udp).map(|_| id)
        };
        self.signal.committed(Changed::of(ops, udp_port));
    }

    /// Interfaces came or went, and so, in a moment, may namespaces.
    pub fn interfaces_changed(&self) {
        self.signal.interfaces_changed();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.signal.stop();
    }
}
