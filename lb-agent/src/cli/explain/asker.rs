//! Whose socket asks, as far as the socket engine makes a difference?

use std::net::IpAddr;

use lb_agent::datapath::Error;
use lb_agent::datapath::inspect::Inspector;
use lb_agent::datapath::namespaces::{Told, told};
use lb_agent::namespaces;
use lb_agent::plan::{address, words};
use lb_common::abi::{MetaWord, NetnsRecord, client_of_cookie};

use super::Client;
use crate::cli::args::NodeArgs;

/// The namespace of a socket and what is known of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Asker {
    /// The cookie of its network namespace; 0 if that is not known.
    pub(super) cookie: u64,
    /// That of the node's own.
    pub(super) node: u64,
    /// What the agent found out about it.
    pub(super) record: Option<NetnsRecord>,
    /// Only the node's own namespace is served.
    pub(super) node_only: bool,
    /// Nobody is.
    pub(super) off: bool,
    /// Cgroups that are left alone.
    pub(super) bypassed_cgroups: usize,
}

impl Asker {
    /// The socket of a client with that address; without one, of a process of the node itself.
    pub(super) fn find(
        inspector: &Inspector,
        node: &NodeArgs,
        client: Option<Client>,
    ) -> Result<Self, Error> {
        let Told { namespaces: records, cgroups } = told(&node.folder())?;
        let scope = inspector.maps().meta()[MetaWord::SocketScope as usize];
        // Kernels without cookies serve all namespaces alike; any number but 0 does.
        let own = namespaces::own_cookie().unwrap_or(u64::MAX);
        let found = client.and_then(|client| {
            let has = |(_, record): &&(u64, NetnsRecord)| has_address(record, client.ip);
            records.iter().find(has).copied()
        });
        let of_node = client.is_none_or(|client| inspector.is_of_node(client.ip));
        let (cookie, record) = match found {
            Some((cookie, record)) => (cookie, Some(record)),
            None if of_node => {
                let record = records.iter().find(|(cookie, _)| *cookie == own);
                (own, record.map(|(_, record)| *record))
            }
            None => (0, None),
        };
        Ok(Self {
            cookie,
            node: own,
            record,
            node_only: scope == 1,
            off: scope == 2,
            bypassed_cgroups: cgroups.len(),
        })
    }

    /// The namespace, in words.
    pub(super) fn namespace(&self) -> String {
        match self.cookie {
            cookie if cookie == self.node => "the node's own".to_owned(),
            0 => "not known, and taken for another than the node's own".to_owned(),
            cookie => format!("the one with cookie {cookie}"),
        }
    }

    /// A client of session affinity, in words.
    pub(super) fn client(&self, client: &[u32; 4]) -> String {
        if *client == client_of_cookie(self.cookie) {
            return "this network namespace".to_owned();
        }
        let is_v4 = client[1..] == [0; 3];
        format!("client {}", address(client, !is_v4))
    }
}

fn has_address(record: &NetnsRecord, ip: IpAddr) -> bool {
    let words = words(ip);
    match ip {
        IpAddr::V4(_) => record.v4 != 0 && record.v4 == words[0],
        IpAddr::V6(_) => record.v6 != [0; 4] && record.v6 == words,
    }
}
