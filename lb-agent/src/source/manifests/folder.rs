//! Which objects do all files together define, and what changed?
//!
//! Each file is read on its own, and only when it changed; what is kept of it is which objects it
//! defines. The change of a file is the difference to what it defined before. An object that two
//! files define belongs to the file whose path sorts first; if that gives it up, the other is read
//! again.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::pieces::Place;
use super::read::{Contents, Id, read};
use crate::convert::{Converter, Kind, Object, Origin, Report, Skipped};
use crate::model::Change;

/// What came of reading.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) changes: Vec<Change>,
    pub(super) reports: Vec<Report>,
}

/// All manifests of a file or folder.
pub(super) struct Manifest {
    path: PathBuf,
    is_folder: bool,
    /// It could be listed at least once.
    was_listed: bool,
    /// It could not be listed when that was last tried.
    list_failed: bool,
    converter: Converter,
    files: BTreeMap<Arc<Path>, FileState>,
    owners: HashMap<Id, Arc<Path>>,
}

#[derive(Default)]
struct FileState {
    /// As it was when it was read last.
    stamp: Option<Stamp>,
    /// Whether it could be read at least once.
    was_read: bool,
    /// Whether all objects in it are known: not if nobody could ever tell which one of them is.
    is_known: bool,
    /// Objects in it that cannot be decoded, of which nothing was ever read.
    never_read: BTreeSet<Id>,
    /// The objects that are defined by it.
    owns: Vec<Id>,
    /// The objects that are in it but defined by another file.
    shadowed: BTreeSet<Id>,
}

