//! `lb-agent status`: is this node served, by what, and what is missing?
//!
//! Everything is asked of the kernel or read from what is pinned; the agent is not asked.

mod judge;
mod outside;
mod show;

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use lb_agent::datapath::inspect::{Fill, Inspector};
use lb_agent::datapath::roles::Overrides;
use lb_agent::datapath::status::{self, HookStatus, RunningProgram, XdpStatus};
use lb_agent::datapath::xdp::State;
use lb_agent::datapath::{Interface, Scope, interfaces};
use lb_agent::model::Family;
use lb_agent::namespaces::survey::{self, Survey};
use lb_common::abi::{MetaWord, map};
use serde::Serialize;

use self::outside::Outside;
use super::args::NodeArgs;
use super::cgroup;
use super::error::{Error, Exit};
use super::lacking::{self, Lacking};
use super::output::{OutputArgs, note};
use super::run::runtime;
use super::self_test::{self, SelfTest};

/// Show what is attached where, what is missing, how full the maps are, and counters
///
/// Asks the kernel, and connects a socket in a temporary cgroup below the node's to see whether the
/// socket engine acts on it; no packet is sent.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  healthy
  1  failed
  2  the arguments make no sense
  3  degraded: in force, but something is missing, which is listed
  4  no agent runs, or nothing is in force here")]
