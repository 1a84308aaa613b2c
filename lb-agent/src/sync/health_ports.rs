//! Which Services have a health check node port, and who is told that one cannot be had (contract
//! H-12, H-13)?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::sync::mpsc;

use super::Sync;
use super::apply::Element;
use super::tell::MOST_NAMES;
use crate::datapath::Datapath;
use crate::health::{Failure, Health};
use crate::model::{ObjectKey, Store};
use crate::policy::health::{HealthPorts, places};
use crate::source::Warning;

/// kube-proxy's reason for an Event on the Service.
const REASON: &str = "FailedToStartServiceHealthcheck";

/// The ports, and what was told of them.
#[derive(Debug, Default)]
pub(super) struct HealthCheckPorts {
    ports: HealthPorts,
    /// Services that changed since what they tell was last in force.
    pending: BTreeSet<ObjectKey>,
    /// Services whose port an older one has.
    lost: BTreeMap<ObjectKey, String>,
    /// Services whose port cannot be listened on.
    failing: BTreeMap<ObjectKey, String>,
    /// Where warnings go, if the source has a place for them.
    pub(super) warnings: Option<mpsc::Sender<Warning>>,
}

impl HealthCheckPorts {
    /// Services that do not have their port.
    pub(super) fn failed(&self) -> usize {
        self.lost.len() + self.failing.len()
    }

    /// Tells load balancers what is in force of these Services. That one has endpoints here is told once
    /// it is reached, and not as long as `is_failing` says that something of it could not be written;
    /// that it has none any more, at once.
    fn publish(&mut self, store: &Store, health: &Health, is_failing: impl Fn(&ObjectKey) -> bool) {
        let (mut ports, mut services) = (BTreeSet::new(), BTreeSet::new());
        for key in std::mem::take(&mut self.pending) {
            if HealthPorts::has_endpoints(store, &key) && is_failing(&key) {
                self.pending.insert(key);
                continue;
            }
            let touched = self.ports.update(store, &key);
            ports.extend(touched.ports);
            services.extend(touched.services);
        }
        for port in ports {
            health.ports().set(port, self.ports.at(port));
        }
        let mut news = Vec::new();
        for service in services {
            let Some((port, winner)) = self.ports.lost_to(&service) else {
                self.lost.remove(&service);
                continue;
            };
            let problem = format!("port {port} is that of {winner}, which is older");
            if self.lost.insert(service.clone(), problem.clone()).as_ref() != Some(&problem) {
                news.push((service, problem));
            }
        }
        self.warn(news);
    }

    /// Takes up what could be listened on, and what could not.
    fn outcome(&mut self, failures: Vec<Failure>) {
        let now: BTreeMap<_, _> = failures.into_iter().map(|f| (f.service, f.error)).collect();
        let before = std::mem::replace(&mut self.failing, now);
        for service in before.keys().filter(|service| !self.failing.contains_key(*service)) {
            tracing::info!(%service, "no failure at its health check node port any more");
        }
        let new =
            self.failing.iter().filter(|(service, error)| before.get(*service) != Some(*error));
        let news = new.map(|(service, error)| (service.clone(), error.clone())).collect();
        self.warn(news);
    }

    /// Says once what is wrong: in the log, and where people look who see only the Service.
    fn warn(&self, news: Vec<(ObjectKey, String)>) {
        let more = news.len().saturating_sub(MOST_NAMES);
        for (n, (service, problem)) in news.into_iter().enumerate() {
            if n < MOST_NAMES {
                tracing::warn!(
                    %service,
                    problem,
                    "a load balancer cannot ask here for its healthCheckNodePort; will be tried again"
                );
            }
            if let Some(warnings) = &self.warnings {
                let warning = Warning { service, reason: REASON, note: problem };
                if warnings.try_send(warning).is_err() {
                    tracing::debug!("too many warnings at once: one is in the log only");
                }
            }
        }
        if more > 0 {
            tracing::warn!(more, "Services do not have their healthCheckNodePort either");
        }
    }
}

