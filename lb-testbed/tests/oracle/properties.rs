//! The nine properties at the end of the contract's section 14, on what the agent programs and the
//! engines decide.

use lb_testbed::oracle::{
    Cluster, View,
    cluster::{AddressType, Family, Labels, Policy, Protocol, Service, ServicePort, ServiceType},
    endpoints::Record,
    generate::{NODE, Owner, address, history},
    render::FIRST_DAY_S,
    services::Kind,
    text,
};
use proptest::prelude::*;

use super::{
    compare::{self, Question, outcomes},
    decide::{Became, Way},
    flows::Flows,
    meaning::PortMeaning,
    pipeline::Agent,
    run::{self, Tally, Weight},
};

fn seen(cluster: &Cluster) -> (Agent, View) {
    (Agent::of(cluster), View::new(cluster, NODE))
}

/// A cluster without anything of the other family.
fn only(cluster: &Cluster, family: Family) -> Cluster {
    let mut cluster = cluster.clone();
    let of_family = |text: &String| text::address(text).is_some_and(|ip| Family::of(ip) == family);
    cluster.slices.retain(|slice| slice.address_type == AddressType::Ip(family));
    for service in &mut cluster.services {
        if !service.families.is_empty() {
            let ips = service.families.iter().position(|listed| *listed == family);
            let ip = ips.and_then(|index| service.cluster_ips.get(index).cloned());
            let kept = if service.cluster_ips.is_empty() && ips == Some(0) {
                service.cluster_ip.clone()
            } else {
                ip.unwrap_or_default()
            };
            (service.cluster_ip, service.families) = (kept.clone(), vec![family]);
            service.cluster_ips = vec![kept];
        } else if !of_family(&service.cluster_ip) {
            service.cluster_ip.clear();
        }
        service.external_ips.retain(of_family);
        service.ingress.retain(|entry| of_family(&entry.ip));
        let inside =
            |range: &String| text::Range::read(range).is_some_and(|range| range.family() == family);
        service.source_ranges.retain(inside);
    }
    cluster
}

#[test]
fn property_1_a_family_depends_on_its_own_objects_only() {
    run::check("property-1", Weight::Dear, &[], history(4), |history| {
        let both = history.end();
        let (agent, view) = seen(&both);
        let mut tally = Tally::default();
        for family in Family::BOTH {
            let all = outcomes(&agent, &view, family);
            let (agent, view) = seen(&only(&both, family));
            prop_assert_eq!(&all, &outcomes(&agent, &view, family), "in {:?} alone", family);
            tally.compared += all.len() as u64;
        }
        Ok(tally)
    });
}

/// A Service that has nothing in common with any other.
fn unrelated() -> Service {
    let owner = Owner::ClusterIp(8);
    let ips: Vec<String> = Family::BOTH.map(|family| address(family, owner).to_string()).into();
    Service {
        namespace: "unrelated".into(),
        name: "unrelated".into(),
        created_s: FIRST_DAY_S - 1,
        labels: Labels::new(),
        kind: ServiceType::NodePort,
        cluster_ip: ips[0].clone(),
        cluster_ips: ips,
        families: Family::BOTH.into(),
        ports: vec![ServicePort {
            name: "web".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 31_999,
            target: 80,
        }],
        external_ips: vec!["192.0.2.99".into(), "2001:db8::99".into()],
        ingress: Vec::new(),
        source_ranges: Vec::new(),
        internal: Some(Policy::Local),
        external: Some(Policy::Local),
        affinity_s: Some(1),
        publish_not_ready: false,
    }
}

#[test]
fn property_2_an_unrelated_service_changes_nothing() {
    run::check("property-2", Weight::Dear, &[], history(4), |history| {
        let mut cluster = history.end();
        let (agent, view) = seen(&cluster);
        cluster.services.insert(0, unrelated());
        let more = Agent::of(&cluster);
        let mut tally = Tally::default();
        for family in Family::BOTH {
            let all = outcomes(&agent, &view, family);
            prop_assert_eq!(&all, &outcomes(&more, &view, family));
            tally.compared += all.len() as u64;
        }
        Ok(tally)
    });
}

#[test]
fn property_3_one_ready_endpoint_without_hints_is_as_all_without() {
    run::check("property-3", Weight::Usual, &["hints"], history(4), |history| {
        let cluster = history.end();
        let view = View::new(&cluster, NODE);
        let mut tally = Tally::default();
        for (&(at, protocol), &(kind, index)) in &view.captured {
            let port = &view.ports[index];
            let ready = port.lists.all.iter().find(|(_, endpoint)| endpoint.ready);
            let Some((ready, _)) = ready else { continue };
            if kind != Kind::ClusterIp {
                continue;
            }
            let without = |all: bool| {
                let mut cluster = cluster.clone();
                let of_service = cluster.slices.iter_mut().filter(|slice| {
                    slice.namespace == port.id.namespace && slice.service() == port.id.service
                });
                for endpoint in of_service.flat_map(|slice| &mut slice.endpoints) {
                    let first = endpoint.addresses.first().and_then(|text| text::address(text));
                    if all || first == Some(ready.ip()) {
                        endpoint.for_zones.clear();
                        endpoint.for_nodes.clear();
                    }
                }
                Agent::of(&cluster).meaning().frontends[&(at, protocol.number())].clone()
            };
            let (of_one, of_all) = (without(false), without(true));
            prop_assert_eq!(&of_one.cluster, &of_all.cluster, "{:?}", port.id);
            if of_all.cluster.0 != port.lists.cluster {
                tally.met("hints");
            }
            tally.compared += 1;
        }
        Ok(tally)
    });
}

