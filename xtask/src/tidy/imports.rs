//! Which part may know what: names that must not be used below a folder.

use super::{Finding, Source};

/// Below `folder`, but not below any of `except`, no path may begin with any of `names`.
struct Rule {
    folder: &'static str,
    except: &'static [&'static str],
    names: &'static [&'static str],
    reason: &'static str,
}

const RULES: [Rule; 10] = [
    Rule {
        folder: "lb-common/src/",
        // Behind a feature, for tests.
        except: &["lb-common/src/host/"],
        names: &["std", "alloc", "aya", "aya_ebpf", "kube", "tokio", "tracing", "log"],
        reason: "it runs in the kernel: core only",
    },
    Rule {
        folder: "lb-ebpf/src/",
        except: &[],
        names: &["std", "alloc", "kube", "k8s_openapi", "lb_agent"],
        reason: "glue between hooks, maps and lb-common",
    },
    Rule {
        folder: "lb-object/src/",
        except: &[],
        names: &["kube", "k8s_openapi", "tokio", "lb_agent", "lb_testbed"],
        reason: "it prepares the programs for whoever loads them",
    },
    Rule { folder: "lb-agent/src/model/", except: &[], names: PURE, reason: "plain types" },
    Rule {
        folder: "lb-agent/src/policy",
        except: &[],
        names: PURE,
        reason: "policy is a pure function",
    },
    Rule {
        folder: "lb-agent/src/plan",
        except: &[],
        names: PURE,
        reason: "plan is a pure function",
    },
    Rule {
        folder: "lb-agent/src/diff",
        except: &[],
        names: PURE,
        reason: "diff is a pure function",
    },
    Rule {
        folder: "lb-agent/src/datapath",
        except: &[],
        names: &[
            "kube",
            "k8s_openapi",
            "crate::convert",
            "crate::policy",
            "crate::source",
            "crate::sync",
        ],
        reason: "the datapath knows maps and hooks, not Kubernetes",
    },
    Rule {
        folder: "lb-agent/src/",
        except: &["lb-agent/src/datapath"],
        names: &["aya", "aya_obj", "lb_testbed"],
        reason: "only the datapath touches BPF",
    },
    Rule {
        folder: "lb-agent/src/",
        except: &["lb-agent/src/source", "lb-agent/src/convert"],
        names: &["kube", "k8s_openapi"],
        reason: "only sources and conversion know the API's types",
    },
];

const PURE: &[&str] = &[
    "kube",
    "k8s_openapi",
    "aya",
    "tokio",
    "tracing",
    "std::fs",
    "std::net::TcpStream",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "crate::datapath",
];

/// Uses of names that the file's folder must not know.
pub(super) fn forbidden(source: &Source) -> Vec<Finding> {
    // A file of unit tests may build what it needs.
    let path = &source.path;
    if path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs") {
        return Vec::new();
    }
    let rules = RULES.iter().filter(|rule| {
        source.path.starts_with(rule.folder)
            && !rule.except.iter().any(|folder| source.path.starts_with(folder))
    });
    let mut found = Vec::new();
    for rule in rules {
        for name in rule.names {
            let used = product_code(&source.text).find(|(_, line)| uses(line, name));
            if let Some((number, _)) = used {
                let what = format!("line {number} uses {name}; {}", rule.reason);
                found.push(Finding::new(&source.path, what));
            }
        }
    }
    found
}

/// Lines with their numbers, without comments, up to the tests at the end of the file.
fn product_code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(text.lines())
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .map(|(number, line)| (number, line.split("//").next().unwrap_or(line)))
}

/// Does `line` name something below the path `name`?
fn uses(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let before = line.get(..at).unwrap_or_default();
        let after = line.get(at + name.len()..).unwrap_or_default();
        // Part of a longer word or path, such as `crate::kube`, is another name.
        let begins = !before.ends_with(|c: char| c.is_alphanumeric() || "_:\"".contains(c));
        let whole_import = before.trim_start().starts_with("use ") && after.starts_with(';');
        begins && (after.starts_with("::") || whole_import || name_is_item(name, after))
    })
}

/// A rule may name an item (`std::thread`, `std::time::Instant`), not only a crate.
fn name_is_item(name: &str, after: &str) -> bool {
    name.contains("::") && !after.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::super::source;
    use super::*;

    #[test]
    fn names_are_found_as_whole_paths() {
        assert!(uses("use aya::Ebpf;", "aya"));
        assert!(uses("let x = aya::maps::Map;", "aya"));
        assert!(uses("use kube;", "kube"));
        assert!(uses("use std::time::Instant;", "std::time::Instant"));
        assert!(!uses("use aya_obj::Object;", "aya"));
        assert!(!uses("use crate::kube::Watch;", "kube"));
        assert!(!uses("let kube = 1;", "kube"));
        assert!(!uses("std::time::Instantly", "std::time::Instant"));
    }

    #[test]
    fn each_folder_has_its_own_rule() {
        let aya = "use aya::Ebpf;\n";
        assert_eq!(forbidden(&source("lb-agent/src/datapath/bpf.rs", aya)), []);
        assert_eq!(forbidden(&source("lb-agent/src/status.rs", aya)).len(), 1);
        // Forbidden twice: plan is pure, and only the datapath touches BPF.
        assert_eq!(forbidden(&source("lb-agent/src/plan/mod.rs", aya)).len(), 2);
        assert_eq!(forbidden(&source("lb-testbed/src/run.rs", aya)), []);
        let kube = "use kube::Client;\n";
        assert_eq!(forbidden(&source("lb-agent/src/source/api.rs", kube)), []);
        assert_eq!(forbidden(&source("lb-agent/src/sync.rs", kube)).len(), 1);
        assert_eq!(forbidden(&source("lb-agent/src/sync_tests.rs", kube)), []);
        assert_eq!(forbidden(&source("lb-agent/src/plan/tests/world.rs", aya)), []);
        assert_eq!(forbidden(&source("lb-common/src/parse.rs", "use core::mem;\n")), []);
    }

    #[test]
    fn comments_and_tests_may_name_anything() {
        let text =
            "// like std::collections\nfn f() {}\n#[cfg(test)]\nmod tests {\nuse std::vec;\n";
        assert_eq!(forbidden(&source("lb-common/src/parse.rs", text)), []);
        let found = forbidden(&source("lb-common/src/parse.rs", "\nuse std::vec::Vec;\n"));
        assert!(found[0].what.starts_with("line 2 uses std"), "{found:?}");
    }
}
