//! The Service rules one by one.

use super::*;
use crate::oracle::cluster::{Ingress, SERVICE_NAME, ServicePort};
use crate::oracle::fixture::{
    BALANCER, CLUSTER_IP, EXTERNAL_IP, HERE, THERE, cluster, endpoint, pods, service, slice,
};

fn view(change: impl FnOnce(&mut Cluster)) -> View {
    let mut cluster = cluster();
    change(&mut cluster);
    View::new(&cluster, "node-a")
}

/// The one Service changed one way or another.
fn of(change: impl FnOnce(&mut Service)) -> View {
    view(|cluster| change(&mut cluster.services[0]))
}

/// Addresses that are captured for its first port, with their kinds.
fn captured(view: &View) -> Vec<(String, Kind)> {
    view.captured.iter().map(|((at, _), (kind, _))| (at.to_string(), *kind)).collect()
}

fn at_80(ip: &str, kind: Kind) -> (String, Kind) {
    let bracketed = if ip.contains(':') { format!("[{ip}]") } else { ip.into() };
    (format!("{bracketed}:80"), kind)
}

#[test]
fn s_1_to_s_3_services_that_do_not_count() {
    let changes: [fn(&mut Service); 6] = [
        |service| drop(service.labels.insert(PROXY_NAME.into(), String::new())),
        |service| drop(service.labels.insert(PROXY_NAME.into(), "x".into())),
        |service| drop(service.labels.insert(HEADLESS.into(), String::new())),
        |service| service.cluster_ip = "None".into(),
        |service| service.cluster_ip = String::new(),
        |service| service.kind = ServiceType::ExternalName,
    ];
    for change in changes {
        let view = of(change);
        assert!(view.ports.is_empty() && view.captured.is_empty() && view.node_ports.is_empty());
        assert!(view.cluster_ips.is_empty());
    }
}

#[test]
fn s_5_s_6_families() {
    let dual = |service: &mut Service| {
        service.families = vec![Family::V6, Family::V4];
        service.cluster_ips = vec!["fd00::1".into(), CLUSTER_IP.into()];
        service.cluster_ip = "fd00::1".into();
        service.external_ips.push("2001:db8::1".into());
    };
    let expected = [
        at_80(CLUSTER_IP, Kind::ClusterIp),
        at_80(EXTERNAL_IP, Kind::ExternalIp),
        at_80(BALANCER, Kind::LoadBalancer),
        at_80("2001:db8::1", Kind::ExternalIp),
        at_80("fd00::1", Kind::ClusterIp),
    ];
    assert_eq!(captured(&of(dual)), expected);
    // S-6: no clusterIP of a family, nothing in it.
    let single = of(|service| {
        dual(service);
        service.families = vec![Family::V6];
        service.cluster_ips.truncate(1);
    });
    assert_eq!(captured(&single), expected[3..]);
    assert_eq!(single.node_ports.keys().next().unwrap().0, Family::V6);
    // S-5: without families the first address counts, in its own.
    let old = of(|service| {
        dual(service);
        service.families.clear();
    });
    assert_eq!(captured(&old), expected[3..]);
}

#[test]
fn s_7_a_port_is_known_by_name_and_protocol() {
    let view = of(|service| {
        let port = |name: &str, protocol, port| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: 0,
            target: 1,
        };
        service.ports = vec![port("web", Protocol::Tcp, 80), port("web", Protocol::Udp, 80)];
    });
    assert_eq!(view.ports.len(), 2);
    assert_ne!(view.ports[0].id, view.ports[1].id);
    // E-9, E-21: the slice has it for TCP only.
    assert_eq!(view.ports[0].lists.cluster, pods(&[HERE, THERE]));
    assert!(!view.ports[1].lists.has_any);
}

#[test]
fn s_8_what_cannot_be_used_costs_nothing_else() {
    let view = of(|service| {
        service.external_ips =
            vec!["nonsense".into(), "2001:db8::1".into(), "127.0.0.1".into(), EXTERNAL_IP.into()];
        service.source_ranges = vec!["x".into(), " 10.0.0.7/8\n".into(), "2001:db8::/32".into()];
    });
    let external: Vec<_> =
        captured(&view).into_iter().filter(|(_, kind)| *kind == Kind::ExternalIp).collect();
    assert_eq!(external, [at_80(EXTERNAL_IP, Kind::ExternalIp)]);
    assert_eq!(view.ports[0].source_ranges.len(), 1);
    assert!(view.ports[0].source_ranges[0].contains("10.1.2.3".parse().unwrap()));
}

#[test]
fn s_9_addresses_of_load_balancers() {
    let entry = |ip: &str, mode| Ingress { ip: ip.into(), hostname: "lb".into(), mode };
    let view = of(|service| {
        service.ingress = vec![
            entry("", None),
            entry("203.0.113.1", Some(IpMode::Proxy)),
            entry("203.0.113.2", Some(IpMode::Vip)),
            entry("203.0.113.3", None),
        ];
    });
    let ingress: Vec<_> = view.ports[0].ingress.iter().map(ToString::to_string).collect();
    assert_eq!(ingress, ["203.0.113.2", "203.0.113.3"]);
}

#[test]
fn s_10_the_external_policy_needs_an_exposed_service() {
    let local = |change: fn(&mut Service)| {
        let view = of(|service| {
            service.external = Some(Policy::Local);
            change(service);
        });
        view.ports[0].external_local
    };
    assert!(local(|_| ()));
    assert!(local(|service| service.kind = ServiceType::NodePort));
    assert!(local(|service| service.kind = ServiceType::ClusterIp));
    assert!(!local(|service| {
        service.kind = ServiceType::ClusterIp;
        service.external_ips.clear();
    }));
    assert!(!local(|service| service.external = None));
}

