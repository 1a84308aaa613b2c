//! The contract's matrix with real sockets: every kind of client, on the node and off it × every kind
//! of address × both policies × every place of endpoints × TCP, UDP × IPv4, IPv6 × both engines ×
//! uplinks with XDP and without. What must become of each comes from the oracle alone; `cargo xtask
//! test --matrix` shows the table.

use anyhow::Result;
use lb_testbed::{
    matrix::{TOPOLOGIES, cell::Proxy, run},
    oracle::Verdict,
    require,
};

/// Rules that decide some cell.
const MET: [&str; 9] = ["V-1", "V-2", "V-3", "V-4", "V-6", "V-7", "V-8", "V-9", "V-10"];

/// Rules V-1 to V-4, V-6 to V-10, V-c, V-g, T-2 to T-4, C-2, M-1 to M-5, M-7, M-8 with departures a,
/// b and c.
#[test]
fn v_1_to_v_10_every_kind_of_connection_becomes_what_the_contract_says() -> Result<()> {
    let test = "v_1_to_v_10_every_kind_of_connection_becomes_what_the_contract_says";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let table = run::all(&TOPOLOGIES, &[Proxy::Millrace, Proxy::MillraceXdp])?;
    println!("{table}");
    assert_eq!(table.differing().count(), 0, "{table}");
    for rule in MET {
        let met = table.cells.iter().any(|cell| cell.expected.rule == rule);
        assert!(met, "no cell is decided by {rule}");
    }
    let translated =
        table.cells.iter().filter(|cell| matches!(cell.expected.verdict, Verdict::Translate(_)));
    assert!(translated.count() * 2 > table.cells.len(), "hardly anybody is served");
    Ok(())
}
