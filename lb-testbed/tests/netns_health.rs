//! Do load balancers learn from health check node ports where the endpoints of a Service are (contract
//! H-8 to H-15)?

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lb_testbed::{
    agent::Source,
    apiserver::ApiServer,
    cluster::{At, Family, Spec, Topology},
    manifest::{Endpoint, EndpointSlice},
    north_south::{ENTRY, Exposed, Exposure, HERE, NorthSouth, OTHER, OUTSIDE, TARGET, Way, cases},
    require,
    rig::{IN_FORCE_WITHIN, Rig},
    wait,
};
use serde_json::Value;

const HEALTH_PORT: u16 = 32_000;
const PATIENCE: Duration = Duration::from_secs(5);

/// What is answered to a load balancer.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Probed {
    /// Code, endpoints in the header, body.
    Answer(u16, usize, Value),
    Refused,
}

impl Probed {
    /// Whether this has the code and the number of endpoints.
    fn says(&self, code: u16, endpoints: usize) -> bool {
        let Self::Answer(own, weight, body) = self else { return false };
        (*own, *weight) == (code, endpoints) && body["localEndpoints"] == endpoints
    }
}

/// Asks from the nodes' network.
fn probe(world: &NorthSouth, node: At, family: Family, port: u16) -> Result<Probed> {
    let to = SocketAddr::new(world.cluster.address(node, family), port);
    world.cluster.fabric().run(|| ask(to))?.with_context(|| format!("probe {to}"))
}

fn ask(to: SocketAddr) -> Result<Probed> {
    let mut stream = match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(stream) => stream,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Ok(Probed::Refused),
        Err(error) => return Err(error.into()),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /any HTTP/1.1\r\nHost: lb\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    let code = head.split(' ').nth(1).context("no code")?.parse()?;
    let weight = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("x-load-balancing-endpoint-weight").then_some(value)
    });
    let weight = weight.context("no weight")?.parse()?;
    Ok(Probed::Answer(code, weight, serde_json::from_str(body)?))
}

/// Waits until a node answers so at both of its addresses.
fn until(world: &NorthSouth, node: At, port: u16, wanted: impl Fn(&Probed) -> bool) -> Result<()> {
    let mut last = Vec::new();
    wait::until("the health check node port", IN_FORCE_WITHIN, || {
        last = Family::ALL.map(|family| probe(world, node, family, port)).into_iter().collect();
        last.iter().all(|probed| probed.as_ref().is_ok_and(&wanted))
    })
    .with_context(|| format!("{node:?} said {last:?}"))
}

/// One Service under the policy Local with a health check node port.
fn start() -> Result<(NorthSouth, Exposed)> {
    let mut world = NorthSouth::new(Spec { topology: Topology::Bridge, ..Spec::default() })?;
    let exposure = Exposure::new(&[HERE]).local();
    let service = world.expose(&exposure);
    with_port(&mut world, service, &exposure, HEALTH_PORT);
    world.start_everywhere(&[])?;
    Ok((world, service))
}

fn with_port(world: &mut NorthSouth, service: Exposed, exposure: &Exposure, port: u16) {
    let mut object = world.object(service, exposure);
    object["spec"]["healthCheckNodePort"] = port.into();
    world.manifest.set(object);
}

/// The e2e test of Kubernetes "should fail health check node port if there are only terminating
/// endpoints", rules H-9 to H-11 and T-3: probes fail while traffic goes on.
#[test]
fn h_9_a_health_check_node_port_fails_if_there_are_only_terminating_endpoints() -> Result<()> {
    let test = "h_9_a_health_check_node_port_fails_if_there_are_only_terminating_endpoints";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let (mut world, service) = start()?;
    // One endpoint has an address in each family.
    until(&world, ENTRY, HEALTH_PORT, |probed| probed.says(200, 2))?;
    until(&world, OTHER, HEALTH_PORT, |probed| probed.says(503, 0))?;
    let Probed::Answer(_, _, body) = probe(&world, ENTRY, Family::V4, HEALTH_PORT)? else {
        anyhow::bail!("no answer")
    };
    ensure!(body["service"]["namespace"] == "default", "{body}");
    ensure!(body["service"]["name"] == *service.name(), "{body}");
    ensure!(body["serviceProxyHealthy"] == true, "{body}");

    for (kind, family) in [("IPv4", Family::V4), ("IPv6", Family::V6)] {
        let name = format!("{}-{}", service.name(), kind.to_lowercase());
        let endpoint = Endpoint::ready(world.cluster.address(HERE, family))
            .node(&world.cluster.nodes()[0].name)
            .condition("ready", false)
            .condition("terminating", true);
        let slice = EndpointSlice::new("default", &name, &service.name(), kind)
            .port("tcp", "TCP", TARGET)
            .port("udp", "UDP", TARGET);
        world.manifest.set(slice.endpoint(endpoint));
    }
    world.write()?;
    until(&world, ENTRY, HEALTH_PORT, |probed| probed.says(503, 0))?;
    let mut client = world.peer(OUTSIDE)?;
    for case in cases() {
        let to = world.to(service, Way::NodePort, case.family);
        let reply = case.once(&mut client, to).with_context(|| format!("{case}, {to}"))?;
        ensure!(reply.server == "here", "{case}: {reply:?}");
    }
    Ok(())
}

