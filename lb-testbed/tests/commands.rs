//! Do the agent's commands tell the truth about a node in service?

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use lb_agent::datapath::{
    Interface,
    roles::{Device, Role},
    status::{self, HookStatus},
};
use lb_testbed::{
    agent::{Agent, Source, binary},
    cluster::{Family, Place, Topology},
    foreign::{Direction, Order, Policy},
    manifest::{Endpoint, EndpointSlice, Service},
    require,
    rig::{CLIENT, FAR, NEAR, Rig, TARGET},
    wait,
};
use serde_json::Value;

/// How long a change may take to be seen.
const WITHIN: Duration = Duration::from_secs(15);

/// A node with an agent, and the flags that name it.
struct Node {
    agent: Agent,
    place: Vec<String>,
    rig: Rig,
}

/// What a command said, and how it ended.
struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Node {
    /// `web` with its endpoints, and `idle` without any.
    fn start(flags: &[&str]) -> Result<Self> {
        let mut rig = Rig::without_agents(Topology::Bridge)?;
        let idle = Service::new("default", "idle", &[idle().ip()]);
        rig.manifest.set(idle.port("", "TCP", idle_port(), TARGET));
        rig.write()?;
        let path = rig.cluster.scratch().join("state.json");
        let mut spec = rig.cluster.agent(0, Source::Manifests(path))?;
        for flag in flags {
            spec = spec.arg(flag);
        }
        let agent = spec.start()?;
        let node = &rig.cluster.nodes()[0];
        let flag = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
        let place = [
            flag("--netns", &node.netns.path()),
            flag("--cgroup", node.cgroup.path()),
            flag("--bpffs", &node.bpffs),
        ];
        Ok(Self { agent, place: place.concat(), rig })
    }

    /// Runs a command for this node.
    fn command(&self, args: &[&str]) -> Result<Said> {
        let output = Command::new(binary()?).args(args).args(&self.place).output()?;
        Ok(Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout)?,
            err: String::from_utf8(output.stderr)?,
        })
    }

    fn bpffs(&self) -> &Path {
        &self.rig.cluster.nodes()[0].bpffs
    }
}

impl Said {
    /// The JSON that it wrote, if it ended with this code.
    fn json(&self, code: i32) -> Result<Value> {
        anyhow::ensure!(self.code == Some(code), "{:?}: {}{}", self.code, self.out, self.err);
        serde_json::from_str(&self.out).with_context(|| self.out.clone())
    }
}

fn idle() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 77], idle_port()))
}

fn idle_port() -> u16 {
    80
}

/// What runs on an interface of the first node that has this role.
fn on_interface(node: &Node, name: &str, role: Role) -> Result<Vec<HookStatus>> {
    let netns = &node.rig.cluster.nodes()[0].netns;
    let interface = Interface {
        index: netns.ifindex(name)?,
        name: name.to_owned(),
        role,
        ethernet: true,
        device: Device::default(),
    };
    netns.run(|| status::interface_hooks(node.bpffs(), &interface))
}

/// The texts in a field of each element of a list.
fn each<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| item[field].as_str()).collect()
}

