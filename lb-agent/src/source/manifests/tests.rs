//! The source on real files: what is served, what is told, and what survives which accident.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;
use crate::convert::{Origin, Report, Skipped};
use crate::model::{Change, Dirty, ObjectKey, Store};
use crate::source::start;

/// File, document, item, line and field of a report, and what was skipped.
type Told<'a> = (String, u32, Option<u32>, u64, &'a str, Skipped);

struct Rig {
    folder: TempDir,
    events: mpsc::Receiver<SourceEvent>,
    source: JoinHandle<Result<(), SourceError>>,
    store: Store,
    /// There is enough to begin.
    synced: bool,
    /// All that is there is known.
    whole: bool,
    reports: Vec<Report>,
    /// All changes since the last look.
    changes: Vec<Change>,
    batches: usize,
}

impl Rig {
    /// A folder with these files, and the source on `path` in it.
    fn new(path: &str, files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        Self::on(folder, path)
    }

    fn on(folder: TempDir, path: &str) -> Self {
        let (events, source) =
            start(Manifests::new(folder.path().join(path)), Converter::new("here"));
        let (store, reports, changes) = (Store::default(), Vec::new(), Vec::new());
        let (synced, whole) = (false, false);
        Self { folder, events, source, store, synced, whole, reports, changes, batches: 0 }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    /// Handles one event.
    async fn step(&mut self) {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv());
        match event.await.expect("the source says nothing").expect("the source ended") {
            SourceEvent::Batch(batch) => {
                self.batches += 1;
                let mut dirty = Dirty::default();
                for change in batch {
                    self.store.apply(change.clone(), &mut dirty);
                    self.changes.push(change);
                }
            }
            SourceEvent::Reports(reports) => self.reports.extend(reports),
            SourceEvent::SyncedInPart => self.synced = true,
            SourceEvent::Synced => (self.synced, self.whole) = (true, true),
            SourceEvent::Alive => {}
        }
    }

    async fn until(&mut self, mut reached: impl FnMut(&Self) -> bool) {
        while !reached(self) {
            self.step().await;
        }
    }

    async fn synced(mut self) -> Self {
        self.until(|rig| rig.synced).await;
        self.changes.clear();
        self
    }

    fn port(&self, name: &str) -> Option<u16> {
        let service = self.store.service(&ObjectKey::new("shop", name))?;
        Some(service.ports.first()?.port)
    }

    fn places(&self) -> Vec<Told<'_>> {
        let place = |report: &Report| match &report.origin {
            Origin::File { path, document, item, line } => {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, *document, *item, *line)
            }
            Origin::Api => panic!("not from a file: {report}"),
        };
        let one = |report| {
            let (name, document, item, line) = place(report);
            (name, document, item, line, report.field.as_str(), report.skipped)
        };
        self.reports.iter().map(one).collect()
    }
}

fn service_json(name: &str, port: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"shop"}},
"spec":{{"clusterIP":"10.96.0.1","clusterIPs":["10.96.0.1"],"ipFamilies":["IPv4"],
"ports":[{{"port":{port}}}]}}}}"#
    )
}

fn list_json(items: &[String]) -> String {
    format!("{{\"apiVersion\":\"v1\",\n\"items\":[{}],\n\"kind\":\"List\"}}\n", items.join(",\n"))
}

fn service_yaml(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n  \
         clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1]\n  ipFamilies:\n  - IPv4\n  ports:\n  \
         - port: {port}\n"
    )
}

fn list_yaml(items: &[String]) -> String {
    let item = |item: &String| format!("- {}\n", item.trim_end().replace('\n', "\n  "));
    let items = items.iter().map(item).collect::<Vec<_>>().concat();
    format!("apiVersion: v1\nitems:\n{items}kind: List\nmetadata:\n  resourceVersion: \"\"\n")
}

const SLICE: &str = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web-1\n  \
    namespace: shop\n  labels:\n    kubernetes.io/service-name: web\naddressType: IPv4\nports:\n\
    - name: \"\"\n  port: 8080\nendpoints:\n- addresses: [10.0.0.1]\n  nodeName: here\n";

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata:\n  name: here\n  labels: {topology.kubernetes.io/zone: a}\n";

