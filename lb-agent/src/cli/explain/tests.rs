//! Explanations over tables that a test fills.

use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{
    AddressFlags, AddressWord, AffinityKey, AffinityRecord, Backend, BackendFlags, BackendId,
    BackendWord, FactsFlags, FactsWord, Flow, FlowKey, FrontendFlags, FrontendKey, FrontendWord,
    Interface, InterfaceFlags, Ip, NetnsFlags, NetnsRecord, Scope, ServiceCidr, ServicePortId,
    SetWord, V4, V6, proto,
};
use lb_common::decide;
use lb_common::host::{HostRoute, HostTables, OfFamily, Words, words};
use lb_common::packet::SlicePacket;
use lb_common::parse::{Link, tcp};
use lb_common::tables::{
    FlowRef as _, FlowTable, FlowTables as _, FrontendTables, GuardTables, NodeTables, RouteStatus,
    RouteTables, ServiceTables as _,
};
use lb_common::verdict::Verdict;

use super::asker::Asker;
use super::packet::Probe;
use super::reader::{FamilyReader, NodeSettings, Reader};
use super::{Client, Explanation, Question, client, destination, explain, show};

struct Host(HostTables);

impl Reader for Host {
    fn set(&self, index: u32) -> SetWord {
        self.0.set(index)
    }

    fn facts(&self, id: ServicePortId) -> FactsWord {
        self.0.facts(id)
    }

    fn slot(&self, index: u32) -> BackendId {
        self.0.slot(index)
    }

    fn backend(&self, id: BackendId) -> Option<Backend> {
        self.0.backend(id)
    }

    fn name(&self, id: ServicePortId) -> String {
        format!("default/service-{id}:http/TCP4")
    }

    fn affinity(&self, key: &AffinityKey) -> Option<AffinityRecord> {
        self.0.affinity(key)
    }

    fn now(&self) -> u32 {
        self.0.now()
    }

    fn seconds(&self) -> u32 {
        self.0.seconds()
    }

    fn interface(&self, ifindex: u32) -> Option<Interface> {
        let all = self.0.host_interfaces();
        all.into_iter().find(|(index, _)| *index == ifindex).map(|(_, interface)| interface)
    }

    fn interface_name(&self, ifindex: u32) -> Option<String> {
        Some(format!("eth{ifindex}"))
    }

    fn node_ports(&self, index: u32) -> u64 {
        NodeTables::node_ports(&self.0, index)
    }

    fn settings(&self) -> NodeSettings {
        NodeSettings {
            local_mode: self.0.local_mode(),
            masquerade_all: self.0.masquerade_all(),
            snat_first: self.0.snat_first(),
            snat_count: self.0.snat_count(),
        }
    }

    fn route(&self, from: IpAddr, to: IpAddr, over: u32, out: bool) -> (RouteStatus, u32) {
        let status = match (words(from), words(to)) {
            (Words::V4(from), Words::V4(to)) => self.0.route(&from, &to, over, out, 0),
            (Words::V6(from), Words::V6(to)) => self.0.route(&from, &to, over, out, 0),
            _ => RouteStatus::NoRoute,
        };
        (status, self.0.egress())
    }
}

impl<const N: usize> FamilyReader<N> for Host
where
    HostTables: OfFamily<N>,
{
    fn frontend(&self, key: &FrontendKey<N>) -> Option<FrontendWord> {
        self.0.frontend(key)
    }

    fn flow(&self, table: FlowTable, key: &FlowKey<N>) -> Option<Flow<N>> {
        self.0.flow(table, key).map(|record| record.read())
    }

    fn filter(&self, ip: &Ip<N>) -> u32 {
        self.0.filter(ip)
    }

    fn address(&self, ip: &Ip<N>) -> Option<AddressWord> {
        FrontendTables::<N>::address(&self.0, ip)
    }

    fn service_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        GuardTables::<N>::service_cidr(&self.0, index)
    }

    fn local_cidr(&self, index: u32) -> Option<ServiceCidr<N>> {
        RouteTables::<N>::local_cidr(&self.0, index)
    }

    fn source_allowed(&self, id: ServicePortId, source: &Ip<N>) -> bool {
        FrontendTables::<N>::source_allowed(&self.0, id, source)
    }

    fn snat_address(&self, ifindex: u32, index: u32) -> Ip<N> {
        self.0.snat_address(ifindex, index)
    }
}

