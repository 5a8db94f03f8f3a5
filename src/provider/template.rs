//! Texts with `{name}` placeholders, and URLs made of them.

use serde::Deserialize;
use url::Url;

/// A text with `{name}` placeholders; a name is lower-case letters, digits and underscores.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Name(String),
}

/// Why a text is not a template, or a template not a URL; for the writer of a profile.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A brace without its pair, or something else than a name between two.
    #[error("`{0}`: braces must hold a name of lower-case letters, digits and underscores")]
    Braces(String),
    /// Not `scheme://host[:port][/path]` with placeholders only in host, path and query.
    #[error("`{0}` is not a URL: {1}")]
    Url(String, &'static str),
}

/// A placeholder has no value.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` has no value")]
pub struct Unset(pub String);

impl Template {
    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names in it, in order of appearance.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Name(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The text with each name replaced by its value.
    pub fn render<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> Result<String, Unset> {
        let mut rendered = String::new();
        for part in &self.parts {
            rendered.push_str(match part {
                Part::Text(text) => text,
                Part::Name(name) => value(name).ok_or_else(|| Unset(name.clone()))?,
            });
        }
        Ok(rendered)
    }
}

impl TryFrom<String> for Template {
    type Error = TemplateError;

    fn try_from(text: String) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some(open) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(open);
            let name = after.strip_prefix('{').and_then(|after| after.split_once('}'));
            let Some((name, after)) = name.filter(|(name, _)| is_name(name)) else {
                return Err(TemplateError::Braces(text));
            };
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Name(name.to_owned()));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Self { text, parts })
    }
}

/// True if a text can be the name of a placeholder.
pub(super) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// An `http` or `https` URL with placeholders in its host, path or query, and nowhere else.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Template")]
pub struct UrlTemplate {
    template: Template,
    host: Template,
}

impl UrlTemplate {
    /// The text as it was written.
    pub fn as_str(&self) -> &str {
        self.template.as_str()
    }

    /// The names in it, in order of appearance.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.template.names()
    }

    /// The names that decide which host is called.
    pub fn host_names(&self) -> impl Iterator<Item = &str> {
        self.host.names()
    }

    /// The URL with every name replaced by a harmless sample, for checks beforehand.
    ///
    /// # Panics
    ///
    /// Never: parsing has tried it.
    pub fn sample(&self) -> Url {
        self.render(|_| Some("x")).expect("the template was parsed with these very values")
    }

    /// The text with each name replaced by its value, which must be safe to stand in a URL
    /// ([`super::Var`] sees to it).
    pub fn render<'a>(
        &self,
        value: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Url, RenderUrlError> {
        let host = self.host.render(&value)?;
        let url =
            Url::parse(&self.template.render(&value)?).map_err(|_| RenderUrlError::NotAUrl)?;
        let same = url.host_str().is_some_and(|parsed| parsed.eq_ignore_ascii_case(&host));
        if same { Ok(url) } else { Err(RenderUrlError::NotAUrl) }
    }
}

/// Why a URL cannot be made from its template.
#[derive(Debug, thiserror::Error)]
pub enum RenderUrlError {
    /// A value makes it something else than the URL that was written.
    #[error("the values do not make a URL")]
    NotAUrl,
    /// A value is missing.
    #[error(transparent)]
    Unset(#[from] Unset),
}

impl TryFrom<Template> for UrlTemplate {
    type Error = TemplateError;

    fn try_from(template: Template) -> Result<Self, TemplateError> {
        let text = template.as_str();
        let refuse = |why| TemplateError::Url(text.to_owned(), why);
        let (scheme, rest) =
            text.split_once("://").ok_or_else(|| refuse("it must begin with https://"))?;
        if !matches!(scheme, "http" | "https") {
            return Err(refuse("it must begin with https://"));
        }
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(refuse("no user name or password may stand in it"));
        }
        if rest.contains(['#', '\\']) || rest.contains(char::is_whitespace) {
            return Err(refuse("no fragment, backslash or space may stand in it"));
        }
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                if port.parse::<u16>().is_err() {
                    return Err(refuse("its port must be a number"));
                }
                host
            }
            _ => authority,
        };
        let host = Template::try_from(host.to_owned())?;
        let parsed = Self { template: template.clone(), host };
        match parsed.render(|_| Some("x")) {
            Ok(_) => Ok(parsed),
            Err(_) => Err(refuse("its host is not written as a URL has it")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<UrlTemplate, TemplateError> {
        Template::try_from(text.to_owned()).and_then(UrlTemplate::try_from)
    }

    #[test]
    fn names_are_replaced_and_a_missing_value_is_named() {
        let template = Template::try_from("Bearer {access_token}/{b}".to_owned()).unwrap();
        assert_eq!(template.names().collect::<Vec<_>>(), ["access_token", "b"]);
        let value = |name: &str| (name == "access_token").then_some("t");
        assert_eq!(template.render(value).unwrap_err().0, "b");
        assert_eq!(template.render(|_| Some("{b}")).unwrap(), "Bearer {b}/{b}");
    }

    #[test]
    fn stray_braces_are_refused() {
        for bad in ["{", "}", "a}b", "{a", "{}", "{A}", "{a b}", "{{a}}", "{1a}", "{a}}"] {
            assert!(Template::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_knows_the_names_that_decide_its_host() {
        let parsed = url("https://{region}.example.com:8443/{tenant}?x={y}").unwrap();
        assert_eq!(parsed.host_names().collect::<Vec<_>>(), ["region"]);
        assert_eq!(parsed.names().collect::<Vec<_>>(), ["region", "tenant", "y"]);
        assert_eq!(parsed.sample().as_str(), "https://x.example.com:8443/x?x=x");
    }

    #[test]
    fn what_is_not_plainly_a_url_is_refused() {
        for bad in [
            "",
            "example.com",
            "ftp://example.com",
            "{scheme}://example.com",
            "https://",
            "https:///path",
            "https://user@example.com",
            "https://{user}@example.com",
            "https://user:pw@example.com",
            "https://example.com:{port}",
            "https://example.com:99999",
            "https://example.com:",
            "https://example.com/#part",
            "https://example.com\\@evil.com",
            "https://exa mple.com",
            "https://2130706433",
            "https://0x7f.1",
            "https://exa%6dple.com",
            "https://пример.рф",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_value_cannot_move_the_host() {
        let parsed = url("https://{host}/token").unwrap();
        for bad in ["evil.com/", "a@evil.com", "evil.com#", "evil.com?", "a:80", "evil。com", ""] {
            assert!(parsed.render(|_| Some(bad)).is_err(), "{bad}");
        }
    }
}
