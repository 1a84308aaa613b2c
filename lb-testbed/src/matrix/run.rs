//! Asks every question of the contract's matrix, and the oracle for each answer.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use super::{
    Engine, TOPOLOGIES, Transport,
    cell::{Column, Destination, Row},
    seen::{self, Drops},
    table::{Cell, Table, expected_word, seen_word},
    world::World,
};
use crate::{
    cluster::Topology,
    oracle::{Expectation, cluster::Protocol, verdict},
};

/// The matrix in every topology.
pub fn all() -> Result<Table> {
    let mut table = Table::default();
    for topology in TOPOLOGIES {
        let mut world = World::new(topology).with_context(|| format!("build: {topology}"))?;
        table.cells.extend(cells(&mut world, topology)?);
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

fn cells(world: &mut World, topology: Topology) -> Result<Vec<Cell>> {
    let questions = questions(world);
    let (clients, counters) = world.clients();
    let drops = Drops::open(&counters)?;
    let mut seen = Vec::new();
    for question in &questions {
        let Question { row, column, to, expected } = question;
        let what = || format!("{topology}, {row}, {column} at {to}");
        let client = clients
            .iter_mut()
            .find(|client| (client.who, client.engine) == (row.who, row.engine))
            .with_context(what)?;
        seen.push(seen::ask(client, &drops, *row, *to, expected).with_context(what)?);
    }
    let cell = |(question, seen): (Question, seen::Seen)| {
        let Question { row, column, expected, .. } = question;
        let own = world.asker(row).ip;
        let server = |at: SocketAddr| if at.ip() == own { "self" } else { world.server(at) };
        Cell {
            topology,
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

fn questions(world: &World) -> Vec<Question> {
    let mut questions = Vec::new();
    for row in Row::all() {
        let engine = match row.engine {
            Engine::Socket => verdict::Engine::Socket,
            Engine::Packet => verdict::Engine::Packet,
        };
        let protocol = match row.transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        for column in Destination::ALL.into_iter().flat_map(Column::of) {
            let to = world.destination(row, column);
            let expected = world.view.expect(engine, &world.asker(row), to, protocol);
            questions.push(Question { row, column, to, expected });
        }
    }
    questions
}
