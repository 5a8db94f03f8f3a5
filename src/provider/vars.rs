//! Values that differ between accounts. They may come from a callback that anyone can forge, and
//! decide where the client's secret is sent: so each is one of a list, or one label under a suffix.

use super::profile::{Profile, Var};
use crate::domain::connection::Vars;

/// A value is missing, or is not what the profile allows. The value itself is not shown: it may be
/// anything.
#[derive(Debug, thiserror::Error)]
pub enum VarError {
    /// It is none of those that the profile allows.
    #[error("`{0}` is not a value that the provider's profile allows")]
    NotAllowed(String),
    /// The profile has no such name.
    #[error("`{0}` is not a name that the provider's profile knows")]
    Unknown(String),
    /// The callback does not carry it.
    #[error("the callback does not carry `{0}`")]
    Missing(String),
}

impl Profile {
    /// Captures the variables of the templates from a callback's parameters.
    ///
    /// # Errors
    ///
    /// If one is missing or not allowed: then nothing may be sent anywhere.
    pub fn capture<'a>(
        &self,
        parameter: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Vars, VarError> {
        let mut vars = Vars::new();
        for (name, var) in &self.vars {
            if let Some(from) = &var.from_callback {
                let value = parameter(from).ok_or_else(|| VarError::Missing(from.clone()))?;
                vars.insert(name.clone(), self.check_var(name, value)?);
            }
        }
        Ok(vars)
    }

    /// The value as it is stored, if the profile allows it.
    pub fn check_var(&self, name: &str, value: &str) -> Result<String, VarError> {
        let var = self.vars.get(name).ok_or_else(|| VarError::Unknown(name.to_owned()))?;
        var.accept(value).ok_or_else(|| VarError::NotAllowed(name.to_owned()))
    }
}

impl Var {
    /// The value as it is stored: one of the listed, or one DNS label and a suffix, in lower case.
    fn accept(&self, value: &str) -> Option<String> {
        if self.allow.iter().any(|allowed| allowed == value) {
            return Some(value.to_owned());
        }
        let value = value.to_ascii_lowercase();
        let (label, suffix) = value.split_once('.')?;
        (is_label(label) && self.suffixes.iter().any(|known| known == suffix)).then_some(value)
    }
}

/// True for one DNS label of lower-case letters, digits and inner hyphens. Punycode is excluded:
/// its letters can look like others.
pub(super) fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
        && !text.starts_with("xn--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::{request, test_support};

    /// Hostile values of amoCRM's `referer` (threat T24).
    #[test]
    fn nothing_but_one_label_under_the_suffix_is_an_account_host() {
        let long_label = format!("{}.amocrm.ru", "a".repeat(64));
        let long = format!("{}.amocrm.ru", "a.".repeat(150));
        let corpus = [
            "",
            " ",
            ".",
            "evil.com",
            "amocrm.ru",
            ".amocrm.ru",
            "..amocrm.ru",
            "amocrm.ru.evil.com",
            "x.amocrm.ru.evil.com",
            "x.amocrm.ru.",
            "x..amocrm.ru",
            "a.b.amocrm.ru",
            "www.evil.com/.amocrm.ru",
            "xamocrm.ru",
            "x.notamocrm.ru",
            "x.amocrm.com",
            "x.kommo.com",
            "x.amocrm.ruu",
            "x.amocrm.ru@evil.com",
            "evil.com@x.amocrm.ru",
            "user:pw@x.amocrm.ru",
            "evil#.amocrm.ru",
            "evil?.amocrm.ru",
            "evil/.amocrm.ru",
            "evil\\.amocrm.ru",
            "evil.com#.amocrm.ru",
            "evil.com/x.amocrm.ru",
            "x.amocrm.ru/path",
            "x.amocrm.ru?q=1",
            "x.amocrm.ru#f",
            "x.amocrm.ru:443",
            "x.amocrm.ru:8443",
            "x.amocrm.ru:",
            "https://x.amocrm.ru",
            "//x.amocrm.ru",
            "x.amocrm.ru ",
            " x.amocrm.ru",
            "x .amocrm.ru",
            "x\t.amocrm.ru",
            "x.amocrm.ru\r\nHost: evil.com",
            "x\n.amocrm.ru",
            "x\0.amocrm.ru",
            "x%00.amocrm.ru",
            "x%2eamocrm.ru",
            "evil.com%23.amocrm.ru",
            "%78.amocrm.ru",
            "x。amocrm.ru",
            "x.amocrm。ru",
            "ｘ.amocrm.ru",
            "х.amocrm.ru",
            "x.аmocrm.ru",
            "x.amocrm.ru\u{200e}",
            "x\u{ad}.amocrm.ru",
            "xn--80ak6aa92e.amocrm.ru",
            "XN--80ak6aa92e.amocrm.ru",
            "-x.amocrm.ru",
            "x-.amocrm.ru",
            "x_y.amocrm.ru",
            "*.amocrm.ru",
            "{account_host}.amocrm.ru",
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "[::1]",
            "[::ffff:127.0.0.1].amocrm.ru",
            "localhost",
            "x.amocrm.ru,y.amocrm.ru",
            "x.amocrm.ru;evil.com",
            &long_label,
            &long,
        ];
        let profile = test_support::profile("amocrm");
        for bad in corpus {
            assert!(profile.capture(|_| Some(bad)).is_err(), "{bad:?}");
            assert!(profile.check_var("account_host", bad).is_err(), "{bad:?}");
            // A value that was stored all the same goes nowhere either.
            let client = test_support::client("amocrm");
            let vars = Vars::from([("account_host".to_owned(), bad.to_owned())]);
            assert!(request::api_base_url(&client, &vars).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_account_host_is_stored_in_lower_case() {
        let profile = test_support::profile("amocrm");
        for (good, stored) in [
            ("example.amocrm.ru", "example.amocrm.ru"),
            ("Example.AmoCRM.ru", "example.amocrm.ru"),
            ("a.amocrm.ru", "a.amocrm.ru"),
            ("my-company-2.amocrm.ru", "my-company-2.amocrm.ru"),
            ("123.amocrm.ru", "123.amocrm.ru"),
        ] {
            let vars = profile.capture(|name| (name == "referer").then_some(good)).unwrap();
            assert_eq!(vars["account_host"], stored);
        }
    }

    #[test]
    fn a_listed_value_is_taken_as_it_is_and_no_other() {
        let var = Var {
            from_callback: None,
            suffixes: Vec::new(),
            allow: vec!["eu".to_owned(), "us".to_owned()],
        };
        assert_eq!(var.accept("eu").as_deref(), Some("eu"));
        for bad in ["", "EU", "eu.", "eu/", "asia"] {
            assert_eq!(var.accept(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_callback_without_the_parameter_is_refused() {
        let error = test_support::profile("kommo").capture(|_| None).unwrap_err();
        assert_eq!(error.to_string(), "the callback does not carry `referer`");
        assert!(test_support::profile("avito").capture(|_| None).unwrap().is_empty());
        assert!(test_support::profile("avito").check_var("account_host", "x.amocrm.ru").is_err());
    }
}
