//! XDP by the driver of network cards: where it takes XDP, and where it refuses.
//!
//! Runs in the emulated machines of `cargo xtask vm`, whose cards these are (`xtask/src/vm/cards.rs`).

use std::{env, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::Counter;
use lb_testbed::{
    netns::Netns,
    one_armed::{NODE_PORT, OneArmed},
    packet::Parsed,
    require,
    wire::Wire,
};

/// By their addresses: two that take XDP, and one that refuses.
const TAKES: &str = "52:54:00:00:00:01";
const WORLD: &str = "52:54:00:00:00:02";
const REFUSES: &str = "52:54:00:00:00:03";

fn cards_or_skip(test: &str) -> bool {
    if !require::root_or_skip(test) {
        return false;
    }
    let there = env::var_os("MILLRACE_CARDS").is_some();
    if !there {
        require::skip(test, "needs the network cards of an emulated machine; run `cargo xtask vm`");
    }
    there
}

/// Puts a card of this machine into a namespace, as `eth0`.
fn plug(mac: &str, netns: &Netns) -> Result<()> {
    let name = name_of(mac)?;
    // A name that nobody has yet: `eth0` may be another card here.
    let renamed = std::process::Command::new("ip")
        .args(["link", "set", &name, "down", "name", "card", "netns", netns.name()])
        .output()
        .context("run `ip`")?;
    let error = String::from_utf8_lossy(&renamed.stderr);
    ensure!(renamed.status.success(), "move {name}: {error}");
    netns.ip("link set card name eth0")
}

fn name_of(mac: &str) -> Result<String> {
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let address = fs::read_to_string(path.join("address")).unwrap_or_default();
        if address.trim() == mac {
            let name = path.file_name().and_then(|name| name.to_str());
            return name.map(str::to_owned).context("a name in UTF-8");
        }
    }
    anyhow::bail!("no card has the address {mac}; /sys/class/net has {:?}", links())
}

fn links() -> Vec<String> {
    let entries = fs::read_dir(Path::new("/sys/class/net")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn to_service(parsed: &Parsed) -> bool {
    parsed.ports.is_some_and(|ports| ports.contains(&NODE_PORT))
}

/// Case 47: proven by the neighbour that answers before and after, and by what is sent on.
#[test]
fn xdp_forwards_on_a_card_whose_driver_takes_it() -> Result<()> {
    if !cards_or_skip("xdp_forwards_on_a_card_whose_driver_takes_it") {
        return Ok(());
    }
    let mut rig = OneArmed::new(|node, world| {
        plug(TAKES, node)?;
        plug(WORLD, world)
    })?;
    rig.start(&[])?;
    let xdp = rig.wait_xdp_probed("eth0")?;
    println!("XDP: {xdp}");
    ensure!(xdp["mode"] == "native" && xdp["demoted"] == false, "{xdp}");
    ensure!(xdp["state"].as_str().is_some_and(|state| state.ends_with(", proven")), "{xdp}");
    // Neighbours are known from here on.
    rig.exchange()?;
    let mut wire = Wire::open(&rig.node, "eth0", [0; 6])?;
    let left = rig.counter(Counter::XdpLeft)?;
    wire.clear()?;
    rig.exchange()?;
    // Now and then one, for the kernel to look after the neighbour.
    let seen = wire.seen()?.into_iter().filter(|frame| to_service(&frame.parsed)).count() as u64;
    ensure!(seen <= 4, "the kernel made packets of {seen} frames");
    let left = rig.counter(Counter::XdpLeft)? - left;
    ensure!(seen <= left, "the kernel made packets of {seen} frames, {left} were left");
    assert_eq!(rig.demotions()?, 0);
    Ok(())
}

/// Case 50: a driver that refuses costs XDP and nothing else.
#[test]
fn a_card_whose_driver_refuses_xdp_is_demoted_and_counted() -> Result<()> {
    if !cards_or_skip("a_card_whose_driver_refuses_xdp_is_demoted_and_counted") {
        return Ok(());
    }
    let mut rig = OneArmed::new(|node, world| {
        plug(REFUSES, node)?;
        plug(WORLD, world)
    })?;
    rig.start(&[])?;
    let xdp = rig.wait_xdp("eth0", |xdp| xdp["demoted"] == true)?;
    println!("XDP: {xdp}");
    ensure!(xdp["runs"] == false && xdp["mode"] == "none", "{xdp}");
    ensure!(rig.demotions()? == 1, "{}", rig.demotions()?);
    rig.exchange()
}