/// For every frontend: what the tables hold of it, and the joined endpoints of its service port.
fn chosen_from(agent: &Agent, view: &View) -> Vec<(PortMeaning, usize)> {
    let mut meaning = agent.meaning();
    let captured =
        view.captured.iter().map(|((at, protocol), (_, port))| ((*at, protocol.number()), *port));
    captured.filter_map(|(key, port)| Some((meaning.frontends.remove(&key)?, port))).collect()
}

#[test]
fn property_4_a_terminating_endpoint_is_the_last_resort() {
    run::check("property-4", Weight::Usual, &["last resort"], history(4), |history| {
        let (agent, view) = seen(&history.end());
        let mut tally = Tally::default();
        for (found, index) in chosen_from(&agent, &view) {
            let all = &view.ports[index].lists.all;
            // One that is no endpoint at all would be worse than the last resort.
            let is_last_resort = |at| all.get(at).is_none_or(|endpoint| !endpoint.ready);
            if found.cluster.0.iter().any(is_last_resort) {
                prop_assert!(all.values().all(|endpoint| !endpoint.ready));
                tally.met("last resort");
            }
            if found.local.0.iter().any(is_last_resort) {
                prop_assert!(all.values().all(|e| !e.local || !e.ready));
            }
            tally.compared += 2;
        }
        Ok(tally)
    });
}

#[test]
fn property_5_an_endpoint_of_no_use_is_never_chosen() {
    run::check("property-5", Weight::Usual, &["of no use"], history(4), |history| {
        let (agent, view) = seen(&history.end());
        let mut tally = Tally::default();
        for (found, index) in chosen_from(&agent, &view) {
            let all = &view.ports[index].lists.all;
            for at in found.cluster.0.union(&found.local.0) {
                // E-20: who publishes pods before they serve says that they are ready.
                prop_assert!(all.get(at).is_some_and(Record::counts), "{}", at);
            }
            if !all.values().all(Record::counts) {
                tally.met("of no use");
            }
            tally.compared += 1;
        }
        Ok(tally)
    });
}

#[test]
fn property_6_nobody_anywhere_is_a_reject_at_every_frontend() {
    run::check("property-6", Weight::Usual, &["reject", "no reject"], history(4), |history| {
        let (agent, view) = seen(&history.end());
        let decider = super::decide::Decider::new(&agent);
        let mut tally = Tally::default();
        for ((to, protocol), (_, index)) in compare::frontends(&view) {
            let nobody = !view.ports[index].lists.all.values().any(Record::counts);
            for client in compare::clients_for(to.ip()) {
                let question = Question::of(&client, to, protocol);
                for way in question.ways().filter(|way| *way != Way::Leave) {
                    let rule = view.expect(way.engine(), &client, to, protocol).rule;
                    if ["V-5", "forged"].contains(&rule) {
                        continue; // Excepted.
                    }
                    let became = decider.once(way, &client, to, protocol, 0);
                    prop_assert_eq!(became == Became::Rejected, nobody, "{} {}", to, protocol);
                    tally.met(if nobody { "reject" } else { "no reject" });
                }
            }
        }
        tally.compared = decider.decisions.get();
        Ok(tally)
    });
}

#[test]
fn property_7_a_restart_with_the_same_objects_changes_nothing() {
    run::check("property-7", Weight::Usual, &[], history(4), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut restarted = Agent::new(&history.config, &history.service_cidrs);
        for burst in &history.bursts {
            agent.take(burst);
            restarted.take(burst);
            // Records of flows and of affinity hold ids and generations.
            let before = restarted.identities();
            let writes = restarted.restart();
            prop_assert!(writes.is_empty(), "a restart wrote {:?}", writes);
            prop_assert_eq!(before, restarted.identities());
            prop_assert_eq!(agent.meaning(), restarted.meaning());
        }
        Ok(Tally::of(history.bursts.len() as u64))
    });
}

#[test]
fn property_8_the_order_of_events_does_not_matter() {
    let shuffled = history(4).prop_flat_map(|history| {
        let objects = history.end().events();
        (Just(history), Just(objects).prop_shuffle(), any::<bool>())
    });
    run::check("property-8", Weight::Usual, &[], shuffled, |(history, events, together)| {
        let agent = Agent::with_history(&history);
        let mut other = Agent::new(&history.config, &history.service_cidrs);
        if together {
            other.take(&events);
        } else {
            events.chunks(1).for_each(|event| other.take(event));
        }
        let meaning = agent.meaning();
        prop_assert_eq!(&meaning, &other.meaning());
        Ok(Tally::of(meaning.frontends.len() as u64))
    });
}

#[test]
fn property_9_an_established_tcp_flow_is_never_retargeted() {
    run::check("property-9", Weight::Usual, &["moved on"], history(6), |history| {
        let mut agent = Agent::new(&history.config, &history.service_cidrs);
        let mut flows = Flows::default();
        let mut tally = Tally::default();
        for (burst, cluster) in history.steps() {
            agent.take(burst);
            let view = View::new(&cluster, NODE);
            tally.compared += flows.go_on(&agent.tables)?;
            let gone = flows.whose_endpoint_is_gone(&view);
            if gone > 0 {
                tally.met("moved on");
            }
            for ((to, protocol), _) in compare::frontends(&view) {
                if protocol == Protocol::Tcp {
                    for client in compare::clients_for(to.ip()) {
                        flows.open(&agent.tables, &client, to)?;
                    }
                }
            }
        }
        tally.compared += flows.go_on(&agent.tables)?;
        Ok(tally)
    });
}
