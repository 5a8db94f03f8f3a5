//! The reference tables name every field that a profile and a configuration can have. The fields are
//! found out from the loaders: each is given a field that does not exist, and says what it expects.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
};

use tempfile::TempDir;
use token_broker::{
    config::Config,
    provider::{Catalogue, Profile},
};
use toml::{Table, Value};

use super::page;

/// A name that no field has.
const BOGUS: &str = "bogus";

/// A name for a member of a table whose names are free.
const ANY: &str = "<name>";

/// Loads a text and says why that fails.
type Loader = dyn Fn(&Table) -> Result<(), String>;

/// Puts a value at a path such as `errors[].status` or `vars.<name>.allow`.
fn put(table: &mut Table, path: &str, value: Value) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let name = first.trim_end_matches("[]");
    let name = if name == ANY { "any" } else { name };
    let Some(rest) = rest else {
        let value = if first.ends_with("[]") { Value::Array(vec![value]) } else { value };
        table.insert(name.to_owned(), value);
        return;
    };
    let empty = || Value::Table(Table::new());
    let mut entry = table.entry(name).or_insert_with(empty);
    if first.ends_with("[]") {
        if !entry.is_array() {
            *entry = Value::Array(Vec::new());
        }
        let list = entry.as_array_mut().unwrap();
        list.resize(1, empty());
        entry = &mut list[0];
    }
    if !entry.is_table() {
        *entry = empty();
    }
    put(entry.as_table_mut().unwrap(), rest, value);
}

/// Takes away what is at a path.
fn take(table: &mut Table, path: &str) {
    let (first, rest) = path.split_once('.').map_or((path, None), |(a, b)| (a, Some(b)));
    let name = first.trim_end_matches("[]");
    let name = if name == ANY { "any" } else { name };
    match (rest, table.get_mut(name)) {
        (None, _) => drop(table.remove(name)),
        (Some(rest), Some(Value::Table(inner))) => take(inner, rest),
        (Some(rest), Some(Value::Array(list))) => take(list[0].as_table_mut().unwrap(), rest),
        (Some(_), None | Some(_)) => {}
    }
}

/// What a loader expects in place of what does not exist.
enum Expected {
    Fields(Vec<String>),
    Words(Vec<String>),
}

impl Expected {
    /// Reads a refusal; none if it is about something else.
    fn of(problem: &str) -> Option<Self> {
        let list = problem.rsplit_once("expected ")?.1.trim_start_matches("one of ");
        let mut names = Vec::new();
        let mut rest = list;
        while let Some((name, after)) = rest.strip_prefix('`').and_then(|rest| rest.split_once('`'))
        {
            names.push(name.to_owned());
            rest = after.trim_start_matches(',').trim_start();
            rest = rest.strip_prefix("or ").unwrap_or(rest);
        }
        let says = |words| problem.contains(words);
        if says("unknown field `bogus`") || says("there is no such setting") {
            Some(Self::Fields(names))
        } else if says("unknown variant `bogus`") {
            Some(Self::Words(names))
        } else {
            None
        }
    }
}

/// The fields that a loader knows, each with the words that it may be.
type Fields = BTreeMap<String, Vec<String>>;

/// Finds every field at a path and below it.
fn discover(base: &Table, path: &str, load: &Loader, found: &mut Fields) {
    let below = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    let ask = |path: &str| {
        let mut table = base.clone();
        put(&mut table, path, Value::Integer(1));
        load(&table).err().and_then(|problem| Expected::of(&problem))
    };
    match ask(&below(BOGUS)) {
        Some(Expected::Fields(names)) => {
            for name in names {
                discover(base, &below(&name), load, found);
            }
        }
        Some(Expected::Words(words)) => {
            // A word may be a table of its own as well.
            for word in &words {
                if let Some(Expected::Fields(_)) = ask(&below(&format!("{word}.{BOGUS}"))) {
                    discover(base, &below(word), load, found);
                }
            }
            found.insert(path.trim_end_matches("[]").to_owned(), words);
        }
        None if path.is_empty() => panic!("the loader takes any field"),
        None if ask(&below(&format!("{ANY}.{BOGUS}"))).is_some() => {
            discover(base, &below(ANY), load, found);
        }
        None if !path.ends_with("[]") && ask(&format!("{path}[].{BOGUS}")).is_some() => {
            discover(base, &format!("{path}[]"), load, found);
        }
        None => drop(found.insert(path.to_owned(), Vec::new())),
    }
}

fn load_profile(table: &Table) -> Result<Profile, String> {
    let overlays = [("acme".parse().unwrap(), table.clone())].into();
    let catalogue = Catalogue::load(None, &overlays).map_err(|why| why.to_string())?;
    Ok(Profile::clone(catalogue.get("acme").unwrap()))
}

/// The profile of the guide that has every field.
fn complete() -> Table {
    let guide = page("src/guide/profiles.md");
    let block = guide.blocks_in("toml").find(|block| block.text.contains("[key_exchange]"));
    block.unwrap().text.parse().unwrap()
}

