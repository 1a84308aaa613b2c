//! How is the kernel asked over netlink, and how are its answers taken apart?
//!
//! One question after the other, for threads that may block. The kernel answers while it is asked:
//! an answer that is not there at once will not come, so that nothing here ever waits.

use std::io;
use std::ops::ControlFlow;

use netlink_sys::{Socket, SocketAddr};

/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;
/// The kernel makes no message larger than this for a dump.
const BUFFER: usize = 64 << 10;
/// What a dump may consist of: more is no answer that is worth its time.
const MAX_BYTES: usize = 64 << 20;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// A netlink socket in the network namespace of the thread that made it.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of a protocol, as `netlink_sys::protocols` names them.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// The socket itself.
    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Asks for all objects of a kind; `each` gets the payload of one after the other, until it says
    /// to stop.
    pub(super) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, payload)?;
        let mut total = 0_usize;
        loop {
            let length = self.receive()?;
            total = total.saturating_add(length);
            if total > MAX_BYTES {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
                match message.meaning(self.sequence)? {
                    Meaning::Other => {}
                    Meaning::Done => return Ok(()),
                    Meaning::Object => {
                        if each(message.payload).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Asks for something to be done, and whether it was.
    pub(super) fn request(&mut self, kind: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, payload)?;
        loop {
            let length = self.receive()?;
            for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
                if let Meaning::Done = message.meaning(self.sequence)? {
                    return Ok(());
                }
            }
        }
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(kind, flags, self.sequence, payload)?;
        self.socket.send_to(&message, &SocketAddr::new(0, 0), 0).map(drop)
    }

    /// One datagram of the kernel's; others cannot send us any that count.
    fn receive(&mut self) -> io::Result<usize> {
        loop {
            let mut room = self.buffer.as_mut_slice();
            let (length, from) = self.socket.recv_from(&mut room, 0)?;
            if from.port_number() == 0 {
                return Ok(length);
            }
        }
    }
}

/// A message with its header; all fields are in the machine's order.
pub(super) fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER + payload.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut bytes = Vec::with_capacity(HEADER + payload.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

#[derive(Debug)]
struct Message<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

enum Meaning {
    Object,
    Done,
    Other,
}

impl Message<'_> {
    fn meaning(&self, sequence: u32) -> io::Result<Meaning> {
        if self.sequence != sequence {
            return Ok(Meaning::Other);
        }
        match self.kind {
            NLMSG_NOOP => Ok(Meaning::Other),
            // Both carry an error number first, negative; zero says that it was done.
            NLMSG_ERROR | NLMSG_DONE => match native_u32(self.payload, 0).unwrap_or(0) {
                0 => Ok(Meaning::Done),
                code => Err(io::Error::from_raw_os_error(code.cast_signed().wrapping_neg().max(1))),
            },
            _ => Ok(Meaning::Object),
        }
    }
}

/// The messages of a datagram; ends with the first that is not whole.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(native_u32(self.0, 0)?).ok()?;
        let message = self.0.get(..length)?;
        let kind = native_u16(message, 4)?;
        let sequence = native_u32(message, 8)?;
        let payload = message.get(HEADER..)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, sequence, payload })
    }
}

/// The attributes of an object, each with its type; ends with the first that is not whole.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a>(pub(super) &'a [u8]);

impl<'a> Attributes<'a> {
    /// The first of a type.
    pub(super) fn find(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// The first of a type, as text; the zero at its end is left out.
    pub(super) fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.find(kind)?;
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        std::str::from_utf8(bytes.get(..end)?).ok()
    }

    /// The first of a type, as a number in network order.
    pub(super) fn number(&self, kind: u16) -> Option<u32> {
        self.find(kind)?.first_chunk().copied().map(u32::from_be_bytes)
    }

    /// The attributes within the first of a type.
    pub(super) fn nested(&self, kind: u16) -> Attributes<'a> {
        Attributes(self.find(kind).unwrap_or_default())
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        // The highest two bits tell of nesting and byte order.
        const TYPE: u16 = 0x3fff;
        let length = usize::from(native_u16(self.0, 0)?);
        let kind = native_u16(self.0, 2)? & TYPE;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Four bytes in the machine's order.
pub(super) fn native_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_ne_bytes)
}

/// Two bytes in the machine's order.
pub(super) fn native_u16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes)
}

/// Bytes of an attribute, with the padding behind it; for requests.
#[cfg(test)]
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len() + 4).unwrap_or(u16::MAX).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use netlink_sys::protocols::NETLINK_ROUTE;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_and_attributes_are_taken_apart() {
        let payload = [attribute(3, b"OUTPUT\0"), attribute(0x8001, &7_u32.to_be_bytes())].concat();
        let bytes = [
            message(20, 0, 9, &payload).unwrap(),
            message(NLMSG_DONE, 0, 9, &0_u32.to_ne_bytes()).unwrap(),
        ]
        .concat();
        let mut messages = Messages(&bytes);
        let object = messages.next().unwrap();
        assert!(matches!(object.meaning(9), Ok(Meaning::Object)));
        assert!(matches!(object.meaning(8), Ok(Meaning::Other)), "an answer to an old question");
        let attributes = Attributes(object.payload);
        assert_eq!((attributes.text(3), attributes.number(1)), (Some("OUTPUT"), Some(7)));
        assert!(matches!(messages.next().unwrap().meaning(9), Ok(Meaning::Done)));
        assert!(messages.next().is_none());
    }

    #[test]
    fn an_error_is_told_by_its_number() {
        let code = (-libc::EPERM).to_ne_bytes();
        let bytes = message(NLMSG_ERROR, 0, 1, &code).unwrap();
        let error = Messages(&bytes).next().unwrap().meaning(1).err().unwrap();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_kernel_answers_while_it_is_asked() {
        let mut netlink = Netlink::open(NETLINK_ROUTE).unwrap();
        let mut links = 0;
        // RTM_GETLINK of any family: there is always `lo`.
        netlink
            .dump(18, &[0; 16], |_| {
                links += 1;
                ControlFlow::Continue(())
            })
            .unwrap();
        assert!(links > 0);
        assert!(netlink.request(0xffff, &[]).is_err(), "there is nothing of that kind");
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart_without_harm(bytes: Vec<u8>) {
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER);
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4 + 1);
            for message in Messages(&bytes) {
                drop(message.meaning(0));
                prop_assert!(Attributes(message.payload).text(1).is_none_or(|t| t.len() < 65536));
            }
        }
    }
}
