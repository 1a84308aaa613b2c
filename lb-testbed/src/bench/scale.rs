//! How long does the agent take for ten thousand Services, and for one endpoint among them?
//!
//! Both are read from its log: the line that says it is in sync, and for each change the line when
//! it begins to read the file and the one after the commit, with what that commit took.

use std::{
    fs::{self, File},
    io::BufWriter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Figure, Plan, Reach,
    samples::{Progress, largest, median, millis, say},
};
use crate::{
    agent::{Agent, Source},
    cluster::{Cluster, Spec, Topology},
    manifest::{Endpoint, EndpointSlice, Manifest, Service},
    synthetic::{Families, Synthetic},
};

pub(super) const COLD_IDS: [&str; 2] = ["cold_start_10k_s", "cold_start_10k_peak_mib"];
pub(super) const CHANGE_IDS: [&str; 2] = ["change_10k_syscalls", "change_10k_ms"];

pub(super) const SERVICES: u32 = 10_000;
pub(super) const ENDPOINTS: u8 = 10;
pub(super) const SYNC_WITHIN: Duration = Duration::from_mins(2);
pub(super) const COMMIT_WITHIN: Duration = Duration::from_secs(30);
/// What the agent logs when it begins to read a file or an event, and when it has committed.
pub(super) const READING: &str = "reading";
pub(super) const COMMITTED: &str = "committed";
/// What it logs once when all is in force.
pub(super) const SYNCED: &str = "synced";

pub(super) fn cold_start(plan: &Plan) -> Result<Vec<Figure>> {
    let (services, runs) = (plan.pick(SERVICES, 200), plan.pick(5, 1));
    let cluster = cluster()?;
    let build = build()?;
    let mut figures = Vec::new();
    for (format, file, reach_s, reach_mib) in
        [(Format::Json, "state.json", Some(3.0), 100.0), (Format::Yaml, "state.yaml", None, 150.0)]
    {
        let path = cluster.scratch().join(file);
        write_many(&path, format, services)?;
        let size = fs::metadata(&path)?.len() / (1 << 20);
        say(&format!("{services} Services in {file}, {size} MiB"));
        let (mut seconds, mut peaks) = (Vec::new(), Vec::new());
        let mut progress = Progress::new(format!("cold start, {file}"), runs);
        for run in 0..runs {
            progress.step(run);
            let (took, peak) = start_once(&cluster, &path, services)?;
            seconds.push(took);
            peaks.push(peak);
        }
        let method = |what: &str| {
            format!(
                "{what}; {services} Services with {ENDPOINTS} endpoints each, one {format:?} List of \
                 {size} MiB; {build}, nothing pinned before; {runs} runs"
            )
        };
        let variant = if format == Format::Json { "" } else { ".yaml" };
        let mut figure = Figure::new(format!("{}{variant}", COLD_IDS[0]), median(&seconds), "s")
            .method(method("start of the process to everything programmed and attached, median"))
            .note(format!("slowest {:.2} s", largest(&seconds)));
        if let Some(reach) = reach_s {
            figure = figure.reach(Reach::AtMost(reach));
        }
        figures.push(figure);
        figures.push(
            Figure::new(format!("{}{variant}", COLD_IDS[1]), largest(&peaks), "MiB")
                .reach(Reach::AtMost(reach_mib))
                .method(method("VmHWM of the process when it is in sync, the largest")),
        );
    }
    Ok(figures)
}

/// Seconds and MiB.
fn start_once(cluster: &Cluster, path: &Path, services: u32) -> Result<(f64, f64)> {
    let start = Instant::now();
    let agent = cluster.agent(0, Source::Manifests(path.to_owned()))?.start_unsynced()?;
    agent.wait_synced(SYNC_WITHIN)?;
    let took = start.elapsed();
    let peak = peak_mib(agent.pid())?;
    let lines = agent.log().all();
    let synced = lines.iter().rev().find(|line| line.contains(SYNCED)).context("no synced line")?;
    let (seen, missing) = (number(synced, "services"), number(synced, "unprogrammed"));
    ensure!(
        (seen, missing) == (Some(services.into()), Some(0)),
        "of {services} Services the agent says: {synced}"
    );
    unload(agent)?;
    Ok((took.as_secs_f64(), peak))
}

