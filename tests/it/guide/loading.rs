//! Every TOML block is loaded as the broker would load it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
};

use tempfile::TempDir;
use token_broker::{config::Config, provider::Catalogue};

use super::{Block, pages};

/// Where the examples look for files: a folder that has them.
const FOLDERS: [&str; 2] = ["/run/secrets", "/etc/token-broker"];

/// The text with its folders moved to a temporary one, which has every file that it names.
fn with_files(text: &str, folder: &Path) -> String {
    let mut text = text.to_owned();
    for there in FOLDERS {
        let here = folder.join(there.trim_start_matches('/'));
        fs::create_dir_all(here.join("providers")).unwrap();
        let mark = format!("\"{there}/");
        let named = text.split(&mark).skip(1);
        for file in named.map(|rest| rest.split('"').next().unwrap()) {
            let content = match file {
                "database-url" => "postgres://broker@127.0.0.1/broker",
                _ => "content",
            };
            if file != "providers" {
                fs::write(here.join(file), content).unwrap();
            }
        }
        text = text.replace(&format!("\"{there}"), &format!("\"{}", here.display()));
    }
    text
}

fn check(block: &Block, profile: &str) -> Result<(), String> {
    let folder = TempDir::new().unwrap();
    let providers = folder.path().join("profiles");
    fs::create_dir(&providers).unwrap();
    let acme = "acme".parse().unwrap();
    match block.note.as_str() {
        "profile" => {
            fs::write(providers.join("acme.toml"), &block.text).unwrap();
            Catalogue::load(Some(&providers), &BTreeMap::new()).map_err(|why| why.to_string())?;
        }
        "profile, laid over the one before it" => {
            fs::write(providers.join("acme.toml"), profile).unwrap();
            let overlay = block.text.parse().map_err(|why: toml::de::Error| why.to_string())?;
            let overlays = [(acme, overlay)].into();
            Catalogue::load(Some(&providers), &overlays).map_err(|why| why.to_string())?;
        }
        "settings" | "settings, with the profile before it as acme" => {
            let file = folder.path().join("broker.toml");
            fs::write(&file, with_files(&block.text, folder.path())).unwrap();
            let mut environment = HashMap::new();
            if block.note != "settings" {
                fs::write(providers.join("acme.toml"), profile).unwrap();
                let name = "TOKEN_BROKER__PROVIDERS__FOLDER".to_owned();
                environment.insert(name, providers.display().to_string());
            }
            Config::load(Some(&file), environment).map_err(|why| why.to_string())?;
        }
        note => return Err(format!("<!-- {note} --> does not say how to load it")),
    }
    Ok(())
}

#[test]
fn every_toml_block_is_loaded() {
    let mut loaded = 0;
    for page in pages() {
        let mut profile = "";
        for block in page.blocks_in("toml") {
            if let Err(why) = check(block, profile) {
                panic!("{}: {why}", block.at);
            }
            if block.note == "profile" {
                profile = &block.text;
            }
            loaded += 1;
        }
    }
    assert!(loaded > 10, "{loaded} blocks are none");
}