#[tokio::test]
async fn lists_and_documents_of_json_and_yaml_are_all_read() {
    let documents = format!("# mine\n---\n{}---\n{SLICE}---\n{NODE}", service_yaml("docs", "3"));
    let rig = Rig::new(
        ".",
        &[
            ("a.json", &list_json(&[service_json("json", "1"), service_json("json2", "11")])),
            ("b.yaml", &list_yaml(&[service_yaml("yaml", "2"), service_yaml("yaml2", "22")])),
            ("c.yml", &documents),
            ("d.json", &service_json("single", "4")),
            ("e.yaml", &service_json("json-in-yaml", "5")),
            ("notes.txt", "not: [a manifest"),
            (".hidden.yaml", "not: [a manifest"),
        ],
    );
    let rig = rig.synced().await;
    for (name, port) in [
        ("json", 1),
        ("json2", 11),
        ("yaml", 2),
        ("yaml2", 22),
        ("docs", 3),
        ("single", 4),
        ("json-in-yaml", 5),
    ] {
        assert_eq!(rig.port(name), Some(port), "{name}");
    }
    assert_eq!(rig.store.slices_of(&ObjectKey::new("shop", "web")).count(), 1);
    assert_eq!(rig.store.node().map(|node| &*node.zone), Some("a"));
    assert_eq!(rig.reports, []);
}

const CIDR: &str = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata:\n  name: kubernetes\n\
    spec:\n  cidrs: [10.96.0.0/12]\n";

/// T-11, L-6: a Node that is in no file any more keeps its zone; V-13 likewise follows the files.
#[tokio::test]
async fn nodes_and_service_cidrs_are_followed() {
    let listed = "{\"kind\":\"ServiceCIDRList\",\"apiVersion\":\"networking.k8s.io/v1\",\"items\":[\n\
        {\"metadata\":{\"name\":\"more\"},\"spec\":{\"cidrs\":[\"fd00::/112\"]}}]}";
    let rig = Rig::new(".", &[("a.yaml", NODE), ("b.yaml", CIDR), ("c.json", listed)]);
    let mut rig = rig.synced().await;
    let names = |rig: &Rig| -> Vec<String> {
        rig.store.service_cidrs().map(|cidr| cidr.name.to_string()).collect()
    };
    assert_eq!(names(&rig), ["kubernetes", "more"]);
    std::fs::remove_file(rig.at("b.yaml")).unwrap();
    rig.until(|rig| names(rig) == ["more"]).await;
    std::fs::remove_file(rig.at("a.yaml")).unwrap();
    rig.until(|rig| rig.store.node().is_some_and(|node| node.deleting)).await;
    assert_eq!(rig.store.node().map(|node| &*node.zone), Some("a"));
    assert_eq!(rig.reports, []);
}

#[tokio::test]
async fn in_a_folder_only_the_changed_file_is_read_again_and_in_one_batch() {
    let mut rig = Rig::new(
        ".",
        &[
            ("a.yaml", &service_yaml("a", "1")),
            ("b.yaml", &list_yaml(&[service_yaml("b", "1"), service_yaml("c", "1")])),
        ],
    )
    .synced()
    .await;
    rig.batches = 0;
    rig.write("b.yaml", &list_yaml(&[service_yaml("b", "2"), service_yaml("d", "1")]));
    rig.until(|rig| rig.port("b") == Some(2)).await;
    assert_eq!((rig.port("a"), rig.port("c"), rig.port("d")), (Some(1), None, Some(1)));
    assert_eq!(rig.batches, 1);
    assert_eq!(rig.changes.len(), 3, "{:?}", rig.changes);
}

#[tokio::test]
async fn a_new_file_counts_and_a_removed_one_does_not_any_more() {
    let mut rig = Rig::new(".", &[("a.yaml", &service_yaml("a", "1"))]).synced().await;
    rig.write("b.yaml", &service_yaml("b", "1"));
    rig.until(|rig| rig.port("b") == Some(1)).await;
    fs::remove_file(rig.at("a.yaml")).unwrap();
    rig.until(|rig| rig.port("a").is_none()).await;
    assert_eq!(rig.port("b"), Some(1));
}

