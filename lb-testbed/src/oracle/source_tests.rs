//! The verdict by who asks, in packets: pods of this node and of others, clients outside, addresses
//! of the node and of load balancers as sources, under each local detector.

use super::*;
use crate::oracle::cluster::Policy;
use crate::oracle::fixture::{
    BALANCER, HERE, NODE_IP, THERE, ask, at, cluster, endpoint, other_pod, outside, pod, pods,
    told, with_endpoints, with_policies,
};

const EXTERNALS: [&str; 3] = ["192.0.2.1:80", "203.0.113.1:80", "192.168.0.1:30000"];
const VIP: &str = "10.96.0.1:80";
const BOTH: &str = "10.244.1.1:8080 or 10.244.2.1:8080";
const AWAY_MASQUERADED: &str = "10.244.1.1:8080 or 10.244.2.1:8080 from another source";
const BOTH_MASQUERADED: &str =
    "10.244.1.1:8080 from another source or 10.244.2.1:8080 from another source";

fn packet(cluster: &Cluster, client: &Client, to: &str) -> String {
    ask(cluster, Engine::Packet, client, to).to_string()
}

fn elsewhere(ip: &str) -> Client {
    Client::new(Place::Elsewhere, ip.parse().unwrap()).by(outside().link)
}

fn with_detector(cluster: Cluster, detector: Detector) -> Cluster {
    let config = super::super::cluster::Config { detector, ..cluster.config };
    Cluster { config, ..cluster }
}

/// What takes the fixture's pod for one of this node, the other node's pod for one of another, and
/// the client outside for nobody's.
fn detectors() -> [Detector; 5] {
    [
        Detector::Interface,
        Detector::Bridge("cni0".into()),
        Detector::Prefix("veth".into()),
        Detector::ClusterCidr(vec!["10.244.1.0/24".into(), "10.244.2.0/24".into()]),
        Detector::NodeCidr,
    ]
}

#[test]
fn m_2_departure_a_b_from_off_the_node_the_source_is_kept_for_endpoints_here_alone() {
    for client in [outside(), other_pod(), elsewhere(BALANCER)] {
        for to in EXTERNALS {
            assert_eq!(packet(&cluster(), &client, to), format!("{AWAY_MASQUERADED} (V-7)"));
        }
    }
}

#[test]
fn endpoints_are_here_by_their_object_or_by_the_nodes_address() {
    let expected = ask(&cluster(), Engine::Packet, &outside(), VIP);
    assert_eq!(expected.here, pods(&[HERE]));
    // A process of the node, whose object names no node.
    let mut of_node = with_endpoints(&[endpoint(NODE_IP, "", "rs"), endpoint(THERE, "", "rs")]);
    of_node.config.masquerade_all = true;
    let expected = ask(&of_node, Engine::Packet, &outside(), VIP);
    assert_eq!(expected.here, pods(&[NODE_IP]));
    // Nothing that is delivered to the node itself is masqueraded.
    let both = "10.244.2.1:8080 from another source or 192.168.0.1:8080";
    assert_eq!(expected.to_string(), format!("{both} (V-1)"));
}

#[test]
fn v_8_m_3_from_outside_the_local_policy_keeps_the_source() {
    let local = with_policies(Policy::Cluster, Policy::Local);
    for detector in detectors().into_iter().chain([Detector::Missing]) {
        let local = with_detector(local.clone(), detector);
        for to in EXTERNALS {
            for client in [outside(), other_pod()] {
                assert_eq!(packet(&local, &client, to), "10.244.1.1:8080 (V-8)");
            }
        }
    }
}

#[test]
fn v_9_m_4_every_detector_knows_a_pod_of_this_node() {
    let local = with_policies(Policy::Cluster, Policy::Local);
    for detector in detectors() {
        let local = with_detector(local.clone(), detector);
        for to in EXTERNALS {
            assert_eq!(packet(&local, &pod(), to), format!("{BOTH} (V-9)"));
        }
    }
    // V-d: without one it counts as a stranger; a socket knows better.
    let none = with_detector(local, Detector::Missing);
    assert_eq!(packet(&none, &pod(), EXTERNALS[0]), "10.244.1.1:8080 (V-8)");
    let socket = ask(&none, Engine::Socket, &pod(), EXTERNALS[0]).to_string();
    assert_eq!(socket, format!("{BOTH} (V-9)"));
}