const VIP: &str = "10.96.0.10:80";
const VIP6: &str = "[fd00:10:96::10]:80";

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn host() -> Host {
    let tables = HostTables::new();
    let backends = [at("10.244.0.2:8080"), at("10.244.1.2:8080")];
    tables.add_service_port(proto::TCP, &[at(VIP)], &backends);
    tables.add_service_port(proto::UDP, &[at(VIP6)], &[at("[fd00::2]:53")]);
    tables.add_service_port(proto::TCP, &[at("10.96.0.11:80")], &[]);
    Host(tables)
}

fn ask(host: &Host, to: &str, from: Option<&str>) -> Explanation {
    ask_as(host, to, from, Asker { cookie: 1, node: 1, ..Asker::default() })
}

fn ask_as(host: &Host, to: &str, from: Option<&str>, asker: Asker) -> Explanation {
    let (to, protocol) = destination(to).unwrap();
    let from = from.map(|from| client(from).unwrap());
    explain(host, &Question { to, protocol, from, asker, arrival: None })
}

/// As a packet that arrives by an uplink.
fn ask_outside(host: &Host, to: &str, from: &str) -> Explanation {
    let (to, protocol) = destination(to).unwrap();
    let (from, asker) = (Some(client(from).unwrap()), Asker::default());
    explain(host, &Question { to, protocol, from, asker, arrival: Some((2, "eth2".into())) })
}

fn verdicts(explanation: &Explanation) -> Vec<&'static str> {
    explanation.decisions.iter().map(|decision| decision.verdict).collect()
}

fn steps(explanation: &Explanation, decision: usize) -> Vec<&'static str> {
    explanation.decisions[decision].steps.iter().map(|step| step.step).collect()
}

/// Sends a packet through the real decisions over these tables, so that they hold its flow.
fn send(host: &Host, from: &str, to: &str, tcp_flags: u8) -> Verdict {
    let probe = Probe { from: at(from), to: at(to), protocol: proto::TCP, tcp_flags };
    let mut bytes = probe.bytes();
    decide::ingress(&mut SlicePacket(&mut bytes), &host.0, Link::None)
}

/// The backend accepts a connection.
fn accept(host: &Host, from: &str, to: &str) -> Verdict {
    let tcp_flags = tcp::SYN | tcp::ACK;
    let probe = Probe { from: at(from), to: at(to), protocol: proto::TCP, tcp_flags };
    let mut bytes = probe.bytes();
    decide::egress(&mut SlicePacket(&mut bytes), &host.0, Link::None)
}

#[test]
fn a_hit_tells_the_way_and_all_that_might_have_been_chosen() {
    let explanation = ask(&host(), VIP, None);
    assert_eq!(verdicts(&explanation), ["translated", "translated"]);
    assert_eq!(explanation.service.as_ref().unwrap().service, "default/service-1");
    for decision in &explanation.decisions {
        assert_eq!(decision.to, Some(at("10.244.0.2:8080")));
        let of: Vec<IpAddr> = decision.one_of.iter().map(|backend| backend.address).collect();
        assert_eq!(of, [at("10.244.0.2:1").ip(), at("10.244.1.2:1").ip()]);
    }
    assert_eq!(
        steps(&explanation, 0),
        [
            "vip_filter",
            "frontend",
            "namespace",
            "facts",
            "set",
            "random",
            "slot",
            "backend",
            "remember",
            "count"
        ]
    );
    assert_eq!(
        steps(&explanation, 1),
        [
            "vip_filter",
            "frontend",
            "interface",
            "local_detector",
            "facts",
            "set",
            "random",
            "slot",
            "backend",
            "insert",
            "count"
        ]
    );
    let text = show::text(&explanation);
    assert!(text.contains("10.96.0.10:80/tcp is default/service-1, port http"), "{text}");
    assert!(text.contains("one of 2"), "{text}");
}

