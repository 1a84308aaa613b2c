//! Results go to standard output, for people or for programs.

use std::io::{self, Write as _};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::error::{Error, Exit};

/// How results are written.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// How to write the result: for people, or one JSON document for programs
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Table,
    Json,
}

impl OutputArgs {
    /// Writes a result in one of the two ways.
    pub(super) fn write<T: Serialize>(
        self,
        result: &T,
        for_people: impl FnOnce(&T) -> String,
    ) -> Result<(), Error> {
        let mut text = match self.output {
            Format::Table => for_people(result),
            Format::Json => serde_json::to_string_pretty(result)
                .map_err(|error| Error::system("write the result as JSON")(error.into()))?,
        };
        if !text.ends_with('\n') {
            text.push('\n');
        }
        print(&text)
    }
}

/// Writes text to standard output. A reader that has seen enough, as `head`, is no failure.
pub(super) fn print(text: &str) -> Result<(), Error> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::system("write to standard output")(error))
        }
        _ => Ok(()),
    }
}

/// Says something on standard error that is no result.
pub(super) fn note(text: &str) {
    // Nobody may be there to read it.
    drop(writeln!(io::stderr(), "{text}"));
}

impl From<Exit> for u8 {
    fn from(exit: Exit) -> Self {
        exit as Self
    }
}
