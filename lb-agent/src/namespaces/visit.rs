//! How is something done in other network namespaces? By a thread that ends with it: no thread that
//! does anything else is ever elsewhere than in the node's own.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::thread;

use super::scan;
use crate::datapath;

/// A network namespace to go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Its inode.
    pub(super) inode: u64,
    /// A process in it; none for the namespace of the thread that asks.
    pub(super) pid: Option<u32>,
}

/// Does the same in one namespace after the other, on one thread of its own. A namespace that is
/// gone by then, or that may not be entered, has an error.
pub(super) fn visit<T: Send>(
    places: &[Place],
    work: impl Fn(&Place) -> io::Result<T> + Sync,
) -> Vec<(Place, io::Result<T>)> {
    let go = || {
        let home = File::open("/proc/thread-self/ns/net");
        let mut away = false;
        let mut results = Vec::with_capacity(places.len());
        for place in places {
            let there = match (place.pid, away, &home) {
                (Some(pid), ..) => enter(pid, place.inode).map(|()| away = true),
                (None, false, _) => Ok(()),
                (None, true, Ok(home)) => datapath::enter_netns(home).map(|()| away = false),
                (None, true, Err(error)) => Err(error.kind().into()),
            };
            results.push((*place, there.and_then(|()| work(place))));
        }
        results
    };
    let failed = |why: &str| {
        let each = places.iter().map(|place| (*place, Err(io::Error::other(why.to_owned()))));
        each.collect()
    };
    thread::scope(|scope| {
        let visitor = thread::Builder::new().name("visitor".into()).spawn_scoped(scope, go);
        match visitor.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(results)) => results,
            Ok(Err(_)) => failed("the thread that was there panicked"),
            Err(error) => failed(&format!("no thread could be started: {error}")),
        }
    })
}

/// Moves this thread to the namespace of a process, if it is still the expected one.
fn enter(pid: u32, inode: u64) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    if namespace.metadata()?.ino() != inode {
        return Err(io::ErrorKind::NotFound.into());
    }
    datapath::enter_netns(&namespace)?;
    debug_assert_eq!(scan::own().ok(), Some(inode));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_at_home_needs_no_rights_and_a_place_that_is_gone_is_an_error() {
        let own = scan::own().unwrap();
        let gone = Place { inode: 1, pid: Some(std::process::id()) };
        let results = visit(&[Place { inode: own, pid: None }, gone], |_| scan::own());
        let [(_, Ok(inode)), (place, Err(error))] = &results[..] else { panic!("{results:?}") };
        assert_eq!((*inode, *place), (own, gone));
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_panic_on_the_way_is_an_error_everywhere() {
        let home = Place { inode: scan::own().unwrap(), pid: None };
        let results = visit(&[home], |_| -> io::Result<()> { panic!("on purpose") });
        assert!(results[0].1.as_ref().unwrap_err().to_string().contains("panicked"));
    }
}