#[test]
fn a_node_in_service_is_healthy_and_each_command_shows_why() -> Result<()> {
    if !require::root_or_skip("a_node_in_service_is_healthy_and_each_command_shows_why") {
        return Ok(());
    }
    let node = Node::start(&[])?;

    let status = node.command(&["status", "--output", "json"])?.json(0)?;
    assert_eq!(status["health"], "healthy", "{status}");
    assert_eq!(status["agent"]["pid"], node.agent.pid());
    assert_eq!(status["sync"]["synced"], true);
    assert_eq!(
        (&status["self_test"]["ipv4"], &status["self_test"]["ipv6"]),
        (&Value::from("works"), &Value::from("works"))
    );
    let hooks = status["socket_hooks"].as_array().context("socket hooks")?;
    assert_eq!(hooks.len(), 9);
    assert!(hooks.iter().all(|hook| hook["runs"] == true), "{status}");
    let pod_ports: Vec<&Value> = status["interfaces"]
        .as_array()
        .context("interfaces")?
        .iter()
        .filter(|interface| interface["role"] == "pod-port")
        .collect();
    assert_eq!(pod_ports.len(), 2, "{status}");
    let uplink = status["interfaces"].as_array().and_then(|all| {
        all.iter().find(|interface| interface["role"] == "uplink" && interface["name"] == "eth0")
    });
    let hooks = &uplink.context("no uplink")?["hooks"];
    assert_eq!(each(hooks, "program"), ["tc_uplink_egress", "tc_ingress"]);
    assert_eq!(hooks[0]["runs"], true, "{hooks}");
    for port in pod_ports {
        let hooks = port["hooks"].as_array().context("hooks")?;
        assert_eq!(each(&port["hooks"], "program"), ["tc_egress", "tc_ingress"]);
        assert!(hooks.iter().all(|hook| hook["runs"] == true), "{port}");
    }
    // Two families of two ports, the Service without endpoints, and the self-test.
    let used = |map: &str| {
        let maps = status["maps"].as_array().map(Vec::as_slice).unwrap_or_default();
        maps.iter().find(|fill| fill["map"] == map).and_then(|fill| fill["used"].as_u64())
    };
    assert_eq!((used("FRONTENDS4"), used("FRONTENDS6")), (Some(4), Some(3)));
    assert_eq!((used("BACKENDS"), used("FACTS")), (Some(8), Some(7)));

    let people = node.command(&["status"])?;
    assert!(people.out.starts_with("healthy\n"), "{}", people.out);

    let services = node.command(&["services", "--output", "json"])?.json(0)?;
    assert_eq!(
        each(&services["frontends"], "service"),
        ["default/idle", "default/web", "default/web", "default/web", "default/web"]
    );
    let all = node.command(&["services", "--all", "--output", "json"])?.json(0)?;
    assert_eq!(each(&all["frontends"], "service")[..2], ["Millrace/self-test"; 2]);
    let one = node.command(&["services", &node.rig.vip(Family::V4).to_string()])?;
    for at in [NEAR, FAR] {
        let backend = SocketAddr::new(node.rig.cluster.address(at, Family::V4), TARGET);
        assert_eq!(one.out.matches(&format!("{backend} ")).count(), 2, "{}", one.out);
    }
    Ok(())
}

#[test]
fn explain_tells_the_truth_about_hits_misses_and_services_without_endpoints() -> Result<()> {
    let test = "explain_tells_the_truth_about_hits_misses_and_services_without_endpoints";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let mut node = Node::start(&[])?;
    let explain = |node: &Node, args: &[&str]| -> Result<Value> {
        node.command(&[&["explain", "--output", "json"], args].concat())?.json(0)
    };
    let verdicts = |explanation: &Value| -> Vec<String> {
        each(&explanation["decisions"], "verdict").iter().map(ToString::to_string).collect()
    };

    for family in Family::ALL {
        let vip = node.rig.vip(family);
        let hit = explain(&node, &[&vip.to_string()])?;
        assert_eq!(verdicts(&hit), ["translated", "translated"], "{hit}");
        assert_eq!(hit["service"]["service"], "default/web");
        let addresses: Vec<IpAddr> =
            [NEAR, FAR].map(|at| node.rig.cluster.address(at, family)).to_vec();
        for decision in hit["decisions"].as_array().context("decisions")? {
            let mut of: Vec<IpAddr> =
                each(&decision["one_of"], "address").iter().flat_map(|ip| ip.parse()).collect();
            of.sort();
            assert_eq!(of, addresses, "{decision}");
        }
        let other_port = SocketAddr::new(vip.ip(), 4711);
        let miss = explain(&node, &[&other_port.to_string()])?;
        // Untouched where it leaves the pod, refused where it would leave the node (V-12).
        assert_eq!(verdicts(&miss), ["not_service", "undefined_port"]);
        assert_eq!(
            miss["same_address"],
            serde_json::json!([format!("{vip}/tcp"), format!("{vip}/udp")])
        );

        // A live flow of the packet engine: what it does is what its record says.
        let mut client = node.rig.cluster.peer(CLIENT, Place::Outside)?;
        let sock = client.tcp_connect(vip)?;
        let reply = client.ask(&sock, "who are you")?;
        let from = sock.local.to_string();
        let known = explain(&node, &[&vip.to_string(), "--from", &from])?;
        let established = &known["decisions"][1];
        assert_eq!(established["case"], "a packet of this connection", "{known}");
        assert_eq!(established["to"], reply.local.to_string());
        assert_eq!(client.ask(&sock, "still there")?.server, reply.server);
    }
    let idle = explain(&node, &[&idle().to_string()])?;
    assert_eq!(verdicts(&idle), ["no_backend", "no_backend"]);
    assert_eq!(idle["service"]["service"], "default/idle");
    assert_eq!(idle["service"]["port_name"], "");
    let foreign = node.command(&["explain", "192.0.2.200:80"])?;
    assert_eq!(foreign.code, Some(0));
    assert!(foreign.out.contains(": no Service has this address"), "{}", foreign.out);

    // Explaining has counted nothing and changed nothing.
    let counters = |node: &Node| -> Result<Value> {
        let status = node.command(&["status", "--output", "json"])?.json(0)?;
        let counters = status["counters"].as_array().context("counters")?;
        let of = |name| counters.iter().find(|c| c["name"] == name).map(|c| c["value"].clone());
        Ok(serde_json::json!([of("flow_created"), of("socket_translated"), of("drop_no_backend")]))
    };
    let before = counters(&node)?;
    assert_eq!(before, serde_json::json!([2, 0, 0]), "two connections were made");
    explain(&node, &[&node.rig.vip(Family::V4).to_string()])?;
    assert_eq!(counters(&node)?, before);

    // What is pinned is explained without an agent as well.
    node.agent.kill()?;
    let hit = explain(&node, &[&node.rig.vip(Family::V4).to_string()])?;
    assert_eq!(verdicts(&hit), ["translated", "translated"]);
    Ok(())
}

