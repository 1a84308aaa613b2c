//! Every kind of source asks for every kind of destination, under every combination of policies and
//! settings and with endpoints at every place.

use lb_testbed::oracle::{
    View,
    cluster::{Family, Protocol},
    generate::{
        NODE, Owner, address, clients,
        every::{self, Endpoints, PORT, UNKNOWN},
    },
};
use std::net::SocketAddr;

use super::{
    compare::{self, Question},
    decide::Decider,
    pipeline::Agent,
    run::Tally,
};

/// Rules that must have decided.
const MET: [&str; 13] = [
    "V-1",
    "V-2",
    "V-3",
    "V-4",
    "V-5",
    "V-6",
    "V-7",
    "V-8",
    "V-9",
    "V-10",
    "V-12",
    "V-13",
    "departure d",
];

/// C-1, V-1 to V-13, V-c to V-g, R-1 to R-6, N-1 to N-6, X-1, M-1 to M-10 with the departures, 4.3.
#[test]
fn every_kind_of_source_meets_what_the_contract_says() {
    let mut tally = Tally::default();
    for (turn, cluster) in every::clusters().enumerate() {
        let agent = Agent::of(&cluster);
        let view = View::new(&cluster, NODE);
        let decider = Decider::new(&agent);
        for (index, question) in Family::BOTH.into_iter().flat_map(questions).enumerate() {
            // Each protocol has its turn with every question in one cluster or another.
            let protocol = Protocol::ALL[(turn + index) % Protocol::ALL.len()];
            let question = Question { protocol, ..question };
            if let Err(error) = compare::agree(&decider, &view, &question, &mut tally) {
                panic!("under {:?}: {error}", cluster.config);
            }
        }
        tally.compared += decider.decisions.get();
    }
    println!("sources: {} decisions compared; {:?}", tally.compared, tally.rules);
    let missed: Vec<_> = MET.iter().filter(|rule| !tally.rules.contains_key(*rule)).collect();
    assert!(missed.is_empty(), "never met {missed:?}");
}

/// Every client of a family with everything that it can ask for.
pub(crate) fn questions(family: Family) -> impl Iterator<Item = Question> {
    let services = 0..Endpoints::ALL.len();
    let of_service = services.flat_map(move |service| {
        let at = every::addresses(family, service);
        let known = at.into_iter().flat_map(|ip| [PORT, UNKNOWN].map(|port| (ip, port)));
        let nodes = [Owner::Node(0), Owner::Node(1), Owner::OtherNode, Owner::Loopback];
        let node_port = every::node_port(service);
        known.chain(nodes.map(|owner| (address(family, owner), node_port)))
    });
    let others =
        [(Owner::ClusterIp(99), PORT), (Owner::Node(0), UNKNOWN), (Owner::Foreign(0), PORT)];
    let all: Vec<_> =
        of_service.chain(others.map(|(owner, port)| (address(family, owner), port))).collect();
    clients(family).into_iter().flat_map(move |client| {
        let ask = |&(ip, port): &_| Question::of(&client, SocketAddr::new(ip, port), Protocol::Tcp);
        all.iter().map(ask).collect::<Vec<_>>()
    })
}
