//! The README, the guides and the pages of `.github`, held to what the program does: every link leads
//! somewhere, every TOML block is loaded, every JSON answer is compared with a running broker, every
//! command is one, and no field, setting, state, route or code is left out.

mod answers;
mod commands;
mod fields;
mod first_provider;
mod links;
mod loading;
mod names;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The languages that a code block may name. One without a name is a test for rustdoc, and another
/// one is not known to any check here.
const LANGUAGES: &[&str] = &["json", "rust", "sh", "text", "toml"];

/// A Markdown file, by its path in the repository.
struct Page {
    path: PathBuf,
    /// Everything outside code blocks.
    prose: String,
    blocks: Vec<Block>,
}

/// A code block.
struct Block {
    /// The page, and the line in it.
    at: String,
    language: String,
    /// The HTML comment before it, which says how to check it.
    note: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One page, by its path in the repository.
fn page(path: &str) -> Page {
    Page::read(Path::new(path))
}

/// Every page that is checked.
fn pages() -> Vec<Page> {
    let mut pages = vec![page("README.md")];
    for folder in ["src/guide", ".github"] {
        let mut found: Vec<_> = fs::read_dir(root().join(folder))
            .unwrap()
            .map(|entry| Path::new(folder).join(entry.unwrap().file_name()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
            .collect();
        found.sort();
        pages.extend(found.iter().map(|path| Page::read(path)));
    }
    pages
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let mut page = Self { path: path.to_owned(), prose: String::new(), blocks: Vec::new() };
        let mut lines = text.lines().enumerate();
        let mut before = "";
        while let Some((number, line)) = lines.next() {
            let Some(language) = line.trim_start().strip_prefix("```") else {
                page.prose.push_str(line);
                page.prose.push('\n');
                if !line.trim().is_empty() {
                    before = line.trim();
                }
                continue;
            };
            let indent = line.len() - line.trim_start().len();
            let mut text = String::new();
            loop {
                let (_, line) = lines.next().expect("a code block ends");
                if line.trim() == "```" {
                    break;
                }
                text.push_str(line.get(indent..).unwrap_or_default());
                text.push('\n');
            }
            let note = before.strip_prefix("<!--").and_then(|note| note.strip_suffix("-->"));
            page.blocks.push(Block {
                at: format!("{}:{}", path.display(), number + 1),
                language: language.trim().to_owned(),
                note: note.unwrap_or_default().trim().to_owned(),
                text,
            });
            before = "";
        }
        page
    }

    /// The code blocks in one language.
    fn blocks_in<'a>(&'a self, language: &'a str) -> impl Iterator<Item = &'a Block> {
        self.blocks.iter().filter(move |block| block.language == language)
    }

    /// The rows of the table whose head begins with this cell: their cells, without the head.
    fn table(&self, head: &str) -> Vec<Vec<&str>> {
        let mut lines = self.prose.lines().skip_while(|line| cells(line).first() != Some(&head));
        let rows: Vec<_> =
            lines.by_ref().skip(2).take_while(|line| line.starts_with('|')).map(cells).collect();
        assert!(!rows.is_empty(), "{} has a table that begins with {head}", self.path.display());
        rows
    }
}

fn cells(line: &str) -> Vec<&str> {
    let row = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|'));
    row.map(|row| row.split('|').map(str::trim).collect()).unwrap_or_default()
}

/// What stands in backticks in a text.
fn code_spans(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_code_block_says_its_language() {
    for page in pages() {
        for Block { at, language, .. } in &page.blocks {
            assert!(LANGUAGES.contains(&language.as_str()), "{at}: ```{language}");
        }
    }
}

#[test]
fn a_newcomer_finishes_the_readme() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() <= 200, "at most 200 lines");
    let commands: Vec<_> = page("README.md").blocks_in("sh").map(|b| b.text.clone()).collect();
    assert_eq!(
        commands[..2],
        ["cargo run --release -- demo\n", "tests/run\n"],
        "pasted as written"
    );
}