pub(super) fn change(plan: &Plan) -> Result<Vec<Figure>> {
    let (services, changes) = (plan.pick(SERVICES, 200), plan.pick(40, 3));
    let cluster = cluster()?;
    let folder = cluster.scratch().join("manifests");
    fs::create_dir(&folder).context("make a folder of manifests")?;
    let one = folder.join("one.json");
    write_many(&folder.join("many.json"), Format::Json, services - 1)?;
    one_service(0).write(&one)?;
    let agent = cluster
        .agent(0, Source::Manifests(folder.clone()))?
        .env("RUST_LOG", "info,lb_agent=debug")
        .start_unsynced()?;
    agent.wait_synced(SYNC_WITHIN)?;

    let mut commits = Vec::new();
    let mut progress = Progress::new("a changed endpoint", changes);
    for change in 1..=changes {
        progress.step(change);
        commits.push(change_once(&agent, &one, change)?);
    }
    unload(agent)?;

    let build = build()?;
    let method = |what: &str| {
        format!(
            "{what}; one pod of a dual-stack Service replaced, both slices in one file of a folder \
             beside a file with {} Services of {ENDPOINTS} endpoints; {changes} changes; {build}",
            services - 1
        )
    };
    let column = |of: fn(&Commit) -> f64| -> Vec<f64> { commits.iter().map(of).collect() };
    let (times, stored) = (column(|commit| commit.ms), column(|commit| commit.stored));
    let calls = column(|commit| commit.bpf + commit.membarrier);
    Ok(vec![
        Figure::new(CHANGE_IDS[0], largest(&calls), "calls")
            .reach(Reach::AtMost(8.0))
            .method(method("bpf() and membarrier() calls until the commit store, the most"))
            .note(format!(
                "at most {:.0} bpf() and {:.0} membarrier(); at most {:.0} bytes stored through \
                 shared memory",
                largest(&column(|commit| commit.bpf)),
                largest(&column(|commit| commit.membarrier)),
                largest(&stored)
            )),
        Figure::new(CHANGE_IDS[1], median(&times), "ms")
            .reach(Reach::AtMost(10.0))
            .method(method(
                "from before the file is read until after the commit, by the times of the agent's \
                 log lines; grace period excluded; median",
            ))
            .note(format!("slowest {:.2} ms", largest(&times))),
        Figure::new(
            format!("{}.from_write", CHANGE_IDS[1]),
            median(&column(|commit| commit.from_write_ms)),
            "ms",
        )
        .method(method(
            "from the file's replacement until the log line of the commit was read here, median",
        )),
    ])
}

/// What one change took.
struct Commit {
    bpf: f64,
    membarrier: f64,
    stored: f64,
    ms: f64,
    from_write_ms: f64,
}

fn change_once(agent: &Agent, path: &Path, change: u32) -> Result<Commit> {
    let manifest = one_service(change);
    let mark = agent.log().mark();
    let start = Instant::now();
    manifest.write(path)?;
    let (mut mark, mut reading) = (mark, None);
    let (reading, committed) = loop {
        let either = |line: &str| line.contains(READING) || line.contains(COMMITTED);
        let (line, after) = agent.log().wait_from(mark, "commit", COMMIT_WITHIN, either)?;
        mark = after;
        match reading {
            // The last time that the file was read before the commit.
            _ if line.contains(READING) => reading = Some(line),
            Some(reading) => break (reading, line),
            None => {}
        }
    };
    let from_write_ms = millis(start.elapsed());
    let field = |name: &str| {
        let value =
            number(&committed, name).with_context(|| format!("no {name} in {committed:?}"))?;
        Ok::<f64, anyhow::Error>(f64::from(u32::try_from(value).context("a small number")?))
    };
    let time = |line: &str| seconds(line).with_context(|| format!("no time in {line:?}"));
    Ok(Commit {
        bpf: field("bpf_calls")?,
        membarrier: field("membarrier_calls")?,
        stored: field("bytes_stored")?,
        ms: (time(&committed)? - time(&reading)?) * 1000.0,
        from_write_ms,
    })
}

/// How the agent was built, as far as its path tells: a debug build says nothing about speed.
pub(super) fn build() -> Result<&'static str> {
    let is_release = crate::agent::binary()?.components().any(|part| part.as_os_str() == "release");
    Ok(if is_release { "release build" } else { "not a release build" })
}

