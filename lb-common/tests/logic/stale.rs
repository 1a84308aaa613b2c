//! What production has shown of UDP: sockets and flows that stay with a backend that is gone, and
//! what it costs to get them away from it.

use std::net::SocketAddr;

use lb_common::{
    abi::{
        BackendFlags, BackendId, Counter, FactsFlags, FactsWord, FlowKey, FlowKind, Scope,
        ServicePortId, SetWord, SocketLink,
    },
    host::{Capacities, HostTables, OfFamily},
    socket::{self, Address, Outcome},
    tables::{FlowTable, FrontendTables, SocketTables},
    verdict::Verdict,
};

use crate::{
    connected::address,
    setup::{Ends, Hook, NETS, Net, PORT, Protocol, World, at, ends_in, of_two, records, udp},
};

const NODE: u64 = 1;

fn send<const N: usize>(world: &World, cookie: u64, to: SocketAddr) -> Outcome<N>
where
    HostTables: FrontendTables<N>,
{
    world.tables.set_cookie(cookie);
    socket::sendmsg(&world.tables, &address::<N>(to))
}

fn from<const N: usize>(world: &World, cookie: u64, at: SocketAddr) -> Option<Address<N>> {
    world.tables.set_cookie(cookie);
    socket::recvmsg(&world.tables, &address::<N>(at))
}

fn to<const N: usize>(at: SocketAddr) -> Outcome<N> {
    Outcome::Translated(address(at))
}

/// What the agent stores when the endpoint of a backend goes.
fn dies(world: &World, backend: BackendId) {
    world.tables.clear_flags(backend, u16::MAX);
}

fn pair(world: &World, id: ServicePortId) -> [BackendId; 2] {
    world.tables.backends_of(id, Scope::Cluster).try_into().unwrap()
}

/// Production case 1: a resolver kept asking a DNS pod that was gone. Here each of its sockets asks a
/// living one with its next datagram, the answer is the VIP's, and the pod is never asked again.
#[test]
fn case_1_a_resolvers_socket_leaves_a_dead_backend_with_its_next_datagram() {
    case_1::<1>(0);
    case_1::<4>(1);
}

fn case_1<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let (world, id, Ends { vip, first, last, .. }) = of_two(NETS[family], Protocol::Udp);
    for cookie in 1..=10 {
        world.tables.push_random(0);
        assert_eq!(send::<N>(&world, cookie, vip), to(first));
    }
    let [gone, stays] = pair(&world, id);
    world.tables.set_backends(id, Scope::Cluster, &[stays]);
    dies(&world, gone);
    for cookie in 1..=10 {
        for _ in 0..5 {
            assert_eq!(send::<N>(&world, cookie, vip), to(last));
            assert_eq!(from(&world, cookie, last), Some(address::<N>(vip)));
        }
    }
}

/// Production case 2: the same in spite of a cure, for sockets whose record others had displaced.
/// Here records are displaced by nobody: with room for a few sockets, the newer ones go without,
/// which is counted, and the old one keeps its backend, its VIP and its way out. Where the packet
/// engine serves who sends, that is where those without a record are left to.
#[test]
fn case_2_any_number_of_other_sockets_takes_nothing_from_an_old_one() {
    const NODE: u64 = 1;
    const POD: u64 = 2;
    for netns in [NODE, POD] {
        case_2::<1>(0, netns, netns == POD);
        case_2::<4>(1, netns, netns == POD);
    }
}

fn case_2<const N: usize>(family: usize, netns: u64, passes: bool)
where
    HostTables: FrontendTables<N>,
{
    let (world, id, Ends { vip, first, last, .. }) = of_two(NETS[family], Protocol::Udp);
    world.tables.set_netns(netns);
    world.tables.set_capacities(Capacities { peers: 20, ..Capacities::default() });
    world.tables.push_random(0);
    assert_eq!(send::<N>(&world, 1, vip), to(first));
    for cookie in 2..1_000 {
        let sent = send::<N>(&world, cookie, vip);
        let has_room = cookie <= 10;
        assert_eq!(sent == Outcome::Pass, passes && !has_room, "{cookie}");
    }
    assert_eq!(world.tables.peers().len(), 20);
    assert!(world.count(Counter::SocketUnrecorded) > 900);
    for _ in 0..20 {
        assert_eq!(send::<N>(&world, 1, vip), to(first));
        assert_eq!(from(&world, 1, first), Some(address::<N>(vip)));
    }
    let [gone, stays] = pair(&world, id);
    world.tables.set_backends(id, Scope::Cluster, &[stays]);
    dies(&world, gone);
    assert_eq!(send::<N>(&world, 1, vip), if passes { Outcome::Pass } else { to(last) });
}

