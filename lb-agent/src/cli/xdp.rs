//! Where does XDP run? The flags that say so, each checked before anything is done.

use std::collections::BTreeSet;

use clap::{Args, ValueEnum};
use lb_agent::datapath::routes;
use lb_agent::datapath::xdp::{Config, Mode};

use super::error::Error;

/// Where XDP forwards what has to leave the node again; elsewhere, and what is beyond it, tc does.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "XDP")]
pub(super) struct XdpArgs {
    /// How XDP is attached to uplinks; where that fails, tc does its work, and `status` says why
    #[arg(long, value_enum, value_name = "HOW", default_value = "native")]
    xdp: How,
    /// Uplinks that get XDP [default: those with a driver of their own]
    ///
    /// A veth gets XDP only when it is named here, and what is at its other end has to have an XDP
    /// program too, GRO on and offload of checksums off. An interface that leads to a pod never gets XDP.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = name)]
    xdp_interfaces: Option<Vec<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum How {
    /// By the driver, before the kernel makes a packet of a frame
    Native,
    /// By the kernel, for tests: slower than tc, on any interface
    Generic,
    /// Nowhere
    Off,
}

impl XdpArgs {
    /// What the flags ask for.
    pub(super) fn config(&self) -> Result<Config, Error> {
        let mode = match self.xdp {
            How::Native => Mode::Native,
            How::Generic => Mode::Generic,
            How::Off => Mode::Off,
        };
        let interfaces: Option<BTreeSet<String>> =
            self.xdp_interfaces.as_ref().map(|names| names.iter().cloned().collect());
        if mode == Mode::Off && interfaces.is_some() {
            let reason = "makes no sense with --xdp off; leave one of them out";
            return Err(Error::flag("--xdp-interfaces", reason.to_owned()));
        }
        Ok(Config { mode, interfaces })
    }

    /// What may be a mistake, as interfaces are at this moment in this thread's network namespace;
    /// each as a sentence.
    pub(super) fn doubts(&self) -> Vec<String> {
        let names = self.xdp_interfaces.iter().flatten();
        let absent = names.filter(|name| routes::interface_index(name).is_none());
        let doubt = |name| format!("--xdp-interfaces: there is no interface {name} at the moment");
        absent.map(doubt).collect()
    }
}

/// A name that an interface can have (`dev_valid_name` of the kernel).
fn name(text: &str) -> Result<String, String> {
    let bad = |c: char| c.is_whitespace() || c == '/' || c == ':';
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.contains(bad) {
        return Err("an interface is named by 1 to 15 bytes without spaces, `/` and `:`".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        xdp: XdpArgs,
    }

    fn config(args: &[&str]) -> Result<Config, String> {
        let flags = Flags::try_parse_from([&["x"], args].concat()).map_err(|e| e.to_string())?;
        flags.xdp.config().map_err(|error| error.to_string())
    }

    #[test]
    fn native_on_uplinks_with_a_driver_is_the_default() {
        assert_eq!(config(&[]), Ok(Config { mode: Mode::Native, interfaces: None }));
        let named = config(&["--xdp", "generic", "--xdp-interfaces", "eth0,eth1"]).unwrap();
        assert_eq!(named.mode, Mode::Generic);
        assert_eq!(named.interfaces, Some(["eth0".to_owned(), "eth1".to_owned()].into()));
    }

    #[test]
    fn names_of_interfaces_that_are_not_there_are_told() {
        let flags = Flags::try_parse_from(["x", "--xdp-interfaces", "lo,no-such-one"]).unwrap();
        let doubts = flags.xdp.doubts();
        assert!(matches!(&doubts[..], [one] if one.contains("no-such-one")), "{doubts:?}");
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_name_of_its_flag() {
        for bad in ["", "a b", "a/b", "sixteen-bytes-xx", "eth0,,eth1", ".."] {
            let error = config(&[&format!("--xdp-interfaces={bad}")]).unwrap_err();
            assert!(error.contains("--xdp-interfaces"), "{error}");
        }
        let error = config(&["--xdp", "off", "--xdp-interfaces", "eth0"]).unwrap_err();
        assert!(error.starts_with("--xdp-interfaces: makes no sense"), "{error}");
        assert!(config(&["--xdp", "offload"]).unwrap_err().contains("--xdp"));
    }
}
