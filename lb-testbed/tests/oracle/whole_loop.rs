//! The agent's loop itself, over maps in memory.

use lb_agent::{
    datapath::{fake::Fake, interfaces},
    plan::self_test,
    source::SourceEvent,
    sync::{self, Sync},
};
use lb_testbed::oracle::{History, history::Event};

use super::{
    meaning::Meaning,
    pipeline::CAPACITY,
    read::{Reader, node_port_addresses},
};

/// An agent that runs.
pub(crate) struct Loop {
    reader: Reader,
    sync: Sync<Fake>,
}

impl Loop {
    /// An agent that has seen the lists of a cluster without objects.
    pub(crate) fn new(history: &History) -> Self {
        let sync = Sync::new(Fake::new(CAPACITY), CAPACITY).unwrap();
        let mut reader = Reader::new(&history.config);
        let cidrs = reader.service_cidrs(&history.service_cidrs);
        let mut agent = Self {
            reader,
            sync: sync.with_node_port_addresses(node_port_addresses(&history.config)),
        };
        agent.step([
            sync::Event::Interface(interfaces::Change::Addresses(
                history.config.interfaces.clone(),
            )),
            sync::Event::Interface(interfaces::Change::Listed),
            sync::Event::Source(SourceEvent::Batch(cidrs.into_iter().collect())),
            sync::Event::Source(SourceEvent::Synced),
        ]);
        agent
    }

    /// Takes up what happened together.
    pub(crate) fn take(&mut self, burst: &[Event]) {
        let (changes, addresses) = self.reader.burst(burst);
        let addresses = addresses.map(interfaces::Change::Addresses).map(sync::Event::Interface);
        let batch = sync::Event::Source(SourceEvent::Batch(changes));
        self.step(addresses.into_iter().chain([batch]));
    }

    fn step(&mut self, events: impl IntoIterator<Item = sync::Event>) {
        assert!(self.sync.step(events));
        // No decision is under way.
        assert!(self.sync.step([sync::Event::GraceDone(Ok(()))]));
    }

    /// All that the tables say but what the agent asks itself by.
    pub(crate) fn meaning(&self) -> Meaning {
        let mut meaning = Meaning::of(self.sync.datapath());
        for ip in [self_test::VIP4.into(), self_test::VIP6.into()] {
            meaning.frontends.retain(|(at, _), _| (at.ip(), at.port()) != (ip, self_test::PORT));
            if !meaning.frontends.keys().any(|(at, _)| at.ip() == ip) {
                meaning.addresses.remove(&ip);
            }
        }
        meaning
    }
}
