//! When can no program be reading what was taken out of use?
//!
//! BPF programs run inside of RCU read sections. `membarrier(GLOBAL)` waits for all of them; where
//! a sandbox refuses it, an update of a map of maps does too. Both block for some milliseconds, so
//! they belong on a thread of their own.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::sys;

/// How to wait for a grace period; cheap to clone and to send to another thread.
#[derive(Clone, Debug)]
pub struct Grace(Kind);

#[derive(Clone, Debug)]
enum Kind {
    None,
    Membarrier,
    MapInMap(Arc<(OwnedFd, OwnedFd)>),
}

impl Grace {
    /// Nobody reads: for maps in memory.
    pub fn none() -> Self {
        Self(Kind::None)
    }

    /// Finds what this system allows. Waits for one grace period.
    pub fn probe() -> io::Result<Self> {
        match sys::membarrier() {
            Ok(()) => Ok(Self(Kind::Membarrier)),
            Err(_) => Self::map_in_map(),
        }
    }

    fn map_in_map() -> io::Result<Self> {
        Ok(Self(Kind::MapInMap(Arc::new(sys::map_in_map()?))))
    }

    /// Blocks until every program that runs now has ended.
    pub fn wait(&self) -> io::Result<()> {
        match &self.0 {
            Kind::None => Ok(()),
            Kind::Membarrier => sys::membarrier(),
            Kind::MapInMap(maps) => sys::map_in_map_update(maps.0.as_fd(), maps.1.as_fd()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn membarrier_is_counted() {
        let before = sys::calls().membarrier;
        Grace(Kind::Membarrier).wait().unwrap();
        assert!(sys::calls().membarrier > before);
    }
    #[test]
    fn a_map_of_maps_takes_the_place_of_membarrier() {
        let grace = match Grace::map_in_map() {
            Ok(grace) => grace,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let name = "a_map_of_maps_takes_the_place_of_membarrier";
                drop(writeln!(io::stderr(), "skipped: {name}: needs root; run `cargo xtask test`"));
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let before = sys::calls().bpf;
        grace.clone().wait().unwrap();
        assert!(sys::calls().bpf > before);
    }
}
