//! Links within the repository. Those between guides are references, which `src/guide/mod.rs` defines
//! once more for rustdoc.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use super::{Page, pages, root};

/// What a page links to.
#[derive(Default)]
struct Links {
    /// `[text](target)`.
    inline: Vec<String>,
    /// `[text][label]`.
    used: BTreeSet<String>,
    /// `[label]: target`.
    defined: BTreeMap<String, String>,
}

impl Links {
    fn of(page: &Page) -> Self {
        let mut links = Self::default();
        let text = without_code(&page.prose);
        let mut rest = String::new();
        for line in text.lines() {
            match line.strip_prefix('[').and_then(|line| line.split_once("]: ")) {
                Some((label, target)) => {
                    links.defined.insert(label.to_owned(), target.trim().to_owned());
                }
                None => rest = rest + line + "\n",
            }
        }
        let after = |mark: &str, end| {
            let parts = rest.split(mark).skip(1).map(move |part| part.split(end).next().unwrap());
            parts.map(|part| part.replace('\n', " ")).collect::<Vec<_>>()
        };
        links.inline = after("](", ')');
        links.used = after("][", ']').into_iter().collect();
        links
    }
}

/// A text without what stands in backticks or HTML comments.
fn without_code(text: &str) -> String {
    let outside = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
    let mut parts = outside.split("<!--");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once("-->").unwrap().1)
}

/// The anchors of a page's headings, as repository pages and rustdoc make them.
fn anchors(page: &Page) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for heading in page.prose.lines().filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        assert!(anchors.insert(anchor), "{}: two headings `{heading}`", page.path.display());
    }
    anchors
}

fn normal(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut path, part| {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            part => path.push(part),
        }
        path
    })
}

#[test]
fn every_link_leads_somewhere() {
    let pages = pages();
    let anchors: BTreeMap<_, _> =
        pages.iter().map(|page| (page.path.clone(), anchors(page))).collect();
    for page in &pages {
        let here = page.path.display();
        let links = Links::of(page);
        for label in &links.used {
            assert!(links.defined.contains_key(label), "{here}: [{label}] is not defined");
        }
        for label in links.defined.keys() {
            assert!(links.used.contains(label), "{here}: [{label}] is not used");
        }
        for target in links.inline.iter().chain(links.defined.values()) {
            if target.starts_with("https://") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => page.path.clone(),
                path => normal(&page.path.parent().unwrap().join(path)),
            };
            assert!(root().join(&path).exists(), "{here}: {target} is not there");
            let known = anchor.is_empty()
                || anchors.get(&path).is_some_and(|anchors| anchors.contains(anchor));
            assert!(known, "{here}: {target} has no such heading");
        }
    }
}

#[test]
fn links_between_guides_work_in_rustdoc_too() {
    let module = fs::read_to_string(root().join("src/guide/mod.rs")).unwrap();
    let mut all = BTreeSet::new();
    for page in pages().iter().filter(|page| page.path.starts_with("src/guide")) {
        let here = page.path.display();
        let links = Links::of(page);
        for target in &links.inline {
            let works = target.starts_with('#') || target.starts_with("https://");
            assert!(works, "{here}: {target} has to be a reference");
        }
        for (label, target) in &links.defined {
            let (file, anchor) = label.split_once('#').unwrap_or((label, ""));
            let anchor = if anchor.is_empty() { String::new() } else { format!("#{anchor}") };
            assert_eq!(*target, format!("{file}.md{anchor}"), "{here}: [{label}]");
            let line = format!("[{label}]: crate::guide::{file}{anchor}");
            assert!(module.lines().any(|known| known == line), "src/guide/mod.rs lacks {line}");
            all.insert(label.clone());
        }
        let file = page.path.file_name().unwrap().to_str().unwrap();
        assert!(module.contains(&format!("\"{file}\",")), "src/guide/mod.rs includes {file}");
    }
    let defined = module.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    for (label, _) in defined {
        assert!(all.contains(label), "src/guide/mod.rs defines [{label}] for nobody");
    }
}
