//! Which address and which ports forwarded packets get.

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ips(all: &[&str]) -> Vec<IpAddr> {
    all.iter().map(|text| ip(text)).collect()
}

fn node(addresses: &[&str]) -> Node {
    Node { addresses: ips(addresses).into(), ..Node::default() }
}

#[test]
fn m_b_the_source_is_the_primary_address_of_the_interface_or_else_the_nodes() {
    let assigned = ips(&["10.0.0.1", "10.0.0.2", "192.0.2.1", "fd00::1"]);
    let node = node(&["198.51.100.1", "192.0.2.1", "fd00::1"]);
    let none = SnatAddresses::default();
    let choose = |family, own: Option<&str>, node, last: Option<&str>| {
        none.choose(family, own.map(ip), node, last.map(ip), &assigned)
    };
    let own = Some("10.0.0.1");
    assert_eq!(choose(Family::V4, own, Some(&node), Some("10.0.0.2")), ips(&["10.0.0.1"]));
    // The node's first address is not assigned to it: somebody in front translates it.
    assert_eq!(choose(Family::V4, None, Some(&node), Some("10.0.0.2")), ips(&["192.0.2.1"]));
    assert_eq!(choose(Family::V6, None, Some(&node), None), ips(&["fd00::1"]));
    assert_eq!(choose(Family::V4, None, None, Some("10.0.0.2")), ips(&["10.0.0.2"]));
    assert_eq!(choose(Family::V4, Some("10.0.0.9"), None, None), ips(&[]), "gone meanwhile");
    assert_eq!(choose(Family::V6, own, None, None), ips(&[]), "of the other family");
}

#[test]
fn m_b_addresses_that_were_asked_for_come_first_while_the_node_has_them() {
    let all = ["10.0.0.2", "fd00::2", "10.0.0.1"];
    let asked = SnatAddresses::new(ips(&all)).unwrap();
    let choose = |assigned: &[&str]| {
        asked.choose(Family::V4, Some(ip("10.0.0.7")), None, None, &ips(assigned))
    };
    assert_eq!(choose(&["10.0.0.1", "10.0.0.2", "10.0.0.7"]), ips(&["10.0.0.2", "10.0.0.1"]));
    assert_eq!(choose(&["10.0.0.1", "10.0.0.7"]), ips(&["10.0.0.1"]));
    assert_eq!(choose(&["10.0.0.7"]), ips(&["10.0.0.7"]), "rather than nothing");
    assert_eq!(asked.missing(&ips(&["10.0.0.1", "fd00::2"])), ips(&["10.0.0.2"]));
}

#[test]
fn addresses_that_nobody_could_answer_to_are_refused() {
    let new = |all: &[&str]| SnatAddresses::new(ips(all)).unwrap_err();
    for bad in ["127.0.0.1", "169.254.1.1", "fe80::1", "0.0.0.0", "224.0.0.1"] {
        assert!(matches!(new(&[bad]), BadSnatAddress::Refused { .. }), "{bad}");
    }
    assert_eq!(new(&["10.0.0.1", "10.0.0.1"]), BadSnatAddress::Twice(ip("10.0.0.1")));
    let five = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"];
    assert_eq!(new(&five), BadSnatAddress::TooMany);
    let four_and_four = [&five[..4], &["fd00::1", "fd00::2", "fd00::3", "fd00::4"]].concat();
    assert!(SnatAddresses::new(ips(&four_and_four)).is_ok());
}

#[test]
fn ports_are_a_range_off_those_of_servers_and_not_too_small() {
    let ports: SnatPorts = "1024-29999".parse().unwrap();
    assert_eq!(ports, SnatPorts::default());
    assert_eq!((ports.first(), ports.count()), (1024, 28_976));
    assert_eq!(SnatPorts::of(1024, 28_976), Some(ports));
    assert_eq!("40000-65535".parse::<SnatPorts>().unwrap().count(), 25_536);
    for none in [(1024, 0), (65_535, 2), (70_000, 1)] {
        assert_eq!(SnatPorts::of(none.0, none.1), None, "{none:?}");
    }
    let bad = |text: &str| text.parse::<SnatPorts>().unwrap_err();
    for text in ["", "1024", "2000-1024", "1024-70000", "+1024-9999", "1024-9999-"] {
        assert_eq!(bad(text), BadSnatPorts::NoRange(text.into()));
    }
    assert_eq!(bad("1023-9999"), BadSnatPorts::Privileged);
    assert_eq!(bad("1024-2046"), BadSnatPorts::TooFew(1023));
}

#[test]
fn n_8_ports_that_others_choose_too_are_told() {
    let told = |ports: &str, ephemeral: &str, reserved: &str| {
        let ephemeral = kernel_ranges(ephemeral);
        ports.parse::<SnatPorts>().unwrap().overlaps(ephemeral.first(), &kernel_ranges(reserved))
    };
    assert_eq!(told("1024-29999", "32768\t60999\n", "\n"), [""; 0]);
    let [both, node_ports] = &told("20000-33000", "32768\t60999\n", "")[..] else { panic!() };
    assert!(both.contains("32768 to 60999") && node_ports.contains("30000 to 32767"));
    let [one] = &told("1024-29999", "29999\t60999", "")[..] else { panic!() };
    assert!(one.contains("ip_local_port_range"), "{one}");
    assert_eq!(told("1024-29999", "15000\t60999", "8080,15000-29999"), [""; 0], "kept free");
    assert_eq!(told("1024-29999", "15000\t60999", "8080,15000-29998").len(), 1);
}
