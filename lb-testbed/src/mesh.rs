//! What a service mesh does to the namespace of a pod: what its processes send to a Service is
//! redirected to a proxy beside them, by nftables. Written over netlink, so that tests need no `nft`.

use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use crate::netns::Netns;

// linux/netfilter/nfnetlink.h and nf_tables.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = (NFTABLES << 8) | 2;
const NEW_CHAIN: u16 = (NFTABLES << 8) | 3;
const NEW_RULE: u16 = (NFTABLES << 8) | 6;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const FAMILY_IP: u8 = 2;

/// Redirects what processes in a namespace send to an IPv4 address, any protocol, to a port of their
/// own. As meshes do: from the `nat` chain at the output hook, through a chain of the mesh's.
pub fn redirect(netns: &Netns, to: Ipv4Addr, port: u16) -> Result<()> {
    let hook = [number(1, 3), number(2, (-100_i32).cast_unsigned())].concat();
    let chain = |name, more: &[u8]| [text(1, "mesh"), text(3, name), more.to_vec()].concat();
    let base = chain("OUTPUT", &[attribute(4, &hook), text(7, "nat")].concat());
    let rule = |chain, expressions: &[Vec<u8>]| {
        let list: Vec<u8> = expressions.iter().flat_map(|each| attribute(1, each)).collect();
        [text(1, "mesh"), text(2, chain), attribute(4, &list)].concat()
    };
    // Both verdicts and values are data of "immediate"; jump is -3.
    let jump = [number(1, (-3_i32).cast_unsigned()), text(2, "MESH_REDIRECT")].concat();
    let jump = [number(1, 0), attribute(2, &attribute(2, &jump))].concat();
    // Four bytes of the network header, from 16 on: the destination.
    let load = [number(1, 1), number(2, 1), number(3, 16), number(4, 4)].concat();
    let equal = [number(1, 1), number(2, 0), attribute(3, &attribute(1, &to.octets()))].concat();
    let value = [number(1, 2), attribute(2, &attribute(1, &port.to_be_bytes()))].concat();
    let redirect = [
        expression("payload", &load),
        expression("cmp", &equal),
        expression("immediate", &value),
        expression("redir", &number(1, 2)),
    ];
    send(
        netns,
        &[
            (NEW_TABLE, CREATE, text(1, "mesh")),
            (NEW_CHAIN, CREATE, base),
            (NEW_CHAIN, CREATE, chain("MESH_REDIRECT", &[])),
            (NEW_RULE, CREATE | APPEND, rule("OUTPUT", &[expression("immediate", &jump)])),
            (NEW_RULE, CREATE | APPEND, rule("MESH_REDIRECT", &redirect)),
        ],
    )
}

/// Takes [`redirect`]'s rules away.
pub fn remove(netns: &Netns) -> Result<()> {
    send(netns, &[(DELETE_TABLE, 0, text(1, "mesh"))])
}

/// All or nothing.
fn send(netns: &Netns, messages: &[(u16, u16, Vec<u8>)]) -> Result<()> {
    let frame = |kind| message(kind, 0, 0, &[0, 0, 0, 10]);
    let mut batch = frame(BATCH_BEGIN);
    for (sequence, (kind, flags, attributes)) in (1..).zip(messages) {
        let payload = [&[FAMILY_IP, 0, 0, 0], attributes.as_slice()].concat();
        batch.extend(message(*kind, flags | ACK, sequence, &payload));
    }
    batch.extend(frame(BATCH_END));
    netns
        .run(|| {
            let mut socket = Socket::new(NETLINK_NETFILTER)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            socket.send_to(&batch, &SocketAddr::new(0, 0), 0)?;
            let mut answers = 0;
            while answers < messages.len() {
                let (bytes, _) = socket.recv_from_full()?;
                // A header of 16 bytes, and then an error number, zero if it was done.
                let code = bytes.get(16..).and_then(|rest| rest.first_chunk().copied());
                match code.map(i32::from_ne_bytes) {
                    Some(0) => answers += 1,
                    Some(code) => return Err(io::Error::from_raw_os_error(-code)),
                    None => return Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
            Ok(())
        })?
        .context("write rules of nftables")
}

fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(16 + payload.len()).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((REQUEST | flags).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    [text(1, name), attribute(2, data)].concat()
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or_default().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn text(kind: u16, text: &str) -> Vec<u8> {
    attribute(kind, format!("{text}\0").as_bytes())
}

fn number(kind: u16, number: u32) -> Vec<u8> {
    attribute(kind, &number.to_be_bytes())
}
