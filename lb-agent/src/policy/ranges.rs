//! Who may use the addresses of a Service's load balancer: contract.

use std::net::IpAddr;
use std::sync::Arc;

use super::Refusal;
use crate::model::{Cidr, Family, Node, Service};

/// Source ranges that a Service may have in each family: each of its ports has its own, and whoever
/// writes it chooses how many of both there are.
const MOST_RANGES: usize = 8192;

/// The source ranges of each port of a Service in a family, sorted, none within another; none where
/// everybody is let in. Tells what there is no room for.
pub(super) fn of(
    service: &Service,
    family: Family,
    node: Option<&Node>,
    refused: &mut dyn FnMut(Refusal),
) -> Arc<[Cidr]> {
    let mut ranges: Vec<Cidr> = service.source_ranges(family).collect();
    let lets_all_in = ranges.iter().any(|range| range.prefix() == 0);
    if ranges.is_empty() || lets_all_in || service.load_balancer_ips(family).next().is_none() {
        return [].into();
    }
    // A node that has such an address itself sends from it.
    let is_inside = |addr: &IpAddr| ranges.iter().any(|range| range.contains(*addr));
    if node.is_some_and(|node| node.addresses.iter().any(is_inside)) {
        ranges.extend(service.load_balancer_ips(family).map(Cidr::of_one));
    }
    let mut ranges = Cidr::widest(ranges);
    let room = (MOST_RANGES / service.ports.len().max(1)).max(1);
    if ranges.len() > room {
        let left_out = ranges.len() - room;
        let problem = format!(
            "{left_out} ranges of {family:?} beyond the {room} widest, whose clients are not let in: a \
             Service with so many ports has room for no more; merge ranges, or split the Service"
        );
        refused(Refusal { field: "spec.loadBalancerSourceRanges".to_owned(), problem });
        ranges.sort_by_key(|range| (range.prefix(), *range));
        ranges.truncate(room);
        ranges.sort_unstable();
    }
    ranges.into()
}