#[test]
fn what_is_no_services_ends_at_the_first_question_that_tells() {
    let host = host();
    let foreign = ask(&host, "192.0.2.77:80", None);
    assert_eq!(verdicts(&foreign), ["not_service", "not_service"]);
    assert_eq!((steps(&foreign, 0), steps(&foreign, 1)), (vec!["vip_filter"], vec!["vip_filter"]));
    let other_port = ask(&host, "10.96.0.10:81", None);
    assert_eq!(verdicts(&other_port), ["not_service", "not_service"]);
    assert_eq!(steps(&other_port, 1), ["vip_filter", "frontend", "address"]);
    assert!(show::text(&other_port).contains("10.96.0.10:81/tcp is no Service's"));
}

#[test]
fn v_12_v_13_what_may_not_leave_the_node_is_explained() {
    let host = host();
    host.0.set_address(at(VIP).ip(), AddressFlags::CLUSTER_IP);
    host.0.add_service_cidr(at(VIP).ip(), 24);
    let other_port = ask(&host, "10.96.0.10:81", None);
    assert_eq!(verdicts(&other_port), ["not_service", "undefined_port"]);
    assert!(show::text(&other_port).contains("none of its Service's ports"));
    assert!(steps(&other_port, 1).ends_with(&["service_cidr", "address", "count"]));
    let nobody = ask(&host, "10.96.0.200:80", None);
    assert_eq!(verdicts(&nobody), ["not_service", "unallocated"]);
    assert!(show::text(&nobody).contains("10.96.0.0/24"));
    assert_eq!(verdicts(&ask(&host, "10.96.1.1:80", None)), ["not_service", "not_service"]);
}

#[test]
fn a_service_without_endpoints_is_refused_by_both_engines() {
    let host = host();
    let rejected = ask(&host, "10.96.0.11:80", None);
    assert_eq!(verdicts(&rejected), ["no_backend", "no_backend"]);
    assert!(rejected.service.is_some());
    assert!(show::text(&rejected).contains("ECONNREFUSED"));
    let id = rejected.service.unwrap().id;
    host.0.set_empty(id, Scope::Cluster, SetWord::DROP);
    let dropped = ask(&host, "10.96.0.11:80", None);
    assert_eq!(verdicts(&dropped), ["no_local_backend", "no_local_backend"]);
}

#[test]
fn ipv6_and_udp_are_explained_alike() {
    let explanation = ask(&host(), &format!("{VIP6}/udp"), Some("fd00::9"));
    assert_eq!(verdicts(&explanation), ["translated", "translated"]);
    assert!(explanation.decisions.iter().all(|d| d.to == Some(at("[fd00::2]:53"))));
    assert_eq!(ask(&host(), VIP6, None).service, None, "TCP at this address is no Service's");
}

#[test]
fn a_client_that_is_its_own_backend_gets_its_packets_back_with_the_vip_as_source() {
    let explanation = ask(&host(), VIP, Some("10.244.0.2:40000"));
    let packet = &explanation.decisions[1];
    assert_eq!((packet.verdict, packet.to), ("reflected", Some(at("10.244.0.2:8080"))));
    assert_eq!(packet.from, Some(at("10.96.0.10:40000")));
}

