//! From a frontend to a backend: torn reads, scopes, and whether each backend gets its share.

use lb_common::{
    abi::{Counter, FactsFlags, FactsWord, Found, FrontendKey, Scope, SetWord},
    host::{HostTables, OfFamily},
    select::{choose, frontend, scope_on_node},
    verdict::{NoBackend, Verdict},
};

use crate::setup::{NETS, PORT, Protocol, SPORT, SYN, TARGET, V4, V6, World, at, ip, packet};

/// What a clusterIP of a service port leads to.
fn found(id: u32) -> Found {
    Found { id, flags: 0 }
}

fn torn_frontends<const N: usize>(address: &str)
where
    HostTables: OfFamily<N>,
{
    let tables = HostTables::new();
    let id = tables.add_service_port(6, &[at(address, PORT)], &[]);
    let key = FrontendKey::<N>::new(ip(address), PORT.to_be(), 6);
    assert_eq!(frontend(&tables, &key), Some(found(id)));
    tables.tear_frontends::<N>(1);
    assert_eq!(frontend(&tables, &key), Some(found(id)), "once: looked up again");
    assert_eq!(tables.counter(Counter::TornRead), 0);
    tables.tear_frontends::<N>(2);
    assert_eq!(frontend(&tables, &key), None, "twice: a miss, never another's id");
    assert_eq!(tables.counter(Counter::TornRead), 1);
    assert_eq!(frontend(&tables, &key), Some(found(id)));
    tables.delete_service_port(id);
    assert_eq!(frontend(&tables, &key), None);
    assert_eq!(tables.counter(Counter::TornRead), 1, "absent is not torn");
}

#[test]
fn a_torn_frontend_is_read_again_once() {
    torn_frontends::<1>(V4.vip);
    torn_frontends::<4>(V6.vip);
}

#[test]
fn a_frontend_torn_twice_passes_the_packet() {
    for net in NETS {
        let (world, _) = World::single(net, Protocol::Udp);
        world.tables.tear_frontends::<1>(2);
        world.tables.tear_frontends::<4>(2);
        let first = packet(Protocol::Udp, at(net.client, SPORT), at(net.vip, PORT), SYN);
        assert_eq!(world.ingress(&first).0, Verdict::NotService);
        assert_eq!(world.ingress(&first).0, Verdict::Translated);
        assert_eq!(world.count(Counter::TornRead), 1);
    }
}

#[test]
fn traffic_to_a_cluster_address_uses_the_set_that_the_policy_says() {
    for net in NETS {
        let (world, id) = World::single(net, Protocol::Tcp);
        let local = world.tables.add_backend(id, at(net.pod2, TARGET));
        world.tables.set_backends(id, Scope::Local, &[local]);
        assert_eq!(scope_on_node(&world.tables, found(id)), Scope::Cluster);
        let syn = |port| packet(Protocol::Tcp, at(net.client, port), at(net.vip, PORT), SYN);
        assert_eq!(world.sent_to(&syn(1)), at(net.pod, TARGET));
        let flags = FactsFlags::PRESENT | FactsFlags::INTERNAL_LOCAL;
        world.tables.set_facts(id, FactsWord::new(flags, 0));
        assert_eq!(scope_on_node(&world.tables, found(id)), Scope::Local);
        assert_eq!(world.sent_to(&syn(2)), at(net.pod2, TARGET));
        world.tables.set_empty(id, Scope::Local, SetWord::DROP);
        assert_eq!(world.ingress(&syn(3)).0, Verdict::NoLocalBackend);
    }
}

#[test]
fn ids_beyond_the_tables_choose_nothing() {
    let tables = HostTables::new();
    assert_eq!(choose(&tables, u32::MAX, Scope::Local), Err(NoBackend::Reject));
    let id = tables.add_service_port(6, &[], &[at(V4.pod, TARGET)]);
    // Slots and backends that are not there.
    tables.set_empty(id, Scope::Cluster, SetWord::new(1_000_000, 3));
    assert_eq!(choose(&tables, id, Scope::Cluster), Err(NoBackend::Reject));
    tables.set_backends(id, Scope::Cluster, &[1_000_000]);
    assert_eq!(choose(&tables, id, Scope::Cluster), Err(NoBackend::Reject));
}

/// Pearson's chi-square over `draws` choices among `count` backends.
fn chi_square(count: u16, draws: u32, seed: u64) -> f64 {
    let tables = HostTables::new();
    tables.seed(seed);
    let backends: Vec<_> = (0..count).map(|n| at(V4.pod, 1000 + n)).collect();
    let id = tables.add_service_port(6, &[], &backends);
    let mut seen = vec![0_u32; usize::from(count)];
    for _ in 0..draws {
        let choice = choose(&tables, id, Scope::Cluster).unwrap();
        seen[usize::from(u16::from_be(choice.port) - 1000)] += 1;
    }
    let expected = f64::from(draws) / f64::from(count);
    seen.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum()
}

#[test]
fn each_backend_gets_its_share() {
    // Degrees of freedom and the value that chance exceeds once in a thousand times.
    for (count, limit) in [(2, 10.83), (3, 13.82), (7, 22.46), (64, 103.44), (100, 148.23)] {
        for seed in [1, 2, 3] {
            let statistic = chi_square(count, 20_000, seed);
            assert!(statistic < limit, "{count} backends, seed {seed}: {statistic}");
        }
    }
}

#[test]
fn the_statistic_would_notice_a_bias() {
    // Twice the weight for one of seven: what the limit above is for.
    let tables = HostTables::new();
    let backends: Vec<_> = (0..7).map(|n| at(V4.pod, 1000 + n)).collect();
    let id = tables.add_service_port(6, &[], &backends);
    let mut ids = tables.backends_of(id, Scope::Cluster);
    ids.push(ids[0]);
    tables.set_backends(id, Scope::Cluster, &ids);
    let mut seen = [0_u32; 7];
    for _ in 0..20_000 {
        let choice = choose(&tables, id, Scope::Cluster).unwrap();
        seen[usize::from(u16::from_be(choice.port) - 1000)] += 1;
    }
    let expected = 20_000.0 / 7.0;
    let statistic: f64 = seen.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
    assert!(statistic > 22.46, "{statistic}");
}
