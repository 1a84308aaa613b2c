//! What becomes of a new connection (sections 3.2, 3.4, 4.1, 5 and 14), and where Millrace departs
//! from kube-proxy on purpose.
//!
//! Departures, by the letters of the design:
//!
//! - a: external destination, client off this node, endpoint on it: the source is kept (M-2);
//! - b: a socket of this node keeps its source always, and what a pod is it knows without a
//!   detector; in packets the source is another one for a client off this node whose endpoint is off
//!   it too, for M-7 with such an endpoint, for `masqueradeAll`, and in a hairpin (M-2, M-4, M-5,
//!   M-6, M-7, M-9);
//! - c: what is dropped fails at a socket with EHOSTUNREACH;
//! - d: V-12 and V-13 act where a packet leaves the node, for everybody alike; V-13 leaves the other
//!   ports of an externalIP alone that is out of a `ServiceCIDR`; a port that no Service has at an
//!   address that only Services have is refused to who comes from off this node, because the packet
//!   would leave the way it came, and come again;
//! - f: SCTP has no hook at a socket; packets of the node's own sockets are not translated.
//!
//! What comes from off the node with a source that the node has is forged, and left to
//! the kernel, which refuses it.
//! Nothing that is delivered to the node itself is masqueraded, as in kube-proxy: it never leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::cluster::{Cluster, Detector, Family, Protocol};
use super::services::{Kind, Port, View};
use super::text::Range;

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// kube-proxy as the contract tells it, without departures.
    Contract,
    /// Millrace where a socket connects.
    Socket,
    /// Millrace where a packet passes.
    Packet,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A pod of this node with a network namespace of its own.
    Pod,
    /// The node's network namespace: a process, or a pod with `hostNetwork`.
    Host,
    /// Not this node.
    Elsewhere,
}

/// An interface by which packets arrive, as far as a local detector looks at it (section 4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// Its name; empty for what does not arrive, because it begins here.
    pub name: &'static str,
    /// The bridge that holds it.
    pub bridge: Option<&'static str>,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Where it is.
    pub place: Place,
    /// By which interface its packets arrive.
    pub link: Link,
    /// Its address, of the destination's family.
    pub ip: IpAddr,
    /// Endpoints for which it has a live affinity entry at the service port in question.
    pub affinity: BTreeSet<SocketAddr>,
}

impl Client {
    /// A client that never connected before, by an interface that no detector knows by name.
    pub fn new(place: Place, ip: IpAddr) -> Self {
        Self { place, link: Link::default(), ip, affinity: BTreeSet::new() }
    }

    /// The same by this interface.
    #[must_use]
    pub fn by(self, link: Link) -> Self {
        Self { link, ..self }
    }
}

/// What an endpoint sees as the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The client's address.
    Kept,
    /// Another one: the node's, or in a hairpin the VIP.
    Rewritten,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is none of the proxy's business.
    PassUntouched,
    /// An error packet, or ECONNREFUSED.
    Reject,
    /// Silence, or EHOSTUNREACH.
    Drop,
    /// It goes to one of these.
    Translate(BTreeMap<SocketAddr, Source>),
}

/// What the contract expects of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Who decides.
    pub engine: Engine,
    /// What becomes of it.
    pub verdict: Verdict,
    /// The rule that says so.
    pub rule: &'static str,
    /// What was asked for, and the index of its service port in [`View::ports`].
    pub found: Option<(Kind, usize)>,
    /// Those of its endpoints that are on this node: a packet to one of them is delivered here, to
    /// any other it is sent on to another node.
    pub here: BTreeSet<SocketAddr>,
}

/// What becomes of a new connection on this node.
pub fn expect(
    cluster: &Cluster,
    node: &str,
    engine: Engine,
    client: &Client,
    to: SocketAddr,
    protocol: Protocol,
) -> Expectation {
    View::new(cluster, node).expect(engine, client, to, protocol)
}

