//! An explanation as people read it.

use std::fmt;
use std::net::SocketAddr;

use super::{Decision, Explanation};
use crate::cli::view::Backend;

/// Backends listed; there may be thousands.
const LISTED: usize = 20;

pub(super) fn text(explanation: &Explanation) -> String {
    explanation.to_string()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} is ", self.to, self.protocol)?;
        match &self.service {
            Some(port) => {
                write!(f, "{}", port.service)?;
                if !port.port_name.is_empty() {
                    write!(f, ", port {}", port.port_name)?;
                }
                write!(f, " (service port {})", port.id)?;
            }
            None => write!(f, "no Service's")?,
        }
        if !self.same_address.is_empty() {
            write!(f, "; the same address has {}", self.same_address.join(", "))?;
        }
        writeln!(f)?;
        self.decisions.iter().try_for_each(|decision| write!(f, "\n{decision}"))
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} engine, {}:", self.engine, self.case)?;
        for step in &self.steps {
            writeln!(f, "  {}", step.text)?;
        }
        writeln!(f, "  => {}", self.text)?;
        if let Some(source) = self.source {
            writeln!(f, "     {source}")?;
        }
        match self.from {
            Some(from) if from.port() == 0 => {
                writeln!(f, "     its source becomes {}, and any free port for that", from.ip())?;
            }
            Some(from) => writeln!(f, "     its source becomes {from}")?,
            None => {}
        }
        if self.one_of.len() > 1 {
            writeln!(f, "     one of:")?;
            for backend in self.one_of.iter().take(LISTED) {
                writeln!(f, "       {}", line(backend))?;
            }
            let more = self.one_of.len().saturating_sub(LISTED);
            if more > 0 {
                writeln!(f, "       and {more} more; --output json lists all")?;
            }
        }
        Ok(())
    }
}

fn line(backend: &Backend) -> String {
    let at = SocketAddr::new(backend.address, backend.port);
    format!("{at} (backend {}, {})", backend.id, backend.states.join(" "))
}
