//! The contract's matrix for people: one block for each destination, a row for each kind of client,
//! a short word for what became of it.

use std::{collections::BTreeMap, fmt};

use super::{
    cell::{Backends, Column, Destination, Proxy, Row},
    compare::{self, Why},
    seen::Seen,
};
use crate::{
    cluster::Topology,
    oracle::{Engine, Expectation, Source, Verdict, cluster::Policy},
};

const LEGEND: &str = "\
rows     pod: in a network namespace of its own; process, host pod: in that of the node; pod off: a
         pod of a node without a proxy; outside: a machine behind a router
         socket, packet: the engine of Millrace that serves the client
columns  policy of both kinds of traffic, and where the Service has its endpoints: a pod of the node
         (here), a pod of another node (else), the client itself (self), the node (node), another
         node (node2), a pod of the node that terminates but serves (term), the same beside a pod of
         another node that stays (t+els), nowhere (none)
cells    which of these answered (self: the client); *: it saw another source than that of a direct
         connection; x: refused at once (ECONNREFUSED, by RST or port unreachable in packets); x+1:
         the same when the SYN is sent again;
         !: EHOSTUNREACH at once; #: EPERM at once; ...: dropped, no answer; -: left alone; ?: none of these
         expected/seen where the contract says otherwise
";

/// One cell in one topology.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The topology of the cluster.
    pub topology: Topology,
    /// Who serves.
    pub proxy: Proxy,
    /// The client.
    pub row: Row,
    /// What it asked for.
    pub column: Column,
    /// What the oracle expects.
    pub expected: Expectation,
    /// The same as a short word.
    pub expected_word: String,
    /// What was seen.
    pub seen: Seen,
    /// The same as a short word.
    pub seen_word: String,
}

/// All cells of all topologies.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// The cells.
    pub cells: Vec<Cell>,
}

/// Names backends in short.
pub type Server<'a> = &'a dyn Fn(std::net::SocketAddr) -> &'static str;

impl Cell {
    /// Whether that was seen which is expected.
    pub fn agrees(&self) -> bool {
        if self.proxy == Proxy::KubeProxy {
            compare::is_of_contract(self.row, self.column.backends, &self.expected, &self.seen)
        } else {
            self.seen.agrees_with(&self.expected)
        }
    }
}

/// What is expected, as a short word.
pub fn expected_word(expected: &Expectation, server: Server<'_>) -> String {
    match &expected.verdict {
        Verdict::PassUntouched => "-".into(),
        Verdict::Reject => "x".into(),
        Verdict::Drop if expected.engine == Engine::Socket => "!".into(),
        Verdict::Drop => "...".into(),
        Verdict::Translate(endpoints) => {
            let words = endpoints.iter().map(|(at, source)| backend(server(*at), *source));
            words.collect::<Vec<_>>().join("|")
        }
    }
}

/// What was seen, as a short word.
pub fn seen_word(seen: &Seen, server: Server<'_>) -> String {
    match seen {
        Seen::To(at, source) => backend(server(*at), *source),
        Seen::Refused => "x".into(),
        Seen::RefusedLate => "x+1".into(),
        Seen::Unreachable => "!".into(),
        Seen::NotPermitted => "#".into(),
        Seen::Dropped => "...".into(),
        Seen::Silent => "-".into(),
        Seen::Otherwise(_) => "?".into(),
    }
}

fn backend(server: &str, source: Source) -> String {
    format!("{server}{}", if source == Source::Kept { "" } else { "*" })
}

impl Table {
    /// The cells in which the oracle expects something else than was seen.
    pub fn differing(&self) -> impl Iterator<Item = &Cell> {
        self.cells.iter().filter(|cell| !cell.agrees())
    }

    /// A cell of the printed table: what all topologies have in common, or where one differs.
    fn word(&self, proxy: Proxy, row: Row, column: Column) -> String {
        let wanted = (proxy, row, column);
        let mut of_cell =
            self.cells.iter().filter(|cell| (cell.proxy, cell.row, cell.column) == wanted);
        let Some(first) = of_cell.next() else { return String::new() };
        let differs = std::iter::once(first).chain(of_cell).find(|cell| !cell.agrees());
        differs.map_or_else(
            || first.seen_word.clone(),
            |cell| format!("{}/{}", cell.expected_word, cell.seen_word),
        )
    }

    fn block(
        &self,
        f: &mut fmt::Formatter<'_>,
        proxy: Proxy,
        destination: Destination,
    ) -> fmt::Result {
        let columns = Column::of(destination);
        let mut rows = Row::of(proxy);
        rows.retain(|row| self.cells.iter().any(|cell| (cell.proxy, cell.row) == (proxy, *row)));
        let label = rows.iter().map(|row| row.to_string().len()).max().unwrap_or(0);
        let mut lines: Vec<Vec<String>> =
            vec![columns.iter().map(|column| column.backends.head().to_owned()).collect()];
        for row in &rows {
            lines.push(columns.iter().map(|column| self.word(proxy, *row, *column)).collect());
        }
        let width = |index: usize| lines.iter().map(|line| line[index].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns.len()).map(width).collect();
        let half = Backends::ALL.len();
        let of_policy: usize = widths[..half].iter().map(|width| width + 1).sum();
        writeln!(
            f,
            "{:<label$} | {:<of_policy$}| {}",
            destination.to_string(),
            Policy::Cluster.name(),
            Policy::Local.name(),
        )?;
        let labels = std::iter::once(String::new()).chain(rows.iter().map(ToString::to_string));
        for (label_of, line) in labels.zip(&lines) {
            write!(f, "{label_of:<label$}")?;
            for (index, (word, width)) in line.iter().zip(&widths).enumerate() {
                let before = if index % half == 0 { "| " } else { "" };
                write!(f, " {before}{word:<width$}")?;
            }
            writeln!(f)?;
        }
        writeln!(f)
    }
}

impl Table {
    /// How Millrace and kube-proxy differ, where both were asked.
    fn comparison(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proxies =
            |ours: bool| self.cells.iter().any(|cell| (cell.proxy != Proxy::KubeProxy) == ours);
        if !(proxies(true) && proxies(false)) {
            return Ok(());
        }
        let differences = compare::differences(self);
        let mut counts = BTreeMap::new();
        for difference in &differences {
            *counts.entry(difference.why).or_insert(0_u32) += 1;
        }
        writeln!(f, "{} cells differ from kube-proxy's", differences.len())?;
        for (why, count) in counts {
            writeln!(f, "  {count}: {why}")?;
        }
        for difference in differences.iter().filter(|difference| difference.why == Why::Unknown) {
            writeln!(f, "  {difference}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for proxy in Proxy::ALL {
            if self.cells.iter().any(|cell| cell.proxy == proxy) {
                writeln!(f, "{proxy}\n")?;
                for destination in Destination::ALL {
                    self.block(f, proxy, destination)?;
                }
            }
        }
        writeln!(f, "{LEGEND}")?;
        let mut topologies: Vec<String> = Vec::new();
        for cell in &self.cells {
            let name = cell.topology.to_string();
            if !topologies.contains(&name) {
                topologies.push(name);
            }
        }
        let differing = self.differing().count();
        writeln!(
            f,
            "{} cells ({}), {differing} differ from the contract",
            self.cells.len(),
            topologies.join(", ")
        )?;
        for cell in self.differing() {
            let Cell { topology, proxy, row, column, expected, seen, .. } = cell;
            writeln!(
                f,
                "  {proxy}, {topology}, {row}, {column}: expected {expected}, saw {seen:?}"
            )?;
        }
        self.comparison(f)
    }
}
