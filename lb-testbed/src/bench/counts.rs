//! What do packets of established flows ask of maps and clocks? Counted, not timed: the golden
//! cases run through the same decision over tables that count.

use anyhow::{Result, ensure};

use super::{Figure, Plan, Reach};
use crate::golden::{self, Step};

pub(super) const IDS: [&str; 2] = ["established_map_updates", "established_precise_clock_reads"];

pub(super) fn measure(_plan: &Plan) -> Result<Vec<Figure>> {
    let steps = golden::cases().into_iter().flat_map(|case| case.steps);
    let is_established = |step: &Step| matches!(step, Step::Shot(shot) if shot.established);
    let packets = steps.filter(is_established).count();
    ensure!(packets > 0, "no golden case has a packet of an established flow");
    let costs = golden::established_costs()?;
    let method = format!(
        "sum over the {packets} packets of established flows in the golden cases, each of which \
         came out right, through the host's tables, which count"
    );
    let note = format!(
        "{} lookups and {} reads of the coarse clock",
        costs.lookups, costs.coarse_clock_reads
    );
    let figure = |id, value: u64, unit| {
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        Figure::new(id, value.into(), unit)
            .reach(Reach::AtMost(0.0))
            .method(method.clone())
            .note(note.clone())
    };
    Ok(vec![
        figure(IDS[0], costs.map_updates, "updates"),
        figure(IDS[1], costs.precise_clock_reads, "reads"),
    ])
}
