//! `trefoil detach`: takes everything out of the kernel.

use super::{Ending, Failure, say, sources};
use crate::{cli::DetachArgs, kernel, trial::Trials};

pub fn detach(args: &DetachArgs) -> Result<Ending, Failure> {
    let settings = sources::settings(args.config.as_deref())?;
    let pin_dir = args.pins.pin_dir.as_deref().unwrap_or(&settings.pin_dir);
    let pins = sources::pins(pin_dir)?;
    let (n_links, n_maps) = kernel::detach(&pins)?;
    // What was confirmed is not in force any more.
    Trials::new(pin_dir, settings.confirm_within).forget();
    let dir = pins.base().display();
    if n_links + n_maps == 0 {
        say(&format!("Nothing of Trefoil is pinned in {dir}.\n"))?;
    } else {
        say(&format!(
            "Took {n_links} links and {n_maps} maps in {dir} out of the kernel. \
             Nothing is watched or enforced by them any more.\n"
        ))?;
    }
    Ok(Ending::Fine)
}