#[test]
fn status_notices_a_dead_agent_and_cleanup_leaves_nothing() -> Result<()> {
    if !require::root_or_skip("status_notices_a_dead_agent_and_cleanup_leaves_nothing") {
        return Ok(());
    }
    let mut node = Node::start(&[])?;
    let vip = node.rig.vip(Family::V4);
    let refused = node.command(&["cleanup"])?;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("--force"), "{}", refused.err);
    let second = node.command(&["run", "--manifests", "/"])?;
    assert_eq!(second.code, Some(1));
    assert!(second.err.contains("another lb-agent works on"), "{}", second.err);

    node.agent.kill()?;
    let status = node.command(&["status", "--output", "json"])?.json(4)?;
    assert_eq!(status["health"], "not_running");
    assert_eq!(status["agent"]["running"], false);
    assert_eq!(status["self_test"]["ipv4"], "works", "what is pinned goes on");
    let mut client = node.rig.cluster.peer(CLIENT, Place::InCgroup)?;
    client.tcp_once(vip)?;

    node.agent.restart()?;
    assert_eq!(node.command(&["status"])?.code, Some(0));
    let ended = node.agent.stop()?;
    assert_eq!(ended.code(), Some(0));
    client.tcp_once(vip)?;

    let removed = node.command(&["cleanup", "--output", "json"])?.json(0)?;
    let links = removed["removed"].as_array().context("removed")?.iter();
    assert_eq!(
        links.filter(|path| path.as_str().is_some_and(|p| p.contains("connect"))).count(),
        2
    );
    assert!(!node.bpffs().exists());
    let cgroup = node.rig.cluster.nodes()[0].cgroup.path();
    let children = fs::read_dir(cgroup)?.flatten().filter(|entry| entry.path().is_dir());
    assert_eq!(children.count(), 0, "no cgroup of a self-test is left");
    let socket = client.tcp_once(vip);
    assert!(socket.is_err(), "no program is left that would translate: {socket:?}");
    let place = &node.rig.cluster.nodes()[0];
    let mut hooks = status::socket_hooks(node.bpffs(), place.cgroup.path())?;
    for pod in &place.pods {
        hooks.extend(on_interface(&node, &pod.host_interface, Role::PodPort)?);
    }
    hooks.extend(on_interface(&node, "eth0", Role::Uplink)?);
    assert_eq!(hooks.len(), 9 + 3 * 2);
    for hook in hooks {
        assert_eq!((&hook.programs[..], &hook.error), (&[][..], &None), "{hook:?}");
    }

    let again = node.command(&["cleanup"])?;
    assert_eq!(again.code, Some(0));
    assert!(again.out.starts_with("nothing to remove"), "{}", again.out);
    for command in [&["status"][..], &["services"], &["explain", "10.96.0.10:80"]] {
        let said = node.command(command)?;
        assert_eq!(said.code, Some(4), "{command:?}: {}", said.err);
        assert!(said.err.contains("lb-agent run"), "{}", said.err);
    }
    Ok(())
}

