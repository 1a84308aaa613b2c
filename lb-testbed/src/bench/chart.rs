//! What figures beside kube-proxy mean, drawn and worked out from the records.

use std::fmt::Write as _;

use super::{Record, north_south, pps};

/// Letters of a bar for a ratio of one.
const ONE: f64 = 12.0;
/// Ratios beyond that are drawn as that.
const LONGEST: f64 = 5.0;

const MEANING: &str = "\
How much of kube-proxy's work per second Millrace does in the same namespaces: 1 is as much.
Behind each bar stands the ratio and, in brackets, what is to be reached; the line `|` is kube-proxy.

";

const LIMITS: &str = "
What these figures mean: both ways take the same CPU, the same cables and the same packets, and only what is in between differs; the ratio of two costs per packet or per connection on that CPU is what they tell.
kube-proxy's rules are those that it made itself.
What is the same for both (making the packets, the cable, the sockets at both ends, the scheduler) is in both costs, so that ratios are nearer to 1 than those of the translations alone.

What they do not mean:

- No network card is in them. A virtual cable hands a packet over in memory; it has no descriptor rings, no DMA, no interrupts of its own and no queues in hardware. Native XDP on it saves the making of an skb as a driver does, but less is gained: a cable that carries skbs has made them already.
- Two virtual cores say nothing of many: no two CPUs contend for a line of cache, and no queue is steered.
- Absolute packets per second are those of this machine with its mitigations, a cost of a few tens of nanoseconds for each indirect call among them.
- Connections per second contain two sockets and two processes; latency is not in them.
- Two Services are in force: kube-proxy's nftables maps and Millrace's hashes are both flat in their number, to which `kube_proxy_sync_10k_s` and `cold_start_10k_s` are the other side.
";

/// A chapter of the page; empty without any record that it is about.
pub(super) fn chapter(records: &[Record]) -> String {
    // Packets per second first, and of those by XDP.
    let beside = pps::IDS.iter().rev().chain(&north_south::IDS);
    let known: Vec<(&Record, f64)> = beside
        .filter_map(|id| records.iter().find(|record| record.id == *id))
        .filter_map(|record| Some((record, record.value?)))
        .collect();
    if known.is_empty() {
        return String::new();
    }
    let mut text = format!("\n## Beside kube-proxy\n\n{MEANING}```text\n");
    let width = known.iter().map(|(record, _)| record.id.len()).max().unwrap_or(0);
    for (record, ratio) in known {
        let reach = record.reach.as_deref().unwrap_or("");
        writeln!(text, "{:<width$}  {}  {ratio:.2} ({reach})", record.id, bar(ratio)).ok();
    }
    text.push_str("```\n");
    text.push_str(LIMITS);
    text.push_str(&on_a_card(records));
    text
}

/// A bar with kube-proxy's line in it, as wide as the longest.
fn bar(ratio: f64) -> String {
    let cells = |ratio: f64| -> usize {
        let mut cells = 0;
        while f64::from(cells + 1) <= ratio.min(LONGEST) * ONE + 0.5 {
            cells += 1;
        }
        usize::try_from(cells).unwrap_or(0)
    };
    let (filled, one, all) = (cells(ratio), cells(1.0), cells(LONGEST));
    (0..all)
        .map(|at| match at {
            _ if at + 1 == one => '|',
            _ if at < filled => '█',
            _ => ' ',
        })
        .collect()
}

/// What follows for a card that this machine does not have.
fn on_a_card(records: &[Record]) -> String {
    // On the wire a frame has twenty bytes more: preamble, delimiter, gap.
    let line_rate = |frame: f64| 25e9 / ((frame + 20.0) * 8.0) / 1e6;
    let value = |id: &str| records.iter().find(|record| record.id == id)?.value;
    // A driver that sends a packet out again by the port it came by, without looking at it: 16 to 17
    // million packets per second and core of 3.6 GHz (Høiland-Jørgensen et al., CoNEXT 2018).
    let driver_ns = 61.0;
    let mut text = format!(
        "\n## Expected on a card of 25 Gbit/s\n\n\
         By arithmetic, not by measurement.\n\
         The link carries {:.1} million frames of 64 bytes in a second, {:.2} million of 512, {:.2} million of 1518.\n\
         A driver's part of a packet that XDP sends out again is about {driver_ns} ns on a core of 3.6 GHz, by the measurements of the paper on XDP (CoNEXT 2018, ConnectX-5); the program's part is measured above.\n\n\
         | flows | program | with the driver | packets per second and core | cores for 64-byte frames | for 512 | for 1518 |\n\
         |---|---|---|---|---|---|---|\n",
        line_rate(64.0),
        line_rate(512.0),
        line_rate(1518.0)
    );
    for (flows, id) in [
        ("one, in the cache", "xdp_established_ns"),
        ("64,000", "xdp_64k_ns"),
        ("1,000,000", "xdp_1m_ns"),
    ] {
        let Some(program) = value(id) else {
            writeln!(text, "| {flows} | `{id}` was not measured | | | | | |").ok();
            continue;
        };
        let all = program + driver_ns;
        let per_core = 1e3 / all;
        let cores = |frame: f64| (line_rate(frame) / per_core).ceil();
        writeln!(
            text,
            "| {flows} | {program:.0} ns | {all:.0} ns | {per_core:.1} million | {:.0} | {:.0} | {:.0} |",
            cores(64.0),
            cores(512.0),
            cores(1518.0)
        )
        .ok();
    }
    text.push_str(
        "\nIt assumes that queues spread flows evenly, that a core of the card's machine is as fast as this one, and that the program costs the same beside a driver.\n\
         What came by this road through the kernel's stack without Services at all, a route and nothing else, was 1.74 million packets per second and core in the same paper.\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::sample;

    fn record(id: &str, value: Option<f64>) -> Record {
        Record {
            unit: "ratio".into(), reach: Some("≥ 1.5".into()), ok: None, ..sample(id, value)
        }
    }

    #[test]
    fn bars_are_as_long_as_their_ratios_and_equally_wide() {
        let text = |ratio| bar(ratio).trim_end().chars().count();
        assert_eq!((text(1.0), text(2.0), text(4.0)), (12, 24, 48));
        assert_eq!(bar(0.5).chars().filter(|letter| *letter == '█').count(), 6);
        assert_eq!(bar(0.5).chars().nth(11), Some('|'), "kube-proxy's line is there in any case");
        assert!([0.0, 1.3, 99.0].iter().all(|ratio| bar(*ratio).chars().count() == 60));
    }

    #[test]
    fn the_chapter_is_made_of_what_was_measured() {
        assert_eq!(chapter(&[record("tc_established_ns", Some(1.0))]), "");
        let records = [
            record("nodeport_remote_pps_ratio", Some(2.0)),
            record("nodeport_local_crr_ratio", None),
            record("xdp_established_ns", Some(39.0)),
        ];
        let text = chapter(&records);
        assert!(
            text.contains("2.00 (≥ 1.5)") && !text.contains("nodeport_local_crr_ratio"),
            "{text}"
        );
        // 61 + 39 ns are ten million in a second; the link carries 37.2 million.
        assert!(text.contains("| 39 ns | 100 ns | 10.0 million | 4 | 1 | 1 |"), "{text}");
        assert!(text.contains("`xdp_1m_ns` was not measured"), "{text}");
    }
}
