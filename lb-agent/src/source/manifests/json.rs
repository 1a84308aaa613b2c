//! JSON, cut into objects while it is read.
//!
//! A dump of a cluster is one `kind: List` document of tens of megabytes. It is never in memory as
//! a whole, neither as text nor as a tree: this finds where each item begins and ends, by quotes and
//! brackets alone, and hands out its bytes. Whether they are JSON is for the decoder to say, so that
//! an item that is not costs only itself.

use std::io::BufRead;

use super::pieces::{Broken, LONGEST_OBJECT, Piece, Place};

/// Hands every object of the stream to `take`: each document, or each item of it if it is a list.
///
/// # Errors
///
/// If documents and items cannot be told apart, or reading fails. What was handed out before may be
/// half of the file.
pub(super) fn split<R: BufRead>(reader: R, take: &mut dyn FnMut(Piece<'_>)) -> Result<(), Broken> {
    let mut scanner = Scanner { reader, text: Vec::new(), too_long: false, line: 1 };
    for document in 1.. {
        scanner.begin();
        match scanner.skip_space()? {
            None => break,
            Some(b'{') => scanner.document(document, take)?,
            Some(_) => return Err(scanner.broken("expected an object, which begins with '{'")),
        }
    }
    Ok(())
}

struct Scanner<R> {
    reader: R,
    /// What was read since [`Self::begin`], unless it is too long.
    text: Vec<u8>,
    too_long: bool,
    line: u64,
}

impl<R: BufRead> Scanner<R> {
    fn document(&mut self, document: u32, take: &mut dyn FnMut(Piece<'_>)) -> Result<(), Broken> {
        self.begin();
        let line = self.line;
        let mut list_kind = None;
        let mut is_list = false;
        self.expect(b'{')?;
        let mut next = self.skip_space()?;
        while next != Some(b'}') {
            let key = self.value()?;
            self.skip_space()?;
            self.expect(b':')?;
            let begins = self.skip_space()?;
            if key == b"\"items\"" && begins == Some(b'[') {
                is_list = true;
                self.items(document, list_kind.as_deref(), take)?;
                self.begin();
            } else {
                let value = self.value()?;
                if key == b"\"kind\"" {
                    list_kind = serde_json::from_slice::<String>(&value).ok();
                }
            }
            next = self.skip_space()?;
            if next == Some(b',') {
                self.expect(b',')?;
                next = self.skip_space()?;
            } else if next != Some(b'}') {
                return Err(self.broken("expected ',' or '}'"));
            }
        }
        self.expect(b'}')?;
        if !is_list {
            take(self.piece(Place { document, item: None, line }, None));
        }
        Ok(())
    }

    fn items(
        &mut self,
        document: u32,
        list_kind: Option<&str>,
        take: &mut dyn FnMut(Piece<'_>),
    ) -> Result<(), Broken> {
        self.expect(b'[')?;
        if self.skip_space()? == Some(b']') {
            return self.expect(b']');
        }
        for item in 0.. {
            self.skip_space()?;
            self.begin();
            let line = self.line;
            self.consume_value()?;
            take(self.piece(Place { document, item: Some(item), line }, list_kind));
            match self.skip_space()? {
                Some(b',') => self.expect(b',')?,
                Some(b']') => break,
                _ => return Err(self.broken("expected ',' or ']'")),
            }
        }
        self.expect(b']')
    }

    fn piece<'a>(&'a self, place: Place, list_kind: Option<&'a str>) -> Piece<'a> {
        Piece { place, text: (!self.too_long).then_some(&self.text), list_kind, as_item: false }
    }

    /// Forgets what was read.
    fn begin(&mut self) {
        self.text.clear();
        self.text.shrink_to(1 << 20);
        self.too_long = false;
    }

    /// Reads a value and returns its text.
    fn value(&mut self) -> Result<Vec<u8>, Broken> {
        let begin = self.text.len();
        self.consume_value()?;
        // Only short ones matter: keys and kinds.
        let text = self.text.get(begin..).unwrap_or_default();
        Ok(text.get(..text.len().min(256)).unwrap_or_default().to_vec())
    }

    /// Reads to the end of a value: the quote or bracket that ends it, or what follows a number.
    fn consume_value(&mut self) -> Result<(), Broken> {
        let mut state = State { depth: 0, in_string: false, escaped: false, began: false };
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| Broken::read(self.line, &error))?;
            if chunk.is_empty() {
                return if state.began && state.depth == 0 && !state.in_string {
                    Ok(())
                } else {
                    Err(Broken::at(self.line, "the file ends within an object"))
                };
            }
            let (used, lines, ended) = state.advance(chunk);
            self.line += lines;
            let read = chunk.get(..used).unwrap_or_default();
            keep(&mut self.text, &mut self.too_long, read);
            self.reader.consume(used);
            if ended {
                return if state.began { Ok(()) } else { Err(self.broken("expected a value")) };
            }
        }
    }

    /// Reads white space; returns what follows.
    fn skip_space(&mut self) -> Result<Option<u8>, Broken> {
        loop {
            let chunk = self.reader.fill_buf().map_err(|error| Broken::read(self.line, &error))?;
            let space = chunk
                .iter()
                .position(|byte| !matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
                .unwrap_or(chunk.len());
            let next = chunk.get(space).copied();
            let at_end = chunk.is_empty();
            let read = chunk.get(..space).unwrap_or_default();
            self.line += line_ends(read);
            keep(&mut self.text, &mut self.too_long, read);
            self.reader.consume(space);
            if next.is_some() || at_end {
                return Ok(next);
            }
        }
    }

    fn expect(&mut self, wanted: u8) -> Result<(), Broken> {
        let chunk = self.reader.fill_buf().map_err(|error| Broken::read(self.line, &error))?;
        if chunk.first() != Some(&wanted) {
            return Err(self.broken(&format!("expected '{}'", char::from(wanted))));
        }
        keep(&mut self.text, &mut self.too_long, &[wanted]);
        self.reader.consume(1);
        Ok(())
    }

    fn broken(&self, problem: &str) -> Broken {
        Broken::at(self.line, problem)
    }
}

fn line_ends(text: &[u8]) -> u64 {
    text.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn keep(text: &mut Vec<u8>, too_long: &mut bool, read: &[u8]) {
    if text.len() + read.len() > LONGEST_OBJECT {
        *too_long = true;
        text.clear();
    }
    if !*too_long {
        text.extend_from_slice(read);
    }
}

/// Where in a value the scanner is.
struct State {
    depth: u32,
    in_string: bool,
    escaped: bool,
    began: bool,
}

impl State {
    /// How many bytes of `chunk` belong to the value, the line ends among them, and whether it ended.
    fn advance(&mut self, chunk: &[u8]) -> (usize, u64, bool) {
        let mut lines = 0;
        for (at, &byte) in chunk.iter().enumerate() {
            if self.in_string {
                if self.escaped {
                    self.escaped = false;
                } else if byte == b'\\' {
                    self.escaped = true;
                } else if byte == b'"' {
                    self.in_string = false;
                    if self.depth == 0 {
                        return (at + 1, lines, true);
                    }
                } else if byte == b'\n' {
                    lines += 1;
                }
                continue;
            }
            match byte {
                b'"' if self.depth > 0 || !self.began => self.in_string = true,
                b'{' | b'[' if self.depth > 0 || !self.began => self.depth += 1,
                b'}' | b']' if self.depth > 0 => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return (at + 1, lines, true);
                    }
                }
                b'\n' if self.depth > 0 => lines += 1,
                _ if self.depth > 0 => {}
                // A number, true, false or null ends before what separates it from the next.
                b',' | b':' | b'}' | b']' | b'"' | b'{' | b'[' | b' ' | b'\n' | b'\r' | b'\t' => {
                    return (at, lines, true);
                }
                _ => {}
            }
            self.began = true;
        }
        (chunk.len(), lines, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufReader;

    /// Document, item, line and text of a piece.
    type Told = (u32, Option<u32>, u64, String);

    /// The pieces of `text`, read in chunks of `chunk` bytes.
    fn pieces(text: &str, chunk: usize) -> Result<Vec<Told>, Broken> {
        let mut found = Vec::new();
        split(BufReader::with_capacity(chunk, text.as_bytes()), &mut |piece| {
            let text = String::from_utf8(piece.text.unwrap().to_vec()).unwrap();
            let Place { document, item, line } = piece.place;
            found.push((document, item, line, text));
        })?;
        Ok(found)
    }

    #[test]
    fn a_list_is_cut_into_items_wherever_the_buffer_ends() {
        let text = "{\n\"apiVersion\":\"v1\",\"items\": [\n{\"a\":\"]}\\\"\",\n\"b\":[1,{}]} ,\n{ } , 7\n],\"kind\":\"List\"}\n";
        for chunk in [1, 2, 3, 7, 4096] {
            assert_eq!(
                pieces(text, chunk).unwrap(),
                [
                    (1, Some(0), 3, "{\"a\":\"]}\\\"\",\n\"b\":[1,{}]}".to_owned()),
                    (1, Some(1), 5, "{ }".to_owned()),
                    (1, Some(2), 5, "7".to_owned()),
                ]
            );
        }
    }

    #[test]
    fn documents_that_are_no_lists_come_whole() {
        let text = " {\"kind\":\"Service\",\n\"spec\":{\"items\":[1]}}\n{\"items\":null} {}";
        assert_eq!(
            pieces(text, 5).unwrap(),
            [
                (1, None, 1, "{\"kind\":\"Service\",\n\"spec\":{\"items\":[1]}}".to_owned()),
                (2, None, 2 + 1, "{\"items\":null}".to_owned()),
                (3, None, 3, "{}".to_owned()),
            ]
        );
        assert!(pieces("", 5).unwrap().is_empty());
        assert!(pieces(" \n", 5).unwrap().is_empty());
        assert!(pieces("{\"items\":[]}", 5).unwrap().is_empty());
    }

    #[test]
    fn the_kind_of_a_list_is_known_to_its_items() {
        let mut kinds = Vec::new();
        let text = "{\"kind\":\"ServiceList\",\"items\":[{}]}";
        split(text.as_bytes(), &mut |piece| kinds.push(piece.list_kind.map(str::to_owned)))
            .unwrap();
        assert_eq!(kinds, [Some("ServiceList".to_owned())]);
    }

    #[test]
    fn what_cannot_be_cut_is_broken_and_says_where() {
        for (text, line) in [
            ("[]", 1),
            ("{\"a\"\n:}", 2),
            ("{\"items\":[{}", 1),
            ("{\"items\":[{}\n{}]}", 2),
            ("{\"items\":[{},]}", 1),
            ("{\"a\":{\"b\":[\n", 2),
            ("{\"a\" 1}", 1),
            ("{\"a\":1 \"b\":2}", 1),
            ("{\"a\":\"text", 1),
            ("{} x", 1),
        ] {
            for chunk in [1, 64] {
                assert_eq!(pieces(text, chunk).unwrap_err().line, line, "{text}");
            }
        }
    }

    #[test]
    fn an_object_beyond_all_bounds_is_skipped_without_being_stored() {
        let mut text = b"{\"items\":[{\"a\":\"".to_vec();
        text.resize(LONGEST_OBJECT + 100, b'x');
        text.extend(b"\"},{}]}");
        let mut lengths = Vec::new();
        split(text.as_slice(), &mut |piece| lengths.push(piece.text.map(<[u8]>::len))).unwrap();
        assert_eq!(lengths, [None, Some(2)]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in "[\\[\\]{}\",:a1 \\\\\n]{0,60}", chunk in 1..9_usize) {
            let _outcome = pieces(&text, chunk).is_ok();
        }
    }
}
