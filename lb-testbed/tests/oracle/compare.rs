//! Does what the agent makes of a cluster, and what is decided on it, agree with the oracle?

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::{AddressFlags, FactsFlags};
use lb_testbed::oracle::{
    Client, Engine, Expectation, Link, Place, Source, Verdict, View,
    cluster::{Family, Protocol},
    generate::{clients, destination_ports, destinations},
    services::{Kind, Port},
};
use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    decide::{Became, Decider, Way},
    meaning::{Meaning, PortMeaning},
    node,
    pipeline::Agent,
    run::Tally,
};

/// Clients of every kind that can ask for an address.
pub(crate) fn clients_for(to: IpAddr) -> Vec<Client> {
    clients(Family::of(to))
}

/// One question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Question {
    pub(crate) place: Place,
    pub(crate) ip: IpAddr,
    pub(crate) link: Link,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// Everything that can be asked of a family: clients of every kind, all addresses in and around the
/// cluster, all ports, all protocols.
pub(crate) fn questions(family: Family) -> Vec<Question> {
    let mut all = Vec::new();
    for client in clients(family) {
        for ip in destinations(family) {
            for port in destination_ports() {
                for protocol in Protocol::ALL {
                    let to = SocketAddr::new(ip, port);
                    all.push(Question::of(&client, to, protocol));
                }
            }
        }
    }
    all
}

/// The same, with whether it is this client's turn: where nothing is, everybody is treated alike, and
/// one of them asks.
fn questions_by_turns(family: Family) -> impl Iterator<Item = (Question, bool)> {
    let clients = clients(family);
    let all = questions(family);
    let each = all.len() / clients.len();
    all.into_iter().enumerate().map(move |(index, question)| {
        let asked = index % each;
        // The last parts of the index are protocol and port, which all clients are to meet.
        let turn = (asked + asked / 3 + asked / 27) % clients.len();
        (question, turn == index / each)
    })
}

impl Question {
    /// What a client asks for.
    pub(crate) fn of(client: &Client, to: SocketAddr, protocol: Protocol) -> Self {
        let Client { place, ip, link, .. } = *client;
        Self { place, ip, link, to, protocol }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.place, self.ip).by(self.link)
    }

    /// Whether a packet that goes to an endpoint goes back where it came from: a pod reaches itself.
    fn comes_back(&self, at: &SocketAddr) -> bool {
        self.place == Place::Pod && at.ip() == self.ip
    }

    /// The ways in which it can be asked. No packet to a loopback address or to the client itself
    /// leaves the pod or the node; what comes from elsewhere may have any address.
    pub(crate) fn ways(&self) -> impl Iterator<Item = Way> + use<> {
        let to = self.to.ip();
        let stays = self.place != Place::Elsewhere && (to.is_loopback() || to == self.ip);
        let early = node::has_early(self.link);
        let all = Way::of(&self.client(), self.protocol).iter().copied();
        let all = all.filter(move |way| *way != Way::Early || early);
        all.filter(move |way| way.engine() == Engine::Socket || !stays)
    }
}

/// What the engine itself makes of what is expected of the node: V-12 acts where a packet leaves the
/// node and not at a socket (departure d), and SCTP keeps its ports.
pub(crate) fn at_the_engine(expected: &Expectation, question: &Question) -> BTreeSet<Became> {
    match &expected.verdict {
        _ if expected.engine == Engine::Socket && expected.rule == "V-12" => {
            [Became::Untouched].into()
        }
        Verdict::PassUntouched => [Became::Untouched].into(),
        Verdict::Reject => [Became::Rejected].into(),
        Verdict::Drop => [Became::Dropped].into(),
        Verdict::Translate(endpoints) => endpoints
            .iter()
            .map(|(at, source)| {
                if question.protocol == Protocol::Sctp && at.port() != question.to.port() {
                    Became::SctpPort
                } else if *source == Source::Rewritten && !question.comes_back(at) {
                    Became::Out(*at)
                } else {
                    Became::To(*at, *source)
                }
            })
            .collect(),
    }
}

/// What clients ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// What the oracle captures.
    Frontends,
    /// And everything else.
    Everything,
}

/// Asks as clients that never asked before.
pub(crate) fn decisions(agent: &Agent, view: &View, asked: Asked) -> Result<Tally, TestCaseError> {
    let mut tally = Tally::default();
    let everything = asked == Asked::Everything;
    let decider = Decider::new(agent);
    let captured = frontends(view);
    for question in Family::BOTH.into_iter().flat_map(questions_by_turns) {
        let (question, of_turn) = question;
        let asked =
            (everything && of_turn) || captured.contains_key(&(question.to, question.protocol));
        if asked {
            agree(&decider, view, &question, &mut tally)?;
        }
    }
    tally.compared = decider.decisions.get();
    Ok(tally)
}

/// Asks one question in every way in which it can be asked, as a client that never asked before.
pub(crate) fn agree(
    decider: &Decider<'_>,
    view: &View,
    question: &Question,
    tally: &mut Tally,
) -> Result<(), TestCaseError> {
    let client = question.client();
    for way in question.ways() {
        let expected = view.expect(way.engine(), &client, question.to, question.protocol);
        let endpoints = expected.endpoints().len();
        let allowed = at_the_engine(&expected, question);
        let became = decider.all(way, &client, question.to, question.protocol, endpoints);
        if way == Way::Early && question.protocol == Protocol::Sctp && became.is_subset(&allowed) {
            // XDP leaves a choice that it would have to refuse to tc, which chooses anew.
            prop_assert!(!became.is_empty());
            continue;
        }
        prop_assert_eq!(
            &became,
            &allowed,
            "{:?} of {:?}: the contract expects {}",
            way,
            question,
            expected
        );
        tally.met(expected.rule);
    }
    Ok(())
}

