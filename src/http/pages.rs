//! The pages of a consent link, and the escaping of foreign text in them.
//!
//! They load nothing and run nothing: one inline style sheet, allowed by its digest, no script.
//! Every text is escaped by the template; a text that a provider or an account's owner chose is
//! also shortened and stripped by [`foreign`].

use std::sync::LazyLock;

use askama::Template;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use url::Url;

use crate::{domain::connection::Account, seal::secret::Digest};

/// The style sheet of every page.
pub const STYLE: &str = include_str!("pages/style.css");

/// The source that lets a page's style sheet in, for `style-src` in `Content-Security-Policy`:
/// `'sha256-…'` with its quotes (CSP Level 3 section 2.3.1).
pub static STYLE_SOURCE: LazyLock<String> = LazyLock::new(|| {
    format!("'sha256-{}'", STANDARD.encode(Digest::of_bytes(STYLE.as_bytes()).as_bytes()))
});

/// The consent page: the requester, the scopes, and the button that starts a consent.
///
/// The form posts to the address that the page was read from.
#[derive(Template)]
#[template(path = "ask.html", config = "src/http/pages/askama.toml")]
pub struct Ask<'a> {
    /// The maker of the link: `operator alice`, `service billing`.
    pub requested_by: &'a str,
    /// The connection's name.
    pub connection: &'a str,
    /// The provider's title.
    pub provider: &'a str,
    /// The scopes that will be asked for; none where they are fixed at registration.
    pub scopes: &'a [String],
    /// The account that makes the connection live without confirmation.
    pub expected_account: Option<&'a str>,
    /// When the link ends.
    pub ends_at: Timestamp,
    /// The end of the attempt before this one, if it failed.
    pub previous: Option<Previous<'a>>,
}

impl Ask<'_> {
    fn end(&self) -> String {
        self.ends_at.strftime("%-d %B %Y, %H:%M UTC").to_string()
    }
}

/// An earlier attempt through the same link that left everything as it was.
#[derive(Clone, Copy, Debug)]
pub enum Previous<'a> {
    /// The person declined at the provider.
    Denied,
    /// The provider gave no usable token.
    Failed {
        /// The provider's own words, if it had any.
        said: Option<&'a str>,
    },
}

impl<'a> Previous<'a> {
    fn title(self) -> &'static str {
        match self {
            Self::Denied => "Access was declined.",
            Self::Failed { .. } => "The last attempt did not succeed.",
        }
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Denied => "Nothing was changed. If that was a mistake, continue once more.",
            Self::Failed { .. } => {
                "Nothing was changed. Try again, or tell the person who sent you the link."
            }
        }
    }

    fn said(self) -> Option<&'a str> {
        match self {
            Self::Denied => None,
            Self::Failed { said } => said,
        }
    }
}

/// The consent made the connection live.
#[derive(Template)]
#[template(path = "connected.html", config = "src/http/pages/askama.toml")]
pub struct Connected<'a> {
    /// The connection's name.
    pub connection: &'a str,
    /// The provider's title.
    pub provider: &'a str,
    /// The account that consented; none where the provider cannot say.
    pub account: Option<&'a Account>,
    /// The link back to the service. Shown only for http and https.
    pub return_to: Option<&'a Url>,
}

impl Connected<'_> {
    /// The address to return to and its host: a link that says where it leads.
    fn way_back(&self) -> Option<(&Url, &str)> {
        let url = self.return_to.filter(|url| matches!(url.scheme(), "http" | "https"))?;
        Some((url, url.host_str()?))
    }
}

/// The consent is kept, but no token is served until the account is confirmed.
#[derive(Template)]
#[template(path = "waiting.html", config = "src/http/pages/askama.toml")]
pub struct Waiting<'a> {
    /// The connection's name.
    pub connection: &'a str,
    /// The provider's title.
    pub provider: &'a str,
    /// The account that consented; none where the provider cannot say.
    pub account: Option<&'a Account>,
}

/// Another account consented than the expected one; the button starts again.
#[derive(Template)]
#[template(path = "wrong_account.html", config = "src/http/pages/askama.toml")]
pub struct WrongAccount<'a> {
    /// The connection's name.
    pub connection: &'a str,
    /// The provider's title.
    pub provider: &'a str,
    /// The account that was expected.
    pub expected_account: &'a str,
}

/// A sentence on the event, and one of advice.
#[derive(Template)]
#[template(path = "message.html", config = "src/http/pages/askama.toml")]
pub struct Message<'a> {
    /// The event, as a heading without a full stop.
    pub title: &'a str,
    /// Advice in a sentence or two.
    pub advice: &'a str,
}

impl Message<'static> {
    /// The link's grant has been stored (410).
    pub const LINK_USED: Self = Self {
        title: "This link was already used",
        advice: "Access was already given through it. To connect again, ask the person who sent it for a new link.",
    };

    /// The link's time is over (410).
    pub const LINK_ENDED: Self =
        Self { title: "This link has ended", advice: "Ask the person who sent it for a new one." };

    /// Another browser pressed first (410).
    pub const OTHER_BROWSER: Self = Self {
        title: "This link was opened in another browser",
        advice: "Go on in the browser where you began. If that was not you, tell the person who sent the link, and ask for a new one.",
    };
}