/// Production case 4: sockets stayed with a node-local backend whose pod was restarted. Here, with
/// the Local policy, they move to the new pod; while there is none they are refused, not sent
/// elsewhere, and they are served again when it is there.
#[test]
fn case_4_a_local_backend_is_replaced_by_another_one() {
    case_4::<1>(0);
    case_4::<4>(1);
}

fn case_4<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, first, last, .. } = ends_in(NETS[family]);
    let elsewhere = at(NETS[family].foreign, PORT);
    let (world, id) = World::with_backends(NETS[family], Protocol::Udp, &[first, elsewhere]);
    world.tables.set_facts(id, FactsWord::new(FactsFlags::PRESENT | FactsFlags::INTERNAL_LOCAL, 0));
    let [old, _] = pair(&world, id);
    world.tables.set_backends(id, Scope::Local, &[old]);
    assert_eq!(send::<N>(&world, 1, vip), to(first));
    world.tables.set_empty(id, Scope::Local, SetWord::DROP);
    dies(&world, old);
    for _ in 0..3 {
        assert_eq!(send::<N>(&world, 1, vip), Outcome::Drop);
    }
    let new = world.tables.add_backend(id, last);
    world.tables.set_backends(id, Scope::Local, &[new]);
    for _ in 0..3 {
        assert_eq!(send::<N>(&world, 1, vip), to(last));
        assert_eq!(from(&world, 1, last), Some(address::<N>(vip)));
    }
}

/// Production case 5: flows went stale when the news of a remote backend's end came in an unusual
/// order. Here neither order of its two traces, nor another one in its place, leaves a socket or a
/// flow behind.
#[test]
fn case_5_the_order_in_which_a_backend_goes_does_not_matter() {
    case_5::<1>(0);
    case_5::<4>(1);
}

fn case_5<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    for flags_first in [false, true] {
        for its_id_is_anothers in [false, true] {
            let (world, id, Ends { client, vip, first, last }) =
                of_two(NETS[family], Protocol::Udp);
            world.tables.push_random(0);
            assert_eq!(send::<N>(&world, 1, vip), to(first));
            world.tables.push_random(0);
            assert_eq!(world.sent_to(&udp(client, vip)), first);
            let [gone, stays] = pair(&world, id);
            if flags_first {
                dies(&world, gone);
            }
            world.tables.set_backends(id, Scope::Cluster, &[stays]);
            if its_id_is_anothers {
                let other = world.tables.add_service_port(17, &[], &[]);
                world.tables.reuse_backend(gone, other, at(NETS[family].foreign, PORT));
            } else if !flags_first {
                // Out of the set and serving: both stay for now (U-4).
                assert_eq!(send::<N>(&world, 1, vip), to(first));
                assert_eq!(world.sent_to(&udp(client, vip)), first);
                dies(&world, gone);
            }
            assert_eq!(send::<N>(&world, 1, vip), to(last));
            assert_eq!(world.sent_to(&udp(client, vip)), last);
        }
    }
}

/// Production case 7: with UDP left out of the socket engine, host-network clients of DNS without a
/// local backend failed. Here a socket of the node's own namespace is translated as any other,
/// connected or not, also when only such sockets are served; a datagram after the first costs no
/// update of a map.
#[test]
fn case_7_the_host_network_reaches_a_backend_elsewhere() {
    case_7::<1>(0);
    case_7::<4>(1);
}

