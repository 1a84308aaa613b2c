//! Which interfaces are there, with which role and which addresses? Watches netlink for links, default
//! routes and addresses.

mod addresses;
mod state;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rtnetlink::{MulticastGroup, new_multicast_connection};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

pub use self::addresses::Primary;
use self::state::{Heard, State};
use super::Error;
use super::roles::{Interface, Overrides};

/// What changed about interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is there, is new or has another role than before.
    Is(Interface),
    /// It is gone; another one may have its index by now.
    Gone(u32),
    /// The addresses of all interfaces changed; these are all, in order.
    Addresses(Vec<IpAddr>),
    /// The primary addresses of interfaces changed; these are all, by index.
    Primaries(BTreeMap<u32, Primary>),
    /// All that are there, and all addresses, have been told at least once. Told again after netlink
    /// has lost messages: what has not changed may have been replaced by another of its name.
    Listed,
}

/// How long to wait before netlink is asked again after it failed.
const PAUSE: Duration = Duration::from_millis(200);

/// Tells all interfaces of this thread's network namespace, and then what changes, until the
/// receiver is gone. Where netlink loses messages or fails, everything is read again.
pub async fn watch(overrides: Overrides, changes: mpsc::Sender<Change>) {
    let mut known = Known::default();
    let mut told: Option<String> = None;
    while !changes.is_closed() {
        let failed = follow(&overrides, &mut known, &changes).await.err();
        let failed = failed.map(|error| error.to_string());
        // Once for as long as it fails, which may be at every pause.
        if let Some(error) = failed.as_ref().filter(|error| told.as_ref() != Some(*error)) {
            tracing::warn!(error, "the watch of interfaces failed; will be tried again");
        }
        told = failed;
        tokio::time::sleep(PAUSE).await;
    }
}

/// All interfaces of this thread's network namespace at this moment.
pub async fn list(overrides: &Overrides) -> Result<Vec<Interface>, Error> {
    let (connection, handle, _messages) =
        new_multicast_connection(&[]).map_err(Error::system("open a netlink socket"))?;
    let driver = tokio::spawn(connection);
    let state = State::read(&handle).await;
    driver.abort();
    Ok(state?.interfaces(overrides))
}

/// What was told.
#[derive(Default)]
struct Known {
    interfaces: BTreeMap<u32, Interface>,
    addresses: Option<Vec<IpAddr>>,
    primaries: BTreeMap<u32, Primary>,
}

async fn follow(
    overrides: &Overrides,
    known: &mut Known,
    changes: &mpsc::Sender<Change>,
) -> Result<(), Error> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
    ];
    let (connection, handle, mut messages) =
        new_multicast_connection(&groups).map_err(Error::system("open a netlink socket"))?;
    // Ends with this function.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let mut state = State::read(&handle).await?;
    if !tell(&mut state, overrides, known, changes).await
        || changes.send(Change::Listed).await.is_err()
    {
        return Ok(());
    }
    loop {
        let next = tokio::select! {
            next = messages.next() => next,
            () = changes.closed() => return Ok(()),
        };
        let Some((first, _)) = next else { return Ok(()) };
        let mut heard = state.take(first.payload);
        // A burst is one change.
        while let Some(Some((message, _))) = messages.next().now_or_never() {
            heard = heard.max(state.take(message.payload));
        }
        if heard == Heard::Lost {
            tracing::warn!("netlink lost messages on interfaces; all are read again");
            return Ok(());
        }
        if heard == Heard::Routes {
            state.read_default_routes(&handle).await?;
        }
        if !tell(&mut state, overrides, known, changes).await {
            return Ok(());
        }
    }
}

/// Sends the difference; false when nobody listens any more.
async fn tell(
    state: &mut State,
    overrides: &Overrides,
    known: &mut Known,
    changes: &mpsc::Sender<Change>,
) -> bool {
    if let Some((addresses, primaries)) = state.new_addresses() {
        if known.addresses.as_ref() != Some(&addresses) {
            known.addresses = Some(addresses.clone());
            if changes.send(Change::Addresses(addresses)).await.is_err() {
                return false;
            }
        }
        if known.primaries != primaries {
            known.primaries.clone_from(&primaries);
            if changes.send(Change::Primaries(primaries)).await.is_err() {
                return false;
            }
        }
    }
    let known = &mut known.interfaces;
    let now = state.interfaces(overrides).into_iter();
    let now: BTreeMap<u32, Interface> = now.map(|i| (i.index, i)).collect();
    for index in state.take_gone() {
        // If it is there again, it is another one, whatever it is called.
        if now.contains_key(&index)
            && known.remove(&index).is_some()
            && changes.send(Change::Gone(index)).await.is_err()
        {
            return false;
        }
    }
    for &index in known.keys().filter(|index| !now.contains_key(index)) {
        if changes.send(Change::Gone(index)).await.is_err() {
            return false;
        }
    }
    for (index, interface) in &now {
        if known.get(index) != Some(interface)
            && changes.send(Change::Is(interface.clone())).await.is_err()
        {
            return false;
        }
    }
    *known = now;
    true
}
