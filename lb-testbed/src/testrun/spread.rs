//! A program that makes each packet one of another flow, and goes on with the program under test:
//! what does that cost when no packet finds in the cache what the one before left there?
#![expect(unsafe_code, reason = "maps are made and filled by bpf()")]

use std::{
    ffi::c_int,
    net::Ipv4Addr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result, ensure};

use super::{ATTACH_XDP, Kind, load};
use crate::sys;

const BPF_MAP_CREATE: c_int = 0;
const BPF_MAP_UPDATE_ELEM: c_int = 2;
const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
/// Helpers, uapi/linux/bpf.h.
const MAP_LOOKUP_ELEM: i32 = 1;
const TAIL_CALL: i32 = 12;

/// Flows `0..flows` over UDP and IPv4 to one address: sources 10.128.0.0 and up, ports 1024 and up, as
/// many to each source as fit twelve bits.
pub struct Spread {
    program: OwnedFd,
    // Programs hold maps, but a program array lets go of what it holds with its last descriptor.
    _maps: [OwnedFd; 2],
}

/// In which order flows come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One number after the other.
    Numbered,
    /// Far apart in number.
    Scrambled,
}

impl Spread {
    /// Packets get the addresses of a flow, `vip` and port 80 as destination, and what a router
    /// changes is as it was. Then `target` sees them.
    pub fn new(target: BorrowedFd<'_>, vip: Ipv4Addr, flows: u32, order: Order) -> Result<Self> {
        let counter = map(BPF_MAP_TYPE_ARRAY, 8)?;
        let targets = map(BPF_MAP_TYPE_PROG_ARRAY, 4)?;
        let value = target.as_raw_fd();
        update(targets.as_fd(), &value).context("put a program into an array")?;
        let step = match order {
            Order::Numbered => 1,
            Order::Scrambled => stride(flows)?,
        };
        let code = code(counter.as_fd(), targets.as_fd(), vip, step, flows);
        let program = load(Kind::Xdp, &code, ATTACH_XDP)?;
        Ok(Self { program, _maps: [counter, targets] })
    }

    /// The program, for a test run over a UDP packet without options.
    pub fn program(&self) -> BorrowedFd<'_> {
        self.program.as_fd()
    }
}

/// How far apart in number the flows of two packets in a row are: about as far as can be, and without
/// a common factor, so that each flow comes once before any comes twice.
fn stride(flows: u32) -> Result<u32> {
    ensure!(flows > 1, "at least two flows");
    let golden = u32::try_from(u64::from(flows) * 618 / 1000).context("a stride")?;
    let gcd = |mut a: u32, mut b: u32| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    (golden.max(1)..=flows).find(|step| gcd(*step, flows) == 1).context("a stride")
}

fn map(kind: u32, value_size: u32) -> Result<OwnedFd> {
    let mut attr = [kind, 4, value_size, 1, 0, 0];
    // SAFETY: an attribute without pointers.
    unsafe { sys::bpf_open(BPF_MAP_CREATE, &mut attr) }.context("make a map")
}

