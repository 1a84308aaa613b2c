//! TCP connections of pods through the packet engine, kept open while the cluster changes.

use std::net::SocketAddr;

use lb_common::{decide, host::HostTables, packet::SlicePacket, parse::Link, verdict::Verdict};
use lb_testbed::{
    oracle::{Client, Place, View},
    packet::{self, TcpFlags},
    traffic::{self, ACK, Protocol, SYN, SYN_ACK},
};
use proptest::{prelude::*, test_runner::TestCaseError};

/// A connection.
#[derive(Clone, Copy, Debug)]
struct Flow {
    client: SocketAddr,
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
        if client.place != Place::Pod {
            return Ok(());
        }
        self.next += 1;
        let client = SocketAddr::new(client.ip, 1024 + self.next);
        let Some((source, backend)) = arrive(tables, client, vip, SYN)? else { return Ok(()) };
        let flow = Flow { client, vip, backend, source };
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
        let went = arrive(tables, self.client, self.vip, ACK)?;
        prop_assert_eq!(went, Some((self.source, self.backend)), "{:?}", self);
        Ok(())
    }

    /// The endpoint answers; the client sees the VIP. A hairpin's answer arrives where its packets
    /// do.
    fn answer(&self, tables: &HostTables, flags: TcpFlags) -> Result<(), TestCaseError> {
        let hairpin = self.backend.ip() == self.client.ip();
        let mut bytes = traffic::packet(Protocol::Tcp, self.backend, self.source, flags).build();
        let mut slice = SlicePacket(&mut bytes);
        let verdict = if hairpin {
            decide::ingress(&mut slice, tables, Link::Ethernet)
        } else {
            decide::egress(&mut slice, tables, Link::Ethernet)
        };
        let expected = if hairpin { Verdict::Reflected } else { Verdict::Translated };
        prop_assert_eq!(verdict, expected, "answer of {:?}", self);
        prop_assert_eq!(ends(&bytes), (self.vip, self.client), "answer of {:?}", self);
        Ok(())
    }
}

/// Where a packet of a pod goes, as source and destination; nothing if nobody takes it.
fn arrive(
    tables: &HostTables,
    from: SocketAddr,
    to: SocketAddr,
    flags: TcpFlags,
) -> Result<Option<(SocketAddr, SocketAddr)>, TestCaseError> {
    let mut bytes = traffic::packet(Protocol::Tcp, from, to, flags).build();
    let verdict = decide::ingress(&mut SlicePacket(&mut bytes), tables, Link::Ethernet);
    match verdict {
        Verdict::Translated | Verdict::Reflected => Ok(Some(ends(&bytes))),
        Verdict::NoBackend | Verdict::NoLocalBackend => Ok(None),
        other => Err(TestCaseError::fail(format!("{from} to {to}: {other:?}"))),
    }
}

fn ends(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let parsed = packet::parse(bytes, packet::Link::Ethernet).expect("still a packet");
    let [sport, dport] = parsed.ports.expect("still with ports");
    (SocketAddr::new(parsed.src, sport), SocketAddr::new(parsed.dst, dport))
}
