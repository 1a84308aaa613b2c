//! The verdict, source and affinity rules one by one, and the departures.

use super::*;
use crate::oracle::cluster::{Endpoint, Policy};
use crate::oracle::fixture::{
    BALANCER, CLUSTER_IP, EXTERNAL_IP, HERE, NODE_IP, THERE, ask, at, cluster, endpoint, host,
    outside, pod, told, with_endpoints, with_policies,
};

const EXTERNALS: [&str; 3] = ["192.0.2.1:80", "203.0.113.1:80", "192.168.0.1:30000"];
const VIP: &str = "10.96.0.1:80";
const BOTH: &str = "10.244.1.1:8080 or 10.244.2.1:8080";
const BOTH_MASQUERADED: &str =
    "10.244.1.1:8080 from another source or 10.244.2.1:8080 from another source";

fn only_there() -> [Endpoint; 1] {
    [endpoint(THERE, "node-b", "rs")]
}

#[test]
fn the_addresses_of_the_fixture_are_those_of_the_tests() {
    assert_eq!(EXTERNALS[0], format!("{EXTERNAL_IP}:80"));
    assert_eq!(EXTERNALS[1], format!("{BALANCER}:80"));
    assert_eq!(EXTERNALS[2], format!("{NODE_IP}:30000"));
    assert_eq!(VIP, format!("{CLUSTER_IP}:80"));
    assert_eq!(BOTH, format!("{HERE}:8080 or {THERE}:8080"));
}

#[test]
fn v_1_to_v_4_cluster_ip() {
    assert_eq!(told(&cluster(), &pod(), VIP), format!("{BOTH} (V-1)"));
    let mut local = with_policies(Policy::Local, Policy::Cluster);
    assert_eq!(told(&local, &pod(), VIP), "10.244.1.1:8080 (V-2)");
    local.slices = with_endpoints(&only_there()).slices;
    assert_eq!(told(&local, &pod(), VIP), "no answer (V-4)");
    local.slices = with_endpoints(&[endpoint(THERE, "node-b", "")]).slices;
    assert_eq!(told(&local, &pod(), VIP), "port unreachable or RST (V-3)");
    assert_eq!(told(&with_endpoints(&[]), &pod(), VIP), "port unreachable or RST (V-3)");
}

#[test]
fn v_6_v_7_external_under_cluster() {
    for to in EXTERNALS {
        for client in [pod(), host(), outside()] {
            assert_eq!(told(&cluster(), &client, to), format!("{BOTH_MASQUERADED} (V-7)"));
            let empty = with_endpoints(&[]);
            assert_eq!(told(&empty, &client, to), "port unreachable or RST (V-6)");
        }
    }
}

#[test]
fn v_8_to_v_10_v_c_external_under_local() {
    let mut local = with_policies(Policy::Cluster, Policy::Local);
    for to in EXTERNALS {
        assert_eq!(told(&local, &outside(), to), "10.244.1.1:8080 (V-8)");
        assert_eq!(told(&local, &pod(), to), format!("{BOTH} (V-9)"));
        assert_eq!(told(&local, &host(), to), format!("{BOTH_MASQUERADED} (V-10)"));
    }
    local.slices = with_endpoints(&only_there()).slices;
    for to in EXTERNALS {
        assert_eq!(told(&local, &outside(), to), "no answer (V-8)");
        assert_eq!(told(&local, &pod(), to), "10.244.2.1:8080 (V-9)");
        let masqueraded = "10.244.2.1:8080 from another source (V-10)";
        assert_eq!(told(&local, &host(), to), masqueraded);
    }
}

#[test]
fn v_d_v_e_pods_are_known_by_the_detector() {
    let mut local = with_policies(Policy::Cluster, Policy::Local);
    local.config.detector = Detector::Missing;
    assert_eq!(told(&local, &pod(), EXTERNALS[0]), "10.244.1.1:8080 (V-8)");
    // V-e: any pod of the cluster is taken for one of this node.
    local.config.detector = Detector::ClusterCidr(vec!["10.244.0.0/16".into()]);
    let remote = Client::new(Place::Elsewhere, "10.244.2.9".parse().unwrap());
    assert_eq!(told(&local, &remote, EXTERNALS[0]), format!("{BOTH} (V-9)"));
    local.config.detector = Detector::NodeCidr;
    assert_eq!(told(&local, &remote, EXTERNALS[0]), "10.244.1.1:8080 (V-8)");
    assert_eq!(told(&local, &pod(), EXTERNALS[0]), format!("{BOTH} (V-9)"));
}

#[test]
fn v_g_t_13_the_policies_are_independent() {
    let cluster = with_policies(Policy::Local, Policy::Cluster);
    assert_eq!(told(&cluster, &pod(), VIP), "10.244.1.1:8080 (V-2)");
    assert_eq!(told(&cluster, &pod(), EXTERNALS[2]), format!("{BOTH_MASQUERADED} (V-7)"));
}

