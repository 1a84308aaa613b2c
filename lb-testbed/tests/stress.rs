//! The commit protocol with the kernel's own programs as readers: several CPUs send packets to
//! Services while one thread adds, changes and removes Services as fast as it can.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context as _, Result, ensure};
use lb_agent::{
    datapath::{
        self, BpfDatapath, Config, Datapath as _, Interface, Sizes, hooks,
        roles::{Device, Role},
        sys,
    },
    diff,
    model::{DesiredBackend, DesiredPort, Family, Frontend, PortKey, Protocol},
    plan::{Capacity, Planner},
};
use lb_common::abi::BackendFlags;
use lb_testbed::{bpffs::Bpffs, cgroup::Cgroup, netns::Netns, packet::Packet, require, testrun};

const SERVICES: u8 = 6;
const READERS: u8 = 3;
const BATCHES: u32 = 3000;
/// Of ids and slots there are so few that they are reused all the time.
const CAPACITY: Capacity = Capacity {
    service_ports: 12,
    backends: 96,
    slots: 160,
    frontends: 16,
    addresses: 16,
    source_ranges: 16,
};
/// Where the destination address lies in an Ethernet frame with IPv4.
const DESTINATION: std::ops::Range<usize> = 30..34;

#[test]
fn no_packet_reaches_a_backend_that_was_never_its_services() -> Result<()> {
    if !require::root_or_skip("no_packet_reaches_a_backend_that_was_never_its_services") {
        return Ok(());
    }
    let (bpffs, cgroup, netns) = (Bpffs::new()?, Cgroup::new()?, Netns::new()?);
    netns.ip("link add v0 type veth peer name v1")?;
    let index = netns.ifindex("v0")?;
    let sizes = Sizes {
        tables: CAPACITY,
        flows: 4096,
        half_open: 512,
        socket_peers: 512,
        udp_sockets: 512,
        affinity: 512,
    };
    let config = Config {
        bpffs: bpffs.path().join("node"),
        cgroup: cgroup.path().into(),
        sizes,
        scope: datapath::Scope::All,
        node_netns: 0,
        xdp: datapath::xdp::Config::default(),
        forwarding: datapath::outside::Forwarding::default(),
    };
    let mut real = netns.run(|| -> Result<BpfDatapath> {
        let mut real = BpfDatapath::open(&config)?;
        let role = Role::PodPort;
        real.attach(&Interface {
            index,
            name: "v0".into(),
            role,
            ethernet: true,
            device: Device::default(),
        })?;
        Ok(real)
    })??;
    let pin =
        hooks::interface_pin(&datapath::folder(&config.bpffs), hooks::Direction::Ingress, index);
    let link = sys::link_info(sys::object_get(&pin)?.as_fd())?;
    let program = sys::program_by_id(link.program)?;

    let mut planner = Planner::new(CAPACITY);
    let mut state = 1;
    ensure!(real.apply(&diff::operations(planner.plan([desired(0, &mut state)]))).is_empty());
    let stop = AtomicBool::new(false);
    let served = thread::scope(|scope| -> Result<Vec<u64>> {
        let (stop, program) = (&stop, program.as_fd());
        let readers: Vec<_> =
            (0..READERS).map(|reader| scope.spawn(move || send(program, reader, stop))).collect();
        let result = change(&mut real, &mut planner, &mut state, stop);
        stop.store(true, Ordering::Relaxed);
        let served =
            readers.into_iter().map(|reader| reader.join().ok().context("a reader panicked")?);
        let served = served.collect::<Result<_>>()?;
        result?;
        Ok(served)
    })?;
    ensure!(served.iter().all(|&served| served > 1000), "readers were served {served:?} times");
    Ok(())
}

/// Changes Services, and reuses ids and slots as soon as a grace period allows it.
fn change(
    real: &mut BpfDatapath,
    planner: &mut Planner,
    state: &mut u64,
    stop: &AtomicBool,
) -> Result<()> {
    for _ in 0..BATCHES {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let updates: Vec<_> = (0..=random(state) % 3)
            .map(|_| {
                let service = random(state) % u64::from(SERVICES);
                Ok(desired(u8::try_from(service)?, state))
            })
            .collect::<Result<_>>()?;
        ensure!(real.apply(&diff::operations(planner.plan(updates))).is_empty());
        if let Some(epoch) = planner.waiting()
            && random(state).is_multiple_of(8)
        {
            real.grace().wait()?;
            ensure!(real.apply(&diff::clear(&planner.release(epoch))).is_empty());
        }
    }
    Ok(())
}

/// Sends packets of new flows; how many of them were translated.
fn send(program: BorrowedFd<'_>, reader: u8, stop: &AtomicBool) -> Result<u64> {
    let result = send_until(program, reader, stop);
    // One that fails ends the others too.
    stop.store(true, Ordering::Relaxed);
    result
}

fn send_until(program: BorrowedFd<'_>, reader: u8, stop: &AtomicBool) -> Result<u64> {
    let mut state = 77 + u64::from(reader);
    let (mut served, mut flow) = (0, 0_u32);
    while !stop.load(Ordering::Relaxed) {
        flow += 1;
        let [_, a, b, c] = flow.to_be_bytes();
        let service = u8::try_from(random(&mut state) % u64::from(SERVICES))?;
        let vip = vip(service);
        let client = Ipv4Addr::new(11 + reader, a, b, c);
        let packet =
            Packet::new(IpAddr::V4(client), IpAddr::V4(vip)).udp(4000, 80).payload(b"x").build();
        let output = testrun::once(program, &packet)?;
        let reached = output.data.get(DESTINATION).context("a cut packet")?;
        // Dropped, or turned around to tell the client that there is no backend.
        if reached == vip.octets() || reached == client.octets() {
            ensure!(service != 0, "the first Service always has a backend");
            continue;
        }
        ensure!(
            reached[..3] == [10, 0, service],
            "Service {service} led to {reached:?}, a backend of another one"
        );
        served += 1;
    }
    Ok(served)
}

fn vip(service: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 0, service)
}

fn desired(service: u8, state: &mut u64) -> (PortKey, Option<DesiredPort>) {
    let key = PortKey {
        namespace: "default".into(),
        service: format!("s{service}").into(),
        port: "".into(),
        protocol: Protocol::Udp,
        family: Family::V4,
    };
    let bits = random(state);
    // The first one is never gone and never empty.
    if service > 0 && bits.is_multiple_of(5) {
        return (key, None);
    }
    let flags = BackendFlags::IN_CLUSTER | BackendFlags::IN_LOCAL | BackendFlags::SERVING;
    let backends = (0..8)
        .filter(|n| (bits >> 8) & (1 << n) != 0 || (service == 0 && *n == 0))
        .map(|n| DesiredBackend { addr: [10, 0, service, n].into(), port: 8080, flags })
        .collect();
    let desired = DesiredPort {
        created_s: 1,
        frontends: vec![Frontend::cluster_ip(vip(service).into(), 80)],
        backends,
        internal_local: bits & 2 != 0,
        external_local: false,
        drop_when_no_local: false,
        affinity_timeout_s: None,
        source_ranges: [].into(),
    };
    (key, Some(desired))
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}