#[test]
fn the_record_of_a_flow_decides_and_stays_as_it_is() {
    let host = host();
    // The second backend, which no explanation would choose.
    host.0.push_random(u32::MAX);
    assert_eq!(send(&host, "10.244.0.9:40000", VIP, tcp::SYN), Verdict::Translated);
    assert_eq!(accept(&host, "10.244.1.2:8080", "10.244.0.9:40000"), Verdict::Translated);
    assert_eq!(send(&host, "10.244.0.9:40000", VIP, tcp::ACK), Verdict::Translated);
    let before = host.0.flows::<V4>(FlowTable::Main);
    assert_eq!(before.len(), 2);
    host.0.advance(5);

    let explanation = ask(&host, VIP, Some("10.244.0.9:40000"));
    let [_, known, _] = &explanation.decisions[..] else { panic!("{explanation:?}") };
    assert_eq!((known.verdict, known.to), ("translated", Some(at("10.244.1.2:8080"))));
    let flows: Vec<_> = known.steps.iter().filter(|step| step.step == "flow").collect();
    let [own, .., reply] = &flows[..] else { panic!("{flows:?}") };
    assert!(own.text.contains("10.244.0.9:40000 to 10.96.0.10:80: becomes"), "{own:?}");
    assert!(reply.text.contains("10.244.1.2:8080 to 10.244.0.9:40000: becomes"), "{reply:?}");
    let of_vip = flows.iter().filter(|step| step.text == own.text);
    assert_eq!(of_vip.count(), 1, "each record is told of once");

    let other = ask(&host, VIP, Some("10.244.0.9:40001"));
    assert_eq!(other.decisions.len(), 2, "no record, no established connection to explain");

    let mut after = host.0.flows::<V4>(FlowTable::Main);
    let order = |flows: &mut Vec<(FlowKey<V4>, Flow<V4>)>| flows.sort_by_key(|(_, f)| f.tag);
    let mut before = before;
    order(&mut before);
    order(&mut after);
    assert_eq!(before, after, "explaining changes nothing");
    assert!(host.0.flows::<V4>(FlowTable::HalfOpen).is_empty());
    assert!(host.0.flows::<V6>(FlowTable::Main).is_empty());
}

#[test]
fn sctp_is_the_packet_engines_alone() {
    let host = host();
    host.0.add_service_port(proto::SCTP, &[at("10.96.0.12:7")], &[at("10.244.0.2:8")]);
    let explanation = ask(&host, "10.96.0.12:7/sctp", None);
    assert_eq!(verdicts(&explanation), ["unsupported", "sctp_port"]);
}

#[test]
fn addresses_are_read_as_people_write_them() {
    assert_eq!(destination("10.96.0.10:80"), Ok((at(VIP), proto::TCP)));
    assert_eq!(destination("10.96.0.10:53/UDP"), Ok((at("10.96.0.10:53"), proto::UDP)));
    assert_eq!(destination("[::ffff:10.96.0.10]:80/tcp"), Ok((at(VIP), proto::TCP)));
    for bad in ["", "10.96.0.10", "web:80", "fd00::1:80/x", "10.96.0.10:0", "10.96.0.10:80/icmp"] {
        assert!(destination(bad).is_err(), "{bad}");
    }
    let ip = at(VIP).ip();
    assert_eq!(client("10.96.0.10"), Ok(Client { ip, port: None }));
    assert_eq!(client("10.96.0.10:7"), Ok(Client { ip, port: Some(7) }));
    let v6 = at("[fd00::1]:7").ip();
    for (text, port) in [("fd00::1", None), ("[fd00::1]", None), ("[fd00::1]:7", Some(7))] {
        assert_eq!(client(text), Ok(Client { ip: v6, port }), "{text}");
    }
    for bad in ["", "x", "10.0.0.1:0", "[10.0.0.1"] {
        assert!(client(bad).is_err(), "{bad}");
    }
}

/// A node port behind an address of the node and its loopback address.
fn node_ports() -> Host {
    let host = host();
    let id = host.0.add_service_port(proto::TCP, &[], &[at("10.244.0.7:8080")]);
    host.0.add_frontend_with(id, proto::TCP, at("0.0.0.0:30080"), FrontendFlags::EXTERNAL);
    host.0.set_address(at("192.168.0.1:1").ip(), AddressFlags::NODE);
    host.0.set_address(at("127.0.0.1:1").ip(), AddressFlags::LOOPBACK);
    host
}