#[test]
fn c_2_v_11_node_ports_are_found_last_and_only_at_this_node() {
    for to in ["192.168.0.2:30000", "198.51.100.1:30000", "127.0.0.1:30000", "192.168.0.1:30001"] {
        assert_eq!(told(&cluster(), &pod(), to), "left alone (C-6)", "{to}");
    }
    // C-2, C-4: an address of a Service comes first, also where the node has it.
    let mut cluster = cluster();
    cluster.services[0].external_ips = vec![NODE_IP.into()];
    cluster.services[0].ports[0].port = 30_000;
    let expected = ask(&cluster, Engine::Contract, &pod(), EXTERNALS[2]);
    assert_eq!(expected.found, Some((Kind::ExternalIp, 0)));
}

#[test]
fn n_6_loopback_is_for_sockets_of_the_node_alone() {
    let mut cluster = cluster();
    cluster.config.node_port_addresses = vec!["localhost".into()];
    let socket = |client| ask(&cluster, Engine::Socket, &client, "127.0.0.1:30000").to_string();
    assert_eq!(socket(host()), format!("{BOTH} (V-7)"));
    assert_eq!(socket(pod()), "left alone (C-6)");
    assert_eq!(told(&cluster, &host(), "127.0.0.1:30000"), "left alone (C-6)");
    assert_eq!(told(&cluster, &host(), EXTERNALS[2]), "left alone (C-6)");
}

#[test]
fn v_12_v_13_addresses_of_services_that_nobody_serves() {
    assert_eq!(told(&cluster(), &pod(), "10.96.0.1:81"), "port unreachable or RST (V-12)");
    assert_eq!(told(&cluster(), &pod(), "10.96.0.9:80"), "no answer (V-13)");
    let mut unknown = cluster();
    unknown.service_cidrs.clear();
    assert_eq!(told(&unknown, &pod(), "10.96.0.9:80"), "left alone (C-6)");
    assert_eq!(told(&unknown, &pod(), "10.97.0.1:80"), "left alone (C-6)");
    // Departure d.
    let mut claimed = cluster();
    claimed.services[0].external_ips = vec!["10.96.0.9".into()];
    assert_eq!(told(&claimed, &pod(), "10.96.0.9:81"), "no answer (V-13)");
    let packet = ask(&claimed, Engine::Packet, &pod(), "10.96.0.9:81");
    assert_eq!(packet.verdict, Verdict::PassUntouched);
    let socket = ask(&cluster(), Engine::Socket, &pod(), "10.96.0.9:80");
    assert_eq!(socket.verdict, Verdict::PassUntouched);
}

#[test]
fn v_5_r_1_to_r_6_source_ranges() {
    let mut cluster = cluster();
    cluster.services[0].source_ranges = vec!["203.0.113.128/25".into(), "fd00::/8".into()];
    let inside = Client::new(Place::Elsewhere, "203.0.113.200".parse().unwrap());
    assert_eq!(told(&cluster, &outside(), EXTERNALS[1]), "no answer (V-5)");
    assert_eq!(told(&cluster, &pod(), EXTERNALS[1]), "no answer (V-5)");
    assert_eq!(told(&cluster, &inside, EXTERNALS[1]), format!("{BOTH_MASQUERADED} (V-7)"));
    for to in [EXTERNALS[0], EXTERNALS[2]] {
        //
        assert_eq!(told(&cluster, &outside(), to), format!("{BOTH_MASQUERADED} (V-7)"));
    }
    // the node's own address inside lets the load balancer's address in.
    let vip = Client::new(Place::Host, BALANCER.parse().unwrap());
    assert_eq!(told(&cluster, &vip, EXTERNALS[1]), "no answer (V-5)");
    cluster.services[0].source_ranges.push("192.168.0.0/24".into());
    assert_eq!(told(&cluster, &vip, EXTERNALS[1]), format!("{BOTH_MASQUERADED} (V-7)"));
    // no range of this family that can be read, no filter.
    cluster.services[0].source_ranges = vec!["nonsense".into(), "fd00::/8".into()];
    assert_eq!(told(&cluster, &outside(), EXTERNALS[1]), format!("{BOTH_MASQUERADED} (V-7)"));
}

#[test]
fn m_1_hairpin() {
    let own = Client::new(Place::Pod, HERE.parse().unwrap());
    let expected = "10.244.1.1:8080 from another source or 10.244.2.1:8080 (V-1)";
    assert_eq!(told(&cluster(), &own, VIP), expected);
    let packet = ask(&cluster(), Engine::Packet, &own, VIP);
    assert_eq!(packet.to_string(), expected);
    let socket = ask(&cluster(), Engine::Socket, &own, VIP);
    assert_eq!(socket.to_string(), format!("{BOTH} (V-1)"));
}

