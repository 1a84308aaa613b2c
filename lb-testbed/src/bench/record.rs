//! One record per figure: what was measured, how, where, and whether it is within reach.

use std::{fmt, fs, process::Command};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::wait;

/// A figure as it is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the figure; what belongs to it has its name, a dot and more.
    pub id: String,
    /// The value; none if it was not measured, and then `note` says why.
    pub value: Option<f64>,
    /// Unit of the value: `ns`, `s`, `ms`, `MiB`, `calls`, `ratio`, …
    pub unit: String,
    /// What is to be reached, as `≤ 120`; none for figures that are only recorded.
    pub reach: Option<String>,
    /// Whether the value is within reach.
    pub ok: Option<bool>,
    /// How it was measured.
    pub method: String,
    /// What else there is to say about this run: spread, parts, why there is no value.
    pub note: Option<String>,
    /// CPU, cores, kernel, and what influences the kernel's speed.
    pub machine: String,
    /// The commit of what was measured.
    pub commit: String,
    /// Load of the machine over the minute before the measurement.
    pub load_average: f64,
    /// Other processes used the CPUs right before or right after the measurement.
    pub noisy: bool,
    /// A run to try the method out: far too short for its value to mean anything.
    pub quick: bool,
}

/// What a group of measurements answers with; [`Setting::record`] makes a record of it.
#[derive(Clone, Debug)]
pub struct Figure {
    id: String,
    value: Option<f64>,
    unit: &'static str,
    reach: Option<Reach>,
    method: String,
    note: Option<String>,
}

/// What a value is to reach.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reach {
    /// Not above.
    AtMost(f64),
    /// Not below.
    AtLeast(f64),
}

/// Where, on what and in which state of the machine figures are measured.
#[derive(Clone, Debug)]
pub struct Setting {
    machine: String,
    commit: String,
    quick: bool,
}

/// How busy the machine was with other things.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    average: f64,
    /// Share of all CPUs that others used.
    busy: f64,
}

/// Above this share of all CPUs in use by others, a measurement is called noisy.
const NOISY: f64 = 0.05;

impl Figure {
    /// A figure that was measured.
    pub fn new(id: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            id: id.into(),
            value: Some(value),
            unit,
            reach: None,
            method: String::new(),
            note: None,
        }
    }

    /// A figure that could not be measured, and why.
    pub fn missing(id: impl Into<String>, unit: &'static str, why: impl Into<String>) -> Self {
        let mut figure = Self::new(id, 0.0, unit).note(why);
        figure.value = None;
        figure
    }

    /// What it is to reach.
    #[must_use]
    pub fn reach(mut self, reach: Reach) -> Self {
        self.reach = Some(reach);
        self
    }

    /// How it was measured.
    #[must_use]
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.method = method.into();
        self
    }

    /// What else there is to say.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its value.
    pub fn value(&self) -> Option<f64> {
        self.value
    }
}

impl Reach {
    /// Whether a value is within.
    pub fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Setting {
    /// Looks at this machine.
    pub fn here(commit: &str, quick: bool) -> Self {
        Self { machine: machine(), commit: commit.to_owned(), quick }
    }

    /// A figure with everything around it.
    pub fn record(&self, figure: Figure, load: Load) -> Record {
        let Figure { id, value, unit, reach, method, note } = figure;
        Record {
            id,
            // Three digits after the point are more than any method here resolves.
            value: value.map(|value| (value * 1000.0).round() / 1000.0),
            unit: unit.to_owned(),
            ok: value.zip(reach).map(|(value, reach)| reach.holds(value)),
            reach: reach.map(|reach| reach.to_string()),
            method,
            note,
            machine: self.machine.clone(),
            commit: self.commit.clone(),
            load_average: load.average,
            noisy: load.busy > NOISY,
            quick: self.quick,
        }
    }
}

impl Load {
    /// Looks what the machine does while this process waits: for half a second.
    pub fn now() -> Result<Self> {
        const WINDOW: std::time::Duration = std::time::Duration::from_millis(500);
        let before = cpu_ticks();
        let start = std::time::Instant::now();
        wait::until("half a second", WINDOW * 4, || start.elapsed() >= WINDOW)?;
        let (busy, all) = cpu_ticks();
        let (busy, all) = (busy - before.0, all - before.1);
        let average = read("/proc/loadavg");
        let average = average.split(' ').next().and_then(|first| first.parse().ok());
        let busy = if all > 0.0 { busy / all } else { 0.0 };
        Ok(Self { average: average.unwrap_or(0.0), busy })
    }

