//! Does a neighbour answer? Asked by ARP (RFC 826) and neighbour solicitations (RFC 4861), as the
//! kernel does itself.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use super::socket::Frames;

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// How often the question is repeated while there is no answer.
const REPEAT: Duration = Duration::from_millis(100);

/// A neighbour, and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Question {
    pub(super) neighbour: IpAddr,
    /// Our address, of the same family.
    pub(super) own: IpAddr,
    pub(super) mac: Mac,
}

/// Asks until everybody has answered or until the deadline, and tells who has. With `first`, until
/// anybody has.
pub(super) async fn ask(
    index: u32,
    questions: &[Question],
    deadline: Instant,
    first: bool,
) -> io::Result<BTreeSet<IpAddr>> {
    let mut answered = BTreeSet::new();
    if questions.is_empty() {
        return Ok(answered);
    }
    let frames = Frames::open(index)?;
    let enough = |answered: &BTreeSet<IpAddr>| {
        answered.len() == questions.len() || (first && !answered.is_empty())
    };
    while !enough(&answered) && Instant::now() < deadline {
        let left = questions.iter().filter(|question| !answered.contains(&question.neighbour));
        for frame in left.filter_map(Question::frame) {
            if let Err(error) = frames.send(&frame) {
                // The link may be down for a moment, as while a driver makes its queues anew.
                tracing::debug!(index, %error, "a neighbour could not be asked");
            }
        }
        let until = deadline.min(Instant::now() + REPEAT);
        while !enough(&answered) {
            match timeout_at(until, frames.receive()).await {
                Ok(Ok(frame)) => {
                    let of = answer(&frame);
                    let asked = questions.iter().map(|question| question.neighbour);
                    answered.extend(asked.filter(|neighbour| of == Some(*neighbour)));
                }
                // Told once when the link goes down; the next question goes out all the same.
                Ok(Err(_)) => sleep_until(until).await,
                Err(_) => break,
            }
            if Instant::now() >= until {
                break;
            }
        }
    }
    Ok(answered)
}

impl Question {
    /// The frame that asks; none if the two addresses are of different families.
    fn frame(&self) -> Option<Vec<u8>> {
        match (self.neighbour, self.own) {
            (IpAddr::V4(neighbour), IpAddr::V4(own)) => Some(arp(neighbour, own, self.mac)),
            (IpAddr::V6(neighbour), IpAddr::V6(own)) => {
                Some(solicitation(neighbour, own, self.mac))
            }
            _ => None,
        }
    }
}

fn arp(neighbour: Ipv4Addr, own: Ipv4Addr, mac: Mac) -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(mac);
    // ARP; Ethernet, IPv4, lengths of their addresses, request.
    frame.extend([0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend(own.octets());
    frame.extend([0; 6]);
    frame.extend(neighbour.octets());
    // The shortest frame that Ethernet has.
    frame.resize(60, 0);
    frame
}

fn solicitation(neighbour: Ipv6Addr, own: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let [.., a, b, c] = neighbour.octets();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), 0);
    let mut group = group.octets();
    (group[14], group[15]) = (b, c);
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(neighbour.octets());
    // Option 1, one unit of eight bytes: our own link-layer address.
    message.extend([1, 1]);
    message.extend(mac);
    let length = [0, u8::try_from(message.len()).unwrap_or(0)];

    let mut sum = Sum::default();
    sum.add(&own.octets());
    sum.add(&group);
    sum.add(&length);
    sum.add(&[0, 58]);
    sum.add(&message);
    let checksum = sum.checksum().to_be_bytes();
    (message[2], message[3]) = (checksum[0], checksum[1]);

    let mut frame = vec![0x33, 0x33, 0xff, a, b, c];
    frame.extend(mac);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    frame.extend(length);
    // ICMPv6; only hop limit 255 is believed to come from the link.
    frame.extend([58, 255]);
    frame.extend(own.octets());
    frame.extend(group);
    frame.extend(message);
    frame
}

/// The internet checksum (RFC 1071) of an even number of bytes.
#[derive(Default)]
struct Sum(u32);

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        let words = bytes.as_chunks::<2>().0;
        self.0 += words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum::<u32>();
    }

    #[expect(clippy::cast_possible_truncation, reason = "folded")]
    fn checksum(&self) -> u16 {
        let folded = (self.0 & 0xffff) + (self.0 >> 16);
        !(((folded & 0xffff) + (folded >> 16)) as u16)
    }
}

/// Whose answer a frame is.
fn answer(frame: &[u8]) -> Option<IpAddr> {
    let bytes = |from: usize, length: usize| frame.get(from..from + length);
    match bytes(12, 2)? {
        [0x08, 0x06] if bytes(20, 2)? == [0, 2] => {
            let sender: [u8; 4] = bytes(28, 4)?.try_into().ok()?;
            Some(IpAddr::from(sender))
        }
        // Only hop limit 255 is believed to come from the link (RFC 4861, 7.1.2).
        [0x86, 0xdd] if bytes(20, 2)? == [58, 255] && bytes(54, 1)? == [136] => {
            let target: [u8; 16] = bytes(62, 16)?.try_into().ok()?;
            Some(IpAddr::from(target))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn an_arp_request_and_its_answer() {
        let (own, neighbour) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let request = arp(neighbour, own, MAC);
        assert_eq!(request.len(), 60);
        assert_eq!(request[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 8, 6]);
        assert_eq!(
            (request[28..32].to_vec(), request[38..42].to_vec()),
            (vec![10, 0, 0, 1], vec![10, 0, 0, 2])
        );
        assert_eq!(answer(&request), None, "a question is no answer");
        let mut reply = arp(own, neighbour, [2, 0, 0, 0, 0, 9]);
        reply[21] = 2;
        assert_eq!(answer(&reply), Some(neighbour.into()));
        assert_eq!(answer(&reply[..30]), None);
    }

    #[test]
    fn a_neighbour_solicitation_and_its_answer() {
        let (own, neighbour): (Ipv6Addr, Ipv6Addr) =
            ("fe80::1".parse().unwrap(), "fe80::12:3456".parse().unwrap());
        let frame = solicitation(neighbour, own, MAC);
        assert_eq!(frame[..6], [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
        assert_eq!(frame[38..54], "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap().octets());
        // With its checksum, the sum over pseudo header and message is all ones.
        let mut sum = Sum::default();
        sum.add(&frame[22..54]);
        sum.add(&frame[18..20]);
        sum.add(&[0, frame[20]]);
        sum.add(&frame[54..]);
        assert_eq!(sum.checksum(), 0);
        assert_eq!(answer(&frame), None, "a question is no answer");
        let mut reply = frame;
        reply[54] = 136;
        assert_eq!(answer(&reply), Some(neighbour.into()));
        assert_eq!(answer(&reply[..70]), None);
        reply[21] = 254;
        assert_eq!(answer(&reply), None, "from another network");
    }
}
