//! What a file is cut into.

use std::io;

/// The longest object that is read. The API server refuses objects far below that.
pub(super) const LONGEST_OBJECT: usize = 32 << 20;

/// Where an object is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// From 1.
    pub(super) document: u32,
    /// From 0, in a `kind: List` document.
    pub(super) item: Option<u32>,
    /// Where it begins, from 1.
    pub(super) line: u64,
}

/// The text of one object.
pub(super) struct Piece<'a> {
    /// Where it is.
    pub(super) place: Place,
    /// Its text, unless it is longer than [`LONGEST_OBJECT`].
    pub(super) text: Option<&'a [u8]>,
    /// The kind of the list that it is an item of, if that came before.
    pub(super) list_kind: Option<&'a str>,
    /// In YAML: the text is that of a list with this one item.
    pub(super) as_item: bool,
}

/// Why a file cannot be cut into objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// From 1.
    pub(super) line: u64,
    pub(super) problem: String,
}

impl Broken {
    pub(super) fn at(line: u64, problem: &str) -> Self {
        Self { line, problem: problem.to_owned() }
    }

    pub(super) fn read(line: u64, error: &io::Error) -> Self {
        Self { line, problem: format!("reading failed: {error}") }
    }
}
