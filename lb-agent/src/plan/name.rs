//! How is a service port named in `NAMES`, so that a restarted agent finds its ids again?

use std::sync::Arc;

use lb_common::abi::{NAME_LEN, Name};

use crate::model::{Family, PortKey, Protocol};

/// The element of `NAMES` for a service port, or nothing if it is longer than the API allows.
pub fn encode(key: &PortKey) -> Option<Box<Name>> {
    let text = display(key);
    let mut name = Box::new([0; NAME_LEN]);
    name.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
    Some(name)
}

/// The service port that an element of `NAMES` tells.
pub fn decode(text: &str) -> Option<PortKey> {
    let mut parts = text.split('/');
    let (namespace, names, suffix) = (parts.next()?, parts.next()?, parts.next()?);
    let (service, port) = names.split_once(':')?;
    let (protocol, family) = suffix.split_at_checked(suffix.len().checked_sub(1)?)?;
    if parts.next().is_some() {
        return None;
    }
    Some(PortKey {
        namespace: Arc::from(namespace),
        service: Arc::from(service),
        port: Arc::from(port),
        protocol: match protocol {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            _ => return None,
        },
        family: match family {
            "4" => Family::V4,
            "6" => Family::V6,
            _ => return None,
        },
    })
}

/// The text of a name: what precedes its first zero.
pub fn text(name: &Name) -> String {
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(NAME_LEN);
    String::from_utf8_lossy(name.get(..end).unwrap_or_default()).into_owned()
}

/// A service port as people and `NAMES` read it: `default/web:http/TCP4`.
pub fn display(key: &PortKey) -> String {
    let protocol = match key.protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    let family = match key.family {
        Family::V4 => '4',
        Family::V6 => '6',
    };
    format!("{}/{}:{}/{protocol}{family}", key.namespace, key.service, key.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(
        namespace: &str,
        service: &str,
        port: &str,
        protocol: Protocol,
        family: Family,
    ) -> PortKey {
        PortKey {
            namespace: namespace.into(),
            service: service.into(),
            port: port.into(),
            protocol,
            family,
        }
    }

    #[test]
    fn names_are_read_back() {
        let long = "x".repeat(63);
        for key in [
            key("default", "web", "http", Protocol::Tcp, Family::V4),
            key("kube-system", "kube-dns", "", Protocol::Udp, Family::V6),
            key(&long, &long, &long, Protocol::Sctp, Family::V6),
        ] {
            let name = encode(&key).unwrap();
            assert_eq!(decode(&text(&name)), Some(key));
        }
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused_not_cut() {
        let long = "x".repeat(70);
        assert_eq!(encode(&key(&long, &long, &long, Protocol::Tcp, Family::V4)), None);
    }

    #[test]
    fn what_is_no_name_is_no_service_port() {
        for text in
            ["", "a", "a/b/TCP4", "a/b:c/TCP", "a/b:c/ICMP4", "a/b:c/TCP4/x", "a/b:c/", "a/b:c/é"]
        {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