#[test]
fn a_node_port_is_found_by_way_of_the_address_of_the_node_c_2() {
    let explanation = ask(&node_ports(), "192.168.0.1:30080", None);
    let socket = &explanation.decisions[0];
    assert_eq!((socket.verdict, socket.to), ("translated", Some(at("10.244.0.7:8080"))));
    assert_eq!(steps(&explanation, 0)[..4], ["vip_filter", "frontend", "address", "frontend"]);
    let text = show::text(&explanation);
    for shown in ["of this node, for node ports", "node port 30080/tcp", "external, service port"] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    assert!(explanation.service.is_some());
    let other = ask(&node_ports(), "192.168.0.2:30080", None);
    assert_eq!(other.decisions[0].verdict, "not_service", "another node's is its own business");
}

#[test]
fn loopback_has_node_ports_for_processes_of_the_node_only() {
    let host = node_ports();
    let own = ask(&host, "127.0.0.1:30080", None);
    assert_eq!(own.decisions[0].verdict, "translated");
    let pod = Asker { cookie: 7, node: 1, ..Asker::default() };
    let pods = ask_as(&host, "127.0.0.1:30080", Some("10.244.0.9"), pod);
    assert_eq!(pods.decisions[0].verdict, "not_service");
}

#[test]
fn a_namespace_that_is_left_alone_is_told() {
    let host = host();
    let record = NetnsRecord { flags: NetnsFlags::BYPASS, ..NetnsRecord::default() };
    let mesh = Asker { cookie: 7, node: 1, record: Some(record), ..Asker::default() };
    let explanation = ask_as(&host, VIP, Some("10.244.0.9"), mesh);
    assert_eq!(verdicts(&explanation), ["bypassed", "translated"]);
    assert!(show::text(&explanation).contains("redirects its own traffic"));
    let only = Asker { cookie: 7, node: 1, node_only: true, ..Asker::default() };
    assert_eq!(verdicts(&ask_as(&host, VIP, None, only)), ["bypassed", "translated"]);
    let off = Asker { off: true, ..Asker::default() };
    assert_eq!(verdicts(&ask_as(&host, VIP, None, off)), ["off", "translated"]);
}

#[test]
fn a_client_with_affinity_is_told_the_backend_that_it_had_a_4() {
    let host = host();
    let id = ask(&host, VIP, None).service.unwrap().id;
    let flags = FactsFlags::PRESENT | FactsFlags::AFFINITY;
    host.0.set_facts(id, FactsWord::new(flags, 60));
    let second = host.0.backends_of(id, Scope::Cluster)[1];
    let generation = BackendWord(host.0.backend(second).unwrap().word).generation();
    let client = u32::from_ne_bytes([10, 244, 0, 9]);
    let key = AffinityKey { service_port: id, client: [client, 0, 0, 0] };
    host.0.advance_seconds(100);
    let seen_s = host.0.seconds() - 12;
    host.0.put_affinity(key, AffinityRecord { backend: second, generation, seen_s, pad: 0 });
    let before = host.0.affinities();

    let explanation = ask(&host, VIP, Some("10.244.0.9"));
    let packet = &explanation.decisions[1];
    assert_eq!(packet.to, Some(at("10.244.1.2:8080")), "{explanation:?}");
    let text = show::text(&explanation);
    let had =
        format!("affinity: client 10.244.0.9 had backend {second}, generation {generation}, 12 s");
    assert!(text.contains(&had), "{text}");
    assert!(text.contains("this network namespace has no backend yet"), "{text}");
    assert_eq!(host.0.affinities(), before, "explaining changes nothing");
}

