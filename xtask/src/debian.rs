//! Debian packages: what tests use of the system, and how it gets there.

use std::process::Command;

use anyhow::Result;

use crate::preflight::Facts;
use crate::sh::{self, say};

/// A program that some tests use, the package it comes in, and what for.
struct Tool {
    program: &'static str,
    package: &'static str,
    purpose: &'static str,
}

const TOOLS: [Tool; 2] = [
    Tool {
        program: "ip",
        package: "iproute2",
        purpose: "tests and demo lay out network namespaces with it",
    },
    Tool {
        program: "nft",
        package: "nftables",
        purpose: "tests put the rules of CNIs and others in force with it",
    },
];

/// Reports the optional packages, and installs those that are missing if asked to.
pub(crate) fn test_packages(facts: &Facts, install: bool) -> Result<()> {
    let mut missing = Vec::new();
    for tool in &TOOLS {
        if sh::has_program(tool.program) {
            say("ok", &format!("package {}", tool.package));
        } else {
            missing.push(tool);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    if install && facts.root && facts.apt {
        let names: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
        say("install", &names.join(" "));
        return apt_install(&names);
    }
    for tool in missing {
        say(
            "missing",
            &format!(
                "package {} ({}); install it with `apt-get install {}` as root",
                tool.package, tool.purpose, tool.package
            ),
        );
    }
    Ok(())
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").arg("-q");
        command
    };
    sh::run("reading the package lists", apt().arg("update"))?;
    sh::run(
        "installing packages",
        apt().args(["install", "-y", "--no-install-recommends"]).args(packages),
    )?;
    Ok(())
}
