//! Secrets, given directly or in a file of their own.

use std::{fs, io, path::Path};

use secrecy::{ExposeSecret as _, SecretString};

use super::{ConfigError, wrong};

/// The value of a secret that can be given directly or in a file, but not both.
#[expect(clippy::disallowed_methods, reason = "only whether it is empty is looked at")]
pub(super) fn one_of(
    setting: &str,
    direct: Option<SecretString>,
    file: Option<&Path>,
) -> Result<Option<SecretString>, ConfigError> {
    match (direct, file) {
        (Some(_), Some(_)) => {
            Err(wrong(setting, format!("is set twice: keep it or `{setting}_file`, not both")))
        }
        (None, Some(path)) => {
            let text = read_secret(path)
                .map_err(|error| wrong(format!("{setting}_file"), error.to_string()))?;
            Ok(Some(text))
        }
        (Some(direct), None) if direct.expose_secret().is_empty() => {
            Err(wrong(setting, "is empty"))
        }
        (direct, None) => Ok(direct),
    }
}

/// Reads a secret from a file, without the line end that editors add.
///
/// # Errors
///
/// When the file cannot be read as text or is empty; the message names the file.
pub fn read_secret(path: &Path) -> io::Result<SecretString> {
    let told = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display()))
    };
    let mut text = fs::read_to_string(path).map_err(told)?;
    text.truncate(text.trim_end_matches(['\r', '\n']).len());
    if text.is_empty() {
        return Err(told(io::Error::new(io::ErrorKind::InvalidData, "the file is empty")));
    }
    Ok(SecretString::from(text))
}