/// Tells whether a file is still the same without reading it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            file: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Manifest {
    /// The manifests at `path`; nothing is read yet.
    pub(super) fn new(path: PathBuf, converter: Converter) -> io::Result<Self> {
        let is_folder = fs::metadata(&path)?.is_dir();
        let (files, owners) = (BTreeMap::new(), HashMap::new());
        Ok(Self {
            path,
            is_folder,
            was_listed: false,
            list_failed: false,
            converter,
            files,
            owners,
        })
    }

    /// What was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a folder.
    pub(super) fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// Whether enough could be read to begin: a folder could be listed, a single file could be
    /// read. In a folder, one broken file does not stop the others.
    pub(super) fn can_begin(&self) -> bool {
        if self.is_folder { self.was_listed } else { self.files.values().all(|file| file.was_read) }
    }

    /// Whether it is known which objects there are: otherwise, what is in no file that can be read
    /// may be in one that cannot.
    pub(super) fn is_complete(&self) -> bool {
        self.can_begin() && self.files.values().all(|file| file.was_read && file.is_known)
    }

    /// Whether a file of that name is a manifest. Hidden ones belong to editors and kubelets.
    pub(super) fn is_manifest(&self, path: &Path) -> bool {
        if !self.is_folder {
            return path == self.path;
        }
        let name = path.file_name().map_or(&b""[..], |name| name.as_encoded_bytes());
        let ending = path.extension().and_then(|ending| ending.to_str());
        !name.starts_with(b".") && matches!(ending, Some("yaml" | "yml" | "json"))
    }

    /// Looks at all files and reads those that changed. What cannot be looked at stays as it was.
    pub(super) fn scan(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        match self.list() {
            Ok(found) => {
                (self.was_listed, self.list_failed) = (true, false);
                let known = self.files.keys().filter(|path| !found.contains(*path));
                let gone: Vec<_> = known.cloned().collect();
                for path in found.into_iter().chain(gone) {
                    self.update(path, false, &mut outcome);
                }
            }
            Err(_) if self.list_failed => {} // Told already; it is looked for again and again.
            Err(error) => {
                self.list_failed = true;
                let problem = format!("cannot list the folder: {error}; what was read of it stays");
                outcome.reports.push(about_file(&self.path.as_path().into(), problem));
            }
        }
        outcome
    }

    /// Reads the files that were touched, whether they look changed or not: a file that is written
    /// twice within a tick of the clock looks the same.
    pub(super) fn read_again(&mut self, touched: impl IntoIterator<Item = PathBuf>) -> Outcome {
        let mut outcome = Outcome::default();
        for path in touched {
            self.update(path.into(), true, &mut outcome);
        }
        outcome
    }

    fn list(&self) -> io::Result<BTreeSet<Arc<Path>>> {
        if !self.is_folder {
            return Ok(BTreeSet::from([self.path.as_path().into()]));
        }
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if self.is_manifest(&path) && fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
                found.insert(path.into());
            }
        }
        Ok(found)
    }

    fn update(&mut self, path: Arc<Path>, force: bool, outcome: &mut Outcome) {
        let mut queue = vec![(path, force)];
        while let Some((path, force)) = queue.pop() {
            // The stamp comes before the contents: a write in between shows as a change.
            let stamp = match fs::metadata(&path) {
                Ok(meta) => Some(Stamp::of(&meta)),
                Err(error) if self.is_folder && error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    let problem = format!("cannot be read: {error}; what was read of it stays");
                    outcome.reports.push(about_file(&path, problem));
                    self.files.entry(path).or_default().stamp = None;
                    continue;
                }
            };
            let file = self.files.entry(path.clone()).or_default();
            if stamp.is_some() && file.stamp == stamp && !force {
                continue;
            }
            file.stamp = stamp;
            let contents = match stamp {
                None => Contents::default(), // It is gone.
                Some(_) => match read(&path, &mut self.converter) {
                    Ok(contents) => contents,
                    Err(report) => {
                        outcome.reports.push(*report);
                        continue;
                    }
                },
            };
            let released = self.replace(&path, contents, outcome);
            if stamp.is_none() {
                self.files.remove(&path);
            }
            queue.extend(self.heirs(&released).into_iter().map(|path| (path, true)));
        }
    }

    /// Puts new contents in place of what the file defined; returns what it does not define any more.
    fn replace(&mut self, path: &Arc<Path>, contents: Contents, outcome: &mut Outcome) -> Vec<Id> {
        outcome.reports.extend(contents.reports);
        let Some(file) = self.files.get_mut(path) else { return Vec::new() };
        if contents.has_unknown && file.was_read {
            return Vec::new(); // It may be any of those that are missing now: all stay.
        }
        file.was_read = true;
        file.is_known = !contents.has_unknown;
        let never_read_before = std::mem::take(&mut file.never_read);
        let before = std::mem::take(&mut file.owns);
        let shadowed_before = std::mem::take(&mut file.shadowed);
        let mut owned: HashSet<Id> = HashSet::with_capacity(contents.objects.len());
        for (object, place) in contents.objects {
            let Some((id, change)) = id_and_change(object) else { continue };
            match self.claim(&id, path, &owned) {
                Claim::Granted => {
                    owned.insert(id);
                    outcome.changes.push(change);
                }
                Claim::Taken(from) => {
                    outcome.reports.push(duplicate(&from, &id, None, path));
                    if let Some(other) = self.files.get_mut(&from) {
                        other.owns.retain(|own| *own != id);
                        other.shadowed.insert(id.clone());
                    }
                    owned.insert(id);
                    outcome.changes.push(change);
                }
                Claim::Refused(owner) => {
                    outcome.reports.push(duplicate(path, &id, Some(place), &owner));
                    if owner != *path
                        && let Some(file) = self.files.get_mut(path)
                    {
                        file.shadowed.insert(id);
                    }
                }
            }
        }
        for id in contents.undecodable {
            if before.contains(&id) {
                owned.insert(id);
            } else if shadowed_before.contains(&id)
                && let Some(file) = self.files.get_mut(path)
            {
                file.shadowed.insert(id);
            } else if !owned.contains(&id)
                && let Some(file) = self.files.get_mut(path)
            {
                file.never_read.insert(id);
            }
        }
        // What an earlier run had read of them may be programmed still.
        for id in never_read_before {
            if !self.owners.contains_key(&id)
                && !self.files.values().any(|file| file.never_read.contains(&id))
            {
                outcome.changes.push(drop_change(&id));
            }
        }
        let released: Vec<_> = before.into_iter().filter(|id| !owned.contains(id)).collect();
        for id in &released {
            self.owners.remove(id);
            outcome.changes.push(drop_change(id));
        }
        if let Some(file) = self.files.get_mut(path) {
            file.owns = owned.into_iter().collect();
        }
        released
    }

    fn claim(&mut self, id: &Id, path: &Arc<Path>, owned: &HashSet<Id>) -> Claim {
        match self.owners.entry(id.clone()) {
            Entry::Vacant(free) => {
                free.insert(path.clone());
                Claim::Granted
            }
            Entry::Occupied(owner) if owner.get() == path && owned.contains(id) => {
                Claim::Refused(path.clone())
            }
            Entry::Occupied(owner) if owner.get() == path => Claim::Granted,
            Entry::Occupied(mut owner) if owner.get() > path => {
                Claim::Taken(owner.insert(path.clone()))
            }
            Entry::Occupied(owner) => Claim::Refused(owner.get().clone()),
        }
    }

    /// The files that have what another gave up, in the order in which to read them: last first.
    fn heirs(&self, released: &[Id]) -> Vec<Arc<Path>> {
        if released.is_empty() {
            return Vec::new();
        }
        self.files
            .iter()
            .filter(|(_, file)| released.iter().any(|id| file.shadowed.contains(id)))
            .map(|(path, _)| path.clone())
            .rev()
            .collect()
    }
}

