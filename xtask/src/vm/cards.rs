//! Network cards of an emulated machine: what XDP is tried on.
//!
//! Each is a virtio-net card on a tap device; all are ports of one bridge, in a network namespace
//! that goes with the machine. Taps, because nothing else gives a card several queues, which older
//! drivers (Linux 5.10) demand for XDP: one for each CPU besides those in use.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::sh;

/// Queues of a card that takes XDP: those in use, as many as CPUs, and as many for XDP.
const QUEUES: u32 = 2 * super::CPUS;

/// A card.
struct Card {
    name: &'static str,
    mac: &'static str,
    /// Whether drivers take XDP on it.
    xdp: bool,
}

/// `lb-testbed/tests/cards.rs` knows them by their addresses.
const CARDS: [Card; 3] = [
    Card { name: "node", mac: "52:54:00:00:00:01", xdp: true },
    Card { name: "world", mac: "52:54:00:00:00:02", xdp: true },
    // One queue, which older drivers refuse; and it puts packets together itself without a way to
    // tell it not to, which newer ones refuse.
    Card { name: "refuses", mac: "52:54:00:00:00:03", xdp: false },
];

/// Without what a card does to packets before the guest sees them, which does not go with XDP.
const OFFLOADS_OFF: &str = "guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
                            guest_ufo=off,guest_uso4=off,guest_uso6=off";

/// What the tests in a machine with cards find in their environment.
pub(super) const VARIABLE: &str = "MILLRACE_CARDS";

/// Why a machine here has no cards, if so.
pub(super) fn lack() -> Option<String> {
    if !Path::new("/dev/net/tun").exists() {
        return Some("/dev/net/tun is missing; `modprobe tun` as root makes it".into());
    }
    if ip().is_none() {
        return Some("`ip` is not installed; run `apt-get install iproute2` as root".into());
    }
    let mut unshare = Command::new("unshare");
    if sh::query(unshare.args(["--net", "--", "true"])).is_none() {
        return Some("this user may not make network namespaces; run this as root".into());
    }
    None
}

/// `ip` of this system, for the tests in the machine: busybox's lacks most.
pub(super) fn ip() -> Option<PathBuf> {
    ["/usr/sbin/ip", "/sbin/ip", "/usr/bin/ip", "/bin/ip"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.is_file())
}

/// A command that makes bridge and taps in a namespace of its own, and becomes `program` there.
pub(super) fn plugged(program: &Path) -> Command {
    let taps = CARDS.iter().map(|Card { name, xdp, .. }| {
        let queues = if *xdp { " multi_queue" } else { "" };
        format!("ip tuntap add dev {name} mode tap{queues}\nip link set {name} master br0 up\n")
    });
    let script = [
        "set -e\n\
         ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
         ip link set br0 up\n",
        &taps.collect::<String>(),
        "exec \"$@\"\n",
    ]
    .concat();
    let mut command = Command::new("unshare");
    command.args(["--net", "--", "sh", "-c", &script, "sh"]).arg(program);
    command
}

/// QEMU's arguments.
pub(super) fn arguments() -> Vec<String> {
    let mut arguments = Vec::new();
    for Card { name, mac, xdp } in CARDS {
        let (queues, features) = if xdp {
            // Two vectors for each queue pair, and two besides.
            (QUEUES, format!("mq=on,vectors={},{OFFLOADS_OFF}", 2 * QUEUES + 2))
        } else {
            (1, "ctrl_guest_offloads=off".to_owned())
        };
        arguments.push("-netdev".to_owned());
        arguments.push(format!(
            "tap,id={name},ifname={name},script=no,downscript=no,vhost=off,queues={queues}"
        ));
        arguments.push("-device".to_owned());
        // No boot from the network: that would take a ROM.
        arguments.push(format!("virtio-net-pci,netdev={name},mac={mac},romfile=,{features}"));
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_cards_have_queues_for_xdp_and_one_has_not() {
        let arguments = arguments();
        let devices: Vec<_> = arguments.iter().filter(|a| a.starts_with("virtio-net")).collect();
        assert_eq!(devices.len(), 3);
        assert_eq!(devices.iter().filter(|device| device.contains("mq=on")).count(), 2);
        assert_eq!(devices.iter().filter(|d| d.contains("ctrl_guest_offloads=off")).count(), 1);
        let taps = arguments.iter().filter(|a| a.contains(&format!("queues={QUEUES}"))).count();
        assert_eq!(taps, 2);
    }

    #[test]
    fn taps_are_ports_of_a_bridge_before_the_machine_starts() {
        let command = plugged(Path::new("/qemu"));
        assert_eq!(command.get_program(), "unshare");
        let words: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        let script = words.iter().find(|word| word.contains("tuntap")).unwrap();
        assert_eq!(script.matches(" master br0 up").count(), CARDS.len());
        assert!(script.ends_with("exec \"$@\"\n"), "{script}");
        assert_eq!(words.last().unwrap(), "/qemu");
    }
}
