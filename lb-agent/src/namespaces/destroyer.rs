//! Which connected UDP sockets have lost what they were connected to? They are ended, so that the
//! application connects anew.
//!
//! A UDP socket that was connected through us names its backend, and the kernel asks nobody again. A
//! resolver would wait for answers of a pod that is gone for as long as it runs. A socket is ended
//! for one of two reasons, and never for its backend's address alone:
//!
//! 1. `UDP_SOCKETS` or `HOST_UDP_SOCKETS` says that `connect` translated it, and to a backend that
//!    does not serve any more (U-1, U-2, U-4, U-6). That it is connected to this very backend is
//!    checked, too.
//! 2. Nobody translated it, its peer is a VIP whose service port lost a backend or that is gone, and
//!    the socket engine serves it: it was opened before Millrace was there, or before the Service.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Mutex;

use super::cgroup;
use super::changed::Changed;
use super::ledger::Ledger;
use super::sock_diag::{Connected, SockDiag};
use super::visit::{Place, visit};
use crate::datapath::Error;
use crate::datapath::namespaces::{NamespaceMaps, UdpSocket, front_key};
use crate::plan::words;

/// How often a socket is looked for that has a record. It may not be connected yet, or not any more,
/// or be in a namespace that cannot be entered.
const TRIES: u8 = 5;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Sockets ended because their backend does not serve any more.
    pub(super) dead_backend: u64,
    /// Sockets ended because of their VIP.
    pub(super) vip: u64,
    /// Namespaces that were looked through.
    pub(super) namespaces: usize,
    /// Records whose sockets were not found, to be looked for again.
    pub(super) unfound: usize,
}

/// Ends sockets.
#[derive(Debug)]
pub(super) struct Destroyer {
    cgroup: PathBuf,
    /// Ids of the cgroups that are left alone.
    bypass: Vec<u64>,
    /// Sockets that were looked for, each with the backend it had and how often.
    tried: HashMap<u64, (UdpSocket, u8)>,
    /// Failures are told once for each cause.
    told: HashSet<i32>,
}

/// Why a socket is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    DeadBackend,
    Vip,
}

impl Destroyer {
    pub(super) fn new(cgroup: PathBuf, bypass: Vec<u64>) -> Self {
        Self { cgroup, bypass, tried: HashMap::new(), told: HashSet::new() }
    }

    /// Ends the sockets that have lost what they were connected to. Call it when what changed is in
    /// force, and no program can be choosing by what was before (U-8).
    pub(super) fn run(
        &mut self,
        maps: &NamespaceMaps,
        ledger: &Ledger,
        changed: &Changed,
    ) -> Result<Outcome, Error> {
        let ours: HashMap<u64, UdpSocket> = maps.udp_sockets()?.into_iter().collect();
        let dead = self.dead(&ours, |socket| maps.serves(socket));
        let places = ledger.places();
        if (dead.is_empty() && changed.is_empty()) || places.is_empty() {
            return Ok(Outcome::default());
        }
        let destroyed = Mutex::new(HashSet::new());
        let results = visit(&places, |place| {
            let looks = Looks {
                dead: &dead,
                ours: &ours,
                maps,
                changed,
                in_node: ledger.is_own(place.inode),
                is_served: ledger.is_served(place.inode),
                served_cgroups: &|| cgroup::ids_below(&self.cgroup, &self.bypass),
            };
            looks.go(|cookie| drop(destroyed.lock().map(|mut all| all.insert(cookie))))
        });
        let destroyed = destroyed.into_inner().unwrap_or_default();
        let mut outcome = Outcome { namespaces: places.len(), ..Outcome::default() };
        for (place, result) in results {
            match result {
                Ok((dead_backend, vip)) => {
                    outcome.dead_backend += dead_backend;
                    outcome.vip += vip;
                }
                Err(error) => self.tell(&place, &error),
            }
        }
        for (cookie, socket) in dead {
            let tries = self.tried.get(&cookie).map_or(0, |(_, tries)| *tries);
            let tries = if destroyed.contains(&cookie) { TRIES } else { tries + 1 };
            outcome.unfound += usize::from(tries < TRIES);
            self.tried.insert(cookie, (socket, tries));
        }
        Ok(outcome)
    }

    /// The sockets on backends that do not serve any more, without those that have been looked for
    /// often enough. Their records stay until they are closed.
    fn dead(
        &mut self,
        ours: &HashMap<u64, UdpSocket>,
        serves: impl Fn(&UdpSocket) -> bool,
    ) -> HashMap<u64, UdpSocket> {
        // A socket that was connected anew counts anew.
        self.tried.retain(|cookie, (socket, _)| ours.get(cookie) == Some(socket));
        let given_up =
            |cookie: &u64| self.tried.get(cookie).is_some_and(|(_, tries)| *tries >= TRIES);
        let dead = ours.iter().filter(|(cookie, socket)| !given_up(cookie) && !serves(socket));
        dead.map(|(cookie, socket)| (*cookie, *socket)).collect()
    }

    fn tell(&mut self, place: &Place, error: &io::Error) {
        let netns = place.inode;
        if error.kind() == io::ErrorKind::NotFound {
            return;
        }
        if !self.told.insert(error.raw_os_error().unwrap_or_default()) {
            tracing::debug!(netns, %error, "UDP sockets there stay as they are");
        } else if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
            tracing::warn!(
                "the kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY is missing): connected \
                 UDP sockets stay on backends that are gone"
            );
        } else {
            tracing::warn!(
                netns,
                %error,
                "UDP sockets there that are connected to a backend that is gone cannot be ended"
            );
        }
    }
}

