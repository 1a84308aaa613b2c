//! Asks every question of the contract's matrix, and the oracle for each answer.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{
    Engine, Transport,
    cell::{Column, Destination, Proxy, Row},
    seen::{self, Drops, Patience},
    table::{Cell, Table, expected_word, seen_word},
    world::World,
};
use crate::{
    cluster::Topology,
    oracle::{Expectation, cluster::Protocol, verdict},
};

/// The matrix in these topologies, with these proxies one after the other in the same namespaces.
pub fn all(topologies: &[Topology], proxies: &[Proxy]) -> Result<Table> {
    let mut table = Table::default();
    for &topology in topologies {
        let mut world = World::new(topology).with_context(|| format!("build: {topology}"))?;
        for &proxy in proxies {
            let what = || format!("{proxy}, {topology}");
            world.serve(proxy).with_context(what)?;
            table.cells.extend(cells(&mut world, topology, proxy).with_context(what)?);
        }
    }
    Ok(table)
}

/// A question, and the answer that the oracle gives.
struct Question {
    row: Row,
    column: Column,
    to: SocketAddr,
    expected: Expectation,
}

fn cells(world: &mut World, topology: Topology, proxy: Proxy) -> Result<Vec<Cell>> {
    let questions = questions(world, proxy);
    let (clients, counters) = world.clients();
    let drops = Drops::open(counters.as_deref())?;
    let mut patience = Patience::default();
    let mut seen = Vec::new();
    for question in &questions {
        let Question { row, column, to, expected } = question;
        let what = || format!("{row}, {column} at {to}");
        let client = clients
            .iter_mut()
            .find(|client| (client.who, client.engine) == (row.who, row.engine))
            .with_context(what)?;
        let answer = seen::ask(client, &drops, &mut patience, *row, *to, expected);
        seen.push(answer.with_context(what)?);
    }
    let cell = |(question, seen): (Question, seen::Seen)| {
        let Question { row, column, expected, .. } = question;
        let own = world.asker(row).ip;
        let server = |at: SocketAddr| if at.ip() == own { "self" } else { world.server(at) };
        Cell {
            topology,
            proxy,
            row,
            column,
            expected_word: expected_word(&expected, &server),
            seen_word: seen_word(&seen, &server),
            expected,
            seen,
        }
    };
    Ok(questions.into_iter().zip(seen).map(cell).collect())
}

fn questions(world: &World, proxy: Proxy) -> Vec<Question> {
    let mut questions = Vec::new();
    for row in Row::of(proxy) {
        let engine = match (proxy, row.engine) {
            (Proxy::KubeProxy, _) => verdict::Engine::Contract,
            (_, Engine::Socket) => verdict::Engine::Socket,
            (_, Engine::Packet) => verdict::Engine::Packet,
        };
        let protocol = match row.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        let columns = Destination::ALL.into_iter().flat_map(Column::of);
        for column in columns.filter(|column| row.meets(*column)) {
            let to = world.destination(row, column);
            let expected = world.view.expect(engine, &world.asker(row), to, protocol);
            questions.push(Question { row, column, to, expected });
        }
    }
    questions
}