impl View {
    /// What becomes of a new connection.
    pub fn expect(
        &self,
        engine: Engine,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Expectation {
        let found = self.lookup(engine, client, to, protocol);
        let (verdict, rule) = match (engine, client.place, found) {
            (Engine::Socket, Place::Elsewhere, _) => (Verdict::PassUntouched, "not a socket here"),
            (Engine::Socket, ..) if protocol == Protocol::Sctp => {
                (Verdict::PassUntouched, "departure f")
            }
            (Engine::Packet, Place::Host, Some((kind, _))) if kind != Kind::ClusterIp => {
                (Verdict::PassUntouched, "departure f")
            }
            (Engine::Packet, Place::Host, Some(_)) => (Verdict::Reject, "V-12"),
            (Engine::Packet, Place::Elsewhere, Some((kind, _))) if self.is_of_node(client.ip) => {
                // Untranslated, it would leave the node again if the kernel let it.
                let again = kind == Kind::ClusterIp;
                (if again { Verdict::Reject } else { Verdict::PassUntouched }, "forged")
            }
            (_, _, Some((kind, port))) => self.at_frontend(engine, client, to, kind, port),
            (_, _, None) => self.elsewhere(engine, client.place, to.ip()),
        };
        let here = match (&verdict, found) {
            (Verdict::Translate(endpoints), Some((_, port))) => {
                let here = endpoints.keys().filter(|at| self.is_here(&self.ports[port], at));
                here.copied().collect()
            }
            _ => BTreeSet::new(),
        };
        Expectation { engine, verdict, rule, found, here }
    }

    /// C-2.
    fn lookup(
        &self,
        engine: Engine,
        client: &Client,
        to: SocketAddr,
        protocol: Protocol,
    ) -> Option<(Kind, usize)> {
        if let Some(&found) = self.captured.get(&(to, protocol)) {
            return Some(found);
        }
        let addresses = &self.node_port_addresses;
        let own_socket = engine == Engine::Socket && client.place == Place::Host;
        let eligible = addresses.open.contains(&to.ip())
            || (own_socket && addresses.loopback.contains(&to.ip())); // N-6
        let port = self.node_ports.get(&(Family::of(to.ip()), to.port(), protocol))?;
        eligible.then_some((Kind::NodePort, *port)) // V-11
    }

    /// The destination is no frontend.
    fn elsewhere(&self, engine: Engine, from: Place, to: IpAddr) -> (Verdict, &'static str) {
        if self.is_of_node(to) {
            (Verdict::PassUntouched, "C-6") // V-i: delivered here.
        } else if self.cluster_ips.contains(&to) {
            (Verdict::Reject, "V-12")
        } else if engine == Engine::Socket {
            (Verdict::PassUntouched, "C-6") // departure d: V-13 never at a socket
        } else if engine == Engine::Packet && self.captured.keys().any(|(at, _)| at.ip() == to) {
            let again = from == Place::Elsewhere;
            // An externalIP out of a ServiceCIDR for one.
            (if again { Verdict::Reject } else { Verdict::PassUntouched }, "departure d")
        } else if self.service_cidrs.iter().any(|cidr| cidr.contains(to)) {
            (Verdict::Drop, "V-13")
        } else {
            (Verdict::PassUntouched, "C-6")
        }
    }

    fn at_frontend(
        &self,
        engine: Engine,
        client: &Client,
        to: SocketAddr,
        kind: Kind,
        port: usize,
    ) -> (Verdict, &'static str) {
        let port = &self.ports[port];
        if kind == Kind::LoadBalancer && !self.is_allowed(port, client.ip) {
            return (Verdict::Drop, "V-5");
        }
        if !port.lists.has_any {
            return (Verdict::Reject, if kind == Kind::ClusterIp { "V-3" } else { "V-6" });
        }
        let local_pod = self.is_local_pod(engine, client, Family::of(to.ip()));
        let (list, masquerade, rule) = if kind == Kind::ClusterIp {
            let masquerade = self.config.masquerade_all || local_pod == Some(false); // M-6, M-7
            if port.internal_local {
                (&port.lists.local, masquerade, "V-2")
            } else {
                (&port.lists.cluster, masquerade, "V-1")
            }
        } else if !port.external_local {
            (&port.lists.cluster, true, "V-7") // M-2
        } else if local_pod == Some(true) {
            (&port.lists.cluster, false, "V-9") // M-4
        } else if client.place == Place::Host || self.is_of_node(client.ip) {
            (&port.lists.cluster, true, "V-10") // M-5
        } else {
            (&port.lists.local, false, "V-8") // M-3
        };
        if list.is_empty() {
            return (Verdict::Drop, if rule == "V-2" { "V-4" } else { rule });
        }
        let endpoints = sticky(port, client, list).into_iter().map(|at| {
            let hairpin = at.ip() == client.ip; // M-1
            let all = kind == Kind::ClusterIp && self.config.masquerade_all;
            let rewritten = match engine {
                Engine::Contract => masquerade || hairpin,
                Engine::Socket => false, // departure b
                // What reaches the node itself does not leave; departure a: nor does what stays here.
                Engine::Packet if self.is_of_node(at.ip()) => false,
                Engine::Packet if self.is_here(port, &at) => hairpin || all,
                // departure b
                Engine::Packet if client.place == Place::Elsewhere => true,
                Engine::Packet => {
                    let by_detector = kind == Kind::ClusterIp && local_pod == Some(false); // M-7
                    hairpin || all || by_detector
                }
            };
            (at, if rewritten { Source::Rewritten } else { Source::Kept })
        });
        (Verdict::Translate(endpoints.collect()), rule)
    }

    /// Whether an endpoint is on this node: its object says so (E-13), or the node has its address.
    fn is_here(&self, port: &Port, at: &SocketAddr) -> bool {
        port.lists.all.get(at).is_some_and(|endpoint| endpoint.local) || self.is_of_node(at.ip())
    }

    /// Whether an interface of the node has an address.
    fn is_of_node(&self, ip: IpAddr) -> bool {
        self.node.interfaces.contains(&ip)
    }

    /// Whether a client may use the load balancer's addresses.
    pub fn is_allowed(&self, port: &Port, from: IpAddr) -> bool {
        let inside = |ip: IpAddr| port.source_ranges.iter().any(|range| range.contains(ip));
        let node_is_inside =
            || self.node.addresses.iter().filter_map(|ip| super::text::address(ip)).any(inside);
        port.source_ranges.is_empty()
            || inside(from)
            || (port.ingress.contains(&from) && node_is_inside())
    }

    /// Whether the client is a pod of this node, as far as anybody can tell (section 4.3); nothing
    /// if there is no detector for its family.
    fn is_local_pod(&self, engine: Engine, client: &Client, family: Family) -> Option<bool> {
        let in_first = |cidrs: &[String]| {
            let ranges = cidrs.iter().filter_map(|cidr| Range::read(cidr));
            let first = ranges.into_iter().find(|range| range.family() == family)?;
            Some(first.contains(client.ip))
        };
        match &self.config.detector {
            // departure b: a socket's place is known, whatever packets are judged by.
            _ if engine == Engine::Socket => Some(client.place == Place::Pod),
            Detector::Interface => Some(client.place == Place::Pod),
            Detector::Bridge(name) => Some(client.link.bridge == Some(name)),
            Detector::Prefix(prefix) => {
                let names = [Some(client.link.name), client.link.bridge];
                Some(names.into_iter().flatten().any(|name| name.starts_with(prefix.as_str())))
            }
            Detector::ClusterCidr(cidrs) => in_first(cidrs), // V-e
            Detector::NodeCidr => in_first(&self.node.pod_cidrs),
            Detector::Missing => None, // V-d, M-9
        }
    }
}

/// who has a live entry for an endpoint in the list goes there; one for an endpoint
/// that is not in it is not looked at.
fn sticky(port: &Port, client: &Client, list: &BTreeSet<SocketAddr>) -> BTreeSet<SocketAddr> {
    let live: BTreeSet<_> = list.intersection(&client.affinity).copied().collect();
    if port.affinity_s.is_none() || live.is_empty() { list.clone() } else { live }
}

impl Expectation {
    /// The endpoints that it may go to; none if it is not translated.
    pub fn endpoints(&self) -> BTreeSet<SocketAddr> {
        match &self.verdict {
            Verdict::Translate(endpoints) => endpoints.keys().copied().collect(),
            _ => BTreeSet::new(),
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let socket = self.engine == Engine::Socket;
        match &self.verdict {
            Verdict::PassUntouched => f.write_str("left alone")?,
            Verdict::Reject if socket => f.write_str("ECONNREFUSED")?,
            Verdict::Reject => f.write_str("port unreachable or RST")?,
            Verdict::Drop if socket => f.write_str("EHOSTUNREACH")?,
            Verdict::Drop => f.write_str("no answer")?,
            Verdict::Translate(endpoints) => {
                for (index, (at, source)) in endpoints.iter().enumerate() {
                    let (or, from) = (
                        if index > 0 { " or " } else { "" },
                        if *source == Source::Kept { "" } else { " from another source" },
                    );
                    write!(f, "{or}{at}{from}")?;
                }
            }
        }
        write!(f, " ({})", self.rule)
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod source_tests;
#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
