//! The first half of a decision: may this packet concern a Service at all?
//!
//! Where a packet of no Service goes, only loads stand in its way: at ingress a bit set of VIPs and of
//! this node's addresses and ports, at egress notes whether the interface ever had a flow, and any
//! flow a backend of this address. In the kernel this is a program of its own, which goes on with that
//! of the second half ([`crate::decide`]).

use crate::abi::{FILTER_NODE, FILTER_VIP, FlowKey, Ip, V4, V6, node_port_place, proto};
use crate::packet::Packet;
use crate::parse::{
    Header, Ipv, Link, Network, Shape, destination_of, network, source_of, split_ports,
};
use crate::tables::{FlowTables, NodeTables, RouteTables};
use crate::verdict::Verdict;

/// With what a decision goes on, where the first half does not end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// [`crate::decide::translate_ingress`] or [`crate::decide::translate_egress`].
    Translate,
    /// [`crate::icmp::at_hook`].
    Icmp,
    /// [`crate::fragment::ingress`] or [`crate::fragment::egress`].
    Fragment,
}

/// The first half of [`crate::decide::ingress`]: where a packet of no Service ends. It writes nothing: a
/// program that may write to packets pays for a copy of each that somebody else holds too, whether it
/// writes or not.
#[inline(always)]
pub fn look_at_ingress<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    packet.make_reachable();
    match network(packet, link)? {
        Network::V4(l3) => look_ip::<V4, P, T>(packet, tables, l3),
        Network::V6(l3) => look_ip::<V6, P, T>(packet, tables, l3),
    }
}

/// The same of an IP packet whose header is at `l3`.
#[inline(always)]
pub(crate) fn look_ip<const N: usize, P, T>(
    packet: &P,
    tables: &T,
    l3: usize,
) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let ip = destination_of::<N, P>(packet, l3).ok_or(Verdict::Unparsed)?;
    let class = tables.filter(&ip);
    if class == 0 {
        return Err(Verdict::NotService);
    }
    let next = next(Ipv::<N>::shape(packet, l3))?;
    // Most of what comes to a node's own address is its own.
    if class & FILTER_VIP == 0 && next == Next::Translate {
        let (proto, ports) = Ipv::<N>::ports(packet, l3).ok_or(Verdict::Unparsed)?;
        let (_, dport) = split_ports(ports);
        if !may_be_ours(tables, proto, u16::from_be(dport)) {
            return Err(Verdict::NotService);
        }
    }
    Ok(next)
}

/// Whether packets to this port of the node may be a Service's, or replies to what is sent on.
#[inline(always)]
fn may_be_ours<T: NodeTables>(tables: &T, proto: u8, port: u16) -> bool {
    // SCTP keeps the port that the client had.
    (port as u32).wrapping_sub(tables.snat_first()) < tables.snat_count()
        || proto == proto::SCTP
        || is_node_port(tables, proto, port)
}

/// Whether a port, in host order, may be a `NodePort`.
#[inline(always)]
fn is_node_port<T: NodeTables>(tables: &T, proto: u8, port: u16) -> bool {
    node_port_place(proto, port).is_some_and(|(word, mask)| tables.node_ports(word) & mask != 0)
}

/// Whether a packet that arrives and has no record may begin a flow: loads tell that most of what comes
/// to a port of the node's own does not, which came here for the sake of replies to what is sent on.
#[inline(always)]
pub(crate) fn may_begin<const N: usize, T: RouteTables<N>>(tables: &T, key: &FlowKey<N>) -> bool {
    tables.filter(&key.dst) & FILTER_VIP != 0
        || is_node_port(tables, key.proto, u16::from_be(key.dport))
}

/// The first half of [`crate::decide::egress`].
#[inline(always)]
pub fn look_at_egress<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    let (flows, own) = (FlowTables::<V4>::has_flows(tables), tables.own());
    if !flows && !own {
        return Err(Verdict::NotService);
    }
    look_out(packet, tables, link, flows, own)
}

/// [`look_at_egress`] where packets leave the node: also what it only passes on may leave as its own, by
/// somebody's masquerade.
#[inline(always)]
pub fn look_at_uplink<P, T>(packet: &mut P, tables: &T, link: Link) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    look_out(packet, tables, link, FlowTables::<V4>::has_flows(tables), true)
}

#[inline(always)]
fn look_out<P, T>(
    packet: &mut P,
    tables: &T,
    link: Link,
    flows: bool,
    own: bool,
) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<V4> + RouteTables<V6>,
{
    packet.make_reachable();
    match network(packet, link)? {
        Network::V4(l3) => look_back::<V4, P, T>(packet, tables, l3, flows, own),
        Network::V6(l3) => look_back::<V6, P, T>(packet, tables, l3, flows, own),
    }
}

#[inline(always)]
fn look_back<const N: usize, P, T>(
    packet: &P,
    tables: &T,
    l3: usize,
    flows: bool,
    own: bool,
) -> Result<Next, Verdict>
where
    P: Packet,
    T: RouteTables<N>,
    Ipv<N>: Header<N>,
{
    let ip = source_of::<N, P>(packet, l3).ok_or(Verdict::Unparsed)?;
    let shape = Ipv::<N>::shape(packet, l3);
    // An error comes from any router on the way.
    if flows && (tables.has_flows_to(&ip) || shape == Some(Shape::Icmp)) {
        return next(shape);
    }
    if shape == Some(Shape::Whole) && own {
        let (proto, ports) = Ipv::<N>::ports(packet, l3).ok_or(Verdict::Unparsed)?;
        let (sport, _) = split_ports(ports);
        if answers_are_foreign(tables, proto, sport, &ip) {
            return next(shape);
        }
    }
    Err(Verdict::NotService)
}

/// Whether a packet of a socket of this node is such that its answers would be taken for what a client
/// sends to a `NodePort`. TCP's tell the difference themselves.
#[inline(always)]
pub(crate) fn answers_are_foreign<const N: usize, T: RouteTables<N>>(
    tables: &T,
    proto: u8,
    sport: u16,
    source: &Ip<N>,
) -> bool {
    matches!(proto, proto::UDP | proto::SCTP)
        && is_node_port(tables, proto, u16::from_be(sport))
        && tables.filter(source) & FILTER_NODE != 0
}

#[inline(always)]
fn next(shape: Option<Shape>) -> Result<Next, Verdict> {
    match shape {
        Some(Shape::Whole) => Ok(Next::Translate),
        Some(Shape::Icmp) => Ok(Next::Icmp),
        Some(Shape::Fragment) => Ok(Next::Fragment),
        None => Err(Verdict::Unparsed),
    }
}
