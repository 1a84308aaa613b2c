//! Does a VIP answer pings of every size that fits one packet, from outside and from pods?

use anyhow::{Result, ensure};
use lb_testbed::{
    cluster::{At, Family, Spec},
    north_south::{Exposure, HERE, NEIGHBOUR, NorthSouth, OUTSIDE, SOON},
    packet::Packet,
    require,
    wire::Wire,
};

/// Bytes of IP packet that fit the networks of test clusters.
const MTU: usize = 1500;

/// The contract's section 1.3: ping is nobody's duty, and answered for VIPs that are ours; the answer
/// has what was sent, to the last byte.
#[test]
fn pings_of_vips_are_answered_whatever_their_size() -> Result<()> {
    if !require::root_or_skip("pings_of_vips_are_answered_whatever_their_size") {
        return Ok(());
    }
    let mut world = NorthSouth::new(Spec::default())?;
    let service = world.expose(&Exposure::new(&[HERE]));
    world.start(&[])?;
    let router = world.cluster.fabric().mac(world.cluster.client_side())?;
    for (place, family) in [OUTSIDE, NEIGHBOUR].into_iter().flat_map(both) {
        // At a pod's port packets are looked at whomever they are sent to.
        let next = if place == OUTSIDE { router } else { [2, 0, 0, 0, 0, 1] };
        let mut client = Wire::open(world.cluster.netns(place), "eth0", next)?;
        let from = world.cluster.address(place, family);
        let vip = match place {
            OUTSIDE => service.load_balancer(family),
            _ => service.cluster_ip(family),
        };
        let (echo, answer, headers) = match family {
            Family::V4 => (8, 0, 20 + 8),
            Family::V6 => (128, 129, 40 + 8),
        };
        for size in [0, 1, 56, 57, 500, 1400, MTU - headers] {
            let payload: Vec<u8> = (0..=u8::MAX).cycle().take(size).collect();
            let id = u8::try_from(size % 251)?;
            client.send(&Packet::new(from, vip).icmp(echo, 0, [1, id, 0, 1]).payload(&payload))?;
            let what = format!("the answer of {vip} to {size} bytes from {place:?}");
            let sent = client.wait(&what, SOON, |frame| {
                let message = frame.bytes.get(frame.parsed.upper_at..)?;
                let is = frame.parsed.src == vip && message.first() == Some(&answer);
                (is && message.get(5) == Some(&id)).then(|| message.get(8..).map(<[u8]>::to_vec))?
            })?;
            ensure!(sent.starts_with(&payload), "{what}: {sent:?}");
        }
    }
    Ok(())
}

fn both(at: At) -> [(At, Family); 2] {
    Family::ALL.map(|family| (at, family))
}
