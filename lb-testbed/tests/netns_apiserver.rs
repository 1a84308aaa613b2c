//! Does the agent serve what a real API server says, as the restricted user `system:kube-proxy`?

use std::time::Duration;

use anyhow::Result;
use lb_testbed::{
    agent::Source,
    apiserver::ApiServer,
    cluster::{At, Family, Topology},
    matrix::{Case, Engine},
    peer::LoadKind,
    require,
    rig::{IN_FORCE_WITHIN, NEAR, Rig, SPARE, TARGET},
    wait,
};

#[test]
fn an_api_server_is_followed_and_its_absence_disturbs_nobody() -> Result<()> {
    let test = "an_api_server_is_followed_and_its_absence_disturbs_nobody";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    let Some(assets) = require::kubernetes_or_skip(test) else { return Ok(()) };
    let mut rig = Rig::without_agents(Topology::Routed)?;
    let address = rig.cluster.address(At::Fabric, Family::V4);
    let mut plane = ApiServer::start_in(&assets, rig.cluster.fabric(), address)?;
    plane.apply(&rig.manifest)?;
    // The API server is on the nodes' network, so the agent's process starts there as well.
    let spec = rig.agent(0, Source::Kubeconfig(plane.proxy_kubeconfig()))?;
    let agent = spec.starts_in(&rig.cluster.nodes()[0].netns).start()?;
    rig.agents.push(agent);
    for case in Case::all() {
        let mut client = rig.client(case.engine)?;
        let server = case.once(&mut client, rig.vip(case.family))?.server;
        assert!(["near", "far"].contains(&server.as_str()), "{case}: {server}");
    }

    apply_endpoints(&mut rig, &plane, &[SPARE])?;
    let mut client = rig.client(Engine::Socket)?;
    let vip = rig.vip(Family::V6);
    assert_eq!(client.tcp_once(vip)?.server, "spare");

    let load = client.load(vip, LoadKind::TcpConnections, Duration::from_secs(3))?;
    plane.kill_server()?;
    client.load_goes_on(load, 50, Duration::from_secs(20))?;
    plane.restart_server(address)?;
    apply_endpoints(&mut rig, &plane, &[NEAR, SPARE])?;
    let stats = client.load_stop(load)?;
    assert_eq!(stats.failed, 0, "{stats:?}");

    plane.kubectl(&["delete", "service", "web"])?;
    wait::until("the Service to go", IN_FORCE_WITHIN, || {
        rig.agents[0].command("services", &[]).is_ok_and(|text| !text.contains("default/web"))
    })?;
    assert!(client.tcp_connect_from(None, vip, Duration::from_millis(300)).is_err());
    Ok(())
}

fn apply_endpoints(rig: &mut Rig, plane: &ApiServer, places: &[At]) -> Result<()> {
    let endpoints = rig.addresses(places);
    rig.manifest.endpoints("web", TARGET, &endpoints);
    plane.apply(&rig.manifest)?;
    rig.wait_endpoints(places)
}