/// Rule H-13, and the e2e tests that take the policy or the type away: the port is closed.
#[test]
fn h_13_a_health_check_node_port_follows_its_service() -> Result<()> {
    if !require::root_or_skip("h_13_a_health_check_node_port_follows_its_service") {
        return Ok(());
    }
    let (mut world, service) = start()?;
    let local = Exposure::new(&[HERE]).local();
    until(&world, ENTRY, HEALTH_PORT, |probed| probed.says(200, 2))?;
    with_port(&mut world, service, &local, HEALTH_PORT + 1);
    world.write()?;
    until(&world, ENTRY, HEALTH_PORT + 1, |probed| probed.says(200, 2))?;
    until(&world, ENTRY, HEALTH_PORT, |probed| *probed == Probed::Refused)?;

    world.change(service, &Exposure::new(&[HERE]));
    world.write()?;
    until(&world, ENTRY, HEALTH_PORT + 1, |probed| *probed == Probed::Refused)?;
    with_port(&mut world, service, &local, HEALTH_PORT);
    world.write()?;
    until(&world, ENTRY, HEALTH_PORT, |probed| probed.says(200, 2))?;
    world.manifest.remove("Service", "default", &service.name());
    world.write()?;
    until(&world, ENTRY, HEALTH_PORT, |probed| *probed == Probed::Refused)
}

/// Rules H-8 and H-12: a process that has the port at one address is told, and keeps nobody else from
/// being asked.
#[test]
fn h_12_a_port_that_is_taken_is_told_and_answered_once_it_is_free() -> Result<()> {
    if !require::root_or_skip("h_12_a_port_that_is_taken_is_told_and_answered_once_it_is_free") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec { topology: Topology::Bridge, ..Spec::default() })?;
    let exposure = Exposure::new(&[HERE]).local();
    for port in [HEALTH_PORT, HEALTH_PORT + 1] {
        let service = world.expose(&exposure);
        with_port(&mut world, service, &exposure, port);
    }
    let at = SocketAddr::new(world.cluster.address(ENTRY, Family::V4), HEALTH_PORT);
    let taken = world.cluster.nodes()[0].netns.run(|| TcpListener::bind(at))??;
    world.start(&[])?;
    until(&world, ENTRY, HEALTH_PORT + 1, |probed| probed.says(200, 2))?;
    ensure!(probe(&world, ENTRY, Family::V6, HEALTH_PORT)?.says(200, 2), "the other address");
    let failed = || -> Result<u64> {
        // It is healthy, and says so in its exit code; what it prints is the same if not.
        let status: Value =
            serde_json::from_str(&world.agents[0].command("status", &["--output", "json"])?)?;
        status["sync"]["failed_health_ports"].as_u64().context("failed_health_ports")
    };
    wait::until("the failure", IN_FORCE_WITHIN, || failed().is_ok_and(|failed| failed == 1))?;
    drop(taken);
    until(&world, ENTRY, HEALTH_PORT, |probed| probed.says(200, 2))?;
    wait::until("no failure", IN_FORCE_WITHIN, || failed().is_ok_and(|failed| failed == 0))
}

/// Rule H-12: whoever looks at the Service is told by an Event, which a node proxy may write.
#[test]
fn h_12_a_port_that_is_taken_is_told_by_an_event_on_the_service() -> Result<()> {
    let test = "h_12_a_port_that_is_taken_is_told_by_an_event_on_the_service";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let Some(assets) = require::kubernetes_or_skip(test) else { return Ok(()) };
    let mut rig = Rig::without_agents(Topology::Routed)?;
    let address = rig.cluster.address(At::Fabric, Family::V4);
    let plane = ApiServer::start_in(&assets, rig.cluster.fabric(), address)?;
    let mut service =
        lb_testbed::manifest::Service::new("default", "balanced", &[[10, 96, 7, 7].into()])
            .port("tcp", "TCP", 80, 8080)
            .spec("type", "LoadBalancer")
            .spec("externalTrafficPolicy", "Local");
    service = service.spec("healthCheckNodePort", HEALTH_PORT);
    rig.manifest.set(service);
    plane.apply(&rig.manifest)?;
    let node = SocketAddr::new(rig.cluster.address(At::Node(0), Family::V4), HEALTH_PORT);
    let _taken = rig.cluster.nodes()[0].netns.run(|| TcpListener::bind(node))??;
    let spec = rig.agent(0, Source::Kubeconfig(plane.proxy_kubeconfig()))?;
    // No kubelet tells the Node's addresses.
    let spec = spec.arg("--node-port-addresses").arg("172.18.0.0/16,fd00::/8");
    rig.agents.push(spec.starts_in(&rig.cluster.nodes()[0].netns).start()?);
    let mut described = String::new();
    wait::until("the Event", IN_FORCE_WITHIN, || {
        described = plane.kubectl(&["describe", "service", "balanced"]).unwrap_or_default();
        described.contains("FailedToStartServiceHealthcheck")
    })
    .with_context(|| format!("{described}\nlog: {}", rig.agents[0].log().tail(20)))?;
    let event = described.lines().find(|line| line.contains("FailedToStart")).unwrap_or_default();
    ensure!(event.contains("Warning") && event.contains(&node.to_string()), "{event}");
    Ok(())
}