#[test]
fn s_10_derived_predicates() {
    // usesLocalEndpoints without anything external: no local list under Cluster.
    let view = of(|service| {
        service.external = Some(Policy::Local);
        service.external_ips.clear();
        service.ingress.clear();
        service.ports[0].node_port = 0;
    });
    assert_eq!(view.ports[0].lists.local, pods(&[]));
    assert_eq!(view.ports[0].lists.cluster, pods(&[HERE, THERE]));
    // usesClusterEndpoints: not under Local with nothing external, but with (V-9).
    let internal = |change: fn(&mut Service)| {
        let view = of(|service| {
            service.internal = Some(Policy::Local);
            service.external = Some(Policy::Local);
            change(service);
        });
        view.ports[0].lists.cluster.clone()
    };
    assert_eq!(internal(|_| ()), pods(&[HERE, THERE]));
    let nothing_external = internal(|service| {
        service.external_ips.clear();
        service.ingress.clear();
        service.ports[0].node_port = 0;
    });
    assert_eq!(nothing_external, pods(&[]));
}

#[test]
fn s_14_node_ports_are_where_the_field_says() {
    assert!(of(|service| service.ports[0].node_port = 0).node_ports.is_empty());
    let key = (Family::V4, 30_000, Protocol::Tcp);
    assert_eq!(of(|_| ()).node_ports.keys().copied().collect::<Vec<_>>(), [key]);
}

#[test]
fn s_15_the_oldest_keeps_what_several_claim() {
    let winner = |age: i64, namespace: &str, name: &str| {
        let view = view(|cluster| {
            let mut other = service();
            other.created_s += age;
            (other.namespace, other.name) = (namespace.into(), name.into());
            cluster.services.insert(0, other);
            cluster.slices.push(slice("x", &[]));
        });
        let (_, port) = view.captured.values().next().unwrap();
        let id = &view.ports[*port].id;
        format!("{}/{}", id.namespace, id.service)
    };
    assert_eq!(winner(1, "default", "0"), "default/a");
    assert_eq!(winner(-1, "default", "b"), "default/b");
    assert_eq!(winner(0, "default", "b"), "default/a");
    assert_eq!(winner(0, "default", "0"), "default/0");
    assert_eq!(winner(0, "aaa", "z"), "aaa/z");
}

#[test]
fn s_16_addresses_are_canonical() {
    let view = of(|service| {
        service.cluster_ips = vec!["010.096.000.001".into()];
        service.external_ips = vec!["::ffff:192.0.2.1".into()];
    });
    let expected = [
        at_80(CLUSTER_IP, Kind::ClusterIp),
        at_80(EXTERNAL_IP, Kind::ExternalIp),
        at_80(BALANCER, Kind::LoadBalancer),
    ];
    assert_eq!(captured(&view), expected);
}

#[test]
fn x_3_external_ips_can_be_turned_off() {
    let view = view(|cluster| cluster.config.external_ips = false);
    assert!(captured(&view).iter().all(|(_, kind)| *kind != Kind::ExternalIp));
}

#[test]
fn a_service_whose_claims_are_all_lost_is_not_reached() {
    let view = view(|cluster| {
        let mut other = service();
        other.name = "b".into();
        cluster.services.push(other);
    });
    assert!(view.is_reached(0) && !view.is_reached(1));
}

#[test]
fn addresses_of_others_are_refused() {
    let claimed = |ip: &str, port: u16, change: fn(&mut Cluster)| {
        let view = view(|cluster| {
            cluster.services[0].external_ips = vec![ip.into()];
            cluster.services[0].ports[0].port = port;
            change(cluster);
        });
        view.captured.values().any(|(kind, _)| *kind == Kind::ExternalIp)
    };
    let unchanged: fn(&mut Cluster) = |_| ();
    assert!(claimed("192.0.2.7", 80, unchanged));
    assert!(!claimed("10.244.1.7", 80, unchanged)); // A pod of this node.
    assert!(claimed("10.244.2.7", 80, unchanged));
    assert!(claimed("192.168.0.1", 80, unchanged)); // C-4
    assert!(!claimed("192.168.0.1", 10_250, unchanged)); // The kubelet.
    let another: fn(&mut Cluster) = |cluster| {
        let mut other = service();
        other.name = "b".into();
        other.cluster_ips = vec!["10.96.0.7".into()];
        other.external_ips.clear();
        cluster.services.push(other);
    };
    assert!(!claimed("10.96.0.7", 80, another));
    assert!(claimed("10.96.0.7", 80, unchanged));
    let api: fn(&mut Cluster) = |cluster| {
        let mut api = slice("kubernetes", &[endpoint("192.168.0.5", "", "rs")]);
        api.labels.insert(SERVICE_NAME.into(), "kubernetes".into());
        cluster.slices.push(api);
    };
    assert!(!claimed("192.168.0.5", 8080, api));
    assert!(claimed("192.168.0.5", 80, api));
    assert!(claimed("192.168.0.5", 8080, unchanged));
}

#[test]
fn a_node_port_does_not_take_the_kubelets_port() {
    let taken = |number: u16| of(|service| service.ports[0].node_port = number).node_ports.len();
    assert_eq!((taken(30_000), taken(10_250)), (1, 0));
}