fn load_settings(table: &Table) -> Result<Config, String> {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("broker.toml");
    fs::write(&file, table.to_string()).unwrap();
    Config::load(Some(&file), HashMap::new()).map_err(|why| why.to_string())
}

/// The fields that a table of a guide describes, each with its row.
fn described<'a>(rows: &'a [Vec<&'a str>]) -> BTreeMap<String, &'a [&'a str]> {
    rows.iter().map(|row| (row[0].trim_matches('`').to_owned(), &row[1..])).collect()
}

fn names<T>(fields: &BTreeMap<String, T>) -> BTreeSet<&String> {
    fields.keys().collect()
}

fn value(cell: &str) -> Option<Value> {
    let text = cell.strip_prefix('`')?.strip_suffix('`')?;
    format!("x = {text}").parse::<Table>().ok()?.remove("x")
}

#[test]
fn every_field_of_a_profile_is_described() {
    let mut found = Fields::new();
    let base = complete();
    discover(&base, "", &|table| load_profile(table).map(drop), &mut found);
    // The file's name is the provider's.
    assert!(found.remove("name").is_some());
    let guide = page("src/guide/profiles.md");
    let rows = guide.table("field");
    let described = described(&rows);
    assert_eq!(names(&described), names(&found));
    for (field, words) in found {
        // What a grant can omit depends on the grant.
        let words =
            words.iter().filter(|_| !(field.starts_with("grants") && field.ends_with("omit")));
        for word in words {
            let row = described[&field];
            let named = row.iter().any(|cell| cell.contains(word))
                || guide.prose.contains(&format!("| `\"{word}\"` |"));
            assert!(named, "{field} may be {word}");
        }
    }
}

#[test]
fn the_defaults_of_a_profile_are_those_described() {
    let guide = page("src/guide/profiles.md");
    let rows = guide.table("field");
    let mut base = complete();
    // It needs a rotation that has a default.
    take(&mut base, "tokens.grace");
    put(&mut base, "tokens.rotation", "single_use".into());
    put(&mut base, "vars.<name>.allow", vec!["a"].into());
    let mut compared = 0;
    for (field, row) in described(&rows) {
        let (kind, default) = (row[0], row[1]);
        // A variable and a secret cannot have one name.
        let field = field.replace("client.<name>", "client.key");
        let mut without = base.clone();
        take(&mut without, &field);
        if let Some(default) = value(default) {
            let mut with = base.clone();
            put(&mut with, &field, default);
            let [without, with] = [without, with].map(|table| load_profile(&table).unwrap());
            assert_eq!(format!("{without:?}"), format!("{with:?}"), "{field}");
            compared += 1;
        } else if default.starts_with("required") && !field.starts_with("network") {
            assert!(load_profile(&without).is_err(), "{field} ({kind}) is required");
        } else if default == "none" && !field.ends_with("].reason") {
            load_profile(&without).unwrap_or_else(|why| panic!("{field} is needed: {why}"));
        }
    }
    assert!(compared > 15, "{compared} defaults");
}

#[test]
fn the_examples_of_a_profile_are_loaded() {
    let guide = page("src/guide/profiles.md");
    let rows = guide.table("field");
    for (field, row) in described(&rows) {
        let example = value(row[2]).unwrap_or_else(|| panic!("{field}: {} is no value", row[2]));
        let mut table = complete();
        if field.starts_with("network.private") {
            let network = "hosts = [\"login.acme.example\"]\nnetworks = [\"10.0.0.0/8\"]";
            put(&mut table, "network.private", Value::Table(network.parse().unwrap()));
        }
        put(&mut table, &field, example);
        // Of hosts that may be called, and of what may be called, one is an example at a time.
        if let Err(why) = load_profile(&table) {
            assert!(field.starts_with("network.private"), "{field}: {why}");
            assert!(why.contains("network.private.hosts"), "{field}: {why}");
        }
    }
}

#[test]
fn every_setting_is_described() {
    let client =
        "clients = { any = { provider = \"avito\", client_id = \"a\", client_secret = \"b\" } }";
    let base: Table = client.parse().unwrap();
    let mut found = Fields::new();
    discover(&base, "", &|table| load_settings(table).map(drop), &mut found);
    // Those are in config/default.toml, and the fields of a profile in their own guide.
    let elsewhere = ["simulators", "providers.profiles."];
    found.retain(|setting, _| !elsewhere.iter().any(|beginning| setting.starts_with(beginning)));
    found.insert("providers.profiles".to_owned(), Vec::new());
    let guide = page("src/guide/operations.md");
    let rows = guide.table("setting");
    let described = described(&rows);
    assert_eq!(names(&described), names(&found));

    let defaults = include_str!("../../../config/default.toml").parse::<Table>().unwrap();
    let mut compared = 0;
    for (setting, row) in described {
        let mut parts = setting.split('.');
        let first = defaults.get(parts.next().unwrap());
        let default = parts.fold(first, |found, part| found?.get(part));
        if let Some(default) = default.filter(|default| !default.is_table()) {
            assert_eq!(value(row[0]).as_ref(), Some(default), "{setting}");
            compared += 1;
        }
    }
    assert!(compared >= 8, "{compared} defaults");
}
