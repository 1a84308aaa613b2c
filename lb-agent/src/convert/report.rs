//! How is it told what is wrong with an object?

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// One thing that is wrong within an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

/// What is wrong within one object; bounded, because a hostile object has any number of faults.
#[derive(Debug, Default)]
pub struct Findings {
    found: Vec<Finding>,
    untold: usize,
}

impl Findings {
    /// So many are told of one object, the rest is only counted.
    const MOST: usize = 8;

    /// Notes that `field` is not used because of `problem`.
    pub fn add(&mut self, field: &str, problem: impl Into<String>) {
        if self.found.len() < Self::MOST {
            self.found.push(Finding { field: field.to_owned(), problem: problem.into() });
        } else {
            self.untold += 1;
        }
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Everything found, for an object and where it was read; leaves this empty.
    pub fn report(
        &mut self,
        origin: &Origin,
        object: (&'static str, &str, &str),
        skipped: Skipped,
    ) -> Vec<Report> {
        if self.untold > 0 {
            let problem = format!("{} more problems like these in this object", self.untold);
            self.found.push(Finding { field: String::new(), problem });
            self.untold = 0;
        }
        let (kind, namespace, name) = object;
        std::mem::take(&mut self.found)
            .into_iter()
            .map(|Finding { field, problem }| Report {
                origin: origin.clone(),
                kind,
                namespace: quoted_unless_plain(namespace),
                name: quoted_unless_plain(name),
                field,
                problem,
                skipped,
            })
            .collect()
    }
}

/// Where an object was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// From the API server.
    Api,
    /// From a manifest.
    File {
        /// The file.
        path: Arc<Path>,
        /// Which document of the file, from 1; 0 for the file itself.
        document: u32,
        /// Which item of a `kind: List` document, from 0.
        item: Option<u32>,
        /// The line of the fault, else the line where document or item begins; from 1, 0 if there is
        /// none.
        line: u64,
    },
}

/// How much is not served because of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Skipped {
    /// The field only; the object is served without it.
    Part,
    /// The object. What was read of it before stays in force.
    Object,
    /// The file. What was read of it before stays in force.
    File,
}

impl Skipped {
    /// A word for logs and counters.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Part => "part",
            Self::Object => "object",
            Self::File => "file",
        }
    }
}

/// Something in the input that is not served, for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Where the object was read.
    pub origin: Origin,
    /// Its kind, empty if it could not be told.
    pub kind: &'static str,
    /// Its namespace, empty if it has none.
    pub namespace: String,
    /// Its name, empty if it has none.
    pub name: String,
    /// The field, empty if it is about the whole object.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
    /// What is not served because of it.
    pub skipped: Skipped,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Origin::File { path, document, item, line } = &self.origin {
            write!(f, "{}", path.display())?;
            if *document > 0 {
                write!(f, " document {document}")?;
            }
            if let Some(item) = item {
                write!(f, " items[{item}]")?;
            }
            if *line > 0 {
                write!(f, " line {line}")?;
            }
            f.write_str(": ")?;
        }
        if !self.kind.is_empty() {
            write!(f, "{} ", self.kind)?;
        }
        match (self.namespace.as_str(), self.name.as_str()) {
            ("", "") => {}
            ("", name) => write!(f, "{name}: ")?,
            (namespace, name) => write!(f, "{namespace}/{name}: ")?,
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} (skipped: {})", self.problem, self.skipped.name())
    }
}

/// Text from an object as a report may show it: quoted, escaped, not endless.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(64).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

fn quoted_unless_plain(text: &str) -> String {
    if text.len() <= 253 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        text.to_owned()
    } else {
        quoted(text)
    }
}