#[test]
fn v_e_a_range_for_all_pods_takes_those_of_other_nodes_for_local() {
    let local = with_policies(Policy::Cluster, Policy::Local);
    let wide = with_detector(local, Detector::ClusterCidr(vec!["10.244.0.0/16".into()]));
    assert_eq!(told(&wide, &other_pod(), EXTERNALS[0]), format!("{BOTH} (V-9)"));
    // Departure b: an answer from another node would not come back this way.
    assert_eq!(packet(&wide, &other_pod(), EXTERNALS[0]), format!("{AWAY_MASQUERADED} (V-9)"));
}

#[test]
fn v_10_m_5_an_address_of_the_node_counts_as_the_node_unless_it_is_forged() {
    let local = with_policies(Policy::Cluster, Policy::Local);
    let own = elsewhere(NODE_IP);
    assert_eq!(told(&local, &own, EXTERNALS[0]), format!("{BOTH_MASQUERADED} (V-10)"));
    // From off the node nobody has it, and the kernel refuses it.
    for policies in [local, cluster()] {
        for to in EXTERNALS {
            assert_eq!(packet(&policies, &own, to), "left alone (forged)");
        }
    }
}

#[test]
fn m_7_m_8_detectors_tell_whose_source_a_cluster_ip_keeps() {
    for detector in detectors() {
        let cluster = with_detector(cluster(), detector);
        assert_eq!(packet(&cluster, &pod(), VIP), format!("{BOTH} (V-1)"));
        assert_eq!(packet(&cluster, &outside(), VIP), format!("{AWAY_MASQUERADED} (V-1)"));
    }
    // A pod of this node that the detector does not know.
    for detector in [
        Detector::Bridge("docker0".into()),
        Detector::Prefix("cali".into()),
        Detector::ClusterCidr(vec!["10.245.0.0/16".into(), "10.244.0.0/16".into()]),
    ] {
        let cluster = with_detector(cluster(), detector);
        assert_eq!(told(&cluster, &pod(), VIP), format!("{BOTH_MASQUERADED} (V-1)"));
        assert_eq!(packet(&cluster, &pod(), VIP), format!("{AWAY_MASQUERADED} (V-1)"));
    }
}

#[test]
fn m_9_a_family_without_a_range_has_no_detector() {
    let v6 = Detector::ClusterCidr(vec!["fd00:10:2441::/64".into()]);
    for detector in [v6, Detector::Missing] {
        let cluster = with_detector(cluster(), detector);
        assert_eq!(told(&cluster, &pod(), VIP), format!("{BOTH} (V-1)"));
        assert_eq!(packet(&cluster, &pod(), VIP), format!("{BOTH} (V-1)"));
        assert_eq!(told(&cluster, &outside(), VIP), format!("{BOTH} (V-1)"));
        assert_eq!(packet(&cluster, &outside(), VIP), format!("{AWAY_MASQUERADED} (V-1)"));
    }
}

#[test]
fn m_6_masquerade_all_is_for_cluster_ips_alone() {
    let mut cluster = cluster();
    cluster.config.masquerade_all = true;
    for client in [pod(), outside(), other_pod()] {
        assert_eq!(packet(&cluster, &client, VIP), format!("{BOTH_MASQUERADED} (V-1)"));
    }
    assert_eq!(packet(&cluster, &pod(), EXTERNALS[0]), format!("{BOTH} (V-7)"));
    assert_eq!(packet(&cluster, &outside(), EXTERNALS[0]), format!("{AWAY_MASQUERADED} (V-7)"));
}

#[test]
fn m_1_an_endpoint_of_another_node_that_asks_for_itself_here() {
    let own = elsewhere(THERE);
    assert_eq!(packet(&cluster(), &own, VIP), format!("{AWAY_MASQUERADED} (V-1)"));
    // Also where its object says that it is here.
    let wrong = with_endpoints(&[endpoint(THERE, "node-a", "rs")]);
    assert_eq!(packet(&wrong, &own, VIP), "10.244.2.1:8080 from another source (V-1)");
}

