//! What does plan have to know of the node?

use super::Sync;
use crate::datapath::Datapath;
use crate::plan::NodeFacts;
use crate::policy::node;

impl<D: Datapath> Sync<D> {
    /// Tells plan the node's addresses and the ranges of Services. Not before the interfaces were
    /// listed, and those that the Node tells not before that was seen, which nobody waits for (L-3):
    /// until then, what an earlier run found out stays in force.
    pub(super) fn tell_node(&mut self) {
        let Some(addresses) = &self.addresses else { return };
        let (config, object) = (&self.node_port_addresses, self.store.node());
        let node_port_addresses = if object.is_none() && config.asks_the_node() {
            self.planner.node_port_addresses()
        } else {
            node::node_port_addresses(config, object, addresses)
        };
        self.tell_health_places(&node_port_addresses);
        self.planner.set_node(NodeFacts {
            node_port_addresses,
            host_addresses: node::host_addresses(addresses),
            service_cidrs: node::service_cidrs(&self.store),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use lb_common::abi::AddressFlags;

    use crate::datapath::fake::{Fake, SMALL};
    use crate::datapath::interfaces;
    use crate::model::{
        Change, Cidr, ClusterIps, External, Node, ObjectKey, Protocol, Service, ServiceCidr,
        ServicePort,
    };
    use crate::plan::address_flags;
    use crate::source::SourceEvent;
    use crate::sync::{Event, Sync};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn service(external_ips: &[&str]) -> Change {
        let ips = external_ips.iter().map(|text| ip(text)).collect();
        Change::SetService(Service {
            key: ObjectKey::new("default", "web"),
            created_s: 1,
            cluster_ips: ClusterIps { v4: Some([10, 96, 0, 1].into()), v6: None },
            ports: [ServicePort {
                name: "http".into(),
                port: 80,
                protocol: Protocol::Tcp,
                node_port: 30_080,
            }]
            .into(),
            internal_local: false,
            affinity_timeout_s: None,
            external: Some(Box::new(External { ips, ..External::default() })),
        })
    }

    fn node(addr: &str) -> Change {
        let addresses = [ip(addr)].into();
        let pod_cidrs = [Cidr::new(ip("10.244.0.0"), 24).unwrap()].into();
        Change::SetNode(Node { name: "here".into(), addresses, pod_cidrs, ..Node::default() })
    }

    fn range(text: &str, prefix: u8) -> Change {
        let cidrs = [Cidr::new(ip(text), prefix).unwrap()].into();
        Change::SetServiceCidr(ServiceCidr { name: "kubernetes".into(), cidrs })
    }

    fn changes(changes: Vec<Change>) -> Event {
        Event::Source(SourceEvent::Batch(changes))
    }

    fn addresses(all: &[&str]) -> Event {
        let all = all.iter().map(|text| ip(text)).collect();
        Event::Interface(interfaces::Change::Addresses(all))
    }

    fn synced() -> Event {
        Event::Source(SourceEvent::Synced)
    }

    /// Addresses of the node in the maps.
    fn of_node(sync: &Sync<Fake>) -> Vec<String> {
        let of_node = AddressFlags::NODE | AddressFlags::LOOPBACK;
        let all = sync.datapath().addresses.iter();
        all.filter(|(addr, word)| address_flags(addr, **word) & of_node != 0)
            .map(|(addr, _)| addr.to_string())
            .collect()
    }

    fn start(fake: Fake) -> Sync<Fake> {
        Sync::new(fake, SMALL).unwrap()
    }

    #[test]
    fn n_2_node_ports_follow_the_addresses_that_the_node_tells() {
        let mut sync = start(Fake::new(SMALL));
        let all = vec![service(&[]), node("192.168.0.1"), range("10.96.0.0", 12)];
        sync.step([changes(all), synced()]);
        assert_eq!(of_node(&sync), [""; 0], "no interfaces were told");
        sync.step([addresses(&["127.0.0.1", "192.168.0.1", "192.168.0.2"])]);
        assert_eq!(of_node(&sync), ["192.168.0.1"]);
        assert_eq!(sync.datapath().service_cidrs[0][0], Some((ip("10.96.0.0"), 12)));
        let commits = sync.counts().commits;
        sync.step([addresses(&["127.0.0.2", "192.168.0.1", "192.168.0.2", "fe80::1"])]);
        assert_eq!(sync.counts().commits, commits, "nothing that counts has changed");
        sync.step([changes(vec![node("192.168.0.2"), range("10.80.0.0", 16)])]);
        assert_eq!(of_node(&sync), ["192.168.0.2"]);
        assert_eq!(sync.datapath().service_cidrs[0][0], Some((ip("10.80.0.0"), 16)));
    }

    #[test]
    fn n_1_addresses_of_interfaces_count_as_the_flag_says() {
        let config = "10.0.0.0/8,localhost".parse().unwrap();
        let mut sync = start(Fake::new(SMALL)).with_node_port_addresses(config);
        let all = vec![service(&[]), node("192.168.0.1")];
        sync.step([changes(all), addresses(&["10.1.0.1", "127.0.0.1", "192.168.0.1"]), synced()]);
        assert_eq!(of_node(&sync), ["10.1.0.1", "127.0.0.1"]);
        sync.step([addresses(&["10.1.0.1", "10.2.0.1", "192.168.0.1"])]);
        assert_eq!(of_node(&sync), ["10.1.0.1", "10.2.0.1"], "seen as they come and go");
    }

    #[test]
    fn l_7_a_restart_keeps_what_was_known_of_the_node_and_writes_nothing() {
        let mut sync = start(Fake::new(SMALL));
        let all = || vec![service(&[]), node("192.168.0.1"), range("10.96.0.0", 12)];
        let own = || addresses(&["192.168.0.1"]);
        sync.step([changes(all()), own(), synced()]);
        let fake = sync.datapath().clone();

        let mut sync = start(fake.clone());
        sync.step([changes(all()), synced()]);
        assert_eq!(of_node(&sync), ["192.168.0.1"], "interfaces are not told yet");
        let applied = sync.datapath().applied;
        sync.step([own()]);
        assert_eq!(sync.datapath().applied, applied);
        let now = sync.datapath();
        assert_eq!(now.addresses, fake.addresses);
        assert_eq!((&now.frontends, &now.service_cidrs), (&fake.frontends, &fake.service_cidrs));
    }

    #[test]
    fn l_3_a_restart_keeps_the_addresses_of_a_node_that_is_told_later_than_its_services() {
        let mut sync = start(Fake::new(SMALL));
        sync.step([changes(vec![service(&[]), node("192.168.0.1")]), synced()]);
        sync.step([addresses(&["192.168.0.1", "192.168.0.2"])]);
        let mut sync = start(sync.datapath().clone());
        let listed = [addresses(&["192.168.0.1", "192.168.0.2"]), changes(vec![service(&[])])];
        sync.step(listed.into_iter().chain([synced()]));
        assert_eq!(of_node(&sync), ["192.168.0.1"], "nobody has said otherwise");
        sync.step([changes(vec![range("10.96.0.0", 12)])]);
        assert_eq!(sync.datapath().service_cidrs[0][0], Some((ip("10.96.0.0"), 12)));
        assert_eq!(of_node(&sync), ["192.168.0.1"]);
        sync.step([changes(vec![node("192.168.0.2")])]);
        assert_eq!(of_node(&sync), ["192.168.0.2"]);
    }

    #[test]
    fn claims_of_what_belongs_to_others_are_refused_and_told_once() {
        let mut sync = start(Fake::new(SMALL));
        let all = || vec![service(&["10.244.0.9", "198.51.100.1"]), node("192.168.0.1")];
        sync.step([changes(all()), synced()]);
        let reports = sync.counts().object_reports;
        assert_eq!((reports, sync.refusals.len()), (1, 1));
        let addresses: Vec<_> = sync.datapath().addresses.keys().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.96.0.1", "198.51.100.1"]);
        sync.step([changes(all())]);
        sync.step([changes(vec![node("192.168.0.1")])]);
        assert_eq!(sync.counts().object_reports, reports);
        sync.step([changes(vec![service(&[])])]);
        assert_eq!(sync.refusals.len(), 0);
        sync.step([changes(all())]);
        assert_eq!(sync.refusals.len(), 1, "told again, because it is new");
        let gone = Change::ReplaceServices { services: Vec::new(), keep: Vec::new() };
        sync.step([changes(vec![gone]), synced()]);
        assert_eq!(sync.refusals.len(), 0, "gone with its Service");
    }
}
