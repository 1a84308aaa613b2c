//! Many UDP flows into a node, made and counted by two XDP programs at the other end of its cable.
//!
//! The one makes each packet anew, headers and all, since frames come back as the node left them,
//! and draws the port it comes from. The other counts what arrives translated as it should be, and
//! can send it back as a backend answers, so that both directions of each flow have been seen before
//! anything is measured. Both cost tens of nanoseconds; what is in between costs many more.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::sys;
use crate::{
    netns::Netns,
    packet,
    testrun::{self, Kind, array::Words},
};

/// As many flows as there are ports that packets come from.
pub(super) const FLOWS: u32 = 10_000;
const FIRST_PORT: u32 = 20_000;
/// The least that an Ethernet frame has, without its sum.
const FRAME: usize = 60;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// Whom packets go to, and what must become of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    /// Addresses of the link: of the node, and of the router that packets come from.
    pub(super) macs: [[u8; 6]; 2],
    pub(super) client: Ipv4Addr,
    pub(super) frontend: (Ipv4Addr, u16),
    pub(super) backend: (Ipv4Addr, u16),
}

/// Both programs, at the router's end of the cable.
#[derive(Debug)]
pub(super) struct Flood<'a> {
    netns: &'a Netns,
    ifindex: u32,
    cpu: usize,
    maker: OwnedFd,
    words: Words<3>,
    _counter: OwnedFd,
    frame: Vec<u8>,
    /// Seconds that a run of no packets to speak of takes: grace periods of the kernel.
    overhead: f64,
}

/// How many packets went through in a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rate {
    /// Packets per second, counted where they arrive.
    pub(super) per_s: f64,
    /// Which share of all that were sent that is.
    pub(super) arrived: f64,
}

impl<'a> Flood<'a> {
    /// At an interface of a namespace, on a CPU.
    pub(super) fn new(netns: &'a Netns, interface: &str, cpu: usize, ends: &Ends) -> Result<Self> {
        let ifindex = netns.ifindex(interface)?;
        let words = Words::new()?;
        let frame = frame(ends);
        let maker = testrun::load(Kind::Xdp, &maker(&frame)?, 0).context("the packets' maker")?;
        let counter =
            testrun::load(Kind::Xdp, &counter(ends, &words)?, 0).context("the counter")?;
        let counter = netns.run(|| testrun::attach_xdp(counter.as_fd(), ifindex))??;
        let overhead = 0.0;
        let mut flood =
            Self { netns, ifindex, cpu, maker, words, _counter: counter, frame, overhead };
        let runs = (0..7).map(|_| flood.send(1)).collect::<Result<Vec<f64>>>()?;
        flood.overhead = runs.into_iter().min_by(f64::total_cmp).unwrap_or(0.0);
        Ok(flood)
    }

    /// Sends so many packets, each of which is answered.
    pub(super) fn begin_flows(&self, packets: u32) -> Result<()> {
        self.words.set([0, 0, 1])?;
        self.send(packets)?;
        let [arrived, answered, _] = self.words.get()?;
        let enough = u64::from(packets) * 9 / 10;
        ensure!(
            arrived >= enough && answered >= enough,
            "of {packets} packets {arrived} came to the backend, and {answered} answers came back"
        );
        Ok(())
    }

    /// Sends packets for so long, and counts what comes to the backend.
    pub(super) fn rate(&self, seconds: f64) -> Result<Rate> {
        let guess = self.rate_of(FLOWS * 4)?;
        let packets = (guess.per_s * seconds).clamp(1e4, 1e8);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within these bounds"
        )]
        self.rate_of(packets as u32)
    }

    fn rate_of(&self, packets: u32) -> Result<Rate> {
        self.words.set([0, 0, 0])?;
        let seconds = self.send(packets)?;
        let [arrived, ..] = self.words.get()?;
        let arrived = u32::try_from(arrived).map(f64::from).context("a number of packets")?;
        Ok(Rate { per_s: arrived / seconds, arrived: arrived / f64::from(packets) })
    }

    /// Packets made per second where the node drops them as they come: what the rest costs.
    pub(super) fn made_per_s(&self, node: &Netns, interface: &str, packets: u32) -> Result<f64> {
        let ifindex = node.ifindex(interface)?;
        let drop = testrun::load_empty(Kind::Xdp, XDP_DROP.cast_signed(), 0)?;
        let _attached = node.run(|| testrun::attach_xdp(drop.as_fd(), ifindex))??;
        Ok(f64::from(packets) / self.send(packets)?)
    }

    fn send(&self, packets: u32) -> Result<f64> {
        self.netns.run(|| {
            sys::take_cpu(self.cpu)?;
            let start = Instant::now();
            testrun::live(self.maker.as_fd(), &self.frame, self.ifindex, packets)?;
            Ok((start.elapsed().as_secs_f64() - self.overhead).max(1e-6))
        })?
    }
}

