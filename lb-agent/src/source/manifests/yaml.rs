//! YAML, cut into objects while it is read.
//!
//! Documents are told apart by lines that begin with `---` or `...`, which YAML allows nowhere else.
//! A `kind: List` document, as kubectl prints it, is cut further: behind a line `items:` every line
//! with a dash at the column of the first one begins an item. So a dump of a cluster is never in
//! memory as a whole, and an item that is not YAML costs only itself.

use std::io::BufRead;

use super::pieces::{Broken, LONGEST_OBJECT, Piece, Place};

/// Hands every object of the stream to `take`: each document, or each item of it if it is a list.
///
/// # Errors
///
/// If reading fails or a line has no end. What was handed out before may be half of the file.
pub(super) fn split<R: BufRead>(
    mut reader: R,
    take: &mut dyn FnMut(Piece<'_>),
) -> Result<(), Broken> {
    let mut cutter = Cutter { whole: Text { line: 1, ..Text::default() }, ..Cutter::default() };
    let mut line = Vec::new();
    loop {
        cutter.line += 1;
        line.clear();
        read_line(&mut reader, &mut line, cutter.line)?;
        if line.is_empty() {
            break;
        }
        cutter.add(&line, take);
    }
    cutter.end_document(take);
    Ok(())
}

fn read_line<R: BufRead>(reader: &mut R, line: &mut Vec<u8>, number: u64) -> Result<(), Broken> {
    loop {
        let chunk = reader.fill_buf().map_err(|error| Broken::read(number, &error))?;
        let end = chunk.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
        let used = end.unwrap_or(chunk.len());
        line.extend_from_slice(chunk.get(..used).unwrap_or_default());
        reader.consume(used);
        if end.is_some() || used == 0 {
            return Ok(());
        }
        if line.len() > LONGEST_OBJECT {
            return Err(Broken::at(number, "the line has no end"));
        }
    }
}

#[derive(Default)]
struct Cutter {
    line: u64,
    document: u32,
    /// The document without its items.
    whole: Text,
    /// The item that is being read.
    item: Text,
    items: Items,
    list_kind: Option<String>,
}

#[derive(Default)]
enum Items {
    /// Not a list so far.
    #[default]
    None,
    /// `items:` was the last line that says something.
    Announced,
    /// In items whose dashes are at `column`; `index` is that of the current one.
    In { column: usize, index: u32 },
    /// Behind the items.
    Done,
}

#[derive(Default)]
struct Text {
    bytes: Vec<u8>,
    /// Where it begins.
    line: u64,
    too_long: bool,
    /// Whether it says anything: not only blank lines and comments.
    says: bool,
}

impl Text {
    fn begin(&mut self, line: u64) {
        self.bytes.clear();
        self.bytes.shrink_to(1 << 20);
        *self = Self { bytes: std::mem::take(&mut self.bytes), line, ..Self::default() };
    }

    fn add(&mut self, line: &[u8]) {
        if self.bytes.len() + line.len() > LONGEST_OBJECT {
            self.too_long = true;
        } else {
            self.bytes.extend_from_slice(line);
        }
        self.says |= says(line);
    }
}

impl Cutter {
    fn add(&mut self, line: &[u8], take: &mut dyn FnMut(Piece<'_>)) {
        if let Some(rest) = marker(line, b"---").or_else(|| marker(line, b"...")) {
            self.end_document(take);
            // What follows the marker on its line belongs to the document, at the same column.
            self.whole.add(b"   ");
            self.whole.add(rest);
            return;
        }
        if line.starts_with(b"%") && !self.whole.says {
            return; // A directive, such as %YAML: the document begins at its marker.
        }
        if let Items::In { column, index } = self.items {
            let indent = indent(line);
            if indent == column && is_dash(line, indent) {
                self.end_item(take);
                self.items = Items::In { column, index: index + 1 };
                self.begin_item(line);
                return;
            }
            if indent > column || !says(line) {
                self.item.add(line);
                return;
            }
            self.end_item(take);
            self.items = Items::Done;
        }
        if matches!(self.items, Items::Announced) && says(line) {
            let column = indent(line);
            if is_dash(line, column) {
                self.items = Items::In { column, index: 0 };
                self.begin_item(line);
                return;
            }
            self.items = Items::None;
        }
        if let Some(rest) = line.strip_prefix(b"items:")
            && matches!(self.items, Items::None)
            && !says(rest)
        {
            self.items = Items::Announced;
        }
        if let Some(kind) = line.strip_prefix(b"kind:") {
            self.list_kind = std::str::from_utf8(kind).ok().map(|kind| kind.trim().to_owned());
        }
        self.whole.add(line);
    }

    fn begin_item(&mut self, line: &[u8]) {
        self.item.begin(self.line);
        self.item.add(line);
    }

    fn end_item(&mut self, take: &mut dyn FnMut(Piece<'_>)) {
        if let Items::In { index, .. } = self.items {
            let place =
                Place { document: self.document + 1, item: Some(index), line: self.item.line };
            take(Piece {
                place,
                text: (!self.item.too_long).then_some(&self.item.bytes),
                list_kind: self.list_kind.as_deref(),
                as_item: true,
            });
        }
    }

    fn end_document(&mut self, take: &mut dyn FnMut(Piece<'_>)) {
        self.end_item(take);
        let is_list = matches!(self.items, Items::In { .. } | Items::Done);
        if self.whole.says || is_list {
            self.document += 1;
        }
        // What is left of a list says nothing more; it is handed on all the same, because it may be
        // broken.
        if self.whole.says {
            take(Piece {
                place: Place { document: self.document, item: None, line: self.whole.line },
                text: (!self.whole.too_long).then_some(&self.whole.bytes),
                list_kind: None,
                as_item: false,
            });
        }
        self.whole.begin(self.line);
        self.items = Items::None;
        self.list_kind = None;
    }
}

/// What follows `marker` if `line` is one.
fn marker<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(marker)?;
    rest.first().is_none_or(u8::is_ascii_whitespace).then_some(rest)
}

fn indent(line: &[u8]) -> usize {
    line.iter().take_while(|byte| **byte == b' ').count()
}

fn is_dash(line: &[u8], indent: usize) -> bool {
    marker(line.get(indent..).unwrap_or_default(), b"-").is_some()
}

/// Whether a line is more than blank or a comment.
fn says(line: &[u8]) -> bool {
    !matches!(line.trim_ascii().first(), None | Some(b'#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    fn pieces(text: &str) -> Vec<(u32, Option<u32>, u64, String)> {
        let mut found = Vec::new();
        split(BufReader::with_capacity(3, text.as_bytes()), &mut |piece| {
            let text = String::from_utf8(piece.text.unwrap().to_vec()).unwrap();
            let Place { document, item, line } = piece.place;
            assert_eq!(piece.as_item, item.is_some());
            found.push((document, item, line, text));
        })
        .unwrap();
        found
    }

    #[test]
    fn documents_are_cut_at_markers_and_empty_ones_do_not_count() {
        let text = "# head\n%YAML 1.2\n---\nkind: A\ntext: |\n  ---\n--- # two\nkind: B\n...\n---\n\n--- {kind: C}\n";
        let found = pieces(text);
        let told: Vec<_> =
            found.iter().map(|(document, item, line, _)| (*document, *item, *line)).collect();
        assert_eq!(told, [(1, None, 3), (2, None, 7), (3, None, 12)]);
        assert_eq!(found[0].3, "   \nkind: A\ntext: |\n  ---\n");
        assert_eq!(found[2].3, "    {kind: C}\n");
    }

    #[test]
    fn a_list_is_cut_into_items_at_its_own_dashes() {
        for pad in ["", "  "] {
            let text = format!(
                "apiVersion: v1\nitems: # all\n\n{pad}- a: 1\n{pad}  b:\n{pad}  - x\n\n# comment\n\
                 {pad}-\n{pad}  a: |\n{pad}    - no item\nkind: List\nmetadata: {{}}\n"
            );
            let found = pieces(&text);
            let told: Vec<_> =
                found.iter().map(|(document, item, line, _)| (*document, *item, *line)).collect();
            assert_eq!(told, [(1, Some(0), 4), (1, Some(1), 9), (1, None, 1)], "{text}");
            assert_eq!(found[0].3, format!("{pad}- a: 1\n{pad}  b:\n{pad}  - x\n\n# comment\n"));
            assert_eq!(found[2].3, "apiVersion: v1\nitems: # all\n\nkind: List\nmetadata: {}\n");
        }
    }

    #[test]
    fn items_that_are_no_block_list_stay_in_their_document() {
        for text in ["items:\n  a: 1\nkind: A\n", "items: [1]\n", "items:\nkind: List\n"] {
            assert_eq!(pieces(text).len(), 1, "{text}");
        }
    }

    #[test]
    fn lists_and_documents_follow_each_other() {
        let text = "items:\n- a: 1\n---\nkind: A\n---\nkind: List\nitems:\n- b: 1\n- c: 2\n";
        let told: Vec<_> = pieces(text)
            .iter()
            .map(|(document, item, line, _)| (*document, *item, *line))
            .collect();
        assert_eq!(
            told,
            [
                (1, Some(0), 2),
                (1, None, 1),
                (2, None, 3),
                (3, Some(0), 8),
                (3, Some(1), 9),
                (3, None, 5),
            ]
        );
    }

    #[test]
    fn a_line_without_end_is_broken() {
        let text = vec![b'x'; LONGEST_OBJECT + (1 << 20)];
        assert!(split(text.as_slice(), &mut |_| {}).is_err());
    }
}