#[test]
fn a_foreign_program_before_ours_and_a_missing_hook_are_degraded() -> Result<()> {
    if !require::root_or_skip("a_foreign_program_before_ours_and_a_missing_hook_are_degraded") {
        return Ok(());
    }
    let node = Node::start(&[])?;
    let place = &node.rig.cluster.nodes()[0];
    let port = place.pods[0].host_interface.clone();
    let policy = Policy::no_service_address();
    let after = policy.attach(&place.netns, &port, Direction::Ingress, Order::Last)?;
    assert_eq!(node.command(&["status"])?.code, Some(0), "behind ours it does no harm");
    let before = policy.attach(&place.netns, &port, Direction::Ingress, Order::First)?;
    let status = node.command(&["status", "--output", "json"])?.json(3)?;
    let [problem] = &status["problems"].as_array().context("problems")?[..] else {
        panic!("{status}");
    };
    assert!(problem.to_string().contains(&format!("{port}: ")), "{problem}");
    assert!(problem.to_string().contains("runs before tc_ingress"), "{problem}");
    drop(before);
    wait::until("the foreign program to be gone", WITHIN, || {
        node.command(&["status"]).is_ok_and(|said| said.code == Some(0))
    })?;
    drop(after);

    // Somebody takes the IPv4 half of the socket engine away.
    fs::remove_file(lb_agent::datapath::folder(node.bpffs()).join("links/connect4"))?;
    let status = node.command(&["status", "--output", "json"])?.json(3)?;
    let problems = status["problems"].to_string();
    assert!(problems.contains("connect4: does not run"), "{problems}");
    assert!(problems.contains("does not act on IPv4 sockets"), "{problems}");
    assert_eq!(status["self_test"]["ipv6"], "works");
    Ok(())
}

#[test]
fn a_full_map_is_named_with_its_flag_and_all_else_is_served() -> Result<()> {
    if !require::root_or_skip("a_full_map_is_named_with_its_flag_and_all_else_is_served") {
        return Ok(());
    }
    // Ids 1 to 15, of which `web` takes 8.
    let mut node = Node::start(&["--max-backends", "16"])?;
    let vip: IpAddr = IpAddr::from([10, 96, 0, 88]);
    node.rig.manifest.set(Service::new("default", "big", &[vip]).port("p", "TCP", 80, TARGET));
    let mut slice = EndpointSlice::new("default", "big-1", "big", "IPv4").port("p", "TCP", TARGET);
    for last in 1..=20 {
        slice = slice.endpoint(Endpoint::ready(IpAddr::from([10, 244, 9, last])));
    }
    node.rig.manifest.set(slice);
    node.rig.write()?;
    let told = |line: &str| line.contains("default/big:p/TCP4") && line.contains("--max-backends");
    node.agent.log().wait("report of the full map", WITHIN, told)?;
    let mut client = node.rig.cluster.peer(CLIENT, Place::InCgroup)?;
    for family in Family::ALL {
        client.tcp_once(node.rig.vip(family))?;
    }
    node.agent.stop()?;
    Ok(())
}

#[test]
fn what_cannot_be_is_refused_with_the_name_of_the_flag() -> Result<()> {
    if !require::root_or_skip("what_cannot_be_is_refused_with_the_name_of_the_flag") {
        return Ok(());
    }
    let manifests = ["--manifests", "/"];
    for (flag, value) in [
        ("--netns", "/proc/self/ns/mnt"),
        ("--netns", "/proc/self/status"),
        ("--netns", "/no/such/namespace"),
        ("--cgroup", "/proc"),
        ("--bpffs", "/proc/millrace"),
        ("--node-name", "Node"),
        ("--max-flows", "0"),
    ] {
        let output =
            Command::new(binary()?).arg("run").args(manifests).args([flag, value]).output()?;
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {err}");
        assert!(err.contains(flag), "{flag} {value}: {err}");
    }
    let none = Command::new(binary()?).arg("run").env_remove("KUBERNETES_SERVICE_HOST").output()?;
    assert_eq!(none.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&none.stderr).contains("--kubeconfig"));
    Ok(())
}
