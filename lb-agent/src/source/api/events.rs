//! Warnings as Events of the API server, where `kubectl describe service` shows them.
//!
//! Who reads Services may not be allowed to write Events: then the log alone has them.

use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use kube::core::Request;
use kube::core::params::{ListParams, PostParams};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::request::RequestError;
use crate::model::ObjectKey;
use crate::source::Warning;

/// A request that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// After each: whoever writes Services chooses how many there are, and every node tells of each.
const PAUSE: Duration = Duration::from_secs(1);
/// What the API server takes of a note and of who reports, in bytes.
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;
/// Who reports.
const CONTROLLER: &str = "millrace";

/// Writes an Event for each warning, until nobody has any more.
pub(super) async fn write(
    client: Client,
    node_name: String,
    mut warnings: mpsc::Receiver<Warning>,
) {
    let mut told = false;
    while let Some(warning) = warnings.recv().await {
        let written = timeout(TIMEOUT, write_one(&client, &node_name, &warning))
            .await
            .unwrap_or(Err(RequestError::Silent { after: TIMEOUT }));
        match written {
            Err(error) if !told => {
                told = true;
                tracing::warn!(
                    %error,
                    service = %warning.service,
                    "cannot write an Event, for which one must be allowed to `create` `events` of \
                     `events.k8s.io`; what is wrong with Services is in this log alone"
                );
            }
            Err(error) => tracing::debug!(%error, "cannot write an Event"),
            Ok(()) => told = false,
        }
        sleep(PAUSE).await;
    }
}

async fn write_one(
    client: &Client,
    node_name: &str,
    warning: &Warning,
) -> Result<(), RequestError> {
    let ObjectKey { namespace, name } = &warning.service;
    // Without it `kubectl describe` does not show the Event.
    let uid = uid(client, &warning.service).await?;
    let event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "generateName": format!("{name}-"), "namespace": **namespace },
        "eventTime": format!("{:.6}", Timestamp::now()),
        "type": "Warning",
        "reason": warning.reason,
        "action": "Listen",
        "regarding": {
            "apiVersion": "v1", "kind": "Service",
            "namespace": **namespace, "name": **name, "uid": uid,
        },
        "note": cut(&format!("node {node_name}: {}", warning.note), LONGEST_NOTE),
        "reportingController": CONTROLLER,
        "reportingInstance": cut(node_name, LONGEST_INSTANCE),
    });
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let request = Request::new(path)
        .create(&PostParams::default(), event.to_string().into_bytes())
        .map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await?;
    Ok(())
}

/// The uid of a Service; empty if it is gone. A list, because who may watch may not always get.
async fn uid(client: &Client, service: &ObjectKey) -> Result<String, RequestError> {
    #[derive(Deserialize)]
    struct List {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        uid: String,
    }
    let ObjectKey { namespace, name } = service;
    let params = ListParams::default().fields(&format!("metadata.name={name}")).limit(1);
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/services"))
        .list(&params)
        .map_err(kube::Error::BuildRequest)?;
    let list: List = serde_json::from_str(&client.request_text(request).await?)?;
    Ok(list.items.into_iter().next().map(|item| item.metadata.uid).unwrap_or_default())
}

/// The beginning of a text, in so many bytes at most.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_letters() {
        assert_eq!(cut("abc", 2), "ab");
        assert_eq!(cut("aüb", 2), "a");
        assert_eq!(cut("aüb", 9), "aüb");
    }
}
