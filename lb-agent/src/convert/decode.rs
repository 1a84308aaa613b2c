//! From bytes to a [`RawObject`], and what to tell if that fails.

use std::fmt::Display;

use serde::Deserialize;
use serde_path_to_error::Track;
use serde_saphyr::with_deserializer_from_str_with_options;

use super::path;
use super::raw::{RawObject, Text};

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodeError {
    /// Path of the field, empty if the syntax is at fault.
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// Line within the bytes, from 1, 0 if unknown.
    pub line: u64,
}

/// Who an object is, as far as it can be told of one that cannot be decoded.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, bound(deserialize = "'de: 'a"))]
pub struct Identity<'a> {
    /// API version.
    pub api_version: Text<'a>,
    /// Kind.
    pub kind: Text<'a>,
    /// Name and namespace.
    pub metadata: IdentityMetadata<'a>,
}

/// `metadata` of an [`Identity`].
#[derive(Debug, Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub struct IdentityMetadata<'a> {
    /// Name.
    pub name: Text<'a>,
    /// Namespace.
    pub namespace: Text<'a>,
}

/// Decodes one JSON object.
///
/// # Errors
///
/// With the field that is not of the type that the API gives it, or the line of a syntax error.
pub fn json(bytes: &[u8]) -> Result<RawObject<'_>, DecodeError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let field = if error.is_data() {
            path::at(bytes, error.line(), error.column())
        } else {
            String::new()
        };
        decode_error(field, &error, error.line() as u64)
    })
}

/// Decodes one YAML document; `as_item` if it is a list of one item, as long documents are cut up.
///
/// # Errors
///
/// With the field that is not of the type that the API gives it, or the line of a syntax error.
pub fn yaml(text: &str, as_item: bool) -> Result<RawObject<'_>, DecodeError> {
    yaml_as(text, as_item)
}

/// Who a JSON object is that [`json`] refuses.
pub fn json_identity(bytes: &[u8]) -> Option<Identity<'_>> {
    serde_json::from_slice(bytes).ok()
}

/// Who a YAML document is that [`yaml`] refuses.
pub fn yaml_identity(text: &str, as_item: bool) -> Option<Identity<'_>> {
    yaml_as(text, as_item).ok()
}

/// Follows the path of the field from the start, which costs little beside reading YAML: a reader
/// without would be a second copy of all that reads objects.
fn yaml_as<'a, T: Deserialize<'a>>(text: &'a str, as_item: bool) -> Result<T, DecodeError> {
    let mut track = Track::new();
    let decoded = with_deserializer_from_str_with_options(text, options(), |deserializer| {
        let deserializer = serde_path_to_error::Deserializer::new(deserializer, &mut track);
        if as_item {
            <(T,)>::deserialize(deserializer).map(|(object,)| object)
        } else {
            T::deserialize(deserializer)
        }
    });
    decoded.map_err(|error| {
        let line = error.location().map_or(0, |location| location.line());
        let path = track.path().to_string();
        let field = path.strip_prefix("[0].").unwrap_or(&path);
        decode_error(if field == "." { String::new() } else { field.to_owned() }, &error, line)
    })
}

/// Limits that a document of the size that is read at all can reach without being hostile; aliases
/// keep the reader's own limits.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_events: 32_000_000, max_nodes: 16_000_000 },
        with_snippet: false,
    }
}

fn decode_error(field: String, error: &dyn Display, line: u64) -> DecodeError {
    let text = error.to_string();
    // One line without control characters, and not the input's own text at any length.
    let line_one = text.lines().next().unwrap_or_default();
    let problem = line_one.chars().filter(|c| !c.is_control()).take(200).collect();
    DecodeError { field, problem, line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_the_wrong_type_is_named_with_its_line() {
        let error = json(b"{\"spec\": {\"ports\": [{},\n{\"port\": \"80\"}]}}").unwrap_err();
        assert_eq!((error.field.as_str(), error.line), ("spec.ports[1].port", 2));
        let error = yaml("kind: Service\nspec:\n  ports:\n  - port: eighty\n", false).unwrap_err();
        assert_eq!((error.field.as_str(), error.line), ("spec.ports[0].port", 4));
        let error = yaml("- spec:\n    ports:\n    - port: eighty\n", true).unwrap_err();
        assert_eq!((error.field.as_str(), error.line), ("spec.ports[0].port", 3));
    }

    #[test]
    fn broken_syntax_is_told_with_its_line() {
        let error = json(b"{\"kind\": \"Service\",\n \"spec\": }").unwrap_err();
        assert_eq!((error.field.as_str(), error.line), ("", 2));
        let error = yaml("kind: Service\nspec: [}\n", false).unwrap_err();
        assert_eq!(error.line, 2, "{error:?}");
    }

    #[test]
    fn text_behind_the_object_is_an_error() {
        let error = json(b"{}\n {}").unwrap_err();
        assert_eq!((error.field.as_str(), error.line), ("", 2));
    }

    #[test]
    fn the_order_of_fields_and_null_do_not_matter() {
        let object = json(
            br#"{"spec":null,"ports":null,"endpoints":[{"addresses":null}],
            "metadata":{"labels":null,"name":"a"},"kind":"EndpointSlice"}"#,
        )
        .unwrap();
        assert_eq!((&*object.kind, &*object.metadata.name), ("EndpointSlice", "a"));
        assert_eq!(object.endpoints.items.len(), 1);
    }

    #[test]
    fn a_million_endpoints_are_counted_but_not_kept() {
        let mut text = br#"{"endpoints":[{}"#.to_vec();
        text.extend(b",{}".repeat(999_999));
        text.extend(b"]}");
        let object = json(&text).unwrap();
        assert_eq!(object.endpoints.items.len(), super::super::raw::MOST_ENDPOINTS);
        assert_eq!(object.endpoints.beyond, 990_000);
    }
}