impl<D: Datapath> Sync<D> {
    /// What load balancers are told of these is looked at again once it is in force.
    pub(super) fn note_health_ports<'a>(
        &mut self,
        services: impl IntoIterator<Item = &'a ObjectKey>,
    ) {
        self.health_ports.pending.extend(services.into_iter().cloned());
    }

    /// After a sync, load balancers are told what is in force (H-13), and what could not be listened on is
    /// tried again (H-12). `committed` says that there was one. What fails for one Service keeps nobody
    /// else from being told.
    pub(super) fn tell_health_ports(&mut self, committed: bool) {
        if !self.health_ports.pending.is_empty() {
            let (failed, planner) = (&self.failed, &self.planner);
            let is_failing = |key: &ObjectKey| {
                let mut fronts = planner.frontends_of(&key.namespace, &key.name);
                !failed.is_empty()
                    && fronts.any(|front| {
                        failed.contains_key(&Element::Frontend(*front))
                            || failed.contains_key(&Element::Address(front.addr()))
                    })
            };
            self.health_ports.publish(&self.store, &self.health, is_failing);
        }
        if committed {
            self.health.ports().try_again();
        }
    }

    /// Has the thread listen where the node's addresses are now.
    pub(super) fn tell_health_places(&self, addresses: &[(IpAddr, bool)]) {
        self.health.ports().listen_at(places(&self.node_port_addresses, addresses));
    }

    /// What could be listened on has changed.
    pub(super) fn health_ports_outcome(&mut self) {
        self.health_ports.outcome(self.health.ports().failures());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::fake::{Fake, SMALL};
    use crate::datapath::interfaces;
    use crate::diff::Op;
    use crate::model::{
        Change, ClusterIps, Conditions, Endpoint, Endpoints, External, Family, Protocol, Service,
        ServicePort, Slice, SlicePort,
    };
    use crate::plan::FrontKey;
    use crate::source::SourceEvent;
    use crate::sync::Event;
    use lb_common::abi::MetaWord;

    fn service(name: &str, created_s: i64, port: u16) -> Change {
        let external =
            External { local: true, health_check_node_port: port, ..External::default() };
        let http = ServicePort { name: "".into(), port: 80, protocol: Protocol::Tcp, node_port: 0 };
        let last = u8::try_from(created_s).unwrap();
        Change::SetService(Service {
            key: ObjectKey::new("shop", name),
            created_s,
            cluster_ips: ClusterIps { v4: Some([10, 96, 0, last].into()), v6: None },
            ports: [http].into(),
            internal_local: false,
            affinity_timeout_s: None,
            external: Some(Box::new(external)),
        })
    }

    /// A slice of ready endpoints on this node.
    fn slice(service: &str, endpoints: u8) -> Change {
        let here = Conditions::READY.with(Conditions::SERVING, true).with(Conditions::LOCAL, true);
        let endpoints = (1..=endpoints).map(|octet| Endpoint {
            addr: [10, 0, 0, octet].into(),
            conditions: here,
            zones: 0,
        });
        Change::SetSlice(Slice {
            key: ObjectKey::new("shop", service),
            service: service.into(),
            ports: [SlicePort { name: "".into(), port: 8080, protocol: Protocol::Tcp }].into(),
            endpoints: Endpoints::new(Family::V4, endpoints),
            zone_sets: Box::default(),
        })
    }

    fn batch(changes: Vec<Change>) -> Event {
        Event::Source(SourceEvent::Batch(changes))
    }

    /// Who has a port, and how many endpoints are told there.
    fn at(sync: &Sync<Fake>, port: u16) -> Option<(String, usize)> {
        let served = sync.health.ports().at(port)?;
        Some((served.service.name.to_string(), served.local_endpoints))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it is compared with what may be nothing")]
    fn told(name: &str, local_endpoints: usize) -> Option<(String, usize)> {
        Some((name.to_owned(), local_endpoints))
    }

    fn failed(sync: &Sync<Fake>) -> u64 {
        sync.datapath().meta[MetaWord::FailedHealthPorts as usize]
    }

    #[test]
    fn h_13_what_is_told_follows_each_sync_and_nothing_is_told_before_the_first() {
        let mut sync = Sync::new(Fake::new(SMALL), SMALL).unwrap();
        sync.step([batch(vec![service("web", 1, 32_000), slice("web", 2)])]);
        assert_eq!(at(&sync, 32_000), None, "L-3");
        sync.step([Event::Source(SourceEvent::Synced)]);
        assert_eq!(at(&sync, 32_000), told("web", 2));
        sync.step([batch(vec![slice("web", 0)])]);
        assert_eq!(at(&sync, 32_000), told("web", 0));
        sync.step([batch(vec![service("web", 1, 32_001), slice("web", 1)])]);
        assert_eq!((at(&sync, 32_000), at(&sync, 32_001)), (None, told("web", 1)));
        sync.step([batch(vec![Change::DropService(ObjectKey::new("shop", "web"))])]);
        assert_eq!(at(&sync, 32_001), None);
    }

    #[test]
    fn h_13_what_fails_for_one_service_keeps_nobody_else_from_being_told() {
        let mut sync = Sync::new(Fake::new(SMALL), SMALL).unwrap();
        let both = [("web", 1, 32_000), ("api", 2, 32_001)];
        let mut all: Vec<Change> =
            both.map(|(name, created, port)| service(name, created, port)).into();
        all.push(slice("web", 2));
        sync.step([batch(all), Event::Source(SourceEvent::Synced)]);
        assert_eq!((at(&sync, 32_000), at(&sync, 32_001)), (told("web", 2), told("api", 0)));
        let vip = |octet: u8| move |key: &&FrontKey| key.addr() == IpAddr::from([10, 96, 0, octet]);
        let fails = |sync: &mut Sync<Fake>, octet| {
            let key = *sync.datapath().frontends.keys().find(vip(octet)).unwrap();
            sync.failed.insert(Element::Frontend(key), Op::FrontendDelete(key));
        };
        fails(&mut sync, 2);
        sync.step([batch(vec![slice("web", 3), slice("api", 1)])]);
        assert_eq!(at(&sync, 32_000), told("web", 3), "somebody else fails");
        assert_eq!(at(&sync, 32_001), told("api", 0), "nobody is reached there");
        fails(&mut sync, 1);
        sync.step([batch(vec![slice("web", 0)])]);
        assert_eq!(at(&sync, 32_000), told("web", 0), "at once");
        sync.step([]);
        assert_eq!(at(&sync, 32_001), told("api", 1), "what failed is done");
    }

    #[test]
    fn h_12_who_cannot_have_a_port_is_counted_and_warned_of_once() {
        let (tell, mut warnings) = mpsc::channel(4);
        let sync = Sync::new(Fake::new(SMALL), SMALL).unwrap();
        let mut sync = sync.with_warnings(tell);
        let mut next =
            move || warnings.try_recv().ok().map(|w| (w.service.name.to_string(), w.note));
        let synced = Event::Source(SourceEvent::Synced);
        sync.step([batch(vec![service("old", 1, 32_000), service("new", 2, 32_000)]), synced]);
        assert_eq!((at(&sync, 32_000), failed(&sync)), (told("old", 0), 1));
        let (service_name, note) = next().unwrap();
        assert_eq!(service_name, "new");
        assert!(note.contains("32000") && note.contains("shop/old"), "{note}");
        sync.step([batch(vec![slice("old", 1), slice("new", 1)])]);
        assert_eq!((at(&sync, 32_000), next()), (told("old", 1), None), "told once");

        sync.step([batch(vec![Change::DropService(ObjectKey::new("shop", "old"))])]);
        assert_eq!((at(&sync, 32_000), failed(&sync)), (told("new", 1), 0));
        sync.step([batch(vec![service("old", 1, 32_000)])]);
        assert_eq!(next().unwrap().0, "new", "told again, because it is new");
    }

    /// The node's addresses lead to sockets, and what becomes of those comes back.
    #[tokio::test]
    async fn h_8_h_12_sockets_follow_the_addresses_and_their_failures_are_told() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let health = Health::default();
        crate::health::server::start(None, false, health.clone()).unwrap();
        let (tell, mut warnings) = mpsc::channel(4);
        let mut sync = Sync::new(Fake::new(SMALL), SMALL)
            .unwrap()
            .with_health(health.clone())
            .with_warnings(tell)
            .with_node_port_addresses("127.0.0.0/8,::1/128".parse().unwrap());
        let addresses = interfaces::Change::Addresses(vec!["127.0.0.1".parse().unwrap()]);
        let synced = Event::Source(SourceEvent::Synced);
        sync.step([batch(vec![service("web", 1, port)]), Event::Interface(addresses), synced]);
        let outcome = || {
            tokio::time::timeout(std::time::Duration::from_secs(20), async {
                health.ports().outcome().await;
            })
        };
        outcome().await.unwrap();
        sync.step([Event::HealthPorts]);
        assert_eq!(failed(&sync), 1);
        let Warning { service: key, reason, note } = warnings.try_recv().unwrap();
        assert_eq!((key, reason), (ObjectKey::new("shop", "web"), REASON));
        assert!(note.contains(&format!("127.0.0.1:{port}")), "{note}");

        drop(taken);
        // The next sync, whatever it is about, tries again.
        sync.step([batch(vec![slice("web", 1)])]);
        outcome().await.unwrap();
        sync.step([Event::HealthPorts]);
        assert_eq!((failed(&sync), warnings.try_recv().ok()), (0, None));
        std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    }
}
