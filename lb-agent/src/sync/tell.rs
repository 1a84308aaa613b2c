//! What do people have to know, and where do they find it: in the log or by `lb-agent status`?

use lb_common::abi::MetaWord;

use super::Sync;
use super::apply::log_failures;
use crate::convert;
use crate::datapath::Datapath;
use crate::diff::Op;
use crate::model::ObjectKey;
use crate::plan::{Report, name};

/// Things of one kind that are told at a time: whoever writes objects chooses how many there are.
pub(super) const MOST_NAMES: usize = 16;

impl<D: Datapath> Sync<D> {
    /// Keeps what `lb-agent status` reads equal to what is true, commit or not.
    pub(super) fn tell_counts(&mut self) {
        let counts = [
            (MetaWord::Conflicts, self.planner.conflicts()),
            (MetaWord::Unprogrammed, self.planner.failed()),
            (MetaWord::SkippedObjects, self.unread.len()),
            (MetaWord::Refused, self.refusals.len()),
            (MetaWord::FailedHealthPorts, self.health_ports.failed()),
        ];
        if self.told != Some(counts) {
            let ops = counts.iter().map(|&(word, count)| Op::Meta(word, count as u64));
            log_failures(&self.datapath.apply(&ops.collect::<Vec<_>>()));
            self.told = Some(counts);
        }
    }

    /// Says once that all is in force: the lists are programmed, and programs are on the cgroup and
    /// on every interface that has a part.
    pub(super) fn tell_synced(&mut self) {
        let attached = self.attached && self.sockets_failed.is_none();
        if !(self.synced && attached && self.interfaces_listed) {
            return;
        }
        if let Some(started) = self.started.take() {
            tracing::info!(
                services = self.store.counts().services,
                service_ports = self.planner.programmed(),
                unprogrammed = self.planner.failed(),
                interfaces = self.count_interfaces(),
                since_start_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "synced"
            );
            if self.store.node().is_none() {
                tracing::warn!(
                    "the Node object of this node was not read so far: no node port answers at its \
                     addresses, and no hint names its zone; if it does not come, check --node-name"
                );
            }
        }
    }

    pub(super) fn log_objects(&mut self, reports: &[convert::Report]) {
        self.counts.object_reports += reports.len() as u64;
        for report in reports {
            tracing::warn!("{report}");
            self.unread.report(report);
        }
    }

    pub(super) fn log_plan(&mut self, reports: &[Report]) {
        self.counts.plan_reports += reports.len() as u64;
        let mut unprogrammed = 0;
        for report in reports {
            match report {
                Report::Conflict { frontend, winner, losers } => {
                    let more = losers.len().saturating_sub(MOST_NAMES);
                    let losers: Vec<_> =
                        losers.iter().take(MOST_NAMES).map(name::display).collect();
                    tracing::warn!(
                        %frontend,
                        winner = name::display(winner),
                        ?losers,
                        more,
                        "several Services claim this frontend: one whose clusterIP it is has it, \
                         or else the oldest"
                    );
                }
                Report::Unprogrammed { port, error } => {
                    unprogrammed += 1;
                    if unprogrammed <= MOST_NAMES {
                        let service_port = name::display(port);
                        tracing::error!(service_port, %error, "not programmed");
                    }
                }
                Report::NodeAddresses { error } => {
                    tracing::error!(%error, "some addresses of this node serve no node ports");
                }
                Report::HostAddresses { left_out } => {
                    tracing::warn!(
                        left_out,
                        "more addresses on interfaces of this node than there is room for: what is \
                         sent from the others is taken for another machine's; raise --max-frontends \
                         (takes effect after `lb-agent cleanup`)"
                    );
                }
                Report::ServiceCidrs { left_out } => {
                    tracing::warn!(
                        left_out,
                        "more ServiceCIDRs than there is room for: packets to unused addresses of \
                         the others leave the node; merge ranges to have all guarded"
                    );
                }
                Report::Recovered { port } => {
                    tracing::info!(service_port = name::display(port), "programmed again");
                }
            }
        }
        if let Some(more @ 1..) = unprogrammed.checked_sub(MOST_NAMES) {
            tracing::error!(more, "service ports are not programmed for such reasons either");
        }
    }

    /// Looks at what these Services claim, and says once what of it is refused.
    pub(super) fn tell_refusals<'a>(&mut self, services: impl IntoIterator<Item = &'a ObjectKey>) {
        for service in services {
            let refused = self.refusals.update(&self.store, service);
            self.counts.object_reports += refused.len() as u64;
            let more = refused.len().saturating_sub(MOST_NAMES);
            if more > 0 {
                tracing::warn!(%service, more, "what it does not get either is not listed");
            }
            for refusal in refused.into_iter().take(MOST_NAMES) {
                let (field, problem) = (refusal.field, refusal.problem);
                tracing::warn!(%service, field, problem, "a Service does not get what it claims");
            }
        }
    }
}
