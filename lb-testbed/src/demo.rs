//! What does Millrace do? A cluster, agents, connections, a change, a killed agent, and nothing
//! left: each step is said, done, and its result shown.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    process,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cluster::{At, Cluster, Family, Topology},
    matrix::{Case, Engine, Transport},
    rig::{CLIENT, FAR, IN_FORCE_WITHIN, NEAR, PORT, Rig, SPARE, TARGET},
    sweep, wait,
};

/// Fresh connections of each kind.
const CONNECTIONS: usize = 30;
/// Where each server runs.
const SERVERS: [(&str, At); 3] = [("near", NEAR), ("far", FAR), ("spare", SPARE)];

/// Runs the demo.
pub fn run() -> Result<()> {
    let screen = Screen::new();
    {
        screen.step("Build a cluster out of network namespaces");
        let mut rig = Rig::without_agents(Topology::Bridge)?;
        Screen::picture(&rig.cluster);
        connections(&screen, &mut rig)?;
        the_traffic_follows(&screen, &mut rig)?;
        the_agent_may_die(&screen, &mut rig)?;
        what_operators_see(&screen, &rig)?;
        screen.step("Take everything down");
        for agent in &mut rig.agents {
            agent.stop()?;
            for line in agent.command("cleanup", &[])?.lines().take(2) {
                say(line);
            }
        }
    }
    let left = sweep::owned_by(process::id());
    ensure!(left.is_empty(), "left behind: {}; run `testbed-sweep --all`", left.join(", "));
    say("no namespace, interface, cgroup, pin or process is left");
    Ok(())
}

fn connections(screen: &Screen, rig: &mut Rig) -> Result<()> {
    screen.step("Start an agent on each node, on a dump of the cluster's objects");
    say("the dump is what `kubectl get services,endpointslices,nodes -A -o json` prints");
    let began = Instant::now();
    rig.start_agents()?;
    say(&format!("every node programmed after {}", time(began.elapsed())));
    screen.step(&format!("Connect to the Service `web`, {CONNECTIONS} times in each way"));
    say("socket engine: the client is in the node's cgroup, its connect() is translated");
    say("packet engine: the client is outside of it, as a virtual machine or gVisor would be");
    spread(rig)
}

/// Makes connections of every kind and shows where they went.
fn spread(rig: &Rig) -> Result<()> {
    say("");
    say(&format!("  {:<34} {:<22} {}", "", "to", "reached"));
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        let vip = rig.vip(case.family);
        let mut seen = BTreeMap::<String, usize>::new();
        for _ in 0..CONNECTIONS {
            *seen.entry(case.once(&mut client, vip)?.server).or_default() += 1;
        }
        let label = case.to_string();
        say(&format!("  {label:<34} {:<22} {}", vip.to_string(), bars(&seen)));
    }
    Ok(())
}

fn the_traffic_follows(screen: &Screen, rig: &mut Rig) -> Result<()> {
    screen.step("Change the EndpointSlice: `far` leaves, `spare` comes");
    let vip = rig.vip(Family::V4);
    let mut client = rig.client(Engine::Socket)?;
    let mut old = client.tcp_connect(vip)?;
    // A connection that is on `far` now shows that established ones stay where they are.
    let mut server = client.ask(&old, "before")?.server;
    for _ in 0..64 {
        if server == "far" {
            break;
        }
        old = client.tcp_connect(vip)?;
        server = client.ask(&old, "before")?.server;
    }
    let began = Instant::now();
    rig.change_endpoints(&[NEAR, SPARE])?;
    wait::until("new connections to reach `spare`", IN_FORCE_WITHIN, || {
        client.tcp_once(vip).is_ok_and(|reply| reply.server == "spare")
    })?;
    say(&format!("`spare` answered {} after the file was written", time(began.elapsed())));
    rig.set_endpoints(&[NEAR, SPARE])?;
    spread(rig)?;
    let after = client.ask(&old, "after")?.server;
    ensure!(after == server, "an established connection moved from {server} to {after}");
    say(&format!("the TCP connection that was on `{server}` is still on `{after}`"));
    Ok(())
}

