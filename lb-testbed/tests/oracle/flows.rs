//! TCP connections of pods, and of clients off the node, through the packet engine, kept open while
//! the cluster changes.

use std::net::SocketAddr;

use lb_common::{decide, host::HostTables, packet::SlicePacket, parse, verdict::Verdict};
use lb_testbed::{
    oracle::{Client, Link, Place, View},
    packet::{self, TcpFlags},
    traffic::{self, ACK, Protocol, SYN, SYN_ACK},
};
use proptest::{prelude::*, test_runner::TestCaseError};

use super::node;

/// A connection.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: SocketAddr,
    /// By which interface it comes.
    link: Link,
    /// Not one of this node.
    elsewhere: bool,
    vip: SocketAddr,
    /// Where it went.
    backend: SocketAddr,
    /// What the endpoint sees as the client.
    source: SocketAddr,
}

/// All connections of a test.
#[derive(Default)]
pub(crate) struct Flows {
    flows: Vec<Flow>,
    next: u16,
}

impl Flows {
    /// Opens a connection if there is anybody to connect to.
    pub(crate) fn open(
        &mut self,
        tables: &HostTables,
        client: &Client,
        vip: SocketAddr,
    ) -> Result<(), TestCaseError> {
        // Nobody answers to the node itself, or to a Service, by an uplink.
        let is_off_node = node::egress(client.ip) == Some(client.link);
        if client.place == Place::Host || (client.place == Place::Elsewhere && !is_off_node) {
            return Ok(());
        }
        self.next += 1;
        let mut flow = Flow {
            // Not one of the ports for SNAT.
            client: SocketAddr::new(client.ip, 32_768 + self.next),
            link: client.link,
            elsewhere: client.place == Place::Elsewhere,
            vip,
            backend: vip,
            source: vip,
        };
        let Some((source, backend)) = flow.arrive(tables, SYN)? else { return Ok(()) };
        (flow.source, flow.backend) = (source, backend);
        flow.answer(tables, SYN_ACK)?;
        flow.send(tables)?;
        self.flows.push(flow);
        Ok(())
    }

    /// One packet of each connection in each direction: they go where they always went.
    pub(crate) fn go_on(&self, tables: &HostTables) -> Result<u64, TestCaseError> {
        for flow in &self.flows {
            flow.send(tables)?;
            flow.answer(tables, ACK)?;
        }
        Ok(self.flows.len() as u64)
    }

    /// How many connections go where no new one would go.
    pub(crate) fn whose_endpoint_is_gone(&self, view: &View) -> usize {
        let is_gone = |flow: &&Flow| {
            let at = (flow.vip, lb_testbed::oracle::cluster::Protocol::Tcp);
            let port = view.captured.get(&at).map(|(_, port)| &view.ports[*port]);
            port.is_none_or(|port| !port.lists.all.contains_key(&flow.backend))
        };
        self.flows.iter().filter(is_gone).count()
    }
}

impl Flow {
    /// The client goes on.
    fn send(&self, tables: &HostTables) -> Result<(), TestCaseError> {
        let went = self.arrive(tables, ACK)?;
        prop_assert_eq!(went, Some((self.source, self.backend)), "{:?}", self);
        Ok(())
    }

    /// Where a packet of the client goes, as source and destination; nothing if nobody takes it.
    fn arrive(
        &self,
        tables: &HostTables,
        flags: TcpFlags,
    ) -> Result<Option<(SocketAddr, SocketAddr)>, TestCaseError> {
        let mut bytes = traffic::packet(Protocol::Tcp, self.client, self.vip, flags).build();
        tables.set_interface(node::index(self.link));
        let verdict = decide::ingress(&mut SlicePacket(&mut bytes), tables, parse::Link::Ethernet);
        match verdict {
            Verdict::Translated | Verdict::Reflected | Verdict::Forwarded => Ok(Some(ends(&bytes))),
            Verdict::NoBackend | Verdict::NoLocalBackend | Verdict::SourceRange => Ok(None),
            other => Err(TestCaseError::fail(format!("{self:?}: {other:?}"))),
        }
    }

    /// The endpoint answers; the client sees the VIP. Where the source is another one, the answer is
    /// met where it arrives.
    fn answer(&self, tables: &HostTables, flags: TcpFlags) -> Result<(), TestCaseError> {
        let mut bytes = traffic::packet(Protocol::Tcp, self.backend, self.source, flags).build();
        let mut slice = SlicePacket(&mut bytes);
        let comes_back = !self.elsewhere && self.backend.ip() == self.client.ip();
        // (An externalIP may be the client's own address, which is no reason to keep the source.)
        let is_kept = self.source == self.client && !comes_back;
        // That of a backend with its source kept leaves by the way that the client came.
        let link = if is_kept { None } else { node::egress(self.backend.ip()) };
        tables.set_interface(node::index(link.unwrap_or(self.link)));
        let (verdict, expected) = if is_kept {
            (decide::egress(&mut slice, tables, parse::Link::Ethernet), Verdict::Translated)
        } else {
            let verdict = decide::ingress(&mut slice, tables, parse::Link::Ethernet);
            (verdict, if comes_back { Verdict::Reflected } else { Verdict::Forwarded })
        };
        prop_assert_eq!(verdict, expected, "answer of {:?}", self);
        prop_assert_eq!(ends(&bytes), (self.vip, self.client), "answer of {:?}", self);
        Ok(())
    }
}

fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let parsed = packet::parse(bytes, packet::Link::Ethernet).expect("still a packet");
    let [sport, dport] = parsed.ports.expect("still with ports");
    (SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport))
}
