//! A status as people read it: problems first.

use super::{Hook, Status};
use crate::cli::self_test::Seen;
use crate::cli::table::Table;

pub(super) fn text(status: &Status) -> String {
    let mut parts = vec![health(status), summary(status)];
    parts.push(hooks(status));
    parts.push(interfaces(status));
    parts.push(status.outside.text());
    let mut maps = Table::new(&["MAP", "USED", "OF", "FULL"]);
    for map in &status.maps {
        let percent = (map.used * 100).checked_div(map.max).unwrap_or(0);
        maps.row([
            map.map.to_owned(),
            map.used.to_string(),
            map.max.to_string(),
            format!("{percent}%"),
        ]);
    }
    parts.push(maps.to_string());
    let mut counters = Table::new(&["COUNTER", "VALUE", "WHAT IT COUNTS"]);
    for counter in &status.counters {
        counters.row([counter.name.to_owned(), counter.value.to_string(), counter.help.to_owned()]);
    }
    parts.push(counters.to_string());
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn health(status: &Status) -> String {
    let health = status.health.replace('_', " ");
    let mut text = match status.problems.len() {
        0 => health,
        1 => format!("{health}, one problem:"),
        n => format!("{health}, {n} problems:"),
    };
    for problem in &status.problems {
        text.push_str("\n  - ");
        text.push_str(problem);
    }
    for note in &status.notes {
        text.push_str("\n  note: ");
        text.push_str(note);
    }
    text.push('\n');
    text
}

fn summary(status: &Status) -> String {
    let age = |seconds: Option<u64>| match seconds {
        Some(seconds) => format!("{seconds} s ago"),
        None => "never".to_owned(),
    };
    let (agent, sync) = (&status.agent, &status.sync);
    let pid = agent.pid.map(|pid| pid.to_string()).unwrap_or_default();
    let scope = if status.machine_root { "the whole machine" } else { "a part of this machine" };
    let seen = |seen: Option<Seen>| match seen {
        Some(Seen::Works) => "works",
        Some(Seen::NotRefused | Seen::EverythingRefused) => "fails",
        Some(Seen::NoFamily) => "no such sockets here",
        None => "not made",
    };
    let mut table = Table::new(&["NODE", ""]);
    table
        .row([
            "agent".into(),
            if agent.running {
                format!("runs, process {pid}")
            } else {
                format!("gone (was {pid})")
            },
        ])
        .row([
            "sync".into(),
            format!(
                "{}; {} commits, the last {}; source answered {}",
                if sync.synced { "in sync" } else { "waits for the first complete list" },
                sync.commits,
                age(sync.last_commit_age_s),
                age(sync.source_seen_age_s)
            ),
        ])
        .row([
            "objects".into(),
            format!(
                "{} skipped as bad, {} frontends claimed by several Services, {} claims refused",
                sync.skipped_objects, sync.conflicts, sync.refused
            ),
        ])
        .row(["cgroup".into(), format!("{} ({scope})", status.cgroup)])
        .row([
            "socket engine".into(),
            format!(
                "{}; {} namespaces and {} cgroups bypassed; {} UDP sockets of dead backends ended",
                status.socket_engine,
                status.bypassed.namespaces.len(),
                status.bypassed.cgroups.len(),
                status.ended_sockets
            ),
        ])
        .row(["XDP".into(), format!("{} demotions to tc", status.xdp_demotions)])
        .row([
            "self-test".into(),
            format!("IPv4 {}, IPv6 {}", seen(status.self_test.ipv4), seen(status.self_test.ipv6)),
        ])
        .row(["pins".into(), status.bpffs.clone()]);
    status.outside.rows(&mut table);
    table.to_string()
}

fn hooks(status: &Status) -> String {
    let mut table = Table::new(&["SOCKET HOOK", "RUNS", "ORDER"]);
    for hook in &status.socket_hooks {
        table.row([hook.program.to_owned(), yes(hook), order(hook)]);
    }
    table.to_string()
}

fn interfaces(status: &Status) -> String {
    let mut table = Table::new(&["INTERFACE", "ROLE", "PROGRAM", "RUNS", "ORDER"]);
    for interface in &status.interfaces {
        let (name, role) = (interface.name.clone(), interface.role.clone());
        let Some((first, others)) = interface.hooks.split_first() else {
            table.row([name, role]);
            continue;
        };
        let xdp = interface.xdp.as_ref();
        table.row([name, role, first.program.to_owned(), yes(first), order(first)]);
        for hook in others {
            let none = String::new;
            table.row([none(), none(), hook.program.to_owned(), yes(hook), order(hook)]);
        }
        if let Some(xdp) = xdp {
            let runs = if xdp.runs { "yes" } else { "NO" }.to_owned();
            let program = xdp.program.as_ref().map(|p| format!("{} #{}; ", shown(p), p.id));
            let text = program.unwrap_or_default() + &xdp.state;
            table.row([String::new(), String::new(), "xdp".to_owned(), runs, text]);
        }
    }
    table.to_string()
}

fn yes(hook: &Hook) -> String {
    if hook.runs { "yes".into() } else { "NO".into() }
}

/// The programs in the order in which they run; ours is marked.
fn order(hook: &Hook) -> String {
    let name = |program: &super::Program| format!("{} #{}", shown(program), program.id);
    hook.order.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn shown(program: &super::Program) -> String {
    let mark = if program.ours { "*" } else { "" };
    format!("{}{mark}", program.name)
}
