//! Measurements, one module per group of figures; `cargo xtask bench` runs them.
//!
//! What is built for a measurement is removed by guards, as in tests. Values are recorded, never
//! asserted.

mod api;
mod arena;
mod asker;
mod chart;
mod connect;
mod counts;
mod crr;
mod flood;
mod north_south;
mod object;
mod packets;
mod peers;
mod pps;
mod record;
pub mod report;
mod samples;
mod scale;
mod sys;
mod verifier;
mod xdp;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

pub use self::record::{Figure, Load, Reach, Record, Setting, commit};
use self::samples::say;

/// What a measurement needs to know.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A run to try the method out.
    pub quick: bool,
    /// The checkout.
    pub root: PathBuf,
    /// The program `testbed-bench`, for processes of its own.
    this: PathBuf,
    /// The CPU that everything under test runs on.
    cpu: usize,
    /// What was asked for by name.
    wanted: Vec<String>,
}

/// Figures that are measured together.
#[derive(Clone, Copy)]
pub struct Group {
    /// The figures' names, or what they begin with.
    pub ids: &'static [&'static str],
    /// What is about to happen, for people.
    what: &'static str,
    measure: fn(&Plan) -> Result<Vec<Figure>>,
}

/// All groups, cheap ones first.
pub fn groups() -> &'static [Group] {
    &[
        Group { ids: &verifier::IDS, what: "sizes of programs", measure: verifier::measure },
        Group { ids: &counts::IDS, what: "costs that are counted", measure: counts::measure },
        Group { ids: &packets::IDS, what: "packets through tc", measure: packets::measure },
        Group { ids: &xdp::IDS, what: "packets through XDP", measure: xdp::measure },
        Group { ids: &connect::IDS, what: "connect()", measure: connect::measure },
        Group { ids: &crr::IDS, what: "connections per second", measure: crr::measure },
        Group { ids: &pps::IDS, what: "packets per second", measure: pps::measure },
        Group {
            ids: &north_south::IDS,
            what: "connections per second beside kube-proxy",
            measure: north_south::measure,
        },
        Group { ids: &scale::COLD_IDS, what: "a cold start", measure: scale::cold_start },
        Group { ids: &scale::CHANGE_IDS, what: "a changed endpoint", measure: scale::change },
        Group {
            ids: &api::IDS,
            what: "ten thousand Services by an API server",
            measure: api::measure,
        },
        Group { ids: &peers::IDS, what: "kube-proxy", measure: peers::measure },
    ]
}

impl Plan {
    /// A plan for this process, which has to be `testbed-bench`.
    pub fn new(quick: bool) -> Result<Self> {
        Self::with_program(quick, env::current_exe().context("find the running program")?)
    }

    /// A plan for a process that is another program.
    pub fn with_program(quick: bool, this: PathBuf) -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        Ok(Self { quick, root, this, cpu: sys::last_cpu()?, wanted: Vec::new() })
    }

    /// Whether any of these figures was asked for by name.
    fn names(&self, ids: &[&str]) -> bool {
        self.wanted.iter().any(|want| ids.iter().any(|id| id.starts_with(want.as_str())))
    }

    /// Whether a figure is wanted, by name or with all.
    fn wants(&self, id: &str) -> bool {
        self.wanted.is_empty() || self.names(&[id])
    }

    /// As many as it takes, or as few as show that the method works.
    fn pick(&self, full: u32, quick: u32) -> u32 {
        if self.quick { quick } else { full }
    }
}

/// The records of a run, and whether all measurements that were wanted could be made.
#[derive(Debug)]
pub struct Run {
    /// The records.
    pub records: Vec<Record>,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// Measures the figures whose names begin with any of `wanted`; all of them if that is empty.
pub fn run(plan: &Plan, wanted: &[String], commit: &str) -> Result<Run> {
    let is_wanted = |id: &str| wanted.is_empty() || wanted.iter().any(|want| id.starts_with(want));
    let groups: Vec<&Group> = groups()
        .iter()
        .filter(|group| {
            let near = |id: &&str| is_wanted(id) || wanted.iter().any(|want| want.starts_with(*id));
            group.ids.iter().any(near)
        })
        .collect();
    if groups.is_empty() {
        bail!("no figure's name begins with {}; there are: {}", wanted.join(" or "), names());
    }
    let setting = Setting::here(commit, plan.quick);
    let plan = &Plan { wanted: wanted.to_vec(), ..plan.clone() };
    let mut run = Run { records: Vec::new(), failures: Vec::new() };
    for group in groups {
        let before = Load::now()?;
        if before.is_noisy() {
            say("other processes are busy: what is measured now is marked as noisy");
        }
        say(group.what);
        let figures = (group.measure)(plan).unwrap_or_else(|error| {
            let why = format!("{error:#}");
            say(&format!("{} failed: {why}", group.what));
            run.failures.push(format!("{}: {why}", group.what));
            group.ids.iter().map(|id| Figure::missing(*id, "", why.clone())).collect()
        });
        let load = before.around(Load::now()?);
        let figures = figures.into_iter().filter(|figure| is_wanted(figure.id()));
        run.records.extend(figures.map(|figure| setting.record(figure, load)));
    }
    Ok(run)
}

/// Runs what a measurement needs as a process of its own; what it prints last.
pub fn role(name: &str, args: &[String]) -> Result<String> {
    match name {
        "connect" => connect::role(args),
        "crr-server" => asker::serve(args),
        "crr-client" => asker::ask(args),
        _ => bail!("there is no role {name}; roles are started by measurements only"),
    }
}

fn names() -> String {
    groups().iter().flat_map(|group| group.ids).copied().collect::<Vec<_>>().join(", ")
}