#[test]
fn v_5_r_3_load_balancer_addresses_as_sources() {
    let mut cluster = cluster();
    cluster.services[0].source_ranges = vec!["198.51.100.0/24".into()];
    let vip = elsewhere(BALANCER);
    assert_eq!(packet(&cluster, &vip, EXTERNALS[1]), "no answer (V-5)");
    assert_eq!(packet(&cluster, &outside(), EXTERNALS[1]), format!("{AWAY_MASQUERADED} (V-7)"));
    // at all others of its addresses ranges say nothing.
    for to in [EXTERNALS[0], EXTERNALS[2], VIP] {
        assert!(!packet(&cluster, &vip, to).contains("V-5"), "{to}");
    }
    cluster.services[0].source_ranges.push("192.168.0.1/32".into());
    assert_eq!(packet(&cluster, &vip, EXTERNALS[1]), format!("{AWAY_MASQUERADED} (V-7)"));
    // The same address among the externalIPs is no way around.
    cluster.services[0].external_ips.push(BALANCER.into());
    assert_eq!(packet(&cluster, &pod(), EXTERNALS[1]), "no answer (V-5)");
    // everybody is in a range that is all there is.
    cluster.services[0].source_ranges.push("0.0.0.0/0".into());
    assert_eq!(packet(&cluster, &pod(), EXTERNALS[1]), format!("{BOTH} (V-7)"));
    // V-5 goes before V-6, and before the policy.
    cluster.services[0].source_ranges.truncate(2);
    cluster.slices.clear();
    assert_eq!(packet(&cluster, &pod(), EXTERNALS[1]), "no answer (V-5)");
    assert_eq!(packet(&cluster, &outside(), EXTERNALS[1]), "port unreachable or RST (V-6)");
}

#[test]
fn departure_d_an_unknown_port_from_off_the_node_never_loops() {
    for to in ["192.0.2.1:81", "203.0.113.1:81"] {
        for client in [outside(), other_pod()] {
            assert_eq!(packet(&cluster(), &client, to), "port unreachable or RST (departure d)");
            assert_eq!(told(&cluster(), &client, to), "left alone (C-6)");
        }
        assert_eq!(packet(&cluster(), &pod(), to), "left alone (departure d)");
    }
    assert_eq!(packet(&cluster(), &outside(), "10.96.0.1:81"), "port unreachable or RST (V-12)");
    assert_eq!(packet(&cluster(), &outside(), "10.96.0.9:81"), "no answer (V-13)");
    // V-11, V-i: what the node has is the node's.
    let mut cluster = cluster();
    cluster.services[0].external_ips = vec![NODE_IP.into()];
    for to in ["192.168.0.1:81", "192.168.0.1:30001", "127.0.0.1:30000"] {
        assert_eq!(packet(&cluster, &outside(), to), "left alone (C-6)", "{to}");
    }
    cluster.nodes[0].interfaces.push("10.96.0.1".parse().unwrap());
    assert_eq!(packet(&cluster, &outside(), "10.96.0.1:81"), "left alone (C-6)");
    assert_eq!(packet(&cluster, &outside(), VIP), format!("{AWAY_MASQUERADED} (V-1)")); // C-4
}

#[test]
fn v_11_n_1_node_ports_from_outside_are_at_eligible_addresses_only() {
    let mut cluster = cluster();
    cluster.nodes[0].interfaces.push("10.0.0.1".parse().unwrap());
    let asked = |cluster: &Cluster, to| ask(cluster, Engine::Packet, &outside(), to).found;
    let found = Some((Kind::NodePort, 0));
    assert_eq!(asked(&cluster, "192.168.0.1:30000"), found); // N-3
    assert_eq!(asked(&cluster, "10.0.0.1:30000"), None);
    cluster.config.node_port_addresses = vec!["10.0.0.0/8".into()];
    assert_eq!(asked(&cluster, "192.168.0.1:30000"), None);
    assert_eq!(asked(&cluster, "10.0.0.1:30000"), found);
    assert_eq!(at("10.0.0.1:30000").port(), 30_000);
}
