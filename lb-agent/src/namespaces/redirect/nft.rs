//! Do rules of nftables redirect what leaves? Dumps chains, and rules where a chain makes it
//! worth while.
//!
//! A rule counts if a packet that a local process sends can reach it: from a `nat` chain at the
//! output hook, by jumps.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::ControlFlow;

use netlink_sys::protocols::NETLINK_NETFILTER;

use crate::namespaces::netlink::{Attributes, Netlink};

// linux/netfilter/nf_tables.h
const SUBSYSTEM: u16 = 10 << 8;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
/// The register of verdicts: to look one up is to jump where an element says.
const NFT_REG_VERDICT: u32 = 0;
/// `NF_INET_LOCAL_OUT`, linux/netfilter.h.
const LOCAL_OUT: u32 = 3;
/// Bytes of `struct nfgenmsg`: family, version, resource.
const HEADER: usize = 4;
/// Rules that are looked at; a pod has dozens.
const MAX_RULES: usize = 1 << 16;

/// Whether rules in the network namespace of this thread do.
pub(super) fn redirects() -> io::Result<bool> {
    let mut netlink = match Netlink::open(NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut rules = Rules::default();
    let chains = netlink.dump(SUBSYSTEM | NFT_MSG_GETCHAIN, &[0; HEADER], |chain| {
        rules.chain(chain);
        ControlFlow::Continue(())
    });
    match chains {
        // netfilter without nftables.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(false),
        chains => chains?,
    }
    if rules.bases.is_empty() {
        return Ok(false);
    }
    netlink.dump(SUBSYSTEM | NFT_MSG_GETRULE, &[0; HEADER], |rule| rules.rule(rule))?;
    Ok(rules.redirect())
}

/// A table: family and name.
type Table = (u8, String);

/// What matters of the rules.
#[derive(Debug, Default)]
struct Rules {
    /// `nat` chains at the output hook.
    bases: BTreeSet<(Table, String)>,
    chains: BTreeMap<(Table, String), Chain>,
    seen: usize,
}

/// What the rules of a chain may do with a packet.
#[derive(Debug, Default)]
struct Chain {
    redirects: bool,
    jumps: BTreeSet<String>,
    /// Jumps by a map of verdicts, which may lead to any chain of the table.
    jumps_by_map: bool,
}

impl Rules {
    fn chain(&mut self, message: &[u8]) {
        let Some((family, attributes)) = split(message) else { return };
        let hook = attributes.nested(NFTA_CHAIN_HOOK).number(NFTA_HOOK_HOOKNUM);
        let names = (attributes.text(NFTA_CHAIN_TABLE), attributes.text(NFTA_CHAIN_NAME));
        if let (Some(table), Some(name)) = names
            && hook == Some(LOCAL_OUT)
            && attributes.text(NFTA_CHAIN_TYPE) == Some("nat")
        {
            self.bases.insert(((family, table.to_owned()), name.to_owned()));
        }
    }

    fn rule(&mut self, message: &[u8]) -> ControlFlow<()> {
        self.seen += 1;
        if self.seen > MAX_RULES {
            return ControlFlow::Break(());
        }
        let Some((family, attributes)) = split(message) else { return ControlFlow::Continue(()) };
        let names = (attributes.text(NFTA_RULE_TABLE), attributes.text(NFTA_RULE_CHAIN));
        let (Some(table), Some(chain)) = names else { return ControlFlow::Continue(()) };
        let mut found = Chain::default();
        for (kind, expression) in attributes.nested(NFTA_RULE_EXPRESSIONS) {
            if kind == NFTA_LIST_ELEM {
                found.take(&Attributes(expression));
            }
        }
        if found.redirects || found.jumps_by_map || !found.jumps.is_empty() {
            let key = ((family, table.to_owned()), chain.to_owned());
            let chain = self.chains.entry(key).or_default();
            chain.redirects |= found.redirects;
            chain.jumps_by_map |= found.jumps_by_map;
            chain.jumps.append(&mut found.jumps);
        }
        ControlFlow::Continue(())
    }

    /// Whether a packet can get from a base to a rule that redirects.
    fn redirect(&self) -> bool {
        let mut reached = self.bases.clone();
        let mut to_do: Vec<_> = reached.iter().cloned().collect();
        // Whoever has a namespace may fill it with rules: no table is gone through twice.
        let mut whole: BTreeSet<Table> = BTreeSet::new();
        while let Some(key) = to_do.pop() {
            let Some(chain) = self.chains.get(&key) else { continue };
            if chain.redirects {
                return true;
            }
            let (table, _) = key;
            let by_map = chain.jumps_by_map && whole.insert(table.clone());
            let all = by_map.then(|| self.chains.keys()).into_iter().flatten();
            let of_table = all.filter(|(of, _)| *of == table);
            let jumps = chain.jumps.iter().map(|name| (table.clone(), name.clone()));
            for next in jumps.chain(of_table.cloned()) {
                if reached.insert(next.clone()) {
                    to_do.push(next);
                }
            }
        }
        false
    }
}

impl Chain {
    fn take(&mut self, expression: &Attributes<'_>) {
        let data = expression.nested(NFTA_EXPR_DATA);
        match expression.text(NFTA_EXPR_NAME) {
            Some("redir") => self.redirects = true,
            // What `iptables-nft` has no expression for stays a target by name.
            Some("target") => self.redirects |= data.text(NFTA_TARGET_NAME) == Some("REDIRECT"),
            Some("immediate") => {
                let verdict = data.nested(NFTA_IMMEDIATE_DATA).nested(NFTA_DATA_VERDICT);
                self.jumps.extend(verdict.text(NFTA_VERDICT_CHAIN).map(str::to_owned));
            }
            Some("lookup") => {
                self.jumps_by_map |= data.number(NFTA_LOOKUP_DREG) == Some(NFT_REG_VERDICT);
            }
            _ => {}
        }
    }
}

fn split(message: &[u8]) -> Option<(u8, Attributes<'_>)> {
    let (header, attributes) = message.split_first_chunk::<HEADER>()?;
    Some((header[0], Attributes(attributes)))
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::namespaces::netlink::attribute;

    const IP: u8 = 2;

    fn message(family: u8, attributes: &[Vec<u8>]) -> Vec<u8> {
        [vec![family, 0, 0, 0], attributes.concat()].concat()
    }

    fn text(kind: u16, text: &str) -> Vec<u8> {
        attribute(kind, format!("{text}\0").as_bytes())
    }

    fn base(family: u8, table: &str, name: &str, kind: &str, hook: u32) -> Vec<u8> {
        let hook = attribute(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes());
        let attributes = [
            text(NFTA_CHAIN_TABLE, table),
            text(NFTA_CHAIN_NAME, name),
            attribute(NFTA_CHAIN_HOOK, &hook),
            text(NFTA_CHAIN_TYPE, kind),
        ];
        message(family, &attributes)
    }

    fn rule(family: u8, table: &str, chain: &str, expressions: &[Vec<u8>]) -> Vec<u8> {
        let list: Vec<_> = expressions.iter().map(|each| attribute(NFTA_LIST_ELEM, each)).collect();
        let attributes = [
            text(NFTA_RULE_TABLE, table),
            text(NFTA_RULE_CHAIN, chain),
            attribute(NFTA_RULE_EXPRESSIONS, &list.concat()),
        ];
        message(family, &attributes)
    }

    fn expression(name: &str, data: &[u8]) -> Vec<u8> {
        [text(NFTA_EXPR_NAME, name), attribute(NFTA_EXPR_DATA, data)].concat()
    }

    fn jump(chain: &str) -> Vec<u8> {
        let verdict = attribute(NFTA_DATA_VERDICT, &text(NFTA_VERDICT_CHAIN, chain));
        expression("immediate", &attribute(NFTA_IMMEDIATE_DATA, &verdict))
    }

    fn found(chains: &[Vec<u8>], rules: &[Vec<u8>]) -> bool {
        let mut all = Rules::default();
        for chain in chains {
            all.chain(chain);
        }
        for rule in rules {
            assert!(all.rule(rule).is_continue());
        }
        all.redirect()
    }

    #[test]
    fn a_redirect_counts_where_what_leaves_can_reach_it() {
        let output = base(IP, "nat", "OUTPUT", "nat", LOCAL_OUT);
        let chains = [output, base(IP, "nat", "PREROUTING", "nat", 0)];
        let redirect = expression("target", &text(NFTA_TARGET_NAME, "REDIRECT"));
        // As a sidecar's init container makes it by iptables-nft.
        let mesh = [
            rule(IP, "nat", "OUTPUT", &[expression("meta", &[]), jump("ISTIO_OUTPUT")]),
            rule(IP, "nat", "ISTIO_OUTPUT", &[jump("ISTIO_REDIRECT")]),
            rule(IP, "nat", "ISTIO_REDIRECT", from_ref(&redirect)),
        ];
        assert!(found(&chains, &mesh));
        assert!(!found(&chains[1..], &mesh), "only what arrives");
        assert!(!found(&chains, &mesh[1..]), "nobody jumps there");
        let arrives = [
            rule(IP, "nat", "PREROUTING", &[jump("IN")]),
            rule(IP, "nat", "IN", from_ref(&redirect)),
        ];
        assert!(!found(&chains, &arrives));
        let elsewhere = [
            rule(IP, "nat", "OUTPUT", &[jump("X")]),
            rule(IP, "other", "X", from_ref(&redirect)),
            rule(10, "nat", "X", from_ref(&redirect)),
        ];
        assert!(!found(&chains, &elsewhere), "jumps do not leave a table");
        let dnat = [rule(IP, "nat", "OUTPUT", &[expression("nat", &[])])];
        assert!(!found(&chains, &dnat), "a container's own DNS is no mesh");
    }

    #[test]
    fn a_redirect_of_nft_itself_and_jumps_by_maps_count() {
        let chains = [base(1, "mesh", "out", "nat", LOCAL_OUT)];
        let redirect = expression("redir", &[]);
        assert!(found(&chains, &[rule(1, "mesh", "out", from_ref(&redirect))]));
        let map = expression("lookup", &attribute(NFTA_LOOKUP_DREG, &[0; 4]));
        let set = expression("lookup", &[]);
        let target = rule(1, "mesh", "by-port", from_ref(&redirect));
        assert!(found(&chains, &[rule(1, "mesh", "out", &[map]), target.clone()]));
        assert!(!found(&chains, &[rule(1, "mesh", "out", &[set]), target]));
    }

    #[test]
    fn chains_that_lead_to_each_other_end() {
        let chains = [base(IP, "nat", "OUTPUT", "nat", LOCAL_OUT)];
        let rules = [
            rule(IP, "nat", "OUTPUT", &[jump("a")]),
            rule(IP, "nat", "a", &[jump("b")]),
            rule(IP, "nat", "b", &[jump("a"), jump("OUTPUT")]),
        ];
        assert!(!found(&chains, &rules));
    }

    #[test]
    fn as_many_jumps_by_maps_as_anyone_can_make_are_followed_in_a_moment() {
        let chains = [base(IP, "nat", "0", "nat", LOCAL_OUT)];
        let map = expression("lookup", &attribute(NFTA_LOOKUP_DREG, &[0; 4]));
        let rules: Vec<_> =
            (0..20_000).map(|n| rule(IP, "nat", &n.to_string(), from_ref(&map))).collect();
        let began = Instant::now();
        assert!(!found(&chains, &rules));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    proptest! {
        #[test]
        fn any_bytes_are_harmless(messages: Vec<Vec<u8>>) {
            let mut rules = Rules::default();
            for message in &messages {
                rules.chain(message);
                prop_assert!(rules.rule(message).is_continue());
            }
            prop_assert!(rules.chains.len() <= messages.len());
            rules.redirect();
        }

        #[test]
        fn a_rule_cut_anywhere_is_harmless(at in 0_usize..200) {
            let whole = rule(IP, "nat", "OUTPUT", &[jump("ISTIO_OUTPUT"), expression("redir", &[])]);
            let mut rules = Rules::default();
            prop_assert!(rules.rule(&whole[..at.min(whole.len())]).is_continue());
        }
    }
}