fn update(map: BorrowedFd<'_>, value: &i32) -> Result<()> {
    #[repr(C)]
    struct Attr {
        map: u32,
        pad: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let key = 0_u32;
    let mut attr = Attr {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key: (&raw const key) as u64,
        value: (&raw const *value) as u64,
        flags: 0,
    };
    // SAFETY: key and value are four bytes each, as the map has them, and live until the call returns.
    unsafe { sys::bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    Ok(())
}

/// One instruction: operation, destination and source register, offset, constant.
fn op(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(constant.cast_unsigned()) << 32
}

const MOV: u8 = 0xb7;
const MOV_REG: u8 = 0xbf;
const ADD: u8 = 0x07;
const SUB: u8 = 0x17;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const TO_BIG_ENDIAN: u8 = 0xdc;
const LOAD32: u8 = 0x61;
const LOAD64: u8 = 0x79;
const STORE32: u8 = 0x63;
const STORE64: u8 = 0x7b;
const STORE16: u8 = 0x6b;
const STORE32_CONST: u8 = 0x62;
const STORE16_CONST: u8 = 0x6a;
const LOAD_MAP: u8 = 0x18;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const IF_ZERO: u8 = 0x15;
const IF_LESS: u8 = 0xa5;
const IF_GREATER_REG: u8 = 0x2d;

/// Bytes as the constant of a store that writes them in this order.
fn bytes4(bytes: [u8; 4]) -> i32 {
    i32::from_ne_bytes(bytes)
}

fn bytes2(bytes: [u8; 2]) -> i32 {
    i32::from(u16::from_ne_bytes(bytes))
}

fn code(
    counter: BorrowedFd<'_>,
    targets: BorrowedFd<'_>,
    vip: Ipv4Addr,
    stride: u32,
    flows: u32,
) -> Vec<u64> {
    let load_map = |register: u8, fd: BorrowedFd<'_>| {
        // Source register 1: the constant is the descriptor of a map.
        [op(LOAD_MAP, register, 1, 0, fd.as_raw_fd()), 0]
    };
    let number = |value: u32| value.cast_signed();
    let mut code = vec![
        op(MOV_REG, 6, 1, 0, 0),
        // The number of this packet's flow: that of the one before, and a stride on.
        op(STORE32_CONST, 10, 0, -4, 0),
        op(MOV_REG, 2, 10, 0, 0),
        op(ADD, 2, 0, 0, -4),
    ];
    code.extend(load_map(1, counter));
    code.extend([
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(IF_ZERO, 0, 0, 33, 0),
        op(LOAD64, 7, 0, 0, 0),
        op(ADD, 7, 0, 0, number(stride)),
        op(IF_LESS, 7, 0, 1, number(flows)),
        op(SUB, 7, 0, 0, number(flows)),
        op(STORE64, 0, 7, 0, 0),
        op(LOAD32, 2, 6, 0, 0),
        op(LOAD32, 3, 6, 4, 0),
        op(MOV_REG, 4, 2, 0, 0),
        op(ADD, 4, 0, 0, 42),
        op(IF_GREATER_REG, 4, 3, 23, 0),
        // Ethernet addresses.
        op(STORE32_CONST, 2, 0, 0, bytes4([2, 0, 0, 0])),
        op(STORE16_CONST, 2, 0, 4, bytes2([0, 10])),
        op(STORE32_CONST, 2, 0, 6, bytes4([2, 0, 0, 0])),
        op(STORE16_CONST, 2, 0, 10, bytes2([0, 1])),
        // Hop count 64, UDP, some checksum: the program adjusts it and does not judge it.
        op(STORE32_CONST, 2, 0, 22, bytes4([64, 17, 0x12, 0x34])),
        op(MOV_REG, 5, 7, 0, 0),
        op(SHIFT_RIGHT, 5, 0, 0, 12),
        op(ADD, 5, 0, 0, number(u32::from(Ipv4Addr::new(10, 128, 0, 0)))),
        op(TO_BIG_ENDIAN, 5, 0, 0, 32),
        op(STORE32, 2, 5, 26, 0),
        op(STORE32_CONST, 2, 0, 30, bytes4(vip.octets())),
        op(MOV_REG, 5, 7, 0, 0),
        op(AND, 5, 0, 0, 0xfff),
        op(ADD, 5, 0, 0, 1024),
        op(TO_BIG_ENDIAN, 5, 0, 0, 16),
        op(STORE16, 2, 5, 34, 0),
        op(STORE16_CONST, 2, 0, 36, bytes2([0, 80])),
        op(STORE16_CONST, 2, 0, 40, bytes2([0x12, 0x34])),
        op(MOV_REG, 1, 6, 0, 0),
    ]);
    code.extend(load_map(2, targets));
    code.extend([
        op(MOV, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, TAIL_CALL),
        // XDP_ABORTED: no program under test was reached.
        op(MOV, 0, 0, 0, 0),
        op(EXIT, 0, 0, 0, 0),
    ]);
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flow_comes_once_before_any_comes_twice() {
        for flows in [2, 3, 64_000, 1_000_000] {
            let stride = stride(flows).unwrap();
            let mut seen = vec![false; usize::try_from(flows).unwrap()];
            let mut at = 0;
            for _ in 0..flows {
                at = (at + u64::from(stride)) % u64::from(flows);
                let place = usize::try_from(at).unwrap();
                assert!(!std::mem::replace(&mut seen[place], true), "{flows}: {at} twice");
            }
        }
    }

    #[test]
    fn jumps_lead_to_the_end() {
        let (null, vip) = (std::io::stderr(), Ipv4Addr::new(10, 96, 0, 10));
        let code = code(null.as_fd(), null.as_fd(), vip, 1, 2);
        let last = code.len() - 2;
        for (at, op) in code.iter().enumerate() {
            let kind = (op & 0xff) as u8;
            if kind == IF_ZERO || kind == IF_GREATER_REG {
                let offset = usize::try_from(op >> 16 & 0xffff).unwrap();
                assert_eq!(at + 1 + offset, last, "the jump at {at}");
            }
        }
    }
}
