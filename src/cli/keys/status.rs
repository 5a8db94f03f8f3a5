//! `keys status`: which key seals, and which are still needed.

use std::collections::BTreeMap;

use super::{CliError, open, say};
use crate::{
    app::{StartError, key_problem},
    cli::table::table,
    config::Config,
    seal::Keyring,
    store::SEALED_COLUMNS,
};

/// The number of values in each table that are sealed with a key.
type Counts = BTreeMap<String, i64>;

pub(super) async fn status(config: &Config) -> Result<(), CliError> {
    let path = &config.key_file;
    let keyring = Keyring::read(path).map_err(|error| key_problem(path, "read", &error))?;
    let store = open(config).await?;
    let counted = store.count_sealed().await.map_err(StartError::from);
    store.close().await;
    let mut by_key: BTreeMap<String, Counts> = BTreeMap::new();
    for count in counted? {
        by_key.entry(count.key).or_default().insert(count.table, count.values);
    }
    let waiting = keyring.waiting_ids();
    let mut rows = Vec::new();
    for (at, id) in keyring.ids().into_iter().enumerate() {
        let role = match at {
            0 => Role::Seals,
            _ if waiting.contains(&id) => Role::Waits,
            _ => Role::Opens,
        };
        let counts = by_key.remove(&id).unwrap_or_default();
        rows.push((id, role, counts));
    }
    for (id, counts) in by_key {
        let role = if id.is_empty() { Role::Broken } else { Role::Missing };
        rows.push((id, role, counts));
    }
    let mut tables: Vec<&str> = SEALED_COLUMNS.iter().map(|column| column.table).collect();
    tables.dedup();
    let headings = ["KEY", "STATUS", "GRANTS", "PENDING", "FALLBACK", "CONSENTS", "META"];
    let cells = rows.iter().map(|(id, role, counts)| {
        let count = |table: &str| counts.get(table).copied().unwrap_or_default().to_string();
        let [grants, pending, fallback, consents, meta] =
            [0, 1, 2, 3, 4].map(|at| count(tables[at]));
        let id: String = id.chars().take(64).flat_map(char::escape_debug).collect();
        let id = if id.is_empty() { "-".to_owned() } else { id };
        [id, role.word().to_owned(), grants, pending, fallback, consents, meta]
    });
    table(headings, cells)?;
    for line in advice(&rows) {
        say(&line)?;
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Role {
    Seals,
    Opens,
    Waits,
    Missing,
    Broken,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Seals => "seals",
            Self::Opens => "opens",
            Self::Waits => "waits",
            Self::Missing => "missing",
            Self::Broken => "not sealed",
        }
    }
}

/// The next steps; one line at least.
fn advice(rows: &[(String, Role, Counts)]) -> Vec<String> {
    let values = |counts: &Counts| counts.values().sum::<i64>();
    let mut lines: Vec<String> = rows
        .iter()
        .filter_map(|(id, role, counts)| match (role, values(counts)) {
            (Role::Opens, 0) => Some(format!(
                "key {id} is needed by no value: it may be removed from the file, 15 minutes after \
                 the rotation"
            )),
            (Role::Opens, count) => Some(format!(
                "key {id} is still needed ({count}): run `token-broker keys rotate`, and not before \
                 every replica's file has key {} first",
                rows[0].0
            )),
            (Role::Waits, _) => Some(format!(
                "key {id} waits: when every replica's file has it, run `token-broker keys rotate`"
            )),
            (Role::Missing, count) => Some(format!(
                "key {id} is needed ({count}) and is not in the file: put it back"
            )),
            (Role::Broken, count) => Some(format!(
                "values that are not sealed at all ({count}) open with no key: somebody else wrote \
                 them"
            )),
            (Role::Seals, _) => None,
        })
        .collect();
    if lines.is_empty() {
        lines.push(format!(
            "key {} seals everything: `token-broker keys generate --add` begins a rotation",
            rows[0].0
        ));
    }
    lines
}
