//! kube-proxy itself and Millrace, one after the other in the same namespaces, asked the same
//! questions: each difference is one that `docs/contract.md` tells of.

use std::collections::BTreeSet;

use anyhow::Result;
use lb_testbed::{
    cluster::Topology,
    kube_proxy,
    matrix::{
        cell::Proxy,
        compare::{self, Why},
        run,
    },
    require,
};

/// Rules V-1 to V-10, M-1 to M-7 as kube-proxy follows them, and departures a, b and c.
#[test]
fn kube_proxy_and_millrace_differ_only_where_the_contract_page_says() -> Result<()> {
    let test = "kube_proxy_and_millrace_differ_only_where_the_contract_page_says";
    if !require::root_or_skip(test) {
        return Ok(());
    }
    if let Some(why) = kube_proxy::lacking() {
        require::skip(test, &why);
        return Ok(());
    }
    let table = run::all(&[Topology::Routed], &[Proxy::Millrace, Proxy::KubeProxy])?;
    println!("{table}");
    assert_eq!(table.differing().count(), 0, "{table}");
    let differences = compare::differences(&table);
    let of_unknown = differences.iter().filter(|difference| difference.why == Why::Unknown);
    let unknown: Vec<String> = of_unknown.map(ToString::to_string).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
    // That each is met shows that kube-proxy was asked, and that it serves.
    let met: BTreeSet<Why> = differences.iter().map(|difference| difference.why).collect();
    for why in [Why::KeptFromOff, Why::KeptOnNode, Why::Unreachable, Why::Refused] {
        assert!(met.contains(&why), "no cell differs because {why}");
    }
    let all = table.cells.iter().filter(|cell| cell.proxy == Proxy::KubeProxy).count();
    assert!(differences.len() < all, "hardly anything is the same");
    Ok(())
}
