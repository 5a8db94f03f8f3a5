//! The providers that this broker knows.

use std::{collections::BTreeMap, fmt, fs, path::Path, sync::Arc};

use super::profile::Profile;
use crate::domain::slug::Slug;

/// The profiles in the binary.
const BUILT_IN: &[(&str, &str)] = &[
    ("admitad", include_str!("../../config/providers/admitad.toml")),
    ("amocrm", include_str!("../../config/providers/amocrm.toml")),
    ("avito", include_str!("../../config/providers/avito.toml")),
    ("divar", include_str!("../../config/providers/divar.toml")),
    ("kommo", include_str!("../../config/providers/kommo.toml")),
];

/// The providers that this broker knows, by name.
#[derive(Clone, Debug)]
pub struct Catalogue(BTreeMap<Slug, Arc<Profile>>);

/// A profile is refused; the text is one line that says where and why.
#[derive(Debug, thiserror::Error)]
#[error("{origin}: {problem}")]
pub struct ProfileError {
    origin: String,
    problem: String,
}

impl Catalogue {
    /// The profiles in the binary; then those of a folder, one `<name>.toml` each, which replace
    /// or add; then tables of settings that are laid over a profile, or are a whole new one.
    pub fn load(
        folder: Option<&Path>,
        overlays: &BTreeMap<Slug, toml::Table>,
    ) -> Result<Self, ProfileError> {
        let mut written = BTreeMap::new();
        for (name, text) in BUILT_IN {
            let origin = format!("built-in provider `{name}`");
            let name = name.parse().map_err(|why| refuse(&origin, &why))?;
            written.insert(name, (parse(text, &origin)?, origin));
        }
        if let Some(folder) = folder {
            for (name, origin) in files(folder)? {
                let text = fs::read_to_string(folder.join(format!("{name}.toml")))
                    .map_err(|why| refuse(&origin, &why))?;
                written.insert(name, (parse(&text, &origin)?, origin));
            }
        }
        for (name, overlay) in overlays {
            let said = format!("[providers.profiles.{name}]");
            match written.get_mut(name) {
                Some((table, origin)) => {
                    lay_over(table, overlay);
                    *origin = format!("{origin} with {said}");
                }
                None => {
                    written.insert(name.clone(), (overlay.clone(), said));
                }
            }
        }
        let profiles = written.into_iter().map(|(name, (table, origin))| {
            let profile = profile(&name, table).map_err(|why| refuse(&origin, &why))?;
            Ok((name, Arc::new(profile)))
        });
        profiles.collect::<Result<_, ProfileError>>().map(Self)
    }

    /// The profile of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Profile>> {
        self.0.get(name)
    }

    /// Every name, in order.
    pub fn names(&self) -> impl Iterator<Item = &Slug> {
        self.0.keys()
    }
}

fn refuse(origin: &str, problem: &dyn fmt::Display) -> ProfileError {
    // One line, also of a parser's message of several.
    let problem = problem.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    ProfileError { origin: origin.to_owned(), problem }
}

/// The names of the profiles in a folder, each with its path for error messages.
fn files(folder: &Path) -> Result<Vec<(Slug, String)>, ProfileError> {
    let here = folder.display().to_string();
    let mut names = Vec::new();
    let entries = fs::read_dir(folder)
        .map_err(|why| refuse("setting `providers.folder`", &format!("{here}: {why}")))?;
    for entry in entries {
        let path = entry.map_err(|why| refuse(&here, &why))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let origin = path.display().to_string();
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            names.push((name.parse().map_err(|why| refuse(&origin, &why))?, origin));
        }
    }
    Ok(names)
}

fn parse(text: &str, origin: &str) -> Result<toml::Table, ProfileError> {
    text.parse().map_err(|why: toml::de::Error| {
        let line = why.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        refuse(origin, &format_args!("line {line}: {}", why.message()))
    })
}

/// Lays one table over another: tables are merged, everything else is replaced.
fn lay_over(under: &mut toml::Table, over: &toml::Table) {
    for (key, value) in over {
        match (under.get_mut(key), value) {
            (Some(toml::Value::Table(under)), toml::Value::Table(over)) => lay_over(under, over),
            _ => {
                under.insert(key.clone(), value.clone());
            }
        }
    }
}

fn profile(name: &Slug, mut table: toml::Table) -> Result<Profile, String> {
    let name = toml::Value::String(name.to_string());
    if table.insert("name".to_owned(), name).is_some() {
        return Err("`name` is not a setting: the file's name is the provider's".to_owned());
    }
    let profile: Profile = table.try_into().map_err(|why: toml::de::Error| describe(&why))?;
    profile.check()?;
    Ok(profile)
}

/// The expected form and its place. The value is not shown: it may be a secret in the wrong place.
fn describe(why: &toml::de::Error) -> String {
    let text = why.to_string();
    match text.rsplit_once(", expected ") {
        Some((found, expected)) if found.starts_with("invalid ") => format!("expected {expected}"),
        _ => text,
    }
}
