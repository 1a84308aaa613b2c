//! Services of every kind.

use proptest::{collection::vec, prelude::*, sample::select};

use super::address::{Owner, spelled};
use super::{NAMESPACES, NODE_PORTS, PORT_NAMES, PORTS, SERVICES, TARGETS};
use super::{family, labels, policy, protocol, text};
use crate::oracle::cluster::{Family, Ingress, IpMode, Service, ServicePort, ServiceType};
use crate::oracle::render::FIRST_DAY_S;

/// External addresses of either family, with what cannot be used among them.
fn external(balancer: bool) -> impl Strategy<Value = Vec<String>> {
    let owner =
        (0u8..3).prop_map(move |n| if balancer { Owner::Balancer(n) } else { Owner::External(n) });
    let owner = prop_oneof![
        8 => owner.boxed(),
        // An address may be an externalIP of one and a load balancer's of another.
        1 => (0u8..3).prop_map(Owner::External).boxed(),
        2 => Just(Owner::Node(0)).boxed(),
        // Somebody else's, whom nobody here knows.
        1 => select(vec![Owner::OtherNode, Owner::Foreign(0)]).boxed(),
        // Nobody may have these.
        1 => select(vec![Owner::Loopback, Owner::Pod(1), Owner::ClusterIp(1)]).boxed(),
    ];
    let one = prop_oneof![
        12 => (family(), owner).prop_flat_map(|(family, owner)| spelled(family, owner)).boxed(),
        1 => Just("not-an-address".to_owned()).boxed(),
    ];
    prop_oneof![1 => Just(Vec::new()).boxed(), 1 => vec(one, 1..4).boxed()]
}

fn ingress() -> impl Strategy<Value = Vec<Ingress>> {
    let mode = select(vec![None, None, Some(IpMode::Vip), Some(IpMode::Proxy)]);
    (external(true), vec(mode, 4), any::<bool>()).prop_map(|(ips, modes, named)| {
        let entry = |(ip, mode)| Ingress { ip, hostname: String::new(), mode };
        let mut all: Vec<Ingress> = ips.into_iter().zip(modes).map(entry).collect();
        if named {
            let hostname = "lb.example.org".to_owned();
            all.push(Ingress { ip: String::new(), hostname, mode: None });
        }
        all
    })
}

/// Ranges of clients of every kind, of either family, overlapping, everybody's, and of nonsense
/// (R-2, S-8, S-16).
fn source_ranges() -> impl Strategy<Value = Vec<String>> {
    let range = select(vec![
        "198.51.100.0/24",
        "198.51.100.1/32",
        " 198.48.0.0/13 ",
        "10.244.1.0/24",
        "192.168.0.77/24",
        "203.0.113.0/31",
        "0.0.0.0/0",
        "2001:db8:3::/48",
        "2001:db8::/32",
        "2001:db8:3::1/128",
        "fd00:10:2441::/48",
        "fd00:192::/64",
        "::/0",
        "nonsense",
        "198.51.100.0/33",
        "::ffff:198.51.100.0/120",
        "",
    ]);
    let some = vec(range.prop_map(str::to_owned), 1..4);
    prop_oneof![2 => Just(Vec::new()).boxed(), 1 => some.boxed()]
}

/// The ports of a Service: names and protocols differ, and numbers of one protocol, as the API
/// demands.
fn service_ports() -> impl Strategy<Value = Vec<ServicePort>> {
    let node_port = prop_oneof![1 => Just(0), 2 => select(NODE_PORTS.as_slice())];
    let port = (
        text(&PORT_NAMES),
        protocol(),
        select(PORTS.as_slice()),
        node_port,
        select(TARGETS.as_slice()),
    );
    vec(port, 1..4).prop_map(|ports| {
        let mut kept: Vec<ServicePort> = Vec::new();
        for (name, protocol, port, node_port, target) in ports {
            let same = |other: &ServicePort| {
                other.protocol == protocol && (other.name == name || other.port == port)
            };
            if kept.iter().any(same) {
                continue;
            }
            let taken =
                |other: &ServicePort| other.protocol == protocol && other.node_port == node_port;
            let node_port = if kept.iter().any(taken) { 0 } else { node_port };
            kept.push(ServicePort { name, protocol, port, node_port, target });
        }
        kept
    })
}

/// The clusterIP, clusterIPs and ipFamilies of a Service.
fn cluster_ips(index: u8) -> impl Strategy<Value = (String, Vec<String>, Vec<Family>)> {
    // Usually its own address; now and then one that another may have too (S-15).
    let owner = prop_oneof![8 => Just(index), 1 => 0u8..7].prop_map(Owner::ClusterIp);
    let families = select(vec![
        vec![Family::V4],
        vec![Family::V6],
        vec![Family::V4, Family::V6],
        vec![Family::V6, Family::V4],
        vec![Family::V4, Family::V6],
        vec![Family::V6, Family::V4],
        vec![],
    ]);
    let addresses =
        owner.prop_flat_map(|owner| (spelled(Family::V4, owner), spelled(Family::V6, owner)));
    let usual = (families, addresses, any::<bool>()).prop_map(|(families, (v4, v6), old)| {
        let text = |family| if family == Family::V4 { v4.clone() } else { v6.clone() };
        let mut all: Vec<String> = families.iter().map(|family| text(*family)).collect();
        let first = all.first().cloned().unwrap_or_else(|| text(Family::V4));
        if old && families.len() < 2 {
            all.clear(); // As it was before there was a second address.
        }
        (first, all, families)
    });
    prop_oneof![
        30 => usual.boxed(),
        1 => Just(("None".to_owned(), vec!["None".to_owned()], vec![Family::V4])).boxed(),
        1 => Just((String::new(), vec![], vec![])).boxed(),
    ]
}

pub(super) fn service() -> impl Strategy<Value = Service> {
    let namespace = prop_oneof![3 => Just(0), 1 => 1..NAMESPACES.len()];
    (namespace, 0..SERVICES.len()).prop_flat_map(|(namespace, name)| {
        let index = u8::try_from(namespace * SERVICES.len() + name).unwrap_or(0);
        let kind = prop_oneof![
            8 => Just(ServiceType::ClusterIp),
            6 => Just(ServiceType::NodePort),
            8 => Just(ServiceType::LoadBalancer),
            1 => Just(ServiceType::ExternalName),
        ];
        let affinity = prop_oneof![2 => Just(None), 1 => Just(Some(10_800)), 1 => Just(Some(10))];
        let first = (kind, cluster_ips(index), service_ports(), labels(), policy(), policy());
        let second =
            (external(false), ingress(), source_ranges(), affinity, 0i64..4, any::<bool>());
        (first, second).prop_map(move |(first, second)| {
            let (kind, (cluster_ip, cluster_ips, families), mut ports, labels, internal, external) =
                first;
            let (external_ips, ingress, source_ranges, affinity_s, age, publish_not_ready) = second;
            if matches!(kind, ServiceType::ClusterIp | ServiceType::ExternalName) {
                for port in &mut ports {
                    port.node_port = 0;
                }
            }
            let balanced = kind == ServiceType::LoadBalancer;
            Service {
                namespace: NAMESPACES[namespace].into(),
                name: SERVICES[name].into(),
                created_s: FIRST_DAY_S + age,
                labels,
                kind,
                cluster_ip,
                cluster_ips,
                families,
                ports,
                external_ips,
                ingress: if balanced { ingress } else { Vec::new() },
                source_ranges: if balanced { source_ranges } else { Vec::new() },
                internal,
                external,
                affinity_s,
                publish_not_ready,
            }
        })
    })
}