/// Every address and port that the oracle captures on this node, nodePorts at one address.
pub(crate) fn frontends(view: &View) -> BTreeMap<(SocketAddr, Protocol), (Kind, usize)> {
    let mut all = view.captured.clone();
    for (&(family, number, protocol), &port) in &view.node_ports {
        let mut open = view.node_port_addresses.open.iter();
        if let Some(ip) = open.find(|ip| Family::of(**ip) == family) {
            let at = (SocketAddr::new(*ip, number), protocol);
            all.entry(at).or_insert((Kind::NodePort, port));
        }
    }
    all
}

/// Compares the tables themselves: they hold what the oracle captures and nothing else, with the
/// same endpoints.
pub(crate) fn tables(meaning: &Meaning, view: &View) -> Result<Tally, TestCaseError> {
    let mut expected: BTreeMap<(SocketAddr, u8), (Kind, usize)> = BTreeMap::new();
    for (&(at, protocol), &found) in &view.captured {
        expected.insert((at, protocol.number()), found);
    }
    for (&(family, number, protocol), &port) in &view.node_ports {
        let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0u16; 8].into() };
        expected.insert((SocketAddr::new(any, number), protocol.number()), (Kind::NodePort, port));
    }
    prop_assert_eq!(
        meaning.frontends.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "frontends: in the tables, in the oracle"
    );
    for (key, (kind, index)) in &expected {
        let port = &view.ports[*index];
        service_port(&meaning.frontends[key], *kind, port)
            .map_err(|error| TestCaseError::fail(format!("at {key:?}: {error}")))?;
        for client in clients(port.id.family) {
            let lets_in = *kind != Kind::LoadBalancer || view.is_allowed(port, client.ip);
            prop_assert_eq!(
                meaning.frontends[key].lets_in(client.ip),
                lets_in,
                "{} at {:?}, V-5 and R-1 to R-3",
                client.ip,
                key
            );
        }
    }
    let node_ports: BTreeSet<(u8, u16)> =
        view.node_ports.keys().map(|(_, number, protocol)| (protocol.number(), *number)).collect();
    prop_assert_eq!(&meaning.node_ports, &node_ports, "nodePorts: in the tables, in the oracle");
    let mut addresses: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for ip in view.node.interfaces.iter().filter(|ip| !ip.is_loopback()) {
        *addresses.entry(*ip).or_default() |= AddressFlags::HOST;
    }
    for ((at, _), (kind, _)) in &view.captured {
        let flag =
            if *kind == Kind::ClusterIp { AddressFlags::CLUSTER_IP } else { AddressFlags::VIP };
        *addresses.entry(at.ip()).or_default() |= flag;
    }
    for (family, _, _) in view.node_ports.keys() {
        let of_node = [
            (&view.node_port_addresses.open, AddressFlags::NODE),
            (&view.node_port_addresses.loopback, AddressFlags::LOOPBACK),
        ];
        for (ips, flag) in of_node {
            for ip in ips.iter().filter(|ip| Family::of(**ip) == *family) {
                *addresses.entry(*ip).or_default() |= flag;
            }
        }
    }
    prop_assert_eq!(&meaning.addresses, &addresses, "addresses: in the tables, in the oracle");
    Ok(Tally::of(expected.len() as u64))
}

fn service_port(found: &PortMeaning, kind: Kind, port: &Port) -> Result<(), TestCaseError> {
    prop_assert_eq!(found.external, kind != Kind::ClusterIp);
    let flags = found.facts.flags();
    prop_assert_eq!(flags & FactsFlags::INTERNAL_LOCAL != 0, port.internal_local);
    prop_assert_eq!(flags & FactsFlags::EXTERNAL_LOCAL != 0, port.external_local);
    prop_assert_eq!(flags & FactsFlags::AFFINITY != 0, port.affinity_s.is_some());
    prop_assert_eq!(found.facts.affinity_timeout_s(), port.affinity_s.unwrap_or(0));
    prop_assert_eq!(&found.cluster.0, &port.lists.cluster, "cluster list of {:?}", port.id);
    prop_assert_eq!(&found.local.0, &port.lists.local, "local list of {:?}", port.id);
    prop_assert_eq!(&found.serving, &port.lists.keeps_flows(), "U-4 of {:?}", port.id);
    let (list, drops) = found.for_client_here();
    if list.is_empty() {
        prop_assert_eq!(*drops, port.lists.has_any, "V-3 and V-4 of {:?}", port.id);
    }
    Ok(())
}

/// What became of every question of a family, for comparing one cluster with another.
pub(crate) fn outcomes(
    agent: &Agent,
    view: &View,
    family: Family,
) -> BTreeMap<Question, BTreeSet<Became>> {
    let decider = Decider::new(agent);
    let mut all: BTreeMap<Question, BTreeSet<Became>> = BTreeMap::new();
    for question in questions(family) {
        let client = question.client();
        for way in question.ways().filter(|way| *way != Way::Send) {
            let expected = view.expect(way.engine(), &client, question.to, question.protocol);
            let endpoints = expected.endpoints().len();
            let became = decider.all(way, &client, question.to, question.protocol, endpoints);
            if became != [Became::Untouched].into() {
                all.entry(question).or_default().extend(became);
            }
        }
    }
    all
}