/// A packet of the first flow.
fn frame(ends: &Ends) -> Vec<u8> {
    let port = u16::try_from(FIRST_PORT).unwrap_or(u16::MAX);
    let mut frame = packet::Packet::new(ends.client, ends.frontend.0)
        .udp(port, ends.frontend.1)
        .payload(&[0; FRAME - 42])
        .build();
    for (to, from) in frame.iter_mut().zip(ends.macs.as_flattened()) {
        *to = *from;
    }
    frame
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;
const R7: u8 = 7;
const HALF: u8 = 0x08;
const BYTE: u8 = 0x10;
const DOUBLE: u8 = 0x18;

/// Writes all headers, the port and the sum of a flow drawn at random, and sends the packet out.
fn maker(frame: &[u8]) -> Result<Vec<u64>> {
    let half = |at: usize| {
        let bytes = frame.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u16::from_be_bytes).context("a frame with headers")
    };
    // The sum of the first flow without its port, which is added to a sum in ones' complement.
    let first = u32::from(!half(40)?);
    let port = u32::from(half(34)?);
    let base = if first >= port { first - port } else { first + 0xffff - port };
    let mut code = bounds(42, &returning(XDP_DROP));
    code.push(set(R7, R2));
    code.push(op(0x85, 0, 0, 0, 7)); // bpf_get_prandom_u32
    code.push(op(0x94, R0, 0, 0, FLOWS)); // modulo, 32 bits
    code.push(op(0x04, R0, 0, 0, FIRST_PORT));
    for (chunk, at) in frame.get(..40).unwrap_or_default().chunks_exact(4).zip((0..).step_by(4)) {
        let word = u32::from_ne_bytes(chunk.try_into().unwrap_or_default());
        code.push(op(0x62, R7, 0, at, word));
    }
    code.push(set(R1, R0));
    code.push(op(0x04, R1, 0, 0, base));
    for _ in 0..2 {
        code.extend([set(R2, R1), op(0x74, R2, 0, 0, 16), op(0x54, R1, 0, 0, 0xffff)]);
        code.push(op(0x0c, R1, R2, 0, 0));
    }
    code.push(op(0xa4, R1, 0, 0, 0xffff)); // exclusive or
    for (register, at) in [(R0, 34), (R1, 40)] {
        code.push(op(0xdc, register, 0, 0, 16)); // to network order
        code.push(op(0x6b, R7, register, at, 0));
    }
    code.extend(returning(XDP_TX));
    Ok(code)
}

/// Counts what comes to the backend, and drops it or sends it back; counts what comes to the client,
/// and drops it; passes on the rest.
fn counter(ends: &Ends, words: &Words<3>) -> Result<Vec<u64>> {
    let swap = |width: u8, one: i16, other: i16| {
        [
            op(0x61 | width, R3, R2, one, 0),
            op(0x61 | width, R4, R2, other, 0),
            op(0x63 | width, R2, R4, one, 0),
            op(0x63 | width, R2, R3, other, 0),
        ]
    };
    let address = |ip: Ipv4Addr| u32::from_ne_bytes(ip.octets());
    let count = |at| [op(0xb7, R3, 0, 0, 1), op(0xdb, R1, R3, at, 0)];
    let back = [swap(0, 0, 6), swap(HALF, 4, 10), swap(0, 26, 30), swap(HALF, 34, 36)].concat();
    let to_backend = [
        vec![op(0x61 | HALF, R5, R2, 36, 0), op(0x16, R5, 0, 2, u32::from(ends.backend.1.to_be()))],
        returning(XDP_PASS).to_vec(),
        count(0).to_vec(),
        vec![op(0x61 | DOUBLE, R5, R1, 16, 0), op(0x56, R5, 0, 2, 0)],
        returning(XDP_DROP).to_vec(),
        back,
        returning(XDP_TX).to_vec(),
    ]
    .concat();
    let to_client = [count(8).as_slice(), &returning(XDP_DROP)].concat();
    let pass = returning(XDP_PASS);
    let skip = |code: &[u64]| i16::try_from(code.len()).context("a program of a few instructions");
    let code = [
        bounds(42, &pass),
        words.address(R1).to_vec(),
        vec![op(0x61 | HALF, R5, R2, 12, 0), op(0x16, R5, 0, 2, u32::from(0x0800_u16.to_be()))],
        pass.to_vec(),
        vec![op(0x61 | BYTE, R5, R2, 23, 0), op(0x16, R5, 0, 2, 17)],
        pass.to_vec(),
        vec![op(0x61, R5, R2, 30, 0), jump_unless(R5, address(ends.backend.0), skip(&to_backend)?)],
        to_backend,
        vec![jump_unless(R5, address(ends.client), skip(&to_client)?)],
        to_client,
        pass.to_vec(),
    ];
    Ok(code.concat())
}

