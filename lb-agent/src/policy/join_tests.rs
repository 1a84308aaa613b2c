//! Ports of one Service that share their endpoints.

use std::net::SocketAddr;

use super::endpoints::Joins;
use super::tests::{service, slice};
use crate::model::{Family, Protocol, Service, Slice, SlicePort};

/// A slice with these ports, by name and number.
fn serving(name: &str, ports: &[(&str, u16)], octets: &[u8]) -> Slice {
    let endpoints: Vec<_> = octets.iter().map(|&octet| (octet, "rs")).collect();
    let port = |&(name, port): &(&str, u16)| SlicePort {
        name: name.into(),
        port,
        protocol: Protocol::Tcp,
    };
    Slice { ports: ports.iter().map(port).collect(), ..slice(name, 0, &endpoints) }
}

/// Asks for each port in turn; tells their endpoints, and how many joins that took.
fn ask(service: &Service, slices: &[&Slice]) -> (Vec<Vec<String>>, usize) {
    let mut joins = Joins::new(slices, Family::V4, "", 1000);
    let asked = service.ports.iter().map(|port| {
        let (_, backends) = joins.of(port, true, false);
        backends.iter().map(|b| SocketAddr::new(b.addr, b.port).to_string()).collect()
    });
    let asked = asked.collect();
    (asked, joins.count())
}

#[test]
fn ports_of_the_same_slices_are_joined_once_whatever_their_numbers_e_9_e_10() {
    let names: Vec<String> = (1..=1000).map(|n| format!("p{n}")).collect();
    let of = |n: u16| (&*names[usize::from(n) - 1], n);
    let web = service(&(1..=1000).map(|n| (of(n).0, Protocol::Tcp, n)).collect::<Vec<_>>());
    let ports: Vec<_> = (1..=1000).map(|n| (of(n).0, n + 8000)).collect();
    let (a, b) = (serving("a", &ports, &[2, 1]), serving("b", &ports, &[3, 1]));
    let (asked, joins) = ask(&web, &[&a, &b]);
    assert_eq!(joins, 1);
    assert_eq!(asked[0], ["10.0.0.1:8001", "10.0.0.2:8001", "10.0.0.3:8001"]);
    assert_eq!(asked[999], ["10.0.0.1:9000", "10.0.0.2:9000", "10.0.0.3:9000"]);
}

#[test]
fn ports_that_slices_number_differently_or_lack_have_their_own_endpoints() {
    let web = service(&[
        ("all", Protocol::Tcp, 1),
        ("named", Protocol::Tcp, 2),
        ("first", Protocol::Tcp, 3),
        ("twice", Protocol::Tcp, 4),
        ("none", Protocol::Tcp, 5),
        ("all", Protocol::Udp, 1),
    ]);
    let a =
        serving("a", &[("all", 1), ("named", 21), ("first", 3), ("twice", 4), ("twice", 5)], &[1]);
    let b = serving("b", &[("named", 20), ("all", 1)], &[1, 2]);
    let (asked, _) = ask(&web, &[&a, &b]);
    assert_eq!(asked[0], ["10.0.0.1:1", "10.0.0.2:1"]);
    assert_eq!(asked[1], ["10.0.0.1:20", "10.0.0.1:21", "10.0.0.2:20"]);
    assert_eq!(asked[2], ["10.0.0.1:3"]);
    assert_eq!(asked[3], ["10.0.0.1:4", "10.0.0.1:5"]);
    assert_eq!((asked[4].len(), asked[5].len()), (0, 0));
}