    /// The load around a measurement: the average before it, the busier of both moments.
    #[must_use]
    pub fn around(self, after: Self) -> Self {
        Self { average: self.average, busy: self.busy.max(after.busy) }
    }

    /// Whether a measurement at this moment would be called noisy.
    pub fn is_noisy(self) -> bool {
        self.busy > NOISY
    }
}

/// Time that the CPUs were in use, and time in all, in ticks since boot.
fn cpu_ticks() -> (f64, f64) {
    let stat = read("/proc/stat");
    let first = stat.lines().next().unwrap_or("");
    // user nice system idle iowait irq softirq steal; what follows is part of the former.
    let ticks: Vec<f64> =
        first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

fn machine() -> String {
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim().to_owned())
    };
    // arm64 has no model name.
    let model = field("model name").or_else(|| field("CPU part")).unwrap_or_else(|| "CPU".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let virt = if field("flags").is_some_and(|flags| flags.contains("hypervisor")) {
        ", virtual machine"
    } else {
        ""
    };
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    format!(
        "{model}, {cores} CPUs{virt}; Linux {} {}; JIT {}, clock {}; mitigations: {}",
        read("/proc/sys/kernel/osrelease").trim(),
        std::env::consts::ARCH,
        jit(),
        clock.trim(),
        mitigations(),
    )
}

fn jit() -> String {
    let setting = |name: &str| read(&format!("/proc/sys/net/core/{name}")).trim().to_owned();
    match (setting("bpf_jit_enable").as_str(), setting("bpf_jit_harden").as_str()) {
        ("0", _) => "off".into(),
        (_, "0" | "") => "on".into(),
        (_, harden) => format!("on, hardened ({harden})"),
    }
}

/// Names of the CPU weaknesses that the kernel works around, and of those left open.
fn mitigations() -> String {
    let folder = "/sys/devices/system/cpu/vulnerabilities";
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let state = fs::read_to_string(entry.path()).unwrap_or_default();
        if state.starts_with("Vulnerable") {
            names.push(format!("{name} (open)"));
        } else if state.starts_with("Mitigation") {
            names.push(name);
        }
    }
    names.sort();
    if names.is_empty() { "none".into() } else { names.join(" ") }
}

/// The commit of a checkout, with `-dirty` where files differ from it.
pub fn commit(folder: &std::path::Path) -> String {
    let describe = Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .current_dir(folder)
        .output();
    match describe {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        }
        _ => "unknown".into(),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A record for tests: of nanoseconds, of which 120 are within reach.
#[cfg(test)]
pub(super) fn sample(id: &str, value: Option<f64>) -> Record {
    Record {
        id: id.into(),
        value,
        unit: "ns".into(),
        reach: Some("≤ 120".into()),
        ok: value.map(|value| value <= 120.0),
        method: "by hand".into(),
        note: None,
        machine: "a machine".into(),
        commit: "abc".into(),
        load_average: 0.25,
        noisy: false,
        quick: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_whether_its_value_is_within_reach() {
        let setting = Setting { machine: "m".into(), commit: "c".into(), quick: false };
        let load = Load { average: 0.1, busy: 0.5 };
        let record = |figure| setting.record(figure, load);
        let at_most = |value| record(Figure::new("x", value, "ns").reach(Reach::AtMost(120.0)));
        assert_eq!(at_most(120.0).ok, Some(true));
        assert_eq!(at_most(120.001).ok, Some(false));
        assert_eq!(at_most(1.0).reach.as_deref(), Some("≤ 120"));
        let at_least = record(Figure::new("x", 0.96, "ratio").reach(Reach::AtLeast(0.97)));
        assert_eq!(at_least.ok, Some(false));
        assert!(at_least.noisy);
        let missing = record(Figure::missing("x", "ns", "no root").reach(Reach::AtMost(1.0)));
        assert_eq!((missing.value, missing.ok), (None, None));
        assert_eq!(missing.note.as_deref(), Some("no root"));
    }
}
