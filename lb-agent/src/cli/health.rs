//! Where does `lb-agent run` answer health checks?

use std::net::{IpAddr, SocketAddr};

use clap::Args;
use lb_agent::health::{Health, server};

use super::error::Error;

/// The server of health checks.
#[derive(Args, Clone, Copy, Debug)]
#[command(next_help_heading = "Health checks")]
pub(super) struct HealthArgs {
    /// Address of /healthz, for load balancers, and /livez, for a livenessProbe; "" for none
    ///
    /// ADDRESS:PORT or ADDRESS, in the node's network namespace.
    /// An unspecified address means both IP families, as it does for kube-proxy.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:10256", value_parser = bind)]
    healthz_bind_address: Bind,
    /// End with an error where that address cannot be had, instead of trying again
    #[arg(long)]
    bind_address_hard_fail: bool,
}

/// An address to listen on, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bind(Option<SocketAddr>);

impl HealthArgs {
    /// Starts the server: of the ports of Services, and of this address if it is wanted. Call it in
    /// the node's network namespace.
    pub(super) fn serve(self, health: &Health) -> Result<(), Error> {
        let Bind(address) = self.healthz_bind_address;
        Ok(server::start(address, self.bind_address_hard_fail, health.clone())?)
    }
}

fn bind(text: &str) -> Result<Bind, String> {
    if text.is_empty() {
        return Ok(Bind(None));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = text.parse::<SocketAddr>().ok().or_else(|| {
        let address: IpAddr = bare.parse().ok()?;
        Some(SocketAddr::new(address, server::PORT))
    });
    match address {
        Some(address) if address.port() == 0 => Err("port 0 is none that can be probed".into()),
        Some(address) => Ok(Bind(Some(address))),
        None => Err("write an IP address and a port, as 0.0.0.0:10256 or [::1]:10256".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H-7: the addresses that kube-proxy takes.
    #[test]
    fn addresses_with_and_without_a_port_are_taken_and_nothing_else() {
        for (text, address) in [
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("127.0.0.1", "127.0.0.1:10256"),
            ("[::1]:80", "[::1]:80"),
            ("::", "[::]:10256"),
            ("[::]", "[::]:10256"),
        ] {
            assert_eq!(bind(text), Ok(Bind(Some(address.parse().unwrap()))), "{text}");
        }
        assert_eq!(bind(""), Ok(Bind(None)));
        for bad in [" ", "localhost:10256", ":10256", "10256", "0.0.0.0:0", "1.2.3.4:65536", "[::1"]
        {
            assert!(bind(bad).is_err(), "{bad}");
        }
    }
}