/// How a file of state is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Yaml,
}

fn write_many(path: &Path, format: Format, services: u32) -> Result<()> {
    let (services, endpoints) = (usize::try_from(services)?, usize::from(ENDPOINTS));
    let synthetic = Synthetic { services, endpoints, families: Families::V4 };
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    match format {
        Format::Json => synthetic.write_json(BufWriter::new(file)),
        Format::Yaml => synthetic.write_yaml(BufWriter::new(file)),
    }
    .with_context(|| format!("write {}", path.display()))
}

/// A dual-stack Service after so many replacements of a pod.
fn one_service(change: u32) -> Manifest {
    let vips: [IpAddr; 2] = [
        Ipv4Addr::new(10, 96, 0, 10).into(),
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10).into(),
    ];
    let mut manifest = Manifest::new();
    manifest.set(Service::new("default", "dual", &vips).port("http", "TCP", 80, 8080));
    // Pods are numbered in the order of their creation; the oldest one goes.
    let pods = change..change + u32::from(ENDPOINTS);
    for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
        let name = format!("dual-{}", family.to_lowercase());
        let slice = EndpointSlice::new("default", &name, "dual", family).port("http", "TCP", 8080);
        let slice = pods.clone().fold(slice, |slice, pod| {
            let ip: IpAddr = if is_v4 {
                Ipv4Addr::from(0x0af4_0000 + 1 + pod).into()
            } else {
                Ipv6Addr::from(0xfd00_0010_0244_u128 << 80 | u128::from(1 + pod)).into()
            };
            slice.endpoint(Endpoint::ready(ip))
        });
        manifest.set(slice);
    }
    manifest
}

fn cluster() -> Result<Cluster> {
    Cluster::build(Spec {
        nodes: 1,
        pods_per_node: 1,
        topology: Topology::Routed,
        ..Spec::default()
    })
}

pub(super) fn unload(mut agent: Agent) -> Result<()> {
    agent.stop()?;
    agent.command("cleanup", &[]).map(drop)
}

pub(super) fn peak_mib(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok());
    Ok(kib.with_context(|| format!("no VmHWM in {path}"))? / 1024.0)
}

/// A number in a log line, as `name=7` or `"name":7`.
pub(super) fn number(line: &str, name: &str) -> Option<u64> {
    line.match_indices(name).find_map(|(at, _)| {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|before| before.is_alphanumeric() || before == '_') {
            return None;
        }
        let rest = line[at + name.len()..].trim_start_matches('"');
        let rest = rest.strip_prefix(['=', ':'])?;
        let digits = rest.trim_start_matches([' ', '"']);
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().ok()
    })
}

/// Seconds since midnight of the first time of day in a log line, as `T12:34:56.123456`.
pub(super) fn seconds(line: &str) -> Option<f64> {
    line.match_indices('T').find_map(|(at, _)| {
        let text = line.get(at + 1..)?;
        let end = text.find(|c: char| !c.is_ascii_digit() && c != ':' && c != '.')?;
        let mut parts = text[..end].split(':').map(str::parse::<f64>);
        let (hours, minutes, seconds) =
            (parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?);
        Some(hours * 3600.0 + minutes * 60.0 + seconds)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_lines_are_understood_as_text_and_as_json() {
        let text = "2026-07-30T10:02:03.250000Z  INFO lb_agent::sync: committed commit=2 \
                    service_ports=10000 bpf_calls=0 bytes_stored=168";
        let json = r#"{"timestamp":"2026-07-30T10:02:03.250000Z","level":"INFO","fields":
            {"message":"committed","commit":2,"service_ports":10000,"bpf_calls":0,"bytes_stored":168}}"#;
        for line in [text, json] {
            assert_eq!(number(line, "service_ports"), Some(10_000), "{line}");
            assert_eq!(number(line, "bpf_calls"), Some(0), "{line}");
            assert_eq!(number(line, "stored"), None, "a part of a name: {line}");
            let time = seconds(line).unwrap();
            assert!((time - (10.0 * 3600.0 + 2.0 * 60.0 + 3.25)).abs() < 1e-6, "{time}");
        }
    }
}
