//! Somebody else's tc programs on the same interface: a policy that drops some packets and leaves
//! the rest to the next program, attached by tcx like ours.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use crate::{
    netns::Netns,
    sys,
    testrun::{self, Kind},
};

const TCX_NEXT: i32 = -1;
const TC_ACT_SHOT: i32 = 2;
const ETHERTYPE_V4: u32 = 0x0800;
const ETHERTYPE_V6: u32 = 0x86dd;

/// Direction as the host sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Direction {
    /// Packets that the host receives.
    Ingress = 46,
    /// Packets that the host sends.
    Egress = 47,
}

/// Where in the chain of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Order {
    /// Before all others.
    First = 1 << 3,
    /// After all others.
    Last = 1 << 4,
}

/// Which packets a policy drops: those that satisfy all conditions of any list.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    alternatives: Vec<Vec<Condition>>,
}

/// An attached policy; detached on drop.
#[derive(Debug)]
pub struct Attached {
    _link: OwnedFd,
}

#[derive(Clone, Copy, Debug)]
enum Condition {
    /// The 16 bits at an offset.
    Half(u32, u32),
    /// The 32 bits at an offset.
    Word(u32, u32),
}

impl Policy {
    /// Drops what has a Service's address as source or destination: 10.96.0.0/16,
    /// `fd00:10:96::/48`. Whoever sits behind the translation never sees such a packet.
    pub fn no_service_address() -> Self {
        let v4 = |at| vec![Condition::Half(12, ETHERTYPE_V4), Condition::Half(at, 0x0a60)];
        let v6 = |at| {
            let ethertype = Condition::Half(12, ETHERTYPE_V6);
            vec![ethertype, Condition::Word(at, 0xfd00_0010), Condition::Half(at + 4, 0x96)]
        };
        Self { alternatives: vec![v4(26), v4(30), v6(22), v6(38)] }
    }

    /// Drops what is sent to any of these addresses.
    pub fn nothing_to(addresses: &[IpAddr]) -> Self {
        let alternatives = addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => {
                vec![Condition::Half(12, ETHERTYPE_V4), Condition::Word(30, u32::from(*v4))]
            }
            IpAddr::V6(v6) => {
                let words = v6.octets();
                let words = words.chunks_exact(4).zip((38..).step_by(4));
                let words = words.map(|(word, at)| {
                    Condition::Word(
                        at,
                        word.iter().fold(0, |sum, byte| (sum << 8) | u32::from(*byte)),
                    )
                });
                std::iter::once(Condition::Half(12, ETHERTYPE_V6)).chain(words).collect()
            }
        });
        Self { alternatives: alternatives.collect() }
    }

    /// Attaches it to an interface of a namespace.
    pub fn attach(
        &self,
        netns: &Netns,
        interface: &str,
        direction: Direction,
        order: Order,
    ) -> Result<Attached> {
        let program = testrun::load(Kind::SchedCls, &self.code(), 0)?;
        let ifindex = netns.ifindex(interface)?;
        let link = netns
            .run(|| sys::link_create(program.as_fd(), ifindex, direction as u32, order as u32))?;
        let link = link.with_context(|| {
            format!("attach a foreign program to {interface}; tcx needs kernel 6.6")
        })?;
        Ok(Attached { _link: link })
    }

    fn code(&self) -> Vec<u64> {
        // r6 = r1: absolute loads take the packet from r6 and put what they read into r0.
        let mut code = vec![instruction(0xbf, 0x16, 0, 0)];
        for conditions in &self.alternatives {
            for (index, condition) in conditions.iter().enumerate() {
                let (load, at, value) = match *condition {
                    Condition::Half(at, value) => (0x28, at, value),
                    Condition::Word(at, value) => (0x20, at, value),
                };
                code.push(instruction(load, 0, 0, at));
                // To the next alternative: over the loads and jumps left and the two of the drop.
                let left =
                    i16::try_from((conditions.len() - index - 1) * 2 + 2).unwrap_or(i16::MAX);
                // A 32-bit comparison (BPF_JMP32 | BPF_JNE), since an immediate is sign-extended.
                code.push(instruction(0x56, 0, left, value));
            }
            code.extend(returning(TC_ACT_SHOT));
        }
        code.extend(returning(TCX_NEXT));
        code
    }
}

fn returning(value: i32) -> [u64; 2] {
    [instruction(0xb7, 0, 0, value.cast_unsigned()), instruction(0x95, 0, 0, 0)]
}

/// One instruction; `registers` holds the source in the high and the target in the low half.
fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | (u64::from(registers) << 8)
        | (u64::from(offset.cast_unsigned()) << 16)
        | (u64::from(immediate) << 32)
}
