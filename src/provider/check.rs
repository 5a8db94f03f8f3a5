//! Checks of a profile beyond its types, made at start and not when a token is due.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{
    profile::{
        ClientAuth, ErrorRule, GrantRequest, Profile, Rotation, RuleVerdict, StandardParam, Var,
        header_name,
    },
    template::{Template, UrlTemplate, is_name},
    vars::is_label,
};

/// The names that templates may always use, by the place they stand in.
const AUTHORIZE: &[&str] = &["client_id", "redirect_uri"];
const CODE: &[&str] = &["client_id", "redirect_uri"];
const CREDENTIALS: &[&str] = &["client_id"];
const REFRESH: &[&str] = &["access_token", "client_id", "redirect_uri"];
const HEADERS: &[&str] = &["access_token", "client_id"];

impl Profile {
    /// Checks the rules beyond the types.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_names()?;
        for (name, var) in &self.vars {
            check_var(var).map_err(|why| format!("`vars.{name}`: {why}"))?;
        }
        self.check_urls()?;
        self.check_grants()?;
        self.check_headers()?;
        self.check_tokens()?;
        for (rule, number) in self.errors.iter().zip(1..) {
            check_rule(rule).map_err(|why| format!("`errors` number {number}: {why}"))?;
        }
        if let Some(account) = &self.account {
            let pointers = [Some(&account.id), account.name.as_ref()].into_iter().flatten();
            for pointer in pointers.chain(&account.aliases) {
                check_pointer(pointer).map_err(|why| format!("`account`: {why}"))?;
            }
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        let known = ["access_token", "client_id", "client_secret", "redirect_uri"];
        for name in self.vars.keys().chain(self.client.keys()) {
            let both = self.vars.contains_key(name) && self.client.contains_key(name);
            if !is_name(name) || known.contains(&name.as_str()) || both {
                return Err(format!(
                    "`{name}` cannot name a value of its own: use lower-case letters, digits and underscores, and no name twice"
                ));
            }
        }
        if self.title.trim().is_empty() || self.title.chars().any(char::is_control) {
            return Err("`title` must be a line of text".to_owned());
        }
        if self.scope.separator.is_empty() {
            return Err("`scope.separator` must not be empty".to_owned());
        }
        Ok(())
    }

    fn check_urls(&self) -> Result<(), String> {
        let urls = [
            ("authorize.url", self.authorize.as_ref().map(|authorize| &authorize.url)),
            ("token.url", Some(&self.token.url)),
            ("revocation.url", self.revocation.as_ref().map(|revocation| &revocation.url)),
            ("account.url", self.account.as_ref().map(|account| &account.url)),
            ("resource.base_url", Some(&self.resource.base_url)),
            ("key_exchange.url", self.key_exchange.as_ref().map(|exchange| &exchange.url)),
        ];
        for (setting, url) in urls {
            if let Some(url) = url {
                self.check_url(url).map_err(|why| format!("`{setting}`: {why}"))?;
            }
        }
        Ok(())
    }

    fn check_url(&self, url: &UrlTemplate) -> Result<(), String> {
        for name in url.names() {
            let Some(var) = self.vars.get(name) else {
                return Err(format!("`{name}` is not declared under `vars`"));
            };
            // A forged callback must not choose where the client's secret is sent.
            if var.suffixes.is_empty() && var.allow.is_empty() {
                return Err(format!(
                    "`{name}` needs `vars.{name}.suffixes` or `vars.{name}.allow`: it decides what is called"
                ));
            }
        }
        // A host with a variable in it is checked again with its value.
        let whole_host = url.host_names().next().is_none();
        match self.network.check(&url.sample()) {
            Err(why) if whole_host || !self.is_private() => Err(why.to_string()),
            _ => Ok(()),
        }
    }

    fn is_private(&self) -> bool {
        matches!(self.network, super::network::Network::Private { .. })
    }

    fn check_grants(&self) -> Result<(), String> {
        let grants = &self.grants;
        if grants.authorization_code.is_none() && grants.client_credentials.is_none() {
            return Err(
                "`grants` must have `authorization_code` or `client_credentials`".to_owned()
            );
        }
        match (&self.authorize, &grants.authorization_code) {
            (None, Some(_)) => {
                return Err("`grants.authorization_code` needs `authorize`".to_owned());
            }
            (Some(_), None) => {
                return Err("`authorize` needs `grants.authorization_code`".to_owned());
            }
            _ => {}
        }
        if let Some(authorize) = &self.authorize {
            let reserved = ["client_id", "code_challenge", "code_challenge_method", "state"];
            let standard =
                [StandardParam::RedirectUri, StandardParam::ResponseType, StandardParam::Scope];
            // Secret settings have no place in a browser's address.
            check_params("authorize", &authorize.params, &reserved, &standard, &authorize.omit)?;
            self.check_templates("authorize.params", &authorize.params, AUTHORIZE, false)?;
        }
        self.check_grant(
            "authorization_code",
            grants.authorization_code.as_ref(),
            &["code", "code_verifier"],
            &[StandardParam::RedirectUri],
            CODE,
        )?;
        self.check_grant(
            "client_credentials",
            grants.client_credentials.as_ref(),
            &[],
            &[StandardParam::Scope],
            CREDENTIALS,
        )?;
        self.check_grant(
            "refresh_token",
            grants.refresh_token.as_ref(),
            &["refresh_token"],
            &[],
            REFRESH,
        )
    }