fn case_7<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let Ends { vip, last: remote, .. } = ends_in(NETS[family]);
    for node_only in [false, true] {
        let (world, _) = World::with_backends(NETS[family], Protocol::Udp, &[remote]);
        world.tables.set_netns(NODE);
        world.tables.set_node_only(node_only);
        assert_eq!(send::<N>(&world, 1, vip), to(remote));
        assert_eq!(from(&world, 1, remote), Some(address::<N>(vip)));
        world.tables.set_cookie(2);
        let connected = socket::connect(&world.tables, 17, &address::<N>(vip));
        assert_eq!(connected, to(remote));
        assert_eq!(from(&world, 2, remote), Some(address::<N>(vip)));
        world.tables.reset_costs();
        for _ in 0..1_000 {
            assert_eq!(send::<N>(&world, 1, vip), to(remote));
        }
        let costs = world.tables.costs();
        assert_eq!((costs.map_updates, costs.precise_clock_reads), (0, 0));
    }
}

/// Production case 8: the datagrams of one unconnected socket were spread over all backends. Here
/// they go to one until it goes, however many others there are, and whatever the set does meanwhile.
#[test]
fn case_8_one_socket_stays_with_one_backend_until_that_goes() {
    case_8::<1>(0);
    case_8::<4>(1);
}

fn case_8<const N: usize>(family: usize)
where
    HostTables: FrontendTables<N>,
{
    let net = NETS[family];
    let vip = at(net.vip, PORT);
    let pod = |n: u16| at(net.pod, 9_000 + n);
    let pods: Vec<SocketAddr> = (0..50).map(pod).collect();
    let (world, id) = World::with_backends(net, Protocol::Udp, &pods);
    let all = world.tables.backends_of(id, Scope::Cluster);
    let Outcome::Translated(chosen) = send::<N>(&world, 1, vip) else { panic!() };
    let position = (0..50).find(|n| address::<N>(pod(*n)) == chosen).unwrap();
    for n in 0..500_usize {
        // The set is committed anew, in another order and with others in it.
        let mut set = all.clone();
        set.rotate_left(n % 50);
        set.truncate(25 + n % 25);
        world.tables.set_backends(id, Scope::Cluster, &set);
        assert_eq!(send::<N>(&world, 1, vip), Outcome::Translated(chosen));
    }
    dies(&world, all[usize::from(position)]);
    let left: Vec<_> = all.iter().copied().filter(|id| *id != all[usize::from(position)]).collect();
    world.tables.set_backends(id, Scope::Cluster, &left);
    let Outcome::Translated(next) = send::<N>(&world, 1, vip) else { panic!() };
    assert_ne!(next, chosen);
    assert_eq!(send::<N>(&world, 1, vip), Outcome::Translated(next));
}

/// Production case 9: datagrams to a Service without endpoints went into the void for hours, flows
/// of a deleted Service went on, and looking for stale entries among a million took the machine
/// down. Here nobody looks for them: each flow finds out by its own next packet, once, and is
/// refused; what costs is in proportion to the packets that come, not to the flows that there are.
#[test]
fn case_9_flows_without_a_backend_are_refused_without_anybody_looking_for_them() {
    const FLOWS: u16 = 5_000;
    for net in NETS {
        for deleted in [false, true] {
            let Ends { vip, first, .. } = ends_in(net);
            let (world, id) = World::with_backends(net, Protocol::Udp, &[first]);
            let client = |port: u16| at(net.client, 10_000 + port);
            for port in 0..FLOWS {
                assert_eq!(world.sent_to(&udp(client(port), vip)), first);
            }
            let others = at(net.vip2, PORT);
            world.tables.add_service_port(17, &[others], &[first]);
            world.sent_to(&udp(client(FLOWS), others));
            world.tables.reset_costs();
            if deleted {
                world.tables.delete_service_port(id);
            } else {
                let [backend] = world.tables.backends_of(id, Scope::Cluster)[..] else { panic!() };
                world.tables.set_backends(id, Scope::Cluster, &[]);
                dies(&world, backend);
            }
            // All flows are still in the table: nothing went through it.
            assert_eq!(world.tables.costs().map_updates, 0);
            assert_eq!(records(&world).0, 2 * (usize::from(FLOWS) + 1));
            let refused = if deleted { Verdict::NotService } else { Verdict::NoBackend };
            for _ in 0..3 {
                for port in 0..100 {
                    assert_eq!(world.ingress(&udp(client(port), vip)).0, refused);
                }
            }
            assert_eq!(world.tables.costs().map_updates, 100, "once for each flow that asks");
            assert_eq!(world.count(Counter::FlowMoved), 100);
            // Others are not disturbed, and a late answer still comes from the VIP.
            assert_eq!(world.sent_to(&udp(client(FLOWS), others)), first);
            world.answers_as(&udp(first, client(0)), vip);
            let stranger = udp(first, at(net.client, 9_999));
            assert_eq!(
                world.run(Hook::Egress, &stranger.build(), lb_common::parse::Link::Ethernet).0,
                Verdict::NotService
            );
            // The Service is back: the flows are served again, without a pause.
            if !deleted {
                let new = world.tables.add_backend(id, first);
                world.tables.set_backends(id, Scope::Cluster, &[new]);
                world.tables.set_flags(new, BackendFlags::SERVING);
                for port in [0, 99, FLOWS - 1] {
                    assert_eq!(world.sent_to(&udp(client(port), vip)), first);
                }
            }
        }
    }
}

