//! Hints of endpoints: contract E-14. What they say of nodes is reduced to two bits; the sets of zones
//! that a slice's hints name are kept once each, because a slice has few.

use super::raw::{Bounded, MOST_HINTS, RawEndpoint, RawHint};
use super::report::quoted;
use super::{Converter, Findings};
use crate::model::{Conditions, ZoneSet};

/// A longer name is no label's value, and so no zone's.
const LONGEST_NAME: usize = 253;

/// The sets of zones that the hints of a slice name.
#[derive(Debug, Default)]
pub(super) struct ZoneSets {
    pub(super) sets: Vec<ZoneSet>,
}

impl Converter {
    /// What the hints of the endpoint `index` say of nodes, and which set of zones they name, from 1;
    /// 0 for none.
    pub(super) fn hints(
        &mut self,
        raw: &RawEndpoint<'_>,
        index: usize,
        zones: &mut ZoneSets,
        findings: &mut Findings,
    ) -> (Conditions, u8) {
        let Some(hints) = &raw.hints else { return (Conditions::default(), 0) };
        let field = |name: &str| format!("endpoints[{index}].hints.{name}");
        let nodes = names(&hints.for_nodes, || field("forNodes"), findings);
        let is_here = !self.node_name.is_empty() && nodes.contains(&&*self.node_name);
        let conditions = Conditions::default()
            .with(Conditions::FOR_NODES, !nodes.is_empty())
            .with(Conditions::FOR_THIS_NODE, is_here);
        let named = names(&hints.for_zones, || field("forZones"), findings);
        if named.is_empty() {
            return (conditions, 0);
        }
        let same = |set: &ZoneSet| set.iter().map(|zone| &**zone).eq(named.iter().copied());
        let at = zones.sets.iter().position(same).unwrap_or(zones.sets.len());
        let Ok(number) = u8::try_from(at + 1) else {
            let problem = format!("more than {} different sets of zones in a slice", u8::MAX);
            findings.add(&field("forZones"), problem);
            return (conditions, 0); // As without hints, which is safe (T-7).
        };
        if at == zones.sets.len() {
            zones.sets.push(named.iter().map(|zone| self.names.share(zone)).collect());
        }
        (conditions, number)
    }
}

/// The names, sorted.
fn names<'a>(
    raw: &'a Bounded<RawHint<'a>, MOST_HINTS>,
    field: impl Fn() -> String,
    findings: &mut Findings,
) -> Vec<&'a str> {
    let mut names: Vec<&str> = Vec::with_capacity(raw.items.len());
    for RawHint { name } in &raw.items {
        if name.len() > LONGEST_NAME {
            findings.add(&field(), format!("{} is too long for a name", quoted(name)));
        } else {
            names.push(name);
        }
    }
    if raw.beyond > 0 {
        findings.add(&field(), format!("{} names beyond the first {MOST_HINTS}", raw.beyond));
    }
    names.sort_unstable();
    names.dedup();
    names
}
