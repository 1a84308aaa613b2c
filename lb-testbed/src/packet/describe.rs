//! Packets for people: what is in it, and where two of them differ.

use super::{
    Link,
    protocol::{ICMP, ICMPV6, SCTP, TCP, UDP},
    read,
};

/// One line per layer.
pub fn describe(bytes: &[u8], link: Link) -> String {
    let mut text = String::new();
    describe_into(&mut text, bytes, link, "");
    text
}

/// Empty for equal packets; else both descriptions and the bytes that differ.
pub fn diff(expected: &[u8], actual: &[u8], link: Link) -> String {
    if expected == actual {
        return String::new();
    }
    let mut text = format!(
        "expected ({} bytes):\n{}actual ({} bytes):\n{}",
        expected.len(),
        describe(expected, link),
        actual.len(),
        describe(actual, link)
    );
    for row in (0..expected.len().max(actual.len())).step_by(16) {
        let (wanted, got) = (part(expected, row), part(actual, row));
        if wanted != got {
            line(&mut text, &format!("{row:#06x}  -{}\n        +{}", hex(wanted), hex(got)));
        }
    }
    text
}

fn describe_into(text: &mut String, bytes: &[u8], link: Link, indent: &str) {
    let parsed = match read::parse(bytes, link) {
        Ok(parsed) => parsed,
        Err(error) => return line(text, &format!("{indent}unreadable: {error:#}: {}", hex(bytes))),
    };
    if let Some([dst, src]) = parsed.macs {
        let vlans = &parsed.vlans;
        line(text, &format!("{indent}eth {} > {} vlans {vlans:?}", hex(&src), hex(&dst)));
    }
    line(
        text,
        &format!(
            "{indent}ip {} > {} ttl {} tos {:#04x} length {} extensions {:?} fragment {:?}",
            parsed.src,
            parsed.dst,
            parsed.ttl,
            parsed.tos,
            parsed.claimed,
            parsed.extensions,
            parsed.fragment
        ),
    );
    let upper = bytes.get(parsed.upper_at..parsed.end).unwrap_or_default();
    let name = match parsed.protocol {
        TCP => "tcp",
        UDP => "udp",
        SCTP => "sctp",
        ICMP => "icmp",
        ICMPV6 => "icmpv6",
        _ => "protocol",
    };
    let ports =
        parsed.ports.map_or_else(String::new, |[sport, dport]| format!(" {sport} > {dport}"));
    let number = parsed.protocol;
    line(text, &format!("{indent}{name} ({number}){ports}: {}", hex(upper)));
    if read::is_icmp_error(parsed.protocol, upper) && parsed.fragment.is_none() {
        let inner = upper.get(8..).unwrap_or_default();
        describe_into(text, inner, Link::None, &format!("{indent}  "));
    }
    if let Err(error) = read::checksums_ok(bytes, link) {
        line(text, &format!("{indent}! {error:#}"));
    }
}

fn part(bytes: &[u8], row: usize) -> &[u8] {
    bytes.get(row..bytes.len().min(row + 16)).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble| char::from_digit(u32::from(nibble), 16).unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0x0f)]).collect()
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}
