//! How is an object damaged? At random, but the same for the same seed.

use serde_json::{Map, Value, json};

/// xorshift64*: enough to be everywhere, and the same on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // Seeds that are neighbours must not begin alike, and zero would stay zero.
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 32).unwrap() % bound
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// Damages one place of a value: another type, another size, gone, twice, or moved.
pub(crate) fn value(root: &mut Value, random: &mut Random) {
    let other = pick_place(root, random).clone();
    let place = pick_place(root, random);
    match random.below(10) {
        0..4 => *place = hostile(random),
        4 => *place = other,
        5 => remove_one(place, random),
        6 => repeat_one(place, random),
        7 => add_field(place, random),
        8 => *place = wrap(&place.take(), random),
        _ => hostile_text(place, random),
    }
}

/// Some place in a value, deep ones as often as shallow ones.
fn pick_place<'a>(root: &'a mut Value, random: &mut Random) -> &'a mut Value {
    let mut pointers = Vec::new();
    collect(root, String::new(), &mut pointers);
    let pointer = random.pick(&pointers).clone();
    root.pointer_mut(&pointer).unwrap()
}

/// JSON pointers to everything in a value; of long lists only the beginning.
fn collect(value: &Value, at: String, into: &mut Vec<String>) {
    match value {
        Value::Array(list) => {
            for (index, item) in list.iter().take(8).enumerate() {
                collect(item, format!("{at}/{index}"), into);
            }
        }
        Value::Object(map) => {
            for (key, item) in map {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(item, format!("{at}/{key}"), into);
            }
        }
        _ => {}
    }
    into.push(at);
}

fn hostile(random: &mut Random) -> Value {
    match random.below(12) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!([]),
        3 => json!({}),
        4 => json!(*random.pick(&[
            i64::MIN,
            -1,
            0,
            1,
            53,
            65_535,
            65_536,
            1 << 31,
            1 << 32,
            i64::MAX
        ])),
        5 => json!(u64::MAX),
        6 => json!(*random.pick(&[0.5, -0.0, 1e308, 80.0])),
        7 => Value::Array(vec![text(random); random.below(40)]),
        8 => (0..random.below(120)).fold(Value::Null, |inner, _| json!([inner])),
        9 => (0..random.below(120)).fold(Value::Null, |inner, _| json!({"spec": inner})),
        _ => text(random),
    }
}

/// Text that means something somewhere, or nothing anywhere.
fn text(random: &mut Random) -> Value {
    const TEXTS: [&str; 56] = [
        "",
        " ",
        "None",
        "Cluster",
        "Local",
        "ClientIP",
        "TCP",
        "UDP",
        "SCTP",
        "tcp",
        "ICMP",
        "IPv4",
        "IPv6",
        "FQDN",
        "ClusterIP",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "Service",
        "EndpointSlice",
        "Node",
        "ServiceCIDR",
        "List",
        "v1",
        "v2",
        "discovery.k8s.io/v1",
        "discovery.k8s.io/v1beta1",
        "networking.k8s.io/v1",
        "here",
        "there",
        "80",
        "-1",
        "0x50",
        "0.0.0.0",
        "127.0.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "010.098.000.001",
        "10.98.0.1",
        "10.98.0.1/24",
        "10.98.0.0/33",
        "1.2.3",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "ff02::1",
        "::ffff:10.98.0.3",
        "fd00:98::7",
        "fd00:98::/129",
        "2021-13-45T99:99:99Z",
        "9999-12-31T23:59:59+99:99",
        "\u{0}\u{7}\u{1b}[2J\r\n",
        "\u{202e}\u{feff}\u{10ffff}",
        "../../etc/passwd",
    ];
    match random.below(8) {
        0 => json!("x".repeat(1 << random.below(15))),
        1 => json!("é".repeat(random.below(300))),
        _ => json!(*random.pick(&TEXTS)),
    }
}

fn hostile_text(place: &mut Value, random: &mut Random) {
    let Value::String(text) = place else {
        *place = hostile(random);
        return;
    };
    let at = text.char_indices().map(|(at, _)| at).nth(random.below(text.len().max(1)));
    let at = at.unwrap_or(text.len());
    match random.below(4) {
        0 => text.truncate(at),
        1 => text
            .insert(at, *random.pick(&['\0', '.', ':', '/', '%', '-', '"', '\u{7f}', '٣', '😀'])),
        2 => *text = text.repeat(random.below(5)),
        _ => *text = text.to_uppercase(),
    }
}

fn remove_one(place: &mut Value, random: &mut Random) {
    match place {
        Value::Array(list) if !list.is_empty() => drop(list.remove(random.below(list.len()))),
        Value::Object(map) if !map.is_empty() => {
            let key = map.keys().nth(random.below(map.len())).unwrap().clone();
            map.remove(&key);
        }
        _ => *place = Value::Null,
    }
}

fn repeat_one(place: &mut Value, random: &mut Random) {
    match place {
        Value::Array(list) if !list.is_empty() => {
            let item = random.pick(list).clone();
            let times = 1 << random.below(9);
            list.extend(std::iter::repeat_n(item, times));
        }
        _ => *place = Value::Array(vec![place.take(); 1 << random.below(6)]),
    }
}

fn add_field(place: &mut Value, random: &mut Random) {
    const FIELDS: [&str; 8] = [
        "service.kubernetes.io/headless",
        "service.kubernetes.io/service-proxy-name",
        "deletionTimestamp",
        "spec",
        "endpoints",
        "ports",
        "items",
        "\u{0}",
    ];
    let field = (*random.pick(&FIELDS)).to_owned();
    let new = hostile(random);
    match place {
        Value::Object(map) => drop(map.insert(field, new)),
        Value::Array(list) => list.push(new),
        _ => *place = Value::Object(Map::from_iter([(field, new)])),
    }
}

fn wrap(inner: &Value, random: &mut Random) -> Value {
    if random.below(2) == 0 { json!([inner]) } else { json!({"value": inner}) }
}

/// Damages the text itself, so that most of the time it is not even JSON.
pub(crate) fn bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(8) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at, random.next().to_le_bytes()[0]),
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 => {
                let end = (at + random.below(64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => {
                let end = (at + random.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
        }
    }
}
