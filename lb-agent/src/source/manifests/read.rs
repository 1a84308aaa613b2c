//! What does one file say?

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use super::pieces::{Broken, LONGEST_OBJECT, Piece, Place};
use super::{json, yaml};
use crate::convert::raw::RawObject;
use crate::convert::{
    self, Converter, DecodeError, Findings, Identity, Kind, Object, Origin, Report, Skipped,
};
use crate::model::ObjectKey;

/// Kind, namespace and name; no two objects have the same.
pub(super) type Id = (Kind, ObjectKey);

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// The objects of interest, with their places.
    pub(super) objects: Vec<(Object, Place)>,
    /// Objects that are there but cannot be decoded: what was read of them before stays in force.
    pub(super) undecodable: Vec<Id>,
    /// Whether there is an object of which nobody can tell which it is.
    pub(super) has_unknown: bool,
    /// Objects of other kinds.
    pub(super) other_kinds: usize,
    /// What is wrong with the objects.
    pub(super) reports: Vec<Report>,
}

/// Reads a file.
///
/// # Errors
///
/// With one report if nothing can be said about its objects.
pub(super) fn read(path: &Arc<Path>, converter: &mut Converter) -> Result<Contents, Box<Report>> {
    let mut reader =
        Reader { path, converter, contents: Contents::default(), findings: Findings::default() };
    reader.split().map_err(|broken| {
        Box::new(Report {
            origin: Origin::File { path: path.clone(), document: 0, item: None, line: broken.line },
            kind: "",
            namespace: String::new(),
            name: String::new(),
            field: String::new(),
            problem: broken.problem,
            skipped: Skipped::File,
        })
    })?;
    Ok(reader.contents)
}

struct Reader<'a> {
    path: &'a Arc<Path>,
    converter: &'a mut Converter,
    contents: Contents,
    findings: Findings,
}

