//! Properties of every secret, every place and every change of a sealed value.

use std::collections::HashSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use secrecy::{ExposeSecret as _, SecretString};

use super::{Keyring, SALT_LEN, SealContext, Sealed, SealedField};
use crate::properties::cases;

const CONTEXT: SealContext<'static> =
    SealContext { record: "c1", field: SealedField::Access, generation: 7 };

/// The plaintext behind the key's id.
fn payload(sealed: &Sealed) -> Vec<u8> {
    let (_, encoded) = sealed.as_str().rsplit_once('.').unwrap();
    URL_SAFE_NO_PAD.decode(encoded).unwrap()
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the secrets of this test are made up")]
    fn whatever_is_sealed_opens_where_it_belongs(
        secret in ".{0,200}", record in ".{0,40}", generation: i64, other: i64,
    ) {
        let ring = Keyring::generate();
        let context = SealContext { record: &record, field: SealedField::Access, generation };
        let sealed = ring.seal(context, &SecretString::from(secret.as_str()));
        let opened = ring.open(context, &sealed).unwrap();
        prop_assert_eq!(opened.expose_secret(), secret);
        let elsewhere = SealContext { generation: other, ..context };
        prop_assert_eq!(ring.open(elsewhere, &sealed).is_ok(), other == generation);
    }

    #[test]
    fn no_bit_of_a_sealed_value_may_change(
        secret in ".{0,40}", at: prop::sample::Index, bit in 0..8_u32,
    ) {
        let ring = Keyring::generate();
        let sealed = ring.seal(CONTEXT, &SecretString::from(secret));
        let mut bytes = payload(&sealed);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let text = format!("v1.{}.{}", ring.active_id(), URL_SAFE_NO_PAD.encode(bytes));
        prop_assert!(ring.open(CONTEXT, &Sealed::from_stored(text)).is_err());
    }

    #[test]
    fn no_character_of_a_sealed_value_may_change(
        at: prop::sample::Index, instead in any::<char>(),
    ) {
        let ring = Keyring::generate();
        let sealed = ring.seal(CONTEXT, &SecretString::from("the token"));
        let mut characters: Vec<_> = sealed.as_str().chars().collect();
        let at = at.index(characters.len());
        prop_assume!(characters[at] != instead);
        characters[at] = instead;
        let altered = Sealed::from_stored(characters.into_iter().collect());
        prop_assert!(ring.open(CONTEXT, &altered).is_err());
    }

    #[test]
    fn any_text_is_refused_and_shows_nothing_of_itself(text in "(v1\\.)?.{0,80}") {
        let sealed = Sealed::from_stored(text);
        let error = Keyring::generate().open(CONTEXT, &sealed).unwrap_err();
        prop_assert!(!error.to_string().contains(char::is_control));
    }

    #[test]
    fn any_key_file_is_read_or_refused(text in "(#[a-z ]*\n|[a-z0-9]{1,4} [A-Za-z0-9_=-]{40,46}\n|.{0,60}\n){0,5}") {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        Keyring::generate().write_new(&path).unwrap();
        std::fs::write(&path, text).unwrap();
        if let Err(error) = Keyring::read(&path) {
            prop_assert!(error.to_string().len() < 120);
        }
    }
}

/// The key of a value comes from its salt, and the nonce is constant: a salt that came twice would
/// be a nonce that was used twice.
#[test]
fn no_two_of_a_hundred_thousand_values_have_the_same_salt() {
    let ring = Keyring::generate();
    let secret = SecretString::from("the token");
    let salts: HashSet<_> =
        (0..100_000).map(|_| payload(&ring.seal(CONTEXT, &secret))[..SALT_LEN].to_vec()).collect();
    assert_eq!(salts.len(), 100_000);
}