pub(super) struct Arguments {
    /// Roles of interfaces, as given to `run`: name=pod-port|uplink|overlay|ignored,…
    #[arg(long, value_name = "NAME=ROLE,…")]
    interfaces: Option<Overrides>,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Status {
    /// `healthy`, `degraded` or `not_running`.
    health: &'static str,
    /// What is wrong, each in a sentence.
    problems: Vec<String>,
    /// What is worth knowing of the objects, and nothing that this node could do better.
    notes: Vec<String>,
    cgroup: String,
    /// Whether that is the root of the whole machine.
    machine_root: bool,
    bpffs: String,
    agent: Agent,
    sync: Sync,
    /// Whose sockets are served when they connect: `all`, `host` or `off`.
    socket_engine: String,
    /// What the socket engine leaves alone.
    bypassed: Survey,
    /// Connected UDP sockets that were ended because their backend was gone.
    ended_sockets: u64,
    /// How often XDP was taken off an interface, or could not be put there.
    xdp_demotions: u64,
    self_test: SelfTest,
    socket_hooks: Vec<Hook>,
    interfaces: Vec<InterfaceStatus>,
    /// Traffic from and to other machines.
    outside: Outside,
    lacking: Vec<Lacking>,
    maps: Vec<MapFill>,
    counters: Vec<CounterValue>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Agent {
    running: bool,
    /// Of the one that runs, or ran last.
    pid: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Sync {
    /// The first complete list was programmed.
    synced: bool,
    commits: u64,
    last_commit_age_s: Option<u64>,
    /// Since the source last answered.
    source_seen_age_s: Option<u64>,
    skipped_objects: u64,
    conflicts: u64,
    /// Addresses and ports that Services claim and do not get.
    refused: u64,
    /// Services whose health check node port cannot be had.
    failed_health_ports: u64,
    /// Service ports that are not programmed as desired.
    unprogrammed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Hook {
    /// Our program.
    program: &'static str,
    /// Whether it runs, as the kernel tells.
    runs: bool,
    /// All programs at this hook, in the order in which they run.
    order: Vec<Program>,
    error: Option<String>,
    /// What is lost where it does not run.
    costs: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Program {
    id: u32,
    name: String,
    ours: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct InterfaceStatus {
    name: String,
    index: u32,
    role: String,
    /// Egress and ingress, where programs belong on it.
    hooks: Vec<Hook>,
    /// XDP, where it belongs or anything runs.
    xdp: Option<Xdp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Xdp {
    /// What runs, as the kernel tells: `native`, `generic` or `none`.
    mode: &'static str,
    /// What became of ours, in words.
    state: String,
    /// tc does its work, although XDP belongs there.
    demoted: bool,
    /// Ours ran when the agent last looked.
    expected: bool,
    /// Whether ours runs.
    runs: bool,
    program: Option<Program>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct MapFill {
    map: &'static str,
    used: u64,
    max: u64,
    /// What to raise when it is full.
    flag: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct CounterValue {
    name: &'static str,
    value: u64,
    help: &'static str,
}

pub(super) fn main(arguments: &Arguments) -> Result<Exit, Error> {
    let node = &arguments.node;
    node.enter()?;
    let folder = node.folder();
    let Some(inspector) = Inspector::open(&folder)? else {
        for lacking in lacking::capabilities(None) {
            note(&format!("{} is missing: {}", lacking.what, lacking.costs));
        }
        return Err(Error::NotLoaded(folder));
    };
    let cgroup = node.cgroup()?;
    let meta = inspector.maps().meta();
    let last_pid = word(&meta, MetaWord::AgentPid).and_then(|pid| u32::try_from(pid).ok());
    let holder = lacking::lock_holder(&folder);
    let agent = Agent { running: holder.is_some(), pid: holder.or(last_pid) };
    let overrides = arguments.interfaces.clone().unwrap_or_default();
    let runtime = runtime()?;
    let found = runtime.block_on(interfaces::list(&overrides))?;
    let mut xdp = runtime.block_on(status::xdp(&node.bpffs))?;
    let scope = Scope::of_word(word(&meta, MetaWord::SocketScope).unwrap_or(0));
    let bypassed = survey::survey(&folder, &cgroup)?;
    let mut lacking = lacking::capabilities(holder);
    lacking.extend(bypassed.lacking.iter().map(|&(what, costs)| Lacking { what, costs }));
    let maps: Vec<MapFill> = inspector.fill()?.iter().map(fill).collect();
    let mut status = Status {
        health: "healthy",
        problems: Vec::new(),
        notes: Vec::new(),
        machine_root: cgroup::is_machine_root(&cgroup),
        bpffs: node.bpffs.display().to_string(),
        sync: sync(&meta),
        socket_engine: scope.to_string(),
        bypassed,
        ended_sockets: word(&meta, MetaWord::DestroyedSockets).unwrap_or(0),
        xdp_demotions: word(&meta, MetaWord::XdpDemotions).unwrap_or(0),
        self_test: match scope {
            Scope::Off => SelfTest::default(),
            Scope::All | Scope::Host => self_test::run(&cgroup),
        },
        socket_hooks: hooks(status::socket_hooks(&node.bpffs, &cgroup)?),
        interfaces: found
            .iter()
            .map(|interface| one_interface(node, interface, xdp.remove(&interface.index)))
            .collect(),
        outside: outside::outside(&folder, &meta, &found, families(&maps))?,
        lacking,
        maps,
        counters: inspector
            .counters()?
            .into_iter()
            .map(|(counter, value)| CounterValue {
                name: counter.name(),
                value,
                help: counter.help().trim(),
            })
            .collect(),
        cgroup: cgroup.display().to_string(),
        agent,
    };
    let exit = judge::judge(&mut status);
    arguments.output.write(&status, show::text)?;
    Ok(exit)
}

/// The IP families that Services have frontends in: one in each is that of the self-test.
fn families(maps: &[MapFill]) -> Vec<Family> {
    let has = |name: &str| maps.iter().any(|fill| fill.map == name && fill.used > 1);
    let families = [(Family::V4, map::FRONTENDS4), (Family::V6, map::FRONTENDS6)];
    families.into_iter().filter(|(_, name)| has(name)).map(|(family, _)| family).collect()
}

fn word(meta: &[u64], word: MetaWord) -> Option<u64> {
    meta.get(word as usize).copied().filter(|&value| value != 0)
}

fn sync(meta: &[u64]) -> Sync {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let age = |of| word(meta, of).map(|then| now.saturating_sub(then) / 1000);
    let count = |of| word(meta, of).unwrap_or(0);
    Sync {
        synced: word(meta, MetaWord::Synced).is_some(),
        commits: count(MetaWord::Commits),
        last_commit_age_s: age(MetaWord::LastCommitMs),
        source_seen_age_s: age(MetaWord::SourceSeenMs),
        skipped_objects: count(MetaWord::SkippedObjects),
        conflicts: count(MetaWord::Conflicts),
        refused: count(MetaWord::Refused),
        failed_health_ports: count(MetaWord::FailedHealthPorts),
        unprogrammed: count(MetaWord::Unprogrammed),
    }
}

fn one_interface(
    node: &NodeArgs,
    interface: &Interface,
    xdp: Option<XdpStatus>,
) -> InterfaceStatus {
    let Interface { index, name, role, .. } = interface;
    let hooks = hooks(status::interface_hooks(&node.bpffs, interface));
    InterfaceStatus {
        name: name.clone(),
        index: *index,
        role: role.to_string(),
        hooks,
        xdp: xdp.map(Xdp::from),
    }
}

impl From<XdpStatus> for Xdp {
    fn from(found: XdpStatus) -> Self {
        let XdpStatus { state, program, native, ours } = found;
        Self {
            mode: match (&program, native) {
                (None, _) => "none",
                (Some(_), true) => "native",
                (Some(_), false) => "generic",
            },
            state: state.to_string(),
            demoted: matches!(state, State::Demoted(_)),
            expected: state.runs(),
            runs: ours,
            program: program.map(|RunningProgram { id, name }| Program { id, name, ours }),
        }
    }
}

fn hooks(found: Vec<HookStatus>) -> Vec<Hook> {
    let each = found.into_iter().map(|hook| Hook {
        program: hook.name,
        runs: hook.ours.is_some(),
        order: hook
            .programs
            .into_iter()
            .enumerate()
            .map(|(at, program)| Program {
                id: program.id,
                name: program.name,
                ours: hook.ours == Some(at),
            })
            .collect(),
        error: hook.error,
        costs: hook.costs,
    });
    each.collect()
}

fn fill(fill: &Fill) -> MapFill {
    let &Fill { map, used, max, flag } = fill;
    MapFill { map, used, max, flag }
}
