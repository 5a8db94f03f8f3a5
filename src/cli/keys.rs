//! `keys`: the file of sealing keys.

use std::path::Path;

use super::{
    Failure,
    args::{KeyAction, Keys},
    environment, say,
};
use crate::{app::key_problem, config::Config, seal::Keyring, state_dir::make_state_dir};

pub(crate) fn keys(config: Option<&Path>, args: &Keys) -> Result<(), Failure> {
    let KeyAction::Generate { file } = &args.action;
    let path = if let Some(path) = file {
        path.clone()
    } else {
        let config = Config::load(config, environment())?;
        // On a fresh machine the key comes before the first start.
        if config.key_file.starts_with(&config.state_dir) {
            make_state_dir(&config)?;
        }
        config.key_file
    };
    Keyring::generate().write_new(&path).map_err(|error| key_problem(&path, "written", &error))?;
    say(&format!(
        "wrote {}; keep a copy of it apart from the database: without it the stored tokens are lost",
        path.display()
    ))
}
