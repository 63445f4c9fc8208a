//! Records of report mode, and `check --against` of them, held against what enforce mode does.

use std::path::Path;

use anyhow::{Context, Result};
use trefoil_lab::agent::verb;
use trefoil_lab::{Lab, Record};

/// As [`trefoil_lab::foretold::foretold`], by the verb as it runs in the lab.
pub fn foretold(lab: &Lab, policy: &str, left: &[Record]) -> Result<Option<bool>> {
    trefoil_lab::foretold::foretold(left, "outcome", |records| {
        let (file, policy_file) = (lab.file("records.json"), lab.file("foretelling.toml"));
        let lines: Vec<String> = records.iter().map(ToString::to_string).collect();
        std::fs::write(&policy_file, policy)?;
        std::fs::write(&file, lines.join("\n"))?;
        let path = |path: &Path| path.to_str().map(str::to_owned).context("its path");
        let (file, policy_file) = (path(&file)?, path(&policy_file)?);
        let words = ["check", &policy_file, "--json", "--against", &file];
        Ok(verb(lab, &words)?.stdout)
    })
}