#[tokio::test]
async fn an_editor_that_renames_over_the_file_is_followed_every_time() {
    for path in [".", "a.yaml"] {
        let mut rig = Rig::new(path, &[("a.yaml", &service_yaml("a", "1"))]).synced().await;
        for port in 2..5_u16 {
            rig.write(".a.yaml.swp", &service_yaml("a", &port.to_string()));
            fs::rename(rig.at(".a.yaml.swp"), rig.at("a.yaml")).unwrap();
            rig.until(|rig| rig.port("a") == Some(port)).await;
        }
    }
}

#[tokio::test]
async fn the_link_swap_of_a_config_map_is_followed_every_time() {
    for path in [".", "a.yaml"] {
        let folder = tempfile::tempdir().unwrap();
        let version = |number: u16| {
            let name = format!("..{number}");
            fs::create_dir(folder.path().join(&name)).unwrap();
            let text = service_yaml("a", &number.to_string());
            fs::write(folder.path().join(&name).join("a.yaml"), text).unwrap();
            symlink(&name, folder.path().join("..data_tmp")).unwrap();
            fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
        };
        version(1);
        symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
        let root = folder.path().to_owned();
        let mut rig = Rig::on(folder, path).synced().await;
        assert_eq!(rig.port("a"), Some(1));
        for number in 2..4_u16 {
            let name = format!("..{number}");
            fs::create_dir(root.join(&name)).unwrap();
            fs::write(root.join(&name).join("a.yaml"), service_yaml("a", &number.to_string()))
                .unwrap();
            symlink(&name, root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            fs::remove_dir_all(root.join(format!("..{}", number - 1))).unwrap();
            rig.until(|rig| rig.port("a") == Some(number)).await;
        }
    }
}

#[tokio::test]
async fn a_file_that_becomes_invalid_keeps_its_last_good_state() {
    let good = list_json(&[service_json("a", "1"), service_json("b", "1")]);
    let mut rig =
        Rig::new(".", &[("a.json", &good), ("b.yaml", &service_yaml("c", "1"))]).synced().await;
    rig.write("a.json", &good[..good.len() - 20]);
    rig.until(|rig| !rig.reports.is_empty()).await;
    assert_eq!(rig.places(), [("a.json".to_owned(), 0, None, 7, "", Skipped::File)]);
    rig.write("b.yaml", "apiVersion: v1\nkind: [Service\n");
    rig.until(|rig| rig.reports.len() > 1).await;
    let (file, document, item, _, _, skipped) = rig.places()[1].clone();
    assert_eq!((file.as_str(), document, item, skipped), ("b.yaml", 1, None, Skipped::Object));
    assert_eq!((rig.port("a"), rig.port("b"), rig.port("c")), (Some(1), Some(1), Some(1)));
    rig.write("a.json", &list_json(&[service_json("a", "2")]));
    rig.until(|rig| rig.port("a") == Some(2)).await;
    assert_eq!((rig.port("b"), rig.port("c")), (None, Some(1)));
}

#[tokio::test]
async fn an_object_of_the_wrong_shape_keeps_its_own_last_good_state_only() {
    let mut rig = Rig::new(
        ".",
        &[(
            "a.yaml",
            &list_yaml(&[service_yaml("a", "1"), service_yaml("b", "1"), service_yaml("c", "1")]),
        )],
    )
    .synced()
    .await;
    rig.write("a.yaml", &list_yaml(&[service_yaml("a", "2"), service_yaml("b", "eighty")]));
    rig.until(|rig| rig.port("a") == Some(2)).await;
    assert_eq!((rig.port("b"), rig.port("c")), (Some(1), None));
    let place = ("a.yaml".to_owned(), 1, Some(1), 26, "spec.ports[0].port", Skipped::Object);
    assert_eq!(rig.places(), [place]);
    assert_eq!((rig.reports[0].kind, rig.reports[0].name.as_str()), ("Service", "b"));
}

#[tokio::test]
async fn one_bad_item_is_told_by_file_document_and_field_and_stops_no_other() {
    let items = [
        service_json("a", "1"),
        service_json("b", "0"),
        service_json("c", "\"x\""),
        "{\"kind\": tru}".to_owned(),
        service_json("d", "4"),
    ];
    let rig = Rig::new("a.json", &[("a.json", &list_json(&items))]).synced().await;
    assert_eq!((rig.port("a"), rig.port("c"), rig.port("d")), (Some(1), None, Some(4)));
    let name = "a.json".to_owned();
    assert_eq!(
        rig.places(),
        [
            (name.clone(), 1, Some(1), 5, "spec.ports[0].port", Skipped::Part),
            (name.clone(), 1, Some(2), 10, "spec.ports[0].port", Skipped::Object),
            (name, 1, Some(3), 11, "", Skipped::Object),
        ]
    );
}

#[tokio::test]
async fn a_single_file_that_is_broken_at_the_start_is_waited_for() {
    let mut rig = Rig::new("a.json", &[("a.json", "{\"items\":[")]);
    rig.until(|rig| !rig.reports.is_empty()).await;
    assert!(!rig.synced);
    rig.write("a.json", &list_json(&[service_json("a", "1")]));
    rig.until(|rig| rig.synced).await;
    assert_eq!(rig.port("a"), Some(1));
}

#[tokio::test]
async fn a_broken_file_in_a_folder_does_not_stop_the_others() {
    let rig = Rig::new(".", &[("a.json", "{\"items\":["), ("b.json", &service_json("b", "1"))]);
    let rig = rig.synced().await;
    assert_eq!(rig.port("b"), Some(1));
    assert_eq!(rig.places(), [("a.json".to_owned(), 0, None, 1, "", Skipped::File)]);
}

#[tokio::test]
async fn an_object_in_two_files_belongs_to_the_first_until_it_gives_it_up() {
    let mut rig = Rig::new(
        ".",
        &[("b.yaml", &service_yaml("web", "2")), ("c.yaml", &service_yaml("web", "3"))],
    )
    .synced()
    .await;
    assert_eq!(rig.port("web"), Some(2));
    assert_eq!(rig.places()[0].0, "c.yaml");
    rig.write("a.yaml", &service_yaml("web", "1"));
    rig.until(|rig| rig.port("web") == Some(1)).await;
    assert_eq!(rig.places()[1].0, "b.yaml");
    fs::remove_file(rig.at("a.yaml")).unwrap();
    rig.until(|rig| rig.port("web") == Some(2)).await;
    rig.write("b.yaml", &service_yaml("other", "2"));
    rig.until(|rig| rig.port("web") == Some(3)).await;
    assert_eq!(rig.port("other"), Some(2));
}

#[tokio::test]
async fn an_object_twice_in_a_file_counts_once_and_is_told() {
    let text = list_json(&[service_json("a", "1"), service_json("a", "2")]);
    let rig = Rig::new("a.json", &[("a.json", &text)]).synced().await;
    assert_eq!(rig.port("a"), Some(1));
    assert_eq!(rig.places(), [("a.json".to_owned(), 1, Some(1), 5, "", Skipped::Object)]);
}

#[tokio::test]
async fn other_kinds_are_passed_over_in_silence_whatever_they_hold() {
    let others = "apiVersion: apps/v1\nkind: Deployment\nspec: {ports: none}\n---\nkind: Service\n\
        apiVersion: serving.knative.dev/v1\nspec: 7\n---\napiVersion: v1\nkind: List\nitems: []\n---\n";
    let text = format!("{others}{}", service_yaml("a", "1"));
    let rig = Rig::new("a.yaml", &[("a.yaml", &text)]).synced().await;
    assert_eq!((rig.port("a"), rig.reports.len()), (Some(1), 0), "{:?}", rig.reports);
}

#[tokio::test]
async fn what_nobody_can_tell_the_kind_of_is_told() {
    let text = "apiVersion: v1\nmetadata: {name: a}\n---\napiVersion: discovery.k8s.io/v1beta1\nkind: \
        EndpointSlice\nmetadata: {name: b, namespace: shop}\n---\nkind: List\napiVersion: v1\nitems: [{}]\n";
    let rig = Rig::new("a.yaml", &[("a.yaml", text)]).synced().await;
    let fields: Vec<_> = rig.places().iter().map(|place| (place.1, place.4)).collect();
    assert_eq!(fields, [(1, "kind"), (2, "apiVersion"), (3, "items")]);
}

#[tokio::test]
async fn a_folder_that_goes_away_keeps_its_state_and_is_followed_when_it_is_back() {
    let folder = tempfile::tempdir().unwrap();
    let (home, away) = (folder.path().join("home"), folder.path().join("away"));
    fs::create_dir(&home).unwrap();
    fs::write(home.join("a.yaml"), service_yaml("a", "1")).unwrap();
    let mut rig = Rig::on(folder, "home").synced().await;
    fs::rename(&home, &away).unwrap();
    fs::create_dir(&home).unwrap();
    fs::write(home.join("a.yaml"), service_yaml("a", "2")).unwrap();
    rig.until(|rig| rig.port("a") == Some(2)).await;
    fs::write(home.join("a.yaml"), service_yaml("a", "3")).unwrap();
    rig.until(|rig| rig.port("a") == Some(3)).await;
}

#[tokio::test]
async fn a_single_file_that_goes_away_keeps_its_state() {
    let mut rig = Rig::new("a.yaml", &[("a.yaml", &service_yaml("a", "1"))]).synced().await;
    fs::remove_file(rig.at("a.yaml")).unwrap();
    rig.until(|rig| !rig.reports.is_empty()).await;
    assert_eq!(rig.port("a"), Some(1));
    rig.write("a.yaml", &service_yaml("a", "2"));
    rig.until(|rig| rig.port("a") == Some(2)).await;
}

#[tokio::test]
async fn a_path_that_is_not_there_is_an_error_that_names_it() {
    let mut rig = Rig::new("nowhere", &[]);
    let error = (&mut rig.source).await.unwrap().unwrap_err();
    assert!(matches!(&error, SourceError::Path { path, .. } if path.ends_with("nowhere")));
}

#[tokio::test]
async fn the_source_ends_when_nobody_listens() {
    let Rig { folder, events, source, .. } =
        Rig::new(".", &[("a.yaml", &service_yaml("a", "1"))]).synced().await;
    drop(events);
    let ended = tokio::time::timeout(Duration::from_secs(20), source).await;
    assert!(matches!(ended, Ok(Ok(Ok(())))));
    drop(folder);
}

#[tokio::test]
async fn what_is_gone_is_known_once_every_file_of_a_folder_can_be_read() {
    for broken in ["{\"items\":[", "{\"items\":[{\"kind\": tru}]}"] {
        let files = [("a.json", broken), ("b.json", &service_json("b", "1"))];
        let mut rig = Rig::new(".", &files).synced().await;
        assert!(!rig.whole, "{broken}");
        rig.write("c.json", &service_json("c", "1"));
        rig.until(|rig| rig.port("c") == Some(1)).await;
        assert!(!rig.whole, "{broken}");
        rig.write("a.json", &service_json("a", "1"));
        rig.until(|rig| rig.whole).await;
        assert_eq!(rig.port("a"), Some(1));
    }
}

#[tokio::test]
async fn an_object_that_was_never_read_is_told_when_it_is_gone() {
    let both = list_yaml(&[service_yaml("a", "1"), service_yaml("b", "eighty")]);
    let mut rig = Rig::new(".", &[("a.yaml", &both)]).synced().await;
    assert!(rig.whole, "everybody knows which objects there are");
    rig.write("a.yaml", &list_yaml(&[service_yaml("a", "2"), service_yaml("b", "eighty")]));
    rig.until(|rig| rig.port("a") == Some(2)).await;
    let gone = Change::DropService(ObjectKey::new("shop", "b"));
    assert!(!rig.changes.contains(&gone));
    rig.write("a.yaml", &list_yaml(&[service_yaml("a", "3")]));
    rig.until(|rig| rig.port("a") == Some(3)).await;
    assert!(rig.changes.contains(&gone), "{:?}", rig.changes);
}

#[test]
fn a_folder_that_was_never_listed_is_not_taken_for_empty() {
    let folder = tempfile::tempdir().unwrap();
    let home = folder.path().join("home");
    fs::create_dir(&home).unwrap();
    let mut manifest = Manifest::new(home.clone(), Converter::new("here")).unwrap();
    fs::remove_dir(&home).unwrap();
    let outcome = manifest.scan();
    assert_eq!((outcome.changes.len(), outcome.reports.len()), (0, 1));
    assert!(!manifest.can_begin() && !manifest.is_complete());
    assert_eq!(manifest.scan().reports.len(), 0, "told once");
    fs::create_dir(&home).unwrap();
    fs::write(home.join("a.yaml"), service_yaml("a", "1")).unwrap();
    assert_eq!(manifest.scan().changes.len(), 1);
    assert!(manifest.can_begin() && manifest.is_complete());
}
