//! Which flows are sent on under an address that the node has no more? They are ended: answers to them go
//! to somebody else, and the packets of their clients would keep them for ever.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use lb_common::abi::{Flow, V4, map};

use super::batch::Hash;
use super::{Error, Grace, sys};

/// Bytes of a flow's record before its addresses.
const BEFORE_ADDRESSES: usize = 8;
/// Bytes between its addresses and its flags.
const PORTS: usize = 4;

/// Ends flows on a thread of its own, which is there while there are any to end.
#[derive(Debug)]
pub(super) struct Flows(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    grace: Grace,
    /// The tables of each family.
    tables: [[OwnedFd; 2]; 2],
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// Addresses that are gone.
    gone: BTreeSet<IpAddr>,
    /// There is a thread that will look.
    running: bool,
}

impl Flows {
    /// Opens what is pinned in a folder.
    pub(super) fn open(folder: &Path, grace: Grace) -> Result<Self, Error> {
        let open = |name| {
            let path = folder.join(name);
            sys::object_get(&path)
                .map_err(Error::system(format!("open the pinned map {}", path.display())))
        };
        Ok(Self(Arc::new(Shared {
            grace,
            tables: [
                [open(map::FLOWS4)?, open(map::HALF_OPEN4)?],
                [open(map::FLOWS6)?, open(map::HALF_OPEN6)?],
            ],
            asked: Mutex::default(),
        })))
    }

    /// Ends what is sent on under these addresses, in a while. Call it when programs do not use them any
    /// more.
    pub(super) fn end(&self, gone: &[IpAddr]) {
        let mut asked = self.0.asked();
        asked.gone.extend(gone);
        if asked.running {
            return;
        }
        let shared = Arc::clone(&self.0);
        match thread::Builder::new().name("flows".to_owned()).spawn(move || shared.work()) {
            Ok(_) => asked.running = true,
            Err(error) => tracing::warn!(%error, ?gone, "{KEPT}"),
        }
    }
}

/// What it means if flows cannot be ended.
const KEPT: &str = "connections that were sent on under addresses that the node has no more stay";

impl Shared {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let gone = {
                let mut asked = self.asked();
                asked.running = !asked.gone.is_empty();
                std::mem::take(&mut asked.gone)
            };
            if gone.is_empty() {
                return;
            }
            match self.sweep(&gone) {
                Ok(records) => tracing::info!(
                    ?gone,
                    records,
                    "connections that were sent on under addresses that the node has no more are ended"
                ),
                Err(error) => tracing::warn!(%error, ?gone, "{KEPT}"),
            }
        }
    }

    /// How many records are gone.
    fn sweep(&self, gone: &BTreeSet<IpAddr>) -> io::Result<u64> {
        // A program may be making a record under an address that was the node's when it asked.
        self.grace.wait()?;
        let mut ended = 0;
        for (tables, is_v6) in self.tables.iter().zip([false, true]) {
            let gone: BTreeSet<Vec<u8>> =
                gone.iter().filter(|addr| addr.is_ipv6() == is_v6).map(octets).collect();
            if gone.is_empty() {
                continue;
            }
            for table in tables {
                let hash = Hash::to_read(table.as_fd())?;
                hash.for_each(|key, value| {
                    if own_address(key, value).is_some_and(|own| gone.contains(own)) {
                        // Who is not there any more need not be deleted.
                        ended += u64::from(hash.delete(key).is_ok());
                    }
                })?;
            }
        }
        Ok(ended)
    }
}

fn octets(addr: &IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

/// The address of this node under which a flow is sent on, from the bytes of a record of either
/// direction; none of any other.
fn own_address<'a>(key: &'a [u8], value: &'a [u8]) -> Option<&'a [u8]> {
    // A key is two addresses and eight bytes.
    let len = key.len().checked_sub(8)? / 2;
    let addresses = value.get(BEFORE_ADDRESSES..)?;
    let flags = addresses.get(2 * len + PORTS..)?.first_chunk().copied().map(u32::from_ne_bytes)?;
    if flags & Flow::<V4>::FORWARDED == 0 {
        return None;
    }
    if flags & Flow::<V4>::REPLY == 0 { addresses.get(..len) } else { key.get(len..2 * len) }
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use lb_common::abi::{FlowKey, V6};

    use super::*;

    #[test]
    fn flows_that_are_sent_on_tell_under_which_address() {
        assert_eq!(offset_of!(Flow<V4>, src), BEFORE_ADDRESSES);
        assert_eq!(offset_of!(Flow<V6>, flags), BEFORE_ADDRESSES + 32 + PORTS);
        for (len, key_size, value_size) in [
            (4, size_of::<FlowKey<V4>>(), size_of::<Flow<V4>>()),
            (16, size_of::<FlowKey<V6>>(), size_of::<Flow<V6>>()),
        ] {
            let (mut key, mut value) = (vec![1; key_size], vec![0; value_size]);
            key[len..2 * len].fill(2);
            value[BEFORE_ADDRESSES..][..len].fill(3);
            let mut with = |flags: u32| {
                let at = BEFORE_ADDRESSES + 2 * len + PORTS;
                value[at..at + 4].copy_from_slice(&flags.to_ne_bytes());
                own_address(&key, &value).map(<[u8]>::to_vec)
            };
            let (forwarded, reply) = (Flow::<V4>::FORWARDED, Flow::<V4>::REPLY);
            assert_eq!(with(0), None);
            assert_eq!(with(reply | Flow::<V4>::HAIRPIN), None);
            assert_eq!(with(forwarded), Some(vec![3; len]), "what becomes the source");
            assert_eq!(with(forwarded | reply), Some(vec![2; len]), "what was answered to");
        }
        assert_eq!(own_address(&[], &[]), None);
    }
}
