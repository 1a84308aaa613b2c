//! Which way do packets that are sent on go when routes change?

use std::net::SocketAddr;

use lb_common::{
    abi::{Live, Scope},
    tables::{NodeTables as _, RouteStatus},
};

use crate::outside_setup::{Outside, SECOND, UPLINK, route};
use crate::setup::{ACK, NETS, Protocol, SPORT, at, packet};

/// A flow of some client port, to a backend of its own or the first one.
fn sends(outside: &Outside, port: u16) -> u32 {
    let client = SocketAddr::new(outside.client().ip(), port);
    outside.sent_on(&packet(Protocol::Udp, client, outside.vip(), ACK));
    outside.tables().egress()
}

/// In a tick the routes are asked for one flow of a next hop, and again for each after a while.
#[test]
fn flows_to_one_next_hop_ask_once_in_a_tick() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        outside.tables().keep_neighbours();
        let ports = SPORT..SPORT + 64;
        let asked = || {
            let before = outside.tables().asked_routes().len();
            for port in ports.clone() {
                assert_eq!(sends(&outside, port), SECOND);
            }
            outside.tables().asked_routes().len() - before
        };
        asked();
        asked();
        assert_eq!(asked(), 0, "in the same tick");
        let mut all = 0;
        for _ in 0..Live::SPAN {
            outside.tables().advance(1);
            let some = asked();
            assert!((1..64).contains(&some), "{some} of 64 asked");
            all += some;
        }
        // Each of them once, and one for all where none of them had to.
        assert!((64..64 + Live::SPAN as usize).contains(&all), "{all} asked");
    }
}

/// Where the routes lead some flows elsewhere, and others as before, the former follow after some ticks.
#[test]
fn a_route_that_changes_for_some_is_followed() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        outside.tables().keep_neighbours();
        for _ in 0..2 {
            assert_eq!(sends(&outside, SPORT), SECOND);
        }
        let other = outside.tables().add_backend(outside.id, at(net.pod2, 8080));
        outside.tables().set_backends(outside.id, Scope::Cluster, &[other]);
        let goes_on = || {
            let client = SocketAddr::new(outside.client().ip(), SPORT + 1);
            let asks = packet(Protocol::Udp, client, outside.vip(), ACK);
            outside.arrives(UPLINK, &asks);
            outside.tables().egress()
        };
        for _ in 0..2 {
            assert_eq!(goes_on(), SECOND);
        }
        route(outside.tables(), net.pod, 0, RouteStatus::Found, UPLINK);
        let mut ticks = 0;
        while sends(&outside, SPORT) != UPLINK {
            ticks += 1;
            assert!(ticks <= Live::SPAN, "the old way still");
            outside.tables().advance(1);
            assert_eq!(goes_on(), SECOND);
        }
        assert!(ticks > 0, "in the same tick");
    }
}

/// Where they lead nobody to a next hop any more, its flows follow in the next tick.
#[test]
fn a_route_that_changes_for_all_is_followed_at_once() {
    for net in NETS {
        let outside = Outside::new(net, Protocol::Udp);
        outside.tables().keep_neighbours();
        for port in (SPORT..SPORT + 16).chain(SPORT..SPORT + 16) {
            assert_eq!(sends(&outside, port), SECOND);
        }
        route(outside.tables(), net.pod, 0, RouteStatus::Found, UPLINK);
        outside.tables().advance(1);
        for port in SPORT..SPORT + 16 {
            assert_eq!(sends(&outside, port), UPLINK);
        }
    }
}
