//! Canaries: every secret of the test, raw, URL-, base64- and hex-encoded. None of their parts of
//! twelve characters may be found where it does not belong.

use std::collections::{BTreeMap, HashMap};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD},
};

/// The length of the shortest part that gives a secret away.
const PART: usize = 12;

/// The kinds of secrets.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Kind {
    Access,
    AccountKey,
    ApiKey,
    Browser,
    ClientSecret,
    Code,
    Link,
    Refresh,
    SealingKey,
    State,
    Verifier,
}

/// The secrets, by their parts.
pub(super) struct Canaries {
    parts: HashMap<[u8; PART], Kind>,
    /// Which beginnings of a part there are: most places of a file are none.
    begins: Vec<bool>,
    planted: BTreeMap<Kind, usize>,
}

impl Canaries {
    pub(super) fn new() -> Self {
        Self { parts: HashMap::new(), begins: vec![false; 1 << 20], planted: BTreeMap::new() }
    }

    /// One secret more.
    pub(super) fn plant(&mut self, kind: Kind, secret: &str) {
        assert!(secret.len() >= PART, "{kind:?} is too short to be told from other text");
        *self.planted.entry(kind).or_default() += 1;
        self.add(kind, secret);
        let encoded: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        self.add(kind, &encoded);
        let hex = hex::encode(secret);
        self.add(kind, &hex);
        self.add(kind, &hex.to_uppercase());
        let percent = secret.bytes().fold(String::new(), |all, byte| all + &format!("%{byte:02X}"));
        self.add(kind, &percent);
        // Wherever it stands in a longer text: the characters that its neighbours share are left out.
        for before in 0..3 {
            let text = [&vec![0; before], secret.as_bytes()].concat();
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                let encoded = engine.encode(&text);
                let ours = [0, 2, 3][before]..text.len() * 8 / 6;
                self.add(kind, &encoded[ours]);
            }
        }
    }

    fn add(&mut self, kind: Kind, text: &str) {
        for part in text.as_bytes().windows(PART) {
            let part: [u8; PART] = part.try_into().unwrap();
            self.begins[beginning(&part)] = true;
            self.parts.insert(part, kind);
        }
    }

    /// The number of secrets of each kind.
    pub(super) fn planted(&self) -> &BTreeMap<Kind, usize> {
        &self.planted
    }

    /// The first part of a secret in these bytes, but of those kinds that belong there, with what
    /// stands around it.
    pub(super) fn find(&self, bytes: &[u8], but: &[Kind]) -> Option<(Kind, String)> {
        let at = bytes.windows(PART).position(|part| {
            self.begins[beginning(part)]
                && self.parts.get(part).is_some_and(|kind| !but.contains(kind))
        })?;
        let around = &bytes[at.saturating_sub(120)..(at + 60).min(bytes.len())];
        Some((self.parts[&bytes[at..at + PART]], String::from_utf8_lossy(around).into_owned()))
    }

    /// Fails if a part of a secret is in these bytes.
    pub(super) fn nowhere_in(&self, what: &str, bytes: &[u8], but: &[Kind]) {
        if let Some((kind, around)) = self.find(bytes, but) {
            panic!("{kind:?} in {what}: …{}…", around.escape_debug());
        }
    }
}

fn beginning(part: &[u8]) -> usize {
    let byte = |at: usize| usize::from(part[at]);
    (byte(0) | byte(1) << 7 | byte(2) << 14) & ((1 << 20) - 1)
}

/// The scanner is of no use if it finds nothing.
#[test]
fn a_part_of_a_secret_is_found_in_any_encoding() {
    let mut canaries = Canaries::new();
    canaries.plant(Kind::Refresh, "def50200-a+b/c=d~tail0123456789");
    for found in [
        "def50200-a+b",
        "x ~tail0123456 y",
        "def50200-a%2Bb%2Fc%3Dd",
        "6465663530323030",
        "2D612B622F63",
        "%64%65%66%35",
        "\\\"tail01234567",
    ] {
        assert!(canaries.find(found.as_bytes(), &[]).is_some(), "{found}");
        assert!(canaries.find(found.as_bytes(), &[Kind::Refresh]).is_none(), "{found}");
    }
    for before in ["", "a", "ab", "abc", "{\"refresh_token\":\""] {
        let text = format!("{before}def50200-a+b/c=d~tail0123456789\"}}");
        for encoded in [STANDARD_NO_PAD.encode(&text), URL_SAFE_NO_PAD.encode(&text)] {
            assert!(canaries.find(encoded.as_bytes(), &[]).is_some(), "{before}: {encoded}");
        }
    }
    assert!(canaries.find(b"refresh_token: def50200-a and what else there is", &[]).is_none());
}