/// The packet's beginning in r2; what is shorter ends here.
fn bounds(size: u32, otherwise: &[u64; 2]) -> Vec<u64> {
    let mut code = vec![op(0x61, R2, R1, 0, 0), op(0x61, R3, R1, 4, 0), set(R4, R2)];
    code.extend([op(0x07, R4, 0, 0, size), op(0xbd, R4, R3, 2, 0)]);
    code.extend(otherwise);
    code
}

fn set(to: u8, from: u8) -> u64 {
    op(0xbf, to, from, 0, 0)
}

/// Jumps over so many instructions unless the lower 32 bits of a register are that.
fn jump_unless(register: u8, value: u32, over: i16) -> u64 {
    op(0x56, register, 0, over, value)
}

fn returning(value: u32) -> [u64; 2] {
    [op(0xb7, R0, 0, 0, value), op(0x95, 0, 0, 0, 0)]
}

/// One instruction (RFC 9669): code, target, source, offset, immediate.
fn op(code: u8, target: u8, source: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | (u64::from(target | (source << 4)) << 8)
        | (u64::from(offset.cast_unsigned()) << 16)
        | (u64::from(immediate) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{packet::Link, require};

    fn ends() -> Ends {
        Ends {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            client: Ipv4Addr::new(192, 0, 2, 10),
            frontend: (Ipv4Addr::new(172, 18, 0, 10), 30_080),
            backend: (Ipv4Addr::new(10, 244, 1, 10), 8080),
        }
    }

    #[test]
    fn every_packet_is_whole_whatever_was_in_the_frame_before() {
        if !require::bpf_or_skip("every_packet_is_whole_whatever_was_in_the_frame_before") {
            return;
        }
        let good = frame(&ends());
        let maker = testrun::load(Kind::Xdp, &maker(&good).unwrap(), 0).unwrap();
        let mut bad = good.clone();
        bad[..42].fill(0xee);
        let mut ports = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let output = testrun::once(maker.as_fd(), &bad).unwrap();
            assert_eq!(output.verdict, XDP_TX);
            packet::checksums_ok(&output.data, Link::Ethernet).unwrap();
            let parsed = packet::parse(&output.data, Link::Ethernet).unwrap();
            let [from, to] = parsed.ports.unwrap();
            assert_eq!((parsed.dst, to), (ends().frontend.0.into(), ends().frontend.1));
            assert!((FIRST_PORT..FIRST_PORT + FLOWS).contains(&u32::from(from)), "{from}");
            assert_eq!(output.data[..12], good[..12]);
            ports.insert(from);
        }
        assert!(ports.len() > 10, "flows are not drawn: {ports:?}");
    }

    #[test]
    fn what_came_to_the_backend_is_counted_and_sent_back_when_that_is_wanted() {
        let test = "what_came_to_the_backend_is_counted_and_sent_back_when_that_is_wanted";
        if !require::bpf_or_skip(test) {
            return;
        }
        let (ends, words) = (ends(), Words::new().unwrap());
        let counter = testrun::load(Kind::Xdp, &counter(&ends, &words).unwrap(), 0).unwrap();
        let run = |src: Ipv4Addr, dst: Ipv4Addr, to| {
            let packet = packet::Packet::new(src, dst).udp(5, to).build();
            testrun::once(counter.as_fd(), &packet).unwrap()
        };
        let node = ends.frontend.0;
        assert_eq!(run(node, ends.backend.0, 8080).verdict, XDP_DROP);
        assert_eq!(run(node, ends.backend.0, 8081).verdict, XDP_PASS, "another port");
        assert_eq!(run(node, ends.client, 5).verdict, XDP_DROP);
        assert_eq!(run(node, node, 8080).verdict, XDP_PASS, "somebody else");
        assert_eq!(words.get().unwrap(), [1, 1, 0]);

        words.set([0, 0, 1]).unwrap();
        let output = run(node, ends.backend.0, 8080);
        assert_eq!(output.verdict, XDP_TX);
        packet::checksums_ok(&output.data, Link::Ethernet).unwrap();
        let parsed = packet::parse(&output.data, Link::Ethernet).unwrap();
        assert_eq!((parsed.src, parsed.dst), (ends.backend.0.into(), node.into()));
        assert_eq!(parsed.ports, Some([8080, 5]));
        assert_eq!(words.get().unwrap(), [1, 0, 1]);
    }
}
