//! The measurements work, whatever they measure: a short run makes complete records and leaves
//! nothing behind. Values are never asserted.

use std::process::{Command, Stdio};

use lb_testbed::{bench::Record, cgroup, netns, require};

/// Those that need no agent and take a second or two.
const CHEAP: [&str; 6] = ["insns", "stack", "established", "tc_", "connect4", "kube_proxy"];

#[test]
fn a_quick_run_makes_complete_records_and_leaves_nothing() {
    if !require::root_or_skip("a_quick_run_makes_complete_records_and_leaves_nothing") {
        return;
    }
    let child = Command::new(env!("CARGO_BIN_EXE_testbed-bench"))
        .args(["--quick", "--output", "json", "--commit", "abc123"])
        .args(CHEAP)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    let records: Vec<Record> = serde_json::from_slice(&output.stdout).unwrap();

    for id in [
        "established_map_updates",
        "established_precise_clock_reads",
        "tc_established_ns",
        "tc_foreign_ns",
        "tc_foreign_ns.usual",
        "connect4_miss_ratio",
        "connect4_hit_ratio",
    ] {
        let Some(record) = records.iter().find(|record| record.id == id) else {
            panic!("no record of {id}");
        };
        assert!(record.value.is_some_and(f64::is_finite), "{record:?}");
        assert!(record.reach.is_some() && record.ok.is_some(), "{record:?}");
    }
    for record in &records {
        assert!(record.value.is_some() || record.note.is_some(), "no value and no why: {record:?}");
        assert!(!record.unit.is_empty() && !record.method.is_empty(), "{record:?}");
        assert!(record.machine.contains("Linux"), "{record:?}");
        assert!(record.commit == "abc123" && record.quick, "{record:?}");
        assert_eq!(record.ok.is_some(), record.value.is_some() && record.reach.is_some());
    }
    let peer = records.iter().find(|record| record.id.starts_with("kube_proxy")).unwrap();
    assert!(peer.value.is_some() || peer.note.as_deref().is_some_and(|why| why.contains("kube")));

    assert!(netns::list().iter().all(|(_, owner)| *owner != pid), "a namespace is left");
    assert!(cgroup::list().iter().all(|(_, owner)| *owner != pid), "a cgroup is left");
}

#[test]
fn an_unknown_figure_is_an_error_that_names_those_there_are() {
    let output = Command::new(env!("CARGO_BIN_EXE_testbed-bench"))
        .args(["--quick", "--output", "json", "--commit", "x", "tc_estblished"])
        .output()
        .unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("tc_established_ns"), "{message}");
}