fn the_agent_may_die(screen: &Screen, rig: &mut Rig) -> Result<()> {
    screen.step("Kill the agents: SIGKILL, no clean-up");
    rig.agents.iter_mut().try_for_each(crate::agent::Agent::kill)?;
    for engine in Engine::ALL {
        let mut client = rig.client(engine)?;
        for family in Family::ALL {
            for transport in Transport::ALL {
                let case = Case { engine, transport, family };
                let reply = case.once(&mut client, rig.vip(family))?;
                say(&format!("  {:<34} still reaches {}", case.to_string(), reply.server));
            }
        }
    }
    let began = Instant::now();
    rig.agents.iter_mut().try_for_each(crate::agent::Agent::restart)?;
    say(&format!("restarted; what was pinned adopted within {}", time(began.elapsed())));
    Ok(())
}

fn what_operators_see(screen: &Screen, rig: &Rig) -> Result<()> {
    let agent = rig.agents.first().context("a node")?;
    let vip = format!("{}/tcp", rig.vip(Family::V4));
    for (command, args) in [("services", &[][..]), ("explain", &[vip.as_str()][..])] {
        screen.step(&format!("lb-agent {command} {}", args.join(" ")));
        for line in agent.command(command, args)?.lines() {
            say(&format!("  {line}"));
        }
    }
    Ok(())
}

/// How often each server answered, as numbers and as bars.
fn bars(seen: &BTreeMap<String, usize>) -> String {
    let bar =
        |(name, count): (&String, &usize)| format!("{name} {count:>2} {}", "▪".repeat(*count / 2));
    seen.iter().map(bar).collect::<Vec<_>>().join("  ")
}

fn time(elapsed: Duration) -> String {
    format!("{} ms", elapsed.as_millis())
}

/// Where the demo writes: steps stand out, on a terminal in bold.
struct Screen {
    bold: bool,
    began: Instant,
}

impl Screen {
    fn new() -> Self {
        Self { bold: io::stdout().is_terminal(), began: Instant::now() }
    }

    fn step(&self, text: &str) {
        let (on, off) = if self.bold { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        let after = self.began.elapsed().as_secs_f32();
        write(&format!("\n{on}[{after:5.1} s] {text}{off}"));
    }

    fn picture(cluster: &Cluster) {
        let address = |at| cluster.address(at, Family::V4).to_string();
        let node = |number| address(At::Node(number));
        let pod = |at: At| {
            let name = SERVERS.iter().find(|(_, place)| *place == at).map(|(name, _)| *name);
            format!("{} {}", name.unwrap_or("client"), address(at))
        };
        let line = |left: &str, right: &str| say(&format!("  │ {left:<24} │      │ {right:<24} │"));
        let edge = |left, right| {
            say(&format!("  {left}{0}{right}      {left}{0}{right}", "─".repeat(26)));
        };
        say(&format!(
            "Service web: {}, {}, port {PORT} on TCP and UDP, pods listen on {TARGET}",
            cluster_ip(Family::V4),
            cluster_ip(Family::V6),
        ));
        edge('┌', '┐');
        line(&format!("node-0 {}", node(0)), &format!("node-1 {}", node(1)));
        line(&format!("  {}", pod(CLIENT)), &format!("  {}", pod(FAR)));
        line(&format!("  {}", pod(NEAR)), &format!("  {}", pod(SPARE)));
        edge('└', '┘');
        say("             └──────────── network ────────────┘");
    }
}

fn cluster_ip(family: Family) -> String {
    Rig::cluster_ip(family).ip().to_string()
}

fn say(text: &str) {
    write(&format!("  {text}"));
}

fn write(line: &str) {
    // Who closed our output has seen enough; what was begun is still taken down.
    drop(writeln!(io::stdout(), "{line}"));
}
