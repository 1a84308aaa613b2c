//! UDP flows and unconnected UDP sockets that keep sending while the cluster changes (section 6.2).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_testbed::oracle::{
    Client, Source, View, cluster::Protocol, endpoints::PortId, services::Port,
};
use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    compare::{self, Question},
    decide::{Became, Decider, Way},
    run::Tally,
};

struct Sender {
    way: Way,
    client: Client,
    to: SocketAddr,
    last: Became,
    /// Where it was last sent to an endpoint, and by which service port.
    held: Option<(SocketAddr, PortId)>,
}

/// What keeps sending, and where it went last.
#[derive(Default)]
pub(crate) struct Senders {
    /// By source port of a pod's flow, or cookie of a socket.
    all: BTreeMap<u64, Sender>,
}

impl Senders {
    /// Each sends once more. Where its endpoint serves still, it goes there (U-4, U-7); otherwise, as
    /// a new one would (U-2, U-6).
    ///
    /// What was sent to an address that its Service does not have any more is no matter of these
    /// rules while the Service is there and the endpoint serves. Where another Service has the
    /// address now, U-2 would have the flow follow; Millrace's records know the backend and not the
    /// frontend: they let it stay where the old one serves, and else it is as good as new.
    pub(crate) fn go_on(
        &mut self,
        decider: &Decider<'_>,
        view: &View,
        tally: &mut Tally,
    ) -> Result<(), TestCaseError> {
        for (&id, Sender { way, client, to, last, held }) in &mut self.all {
            let expected = view.expect(way.engine(), client, *to, Protocol::Udp);
            let now = expected.found.map(|(_, port)| &view.ports[port]);
            let keeps = |port: &Port, at| port.lists.keeps_flows().contains(at);
            let (mut stays, mut may_stay) = (false, false);
            if let Some((at, owner)) = held {
                let same = now.filter(|port| port.id == *owner);
                stays = last.endpoint().is_some() && same.is_some_and(|port| keeps(port, at));
                let old = view.ports.iter().find(|port| port.id == *owner);
                may_stay = old.into_iter().chain(now).any(|port| keeps(port, at));
            }
            let fresh =
                compare::at_the_engine(&expected, &Question::of(client, *to, Protocol::Udp));
            let before = held.as_ref().map(|(at, _)| Became::To(*at, Source::Kept));
            let mut allowed = if stays { BTreeSet::new() } else { fresh };
            if may_stay {
                // Its source may be another one.
                let as_before = last.endpoint().is_some().then_some(*last);
                allowed.extend(before.into_iter().chain(as_before));
            }
            let became = decider.again(*way, client, *to, Protocol::Udp, id);
            prop_assert!(
                allowed.contains(&became),
                "{:?} {} of {:?} to {} went to {:?} and now to {:?}; allowed is {:?}: {}",
                way,
                id,
                client,
                to,
                last,
                became,
                allowed,
                expected
            );
            tally.compared += 1;
            let rule = match (stays, last.endpoint()) {
                (true, _) => "stays",
                (false, Some(_)) => "moves",
                (false, None) => "tries again",
            };
            tally.met(rule);
            match (became.endpoint(), &held, now) {
                (Some(at), Some((before, _)), _) if at == *before && may_stay && !stays => {}
                (Some(at), _, Some(port)) => *held = Some((at, port.id.clone())),
                (Some(_), ..) => {}
                // A socket remembers, a flow that ended does not.
                _ if *way == Way::Packet => *held = None,
                _ => {}
            }
            *last = became;
        }
        Ok(())
    }

    /// New ones begin at every frontend.
    pub(crate) fn begin(&mut self, decider: &Decider<'_>, view: &View) {
        for ((to, protocol), (_, port)) in compare::frontends(view) {
            if protocol != Protocol::Udp {
                continue;
            }
            for client in compare::clients_for(to.ip()) {
                let question = Question::of(&client, to, protocol);
                for way in question.ways().filter(|way| *way != Way::Connect) {
                    let id = decider.sender();
                    let became = decider.again(way, &client, to, protocol, id);
                    let held = became.endpoint().map(|at| (at, view.ports[port].id.clone()));
                    let sender = Sender { way, client: client.clone(), to, last: became, held };
                    self.all.insert(id, sender);
                }
            }
        }
    }
}