#[test]
fn m_6_to_m_9_cluster_ip_sources() {
    let mut cluster = cluster();
    assert_eq!(told(&cluster, &pod(), VIP), format!("{BOTH} (V-1)")); // M-8
    assert_eq!(told(&cluster, &host(), VIP), format!("{BOTH_MASQUERADED} (V-1)")); // M-7
    assert_eq!(told(&cluster, &outside(), VIP), format!("{BOTH_MASQUERADED} (V-1)"));
    cluster.config.detector = Detector::Missing; // M-9
    assert_eq!(told(&cluster, &outside(), VIP), format!("{BOTH} (V-1)"));
    cluster.config.masquerade_all = true; // M-6
    assert_eq!(told(&cluster, &outside(), VIP), format!("{BOTH_MASQUERADED} (V-1)"));
    // M-a: a short-circuited external destination is no clusterIP.
    cluster.config.detector = Detector::Interface;
    cluster.services[0].external = Some(Policy::Local);
    assert_eq!(told(&cluster, &pod(), EXTERNALS[0]), format!("{BOTH} (V-9)"));
}

#[test]
fn departure_a_the_source_is_kept_on_the_endpoints_own_node() {
    let expected = "10.244.1.1:8080 or 10.244.2.1:8080 from another source";
    let packet = |to| ask(&cluster(), Engine::Packet, &outside(), to).to_string();
    assert_eq!(packet(EXTERNALS[0]), format!("{expected} (V-7)"));
    assert_eq!(packet(VIP), format!("{expected} (V-1)"));
}

#[test]
fn departure_b_clients_of_this_node_keep_their_source() {
    let mut cluster = cluster();
    for to in EXTERNALS {
        for client in [pod(), host()] {
            let socket = ask(&cluster, Engine::Socket, &client, to).to_string();
            assert_eq!(socket, format!("{BOTH} (V-7)"));
        }
        let packet = ask(&cluster, Engine::Packet, &pod(), to).to_string();
        assert_eq!(packet, format!("{BOTH} (V-7)"));
    }
    cluster.config.masquerade_all = true;
    let socket = ask(&cluster, Engine::Socket, &pod(), VIP).to_string();
    assert_eq!(socket, format!("{BOTH} (V-1)"));
    let packet = ask(&cluster, Engine::Packet, &pod(), VIP).to_string();
    assert_eq!(packet, format!("{BOTH_MASQUERADED} (V-1)"));
}

#[test]
fn departure_c_sockets_are_told_at_once() {
    let empty = ask(&with_endpoints(&[]), Engine::Socket, &pod(), VIP);
    assert_eq!(empty.to_string(), "ECONNREFUSED (V-3)");
    let mut local = with_policies(Policy::Local, Policy::Cluster);
    local.slices = with_endpoints(&only_there()).slices;
    let nobody_here = ask(&local, Engine::Socket, &pod(), VIP);
    assert_eq!(nobody_here.to_string(), "EHOSTUNREACH (V-4)");
}

#[test]
fn departure_f_sctp_has_no_hook_at_a_socket() {
    let view = View::new(&cluster(), "node-a");
    let socket = view.expect(Engine::Socket, &pod(), at("10.96.0.1:80"), Protocol::Sctp);
    assert_eq!(socket.verdict, Verdict::PassUntouched);
}

#[test]
fn a_2_to_a_6_affinity() {
    let mut cluster = cluster();
    let mut client = pod();
    client.affinity.insert(at("10.244.2.1:8080"));
    assert_eq!(told(&cluster, &client, VIP), format!("{BOTH} (V-1)")); // off
    cluster.services[0].affinity_s = Some(10);
    assert_eq!(told(&cluster, &client, VIP), "10.244.2.1:8080 (V-1)");
    assert_eq!(told(&cluster, &client, EXTERNALS[2]), "10.244.2.1:8080 from another source (V-7)");
    cluster.services[0].internal = Some(Policy::Local);
    assert_eq!(told(&cluster, &client, VIP), "10.244.1.1:8080 (V-2)");
    client.affinity = [at("10.244.1.7:8080")].into(); // gone
    assert_eq!(told(&cluster, &client, EXTERNALS[0]), format!("{BOTH_MASQUERADED} (V-7)"));
}

#[test]
fn g_1_v_j_other_families_and_protocols_are_none_of_it() {
    let view = View::new(&cluster(), "node-a");
    let udp = view.expect(Engine::Contract, &pod(), at("10.96.0.1:80"), Protocol::Udp);
    assert_eq!(udp.to_string(), "port unreachable or RST (V-12)");
    let v6 = Client::new(Place::Pod, "fd00::9".parse().unwrap());
    let v6 = view.expect(Engine::Contract, &v6, at("[::ffff:10.96.0.1]:80"), Protocol::Tcp);
    assert_eq!(v6.to_string(), "left alone (C-6)");
}

#[test]
fn expect_answers_for_one_connection() {
    let expected = expect(&cluster(), "node-a", Engine::Socket, &pod(), at(VIP), Protocol::Tcp);
    assert_eq!(expected.endpoints(), [at("10.244.1.1:8080"), at("10.244.2.1:8080")].into());
}