/// What is needed to judge the sockets of one namespace.
struct Looks<'a> {
    dead: &'a HashMap<u64, UdpSocket>,
    ours: &'a HashMap<u64, UdpSocket>,
    maps: &'a NamespaceMaps,
    changed: &'a Changed,
    in_node: bool,
    is_served: bool,
    served_cgroups: &'a (dyn Fn() -> io::Result<HashSet<u64>> + Sync),
}

impl Looks<'_> {
    /// Ends what is to be ended in the namespace of this thread. Tells how many, by reason.
    fn go(&self, done: impl Fn(u64)) -> io::Result<(u64, u64)> {
        let mut diag = SockDiag::open()?;
        let mut victims = Vec::new();
        let cgroups = OnceCell::new();
        let in_served_cgroup = |socket: &Connected| {
            let ids = cgroups.get_or_init(|| (self.served_cgroups)().unwrap_or_default());
            socket.cgroup.is_some_and(|id| ids.contains(&id))
        };
        diag.connected(|socket| {
            let reason = judge(&socket, self.dead, self.ours, |socket| {
                self.is_served && self.lost_vip(socket) && in_served_cgroup(socket)
            });
            victims.extend(reason.map(|reason| (socket, reason)));
        })?;
        let (mut dead_backend, mut vip) = (0, 0);
        for (socket, reason) in victims {
            if diag.destroy(&socket)? {
                done(socket.cookie);
                match reason {
                    Reason::DeadBackend => dead_backend += 1,
                    Reason::Vip => vip += 1,
                }
            }
        }
        Ok((dead_backend, vip))
    }

    /// Whether the peer is a VIP whose service port lost a backend, or that is gone, or new.
    fn lost_vip(&self, socket: &Connected) -> bool {
        let changed = self.changed;
        if changed.is_empty() {
            return false;
        }
        let key = front_key(socket.peer);
        // What a pod sends to a new VIP is taken up by the packet engine.
        changed.gone.contains(&key)
            || self.in_node && changed.new.contains(&key)
            || self.maps.service_port(&key).is_some_and(|id| changed.ports.contains(&id))
    }
}

/// Whether a socket is to be ended, and why.
fn judge(
    socket: &Connected,
    dead: &HashMap<u64, UdpSocket>,
    ours: &HashMap<u64, UdpSocket>,
    lost_vip: impl FnOnce(&Connected) -> bool,
) -> Option<Reason> {
    if let Some(record) = dead.get(&socket.cookie) {
        let there =
            (record.peer, record.peer_port) == (words(socket.peer.ip()), socket.peer.port());
        return there.then_some(Reason::DeadBackend);
    }
    let known = ours.contains_key(&socket.cookie);
    (!known && lost_vip(socket)).then_some(Reason::Vip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(peer: &str, backend: u32) -> UdpSocket {
        let peer: std::net::SocketAddr = peer.parse().unwrap();
        UdpSocket { peer: words(peer.ip()), peer_port: peer.port(), backend, generation: 1 }
    }

    #[test]
    fn u7_a_socket_is_ended_for_its_own_record_or_its_vip_and_never_for_an_address_alone() {
        let ours = HashMap::from([
            (1, record("10.0.0.1:53", 1)),
            (2, record("10.0.0.2:53", 2)),
            (3, record("[fd00::1]:53", 3)),
        ]);
        let dead: HashMap<_, _> =
            ours.iter().filter(|(c, _)| **c != 2).map(|(c, s)| (*c, *s)).collect();
        let judge = |cookie, peer: &str, vip| {
            judge(&Connected::test(cookie, peer.parse().unwrap()), &dead, &ours, |_| vip)
        };
        assert_eq!(judge(1, "10.0.0.1:53", false), Some(Reason::DeadBackend));
        assert_eq!(judge(3, "[fd00::1]:53", true), Some(Reason::DeadBackend));
        assert_eq!(judge(1, "10.0.0.9:53", true), None, "it has connected elsewhere meanwhile");
        assert_eq!(judge(1, "10.0.0.1:54", true), None);
        assert_eq!(judge(2, "10.0.0.2:53", true), None, "its backend serves");
        assert_eq!(judge(9, "10.0.0.1:53", false), None, "not through us, to the same address");
        assert_eq!(judge(9, "10.96.0.10:53", true), Some(Reason::Vip));
    }

    #[test]
    fn a_socket_that_is_not_found_is_given_up_and_counts_again_when_it_connects_anew() {
        let mut destroyer = Destroyer::new(PathBuf::new(), Vec::new());
        let socket = record("10.0.0.1:53", 1);
        let ours = HashMap::from([(1, socket), (2, record("10.0.0.2:53", 2))]);
        let serves = |socket: &UdpSocket| socket.backend == 2;
        assert_eq!(destroyer.dead(&ours, serves), HashMap::from([(1, socket)]));
        destroyer.tried.insert(1, (socket, TRIES - 1));
        assert_eq!(destroyer.dead(&ours, serves).len(), 1);
        destroyer.tried.insert(1, (socket, TRIES));
        assert_eq!(destroyer.dead(&ours, serves), HashMap::new());
        let again = UdpSocket { generation: 2, ..socket };
        let ours = HashMap::from([(1, again)]);
        assert_eq!(destroyer.dead(&ours, serves), HashMap::from([(1, again)]));
        assert!(destroyer.dead(&HashMap::new(), serves).is_empty());
        assert!(destroyer.tried.is_empty(), "closed sockets are forgotten");
    }
}