/// The most characters shown of a text that is not ours.
const MAX_FOREIGN: usize = 200;

/// Shortens foreign text, and removes control characters and marks that reorder its surroundings.
fn foreign(text: &str) -> String {
    let mut kept = text.chars().filter(|&char| !reorders(char));
    let mut shown: String = kept
        .by_ref()
        .take(MAX_FOREIGN)
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if kept.next().is_some() {
        shown.push('…');
    }
    shown
}

/// The explicit formatting characters of Unicode's bidirectional algorithm (UAX 9 section 2).
fn reorders(char: char) -> bool {
    matches!(
        char,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROVIDER: &str = "Avito";

    fn account(name: &str) -> Account {
        Account { id: "94235311".to_owned(), name: Some(name.to_owned()), aliases: Vec::new() }
    }

    fn connected(account: Option<&Account>, return_to: Option<&Url>) -> String {
        Connected { connection: "avito-main", provider: PROVIDER, account, return_to }
            .render()
            .unwrap()
    }

    fn ask(scopes: &[String], previous: Option<Previous<'_>>) -> String {
        let ask = Ask {
            requested_by: "service billing",
            connection: "avito-main",
            provider: PROVIDER,
            scopes,
            expected_account: Some("94235311"),
            ends_at: "2026-11-21T14:05:59Z".parse().unwrap(),
            previous,
        };
        ask.render().unwrap()
    }

    #[test]
    fn markup_in_a_foreign_text_stays_text() {
        let mallory = account("<script>alert(1)</script>\"'&");
        let pages = [
            connected(Some(&mallory), None),
            ask(&["<b>".to_owned()], Some(Previous::Failed { said: Some("<script>") })),
        ];
        for page in pages {
            assert!(!page.contains("<script") && !page.contains("<b>"), "{page}");
            assert!(page.contains("&#60;"), "{page}");
        }
    }

    #[test]
    fn a_foreign_text_is_shortened_to_two_hundred_characters() {
        let whole = "я".repeat(200);
        assert!(connected(Some(&account(&whole)), None).contains(&format!("<bdi>{whole}</bdi>")));
        let page = connected(Some(&account(&format!("{whole}я"))), None);
        assert!(page.contains(&format!("<bdi>{whole}…</bdi>")), "{page}");
    }

    #[test]
    fn a_foreign_text_cannot_reorder_or_break_the_line() {
        let page = connected(Some(&account("a\u{202e}b\u{2067}c\nd\u{7}e")), None);
        assert!(page.contains("<bdi>abc d e</bdi>"), "{page}");
    }

    #[test]
    fn the_way_back_is_a_web_address_and_names_its_host() {
        let home: Url = "https://crm.example/done?a=1&b=2".parse().unwrap();
        let page = connected(None, Some(&home));
        assert!(
            page.contains("href=\"https://crm.example/done?a=1&#38;b=2\">Return to crm.example")
        );
        for bad in
            ["javascript:alert(1)", "javascript://crm.example/%0aalert(1)", "data:text/html,x"]
        {
            assert!(!connected(None, Some(&bad.parse().unwrap())).contains("href"), "{bad}");
        }
    }

    #[test]
    fn a_page_names_no_other_origin_and_runs_nothing() {
        let anna = account("Anna");
        let pages = [
            ask(&[], Some(Previous::Denied)),
            connected(Some(&anna), None),
            Message::LINK_ENDED.render().unwrap(),
        ];
        for page in pages {
            for foreign in ["http", "//", "src=", "url(", "@import", "<script", " style=", " on"] {
                // " on" begins an event attribute only inside a tag.
                let found = if foreign == " on" {
                    page.split('<').any(|tag| tag.split('>').next().unwrap().contains(" on"))
                } else {
                    page.contains(foreign)
                };
                assert!(!found, "{foreign} in {page}");
            }
        }
    }

    #[test]
    fn the_policy_allows_exactly_the_style_sheet_of_the_page() {
        let page = Message::LINK_USED.render().unwrap();
        let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
        let digest = STANDARD.encode(Digest::of_bytes(style.as_bytes()).as_bytes());
        assert_eq!(*STYLE_SOURCE, format!("'sha256-{digest}'"));
        assert_eq!(page.matches("<style").count(), 1);
    }

    #[test]
    fn the_ask_says_who_what_and_until_when() {
        let scopes = ["messenger:read".to_owned(), "items:info".to_owned()];
        let page = ask(&scopes, None);
        for said in [
            "service billing",
            "avito-main",
            "94235311",
            "<li><code>messenger:read</code></li>",
            "<li><code>items:info</code></li>",
            "21 November 2026, 14:05 UTC",
            "<form method=\"post\"><button>Continue to Avito</button></form>",
            "If you did not expect this request, close this page.",
        ] {
            assert!(page.contains(said), "{said} not in {page}");
        }
        assert!(ask(&[], None).contains("What the application is registered for"));
    }
}