    fn check_grant(
        &self,
        name: &str,
        grant: Option<&GrantRequest>,
        reserved: &[&str],
        standard: &[StandardParam],
        known: &[&str],
    ) -> Result<(), String> {
        let Some(grant) = grant else { return Ok(()) };
        let setting = format!("grants.{name}");
        let mut reserved = reserved.to_vec();
        reserved.push("grant_type");
        if grant.client_auth == ClientAuth::Body {
            reserved.extend(["client_id", "client_secret"]);
        }
        check_params(&setting, &grant.params, &reserved, standard, &grant.omit)?;
        self.check_templates(&format!("{setting}.params"), &grant.params, known, true)
    }

    fn check_headers(&self) -> Result<(), String> {
        let account = self.account.as_ref().and_then(|account| account.headers.as_ref());
        let tables = [("account", account), ("resource", Some(&self.resource.headers))];
        for (table, headers) in tables {
            let Some(headers) = headers else { continue };
            let mut names = BTreeSet::new();
            for name in headers.keys() {
                if !header_name(name).is_some_and(|name| names.insert(name.to_string())) {
                    return Err(format!(
                        "`{table}.headers`: `{name}` is not a header to set here, or set twice"
                    ));
                }
            }
            self.check_templates(&format!("{table}.headers"), headers, HEADERS, true)?;
        }
        Ok(())
    }

    /// Checks that templates name only values that are known at their place.
    fn check_templates(
        &self,
        setting: &str,
        templates: &BTreeMap<String, Template>,
        known: &[&str],
        settings: bool,
    ) -> Result<(), String> {
        for (key, template) in templates {
            let unknown = template.names().find(|name| {
                let ours = known.contains(name) || self.vars.contains_key(*name);
                !(ours || settings && self.client.contains_key(*name))
            });
            if let Some(name) = unknown {
                return Err(format!("`{setting}.{key}`: `{name}` is not known here"));
            }
        }
        Ok(())
    }

    fn check_tokens(&self) -> Result<(), String> {
        let tokens = &self.tokens;
        if (tokens.rotation == Rotation::Grace) != tokens.grace.is_some() {
            return Err("`tokens.grace` and `tokens.rotation = \"grace\"` need each other".into());
        }
        // Readers, leases and the end of the process wait for a token request: none may take longer.
        if !(Duration::from_secs(1)..=Duration::from_mins(1)).contains(&self.token.timeout) {
            return Err("`token.timeout`: expected 1 s to 60 s".into());
        }
        if tokens.access_life > tokens.max_access_life {
            return Err("`tokens.access_life` is longer than `tokens.max_access_life`".into());
        }
        Ok(())
    }
}

fn check_var(var: &Var) -> Result<(), String> {
    for suffix in &var.suffixes {
        // A suffix of one label would be a whole top-level domain.
        if !(suffix.contains('.') && suffix.split('.').all(is_label)) {
            return Err(format!("`{suffix}` is not a domain such as \"example.com\""));
        }
    }
    for value in &var.allow {
        if value.is_empty() || !value.split('.').all(is_label) {
            return Err(format!("`{value}` may hold only lower-case letters, digits and hyphens"));
        }
    }
    Ok(())
}

/// Checks that no parameter is sent twice, and none omitted that is not sent anyway.
fn check_params(
    setting: &str,
    params: &BTreeMap<String, Template>,
    reserved: &[&str],
    standard: &[StandardParam],
    omit: &[StandardParam],
) -> Result<(), String> {
    if let Some(param) = omit.iter().find(|param| !standard.contains(param)) {
        return Err(format!("`{setting}.omit`: `{}` is not sent here", param.as_str()));
    }
    let sent = |name: &str| {
        let standard = standard.iter().filter(|param| !omit.contains(param));
        reserved.contains(&name) || standard.map(|param| param.as_str()).any(|sent| sent == name)
    };
    match params.keys().find(|name| name.is_empty() || sent(name)) {
        Some(name) => Err(format!("`{setting}.params`: `{name}` is sent already")),
        None => Ok(()),
    }
}

fn check_rule(rule: &ErrorRule) -> Result<(), String> {
    if rule.status.is_none() && rule.matches.is_empty() {
        return Err("it needs a `status` or a `match`, or it would fit every answer".to_owned());
    }
    if rule.status.is_some_and(|status| !(200..600).contains(&status)) {
        return Err("`status` must be an HTTP status from 200 to 599".to_owned());
    }
    for pointer in rule.matches.keys().chain(&rule.absent) {
        check_pointer(pointer)?;
    }
    match (rule.verdict, &rule.reason) {
        (RuleVerdict::Refused, None) => {
            return Err("`verdict = \"refused\"` needs a `reason`".to_owned());
        }
        (RuleVerdict::Refused, Some(reason)) if !is_name(reason) || reason.len() > 64 => {
            return Err("`reason` must be a word of lower-case letters and underscores".to_owned());
        }
        (RuleVerdict::Refused, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err("only `verdict = \"refused\"` has a `reason`".to_owned()),
    }
    let passing = rule.status.is_some_and(|status| status == 429 || status >= 500);
    if rule.verdict == RuleVerdict::Refused && passing {
        return Err("429 and 5xx pass: they cannot mean `refused`".to_owned());
    }
    Ok(())
}

fn check_pointer(pointer: &str) -> Result<(), String> {
    if pointer.starts_with('/') {
        Ok(())
    } else {
        Err(format!("`{pointer}` is not a JSON pointer such as \"/error/code\""))
    }
}