/// Who gets an object.
enum Claim {
    /// The file that asks.
    Granted,
    /// The file that asks, instead of this one.
    Taken(Arc<Path>),
    /// This one, which has it already.
    Refused(Arc<Path>),
}

fn id_and_change(object: Object) -> Option<(Id, Change)> {
    match object {
        Object::Service(service) => {
            Some(((Kind::Service, service.key.clone()), Change::SetService(service)))
        }
        Object::Slice(slice) => Some(((Kind::Slice, slice.key.clone()), Change::SetSlice(slice))),
        Object::Node(node) => {
            let key = crate::model::ObjectKey { namespace: "".into(), name: node.name.clone() };
            Some(((Kind::Node, key), Change::SetNode(node)))
        }
        Object::ServiceCidr(cidr) => {
            let key = crate::model::ObjectKey { namespace: "".into(), name: cidr.name.clone() };
            Some(((Kind::ServiceCidr, key), Change::SetServiceCidr(cidr)))
        }
        Object::Ignored(..) => None,
    }
}

fn drop_change((kind, key): &Id) -> Change {
    match kind {
        Kind::Service => Change::DropService(key.clone()),
        Kind::Slice => Change::DropSlice(key.clone()),
        Kind::Node => Change::DropNode, // Only this node's is ever owned.
        Kind::ServiceCidr => Change::DropServiceCidr(key.name.clone()),
    }
}

fn duplicate(loser: &Arc<Path>, id: &Id, place: Option<Place>, owner: &Path) -> Report {
    let (kind, key) = id;
    Report {
        origin: Origin::File {
            path: loser.clone(),
            document: place.map_or(0, |place| place.document),
            item: place.and_then(|place| place.item),
            line: place.map_or(0, |place| place.line),
        },
        kind: kind.name(),
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        field: String::new(),
        problem: format!("defined in {} already: remove one of the two", owner.display()),
        skipped: Skipped::Object,
    }
}

fn about_file(path: &Arc<Path>, problem: String) -> Report {
    Report {
        origin: Origin::File { path: path.clone(), document: 0, item: None, line: 0 },
        kind: "",
        namespace: String::new(),
        name: String::new(),
        field: String::new(),
        problem,
        skipped: Skipped::File,
    }
}