/// A load balancer's address for some clients and a node port, with a backend here and one elsewhere,
/// behind an uplink.
fn outside(policy: u32) -> Host {
    let host = Host(HostTables::new());
    let backends = [at("10.244.0.2:8080"), at("10.244.1.2:8080")];
    let id = host.0.add_service_port(proto::TCP, &[], &backends);
    let flags = FrontendFlags::EXTERNAL | FrontendFlags::RANGES;
    host.0.add_frontend_with(id, proto::TCP, at("198.51.100.1:80"), flags);
    host.0.add_frontend_with(id, proto::TCP, at("0.0.0.0:30080"), FrontendFlags::EXTERNAL);
    host.0.set_address(at("198.51.100.1:80").ip(), AddressFlags::VIP);
    host.0.set_address(at("192.0.2.10:1").ip(), AddressFlags::NODE | AddressFlags::HOST);
    host.0.add_source_range(id, at("203.0.113.0:1").ip(), 24);
    host.0.set_facts(id, FactsWord::new(FactsFlags::PRESENT | policy, 0));
    let all = host.0.backends_of(id, Scope::Cluster);
    host.0.set_backends(id, Scope::Local, &all[..1]);
    // The first is on another node, so that an explanation chooses it.
    host.0.clear_flags(all[0], BackendFlags::LOCAL);
    let v4 = [u32::from_ne_bytes([192, 0, 2, 10]), 0, 0, 0];
    let uplink =
        Interface { flags: InterfaceFlags::OFF_NODE, group: 2, v4, ..Interface::default() };
    host.0.set_host_interface(2, Interface { tag: uplink.tag_for(2), ..uplink });
    let route = HostRoute { status: RouteStatus::Found, egress: 2, mtu: 0 };
    host.0.add_route(at("10.244.0.2:1").ip(), 0, route);
    host
}

#[test]
fn v_5_a_client_in_no_source_range_is_told_so() {
    let host = outside(0);
    let refused = ask_outside(&host, "198.51.100.1:80", "198.51.100.7");
    assert_eq!(verdicts(&refused), ["source_range"], "no socket is asked");
    let text = show::text(&refused);
    for shown in ["from outside the node", "198.51.100.7 is in none of them", "for those in source"]
    {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let open = ask_outside(&host, "192.0.2.10:30080", "198.51.100.7");
    assert_eq!(verdicts(&open), ["forwarded"], "R-1: never a node port");
}

#[test]
fn v_7_what_is_sent_on_is_shown_with_its_way_and_its_new_source() {
    let explanation = ask_outside(&outside(0), "198.51.100.1:80", "203.0.113.7");
    let [packet] = &explanation.decisions[..] else { panic!("{explanation:?}") };
    assert_eq!((packet.verdict, packet.to), ("forwarded", Some(at("10.244.0.2:8080"))));
    assert_eq!(packet.from, Some(at("192.0.2.10:0")), "which port is not known");
    let text = show::text(&explanation);
    for shown in [
        "route to 10.244.0.2: out of eth2",
        "eth2 sends from 192.0.2.10",
        "it comes from outside, and the backend is on another node",
        "its source becomes 192.0.2.10, and any free port",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    // The same from a pod of this node: its source is kept.
    let pod = ask(&outside(0), "198.51.100.1:80", Some("203.0.113.7"));
    let packet = pod.decisions.last().unwrap();
    assert_eq!(packet.verdict, "translated");
    assert_eq!(packet.source, Some("its source is kept: the client is on this node"));
}

#[test]
fn v_8_v_9_the_local_policy_binds_who_comes_from_outside() {
    let host = outside(FactsFlags::EXTERNAL_LOCAL);
    let explanation = ask_outside(&host, "192.0.2.10:30080", "203.0.113.7");
    let steps = show::text(&explanation);
    assert!(steps.contains("local set"), "{steps}");
    host.0.set_backends(1, Scope::Local, &[]);
    host.0.set_empty(1, Scope::Local, SetWord::DROP);
    let dropped = ask_outside(&host, "192.0.2.10:30080", "203.0.113.7");
    assert_eq!(verdicts(&dropped), ["no_local_backend"]);
    let pod = ask(&host, "192.0.2.10:30080", Some("10.244.0.9"));
    assert_eq!(pod.decisions.last().unwrap().verdict, "translated", "V-9");
}
