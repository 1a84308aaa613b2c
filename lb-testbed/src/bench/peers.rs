//! What others need for the same, where their programs are at hand.

use std::{env, path::PathBuf};

use anyhow::Result;

use super::{Figure, Plan};

pub(super) const IDS: [&str; 2] = ["kube_proxy_sync_10k_s", "kube_proxy_change_10k_ms"];

const UNITS: [&str; 2] = ["s", "ms"];
const PROGRAM: &str = "kube-proxy";

/// Says why there is no comparison.
#[expect(clippy::unnecessary_wraps, reason = "as all measurements")]
pub(super) fn measure(_plan: &Plan) -> Result<Vec<Figure>> {
    let assets = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let why = match &assets {
        None => "KUBEBUILDER_ASSETS is not set; let it name a folder that holds kube-proxy".into(),
        Some(folder) if !folder.join(PROGRAM).is_file() => {
            format!("{} holds no {PROGRAM}", folder.display())
        }
        Some(_) => format!("{PROGRAM} is there, but this version does not measure it"),
    };
    let missing = |(id, unit): (&str, &'static str)| {
        Figure::missing(id, unit, why.clone())
            .method(format!("{PROGRAM} in nftables mode on the same state"))
    };
    Ok(IDS.into_iter().zip(UNITS).map(missing).collect())
}