impl Reader<'_> {
    fn split(&mut self) -> Result<(), Broken> {
        tracing::debug!(path = %self.path.display(), "reading");
        let file = File::open(self.path).map_err(|error| Broken::read(0, &error))?;
        let mut file = BufReader::with_capacity(128 << 10, file);
        let begin = file.fill_buf().map_err(|error| Broken::read(0, &error))?;
        if begin.starts_with(b"\xef\xbb\xbf") {
            file.consume(3); // A byte order mark.
        }
        // JSON by its name or because it looks like it, whatever its name: `kubectl -o json`.
        let begin = file.fill_buf().map_err(|error| Broken::read(0, &error))?;
        let looks_like_json = begin.trim_ascii_start().first() == Some(&b'{');
        if looks_like_json || self.path.extension().is_some_and(|ending| ending == "json") {
            json::split(file, &mut |piece| self.take(&piece, decode_json, identify_json))
        } else {
            yaml::split(file, &mut |piece| self.take(&piece, decode_yaml, identify_yaml))
        }
    }

    fn take(
        &mut self,
        piece: &Piece<'_>,
        decode: for<'p> fn(&Piece<'p>) -> Result<RawObject<'p>, DecodeError>,
        identify: for<'p> fn(&Piece<'p>) -> Option<Identity<'p>>,
    ) {
        match decode(piece) {
            Ok(raw) => self.object(piece, &raw),
            Err(error) => self.undecodable(piece, identify(piece), error),
        }
    }

    fn object(&mut self, piece: &Piece<'_>, raw: &RawObject<'_>) {
        let meta = &raw.metadata;
        let Some(kind) = self.kind(piece, &raw.api_version, &raw.kind, &meta.namespace, &meta.name)
        else {
            return;
        };
        let object = self.converter.object(kind, raw, &mut self.findings);
        let skipped = match &object {
            Some(Object::Ignored(..)) | None => Skipped::Object,
            Some(_) => Skipped::Part,
        };
        self.report(piece.place, (kind.name(), &meta.namespace, &meta.name), skipped);
        match object {
            None => self.contents.has_unknown = true,
            Some(Object::Ignored(..)) => {}
            Some(object) => self.contents.objects.push((object, piece.place)),
        }
    }

    /// The kind of an object; nothing, with a report where one is due, if it is of no interest.
    fn kind(
        &mut self,
        piece: &Piece<'_>,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Option<Kind> {
        // The items of a list as the API server itself prints it have no kind of their own.
        let of_list = match piece.list_kind {
            Some("ServiceList") => Some(Kind::Service),
            Some("EndpointSliceList") => Some(Kind::Slice),
            Some("NodeList") => Some(Kind::Node),
            Some("ServiceCIDRList") => Some(Kind::ServiceCidr),
            _ => None,
        };
        match (Kind::of(api_version, kind), of_list) {
            (_, Some(of_list)) if kind.is_empty() => Some(of_list),
            (Ok(Some(kind)), _) => Some(kind),
            (Err(kind), _) => {
                let problem = format!("write {}: no other version is read", kind.api_version());
                self.findings.add("apiVersion", problem);
                self.report(piece.place, (kind.name(), namespace, name), Skipped::Object);
                None
            }
            (Ok(None), _) if kind.is_empty() => {
                self.findings.add("kind", "missing: write it out");
                self.report(piece.place, ("", namespace, name), Skipped::Object);
                self.contents.has_unknown = true;
                None
            }
            (Ok(None), _) => {
                if piece.place.item.is_none() && kind == "List" && piece.list_kind.is_none() {
                    self.check_list(piece);
                }
                self.contents.other_kinds += 1;
                None
            }
        }
    }

    /// A YAML list that could not be cut into items would be passed over in silence.
    fn check_list(&mut self, piece: &Piece<'_>) {
        let has_items = |text: &[u8]| {
            text.split(|byte| *byte == b'\n').any(|line| {
                let rest = line.strip_prefix(b"items:").unwrap_or_default().trim_ascii();
                !rest.is_empty() && !rest.starts_with(b"#") && rest != b"[]" && rest != b"null"
            })
        };
        if piece.text.is_some_and(has_items) {
            self.findings.add("items", "write one item after another, each after a dash");
            self.report(piece.place, ("", "", ""), Skipped::Object);
            self.contents.has_unknown = true;
        }
    }

    fn undecodable(&mut self, piece: &Piece<'_>, who: Option<Identity<'_>>, error: DecodeError) {
        let who = who.unwrap_or_default();
        let meta = &who.metadata;
        let kind = match Kind::of(&who.api_version, &who.kind) {
            Ok(None) if !who.kind.is_empty() => {
                self.contents.other_kinds += 1; // It has fields of its own.
                return;
            }
            Ok(kind) => kind,
            Err(kind) => Some(kind),
        };
        let key = |kind| {
            let findings = &mut Findings::default();
            Some((kind, self.converter.key(kind, &meta.namespace, &meta.name, findings)?))
        };
        match kind.and_then(key) {
            Some(id) => self.contents.undecodable.push(id),
            None => self.contents.has_unknown = true,
        }
        let line = piece.place.line + error.line.saturating_sub(1);
        self.findings.add(&error.field, error.problem);
        let name = kind.map_or("", Kind::name);
        let place = Place { line, ..piece.place };
        self.report(place, (name, &meta.namespace, &meta.name), Skipped::Object);
    }

    fn report(&mut self, place: Place, object: (&'static str, &str, &str), skipped: Skipped) {
        if !self.findings.is_empty() {
            let Place { document, item, line } = place;
            let origin = Origin::File { path: self.path.clone(), document, item, line };
            self.contents.reports.extend(self.findings.report(&origin, object, skipped));
        }
    }
}

fn decode_json<'p>(piece: &Piece<'p>) -> Result<RawObject<'p>, DecodeError> {
    convert::json(text(piece)?)
}

fn identify_json<'p>(piece: &Piece<'p>) -> Option<Identity<'p>> {
    convert::json_identity(piece.text?)
}

fn decode_yaml<'p>(piece: &Piece<'p>) -> Result<RawObject<'p>, DecodeError> {
    let text = std::str::from_utf8(text(piece)?).map_err(|error| DecodeError {
        field: String::new(),
        problem: format!("the text is not UTF-8: {error}"),
        line: 0,
    })?;
    convert::yaml(text, piece.as_item)
}

fn identify_yaml<'p>(piece: &Piece<'p>) -> Option<Identity<'p>> {
    convert::yaml_identity(std::str::from_utf8(piece.text?).ok()?, piece.as_item)
}

fn text<'p>(piece: &Piece<'p>) -> Result<&'p [u8], DecodeError> {
    piece.text.ok_or_else(|| DecodeError {
        field: String::new(),
        problem: format!("longer than {} MiB", LONGEST_OBJECT >> 20),
        line: 0,
    })
}