fn sent_before<const N: usize>(net: Net)
where
    HostTables: OfFamily<N>,
{
    let Ends { client, vip, first, .. } = ends_in(net);
    let world = World::default();
    for _ in 0..3 {
        assert_eq!(send::<N>(&world, 1, vip), Outcome::Pass);
        assert_eq!(world.ingress(&udp(client, vip)).0, Verdict::NotService);
    }
    // The Service comes, still without endpoints, then its first one.
    let id = world.tables.add_service_port(17, &[vip], &[]);
    assert_eq!(send::<N>(&world, 1, vip), Outcome::Reject);
    assert_eq!(world.ingress(&udp(client, vip)).0, Verdict::NoBackend);
    let backend = world.tables.add_backend(id, first);
    world.tables.set_backends(id, Scope::Cluster, &[backend]);
    assert_eq!(send::<N>(&world, 1, vip), to(first));
    assert_eq!(world.sent_to(&udp(client, vip)), first);
    world.answers_as(&udp(first, client), vip);
}

/// What a client sends before its Service is there leaves nothing that later datagrams follow.
#[test]
fn u_5_datagrams_from_before_the_service_do_not_stick() {
    sent_before::<1>(NETS[0]);
    sent_before::<4>(NETS[1]);
}

fn racing<const N: usize>(net: Net)
where
    HostTables: OfFamily<N>,
{
    let (world, _, Ends { client, vip, first, last }) = of_two(net, Protocol::Udp);
    // Both CPUs look the flow up before either has made it: the second one finds nothing either.
    let forward = |key: &FlowKey<N>| key.kind == FlowKind::INGRESS;
    world.tables.push_random(0);
    assert_eq!(world.sent_to(&udp(client, vip)), first);
    for (key, _) in world.tables.flows::<N>(FlowTable::Main) {
        if forward(&key) {
            world.tables.evict(FlowTable::Main, &key);
        }
    }
    world.tables.push_random(u32::MAX);
    assert_eq!(world.sent_to(&udp(client, vip)), last);
    for backend in [first, last, first] {
        world.answers_as(&udp(backend, client), vip);
    }
    assert_eq!(world.count(Counter::FlowReported), 0, "neither changed its source port");

    // The same at a socket: each call chooses, and both answers are the VIP's.
    world.tables.push_random(0);
    assert_eq!(send::<N>(&world, 1, vip), to(first));
    for (key, _) in world.tables.peers() {
        if key.link.kind == SocketLink::FORWARD {
            world.tables.remove_peer(&key);
        }
    }
    world.tables.push_random(u32::MAX);
    assert_eq!(send::<N>(&world, 1, vip), to(last));
    for backend in [first, last] {
        assert_eq!(from(&world, 1, backend), Some(address::<N>(vip)));
    }
}

/// Two queries of one socket, A and AAAA, on two CPUs at once: both arrive, and both are answered.
#[test]
fn u_11_racing_first_datagrams_are_both_answered() {
    racing::<1>(NETS[0]);
    racing::<4>(NETS[1]);
}
