//! Which field of a JSON text is at fault, when its reader gives up at a place?

/// Path of the value that is awaited at `line` and `column` as the reader counts them (lines from
/// 1, bytes of the line that were read), or else of the last one before, as `spec.ports[1].port`.
///
/// The reader could follow the path itself, but only in a copy of everything that is read with it;
/// and what it read so far is known to be JSON.
pub(super) fn at(text: &[u8], line: usize, column: usize) -> String {
    let mut path = Vec::new();
    let mut rest = before(text, line, column);
    while let [first, behind @ ..] = rest {
        rest = behind;
        match first {
            b'{' => path.push(Step::Field { name: None, is_named: false }),
            b'[' => path.push(Step::Item(0)),
            b'}' | b']' => {
                path.pop();
            }
            b':' => {
                if let Some(Step::Field { is_named, .. }) = path.last_mut() {
                    *is_named = true;
                }
            }
            b',' => match path.last_mut() {
                Some(Step::Field { is_named, .. }) => *is_named = false,
                Some(Step::Item(index)) => *index += 1,
                None => {}
            },
            b'"' => {
                let end = string(rest);
                let (inside, behind) = rest.split_at(end);
                rest = behind.get(1..).unwrap_or_default();
                if let Some(Step::Field { name, is_named: false }) = path.last_mut() {
                    *name = Some(inside);
                }
            }
            _ => {}
        }
    }
    display(&path)
}

enum Step<'a> {
    /// Of an object; the name as it is written, none before the first; not `is_named` where a name
    /// is awaited.
    Field { name: Option<&'a [u8]>, is_named: bool },
    /// Of a list.
    Item(usize),
}

fn before(text: &[u8], line: usize, column: usize) -> &[u8] {
    let mut ends =
        text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    let start = line.checked_sub(2).map_or(Some(0), |skipped| ends.nth(skipped));
    let end = start.unwrap_or_default().saturating_add(column).min(text.len());
    &text[..end]
}

/// Length of a string without its closing quote.
fn string(text: &[u8]) -> usize {
    let mut is_escaped = false;
    let end = text.iter().position(|byte| {
        let is_end = *byte == b'"' && !is_escaped;
        is_escaped = *byte == b'\\' && !is_escaped;
        is_end
    });
    end.unwrap_or(text.len())
}

fn display(path: &[Step<'_>]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Field { name: Some(name), .. } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&String::from_utf8_lossy(name));
            }
            Step::Field { name: None, .. } => {}
            Step::Item(index) => text.extend(["[", &index.to_string(), "]"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::super::raw::RawObject;
    use super::*;

    /// An object with every field that is read, and some that are not.
    fn object() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "a", "namespace": "b", "creationTimestamp": "c", "managedFields": [{"x": [1]}],
                "labels": {"kubernetes.io/service-name": "a", "other": "b", "topology.kubernetes.io/zone": "c"},
            },
            "spec": {
                "type": "ClusterIP", "clusterIP": "a", "clusterIPs": ["a", "b"], "ipFamilies": ["IPv4"],
                "selector": {"\u{e9}\"}": "[{"},
                "ports": [{"name": "p\"q\\", "port": 1}, {"protocol": "TCP", "port": 2, "nodePort": 3}],
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
                "externalIPs": ["a"], "healthCheckNodePort": 4, "taints": [{"key": "a"}],
            },
            "status": {
                "addresses": [{"type": "a", "address": "b"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 5}},
                "loadBalancer": {"ingress": [{"ip": "a", "ipMode": "b"}]},
            },
            "ports": [{"name": "", "port": 6}],
            "endpoints": [
                {"addresses": ["a"], "conditions": {"ready": true, "serving": false}},
                {"nodeName": "a", "hints": {"forZones": [{"name": "a"}], "forNodes": []}},
            ],
        })
    }

    /// Every object that differs from `value` in one value.
    fn changed(value: &Value, wrong: &Value) -> Vec<Value> {
        let mut all = vec![wrong.clone()];
        match value {
            Value::Object(map) => {
                for (key, inner) in map {
                    all.extend(changed(inner, wrong).into_iter().map(|inner| {
                        let mut map = map.clone();
                        map.insert(key.clone(), inner);
                        Value::Object(map)
                    }));
                }
            }
            Value::Array(list) => {
                for (index, inner) in list.iter().enumerate() {
                    all.extend(changed(inner, wrong).into_iter().map(|inner| {
                        let mut list = list.clone();
                        list[index] = inner;
                        Value::Array(list)
                    }));
                }
            }
            _ => {}
        }
        all
    }

    #[test]
    fn the_path_is_the_one_that_a_reader_with_paths_tells() {
        let mut refused = 0;
        for wrong in [
            json!("text"),
            json!(7),
            json!(-7.5),
            json!(u64::MAX),
            json!(true),
            json!([]),
            json!({}),
            json!({"a": [{"b": 1}]}),
        ] {
            for value in changed(&object(), &wrong) {
                for text in [value.to_string(), format!("{value:#}")] {
                    let Err(error) = serde_json::from_str::<RawObject<'_>>(&text) else { continue };
                    let mut reader = serde_json::Deserializer::from_str(&text);
                    let told = serde_path_to_error::deserialize::<_, RawObject<'_>>(&mut reader);
                    let told = told.unwrap_err().path().to_string();
                    let found = at(text.as_bytes(), error.line(), error.column());
                    assert_eq!(found, told.trim_start_matches('.'), "{error}: {text}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 500, "{refused}");
        drop(RawObject::deserialize(&object()).unwrap());
    }

    #[test]
    fn any_place_of_any_text_has_a_path() {
        for text in ["", "]]}}", "{\"a\\", "\n\n{\"a\":[", ",,::\"\\\"", "[{}"] {
            for (line, column) in [(0, 0), (1, 3), (3, 7), (9, usize::MAX)] {
                let _path = at(text.as_bytes(), line, column);
            }
        }
        assert_eq!(at(b"\n{\"a\":\n[1,{\"b\":2}]}", 3, 9), "a[1].b");
    }
}
