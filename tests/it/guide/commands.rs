//! Every command that a page names is read by the program's own command line.

use std::collections::BTreeSet;

use super::{Page, code_spans, page, pages};
use crate::support::process::Program;

/// The command of this program in a line of a shell, as words. What runs it may stand before it.
fn command(line: &str) -> Option<Vec<String>> {
    let end = [" > ", " >> ", " 2> ", " | ", " &", "  #", ")"];
    let line = end.iter().fold(line.trim(), |line, end| line.split(end).next().unwrap());
    let words: Vec<_> = line.split_whitespace().collect();
    let (["token-broker", arguments @ ..]
    | ["docker", "exec", _, "token-broker", arguments @ ..]
    | ["cargo", "run", "--release", "--", arguments @ ..]) = words.as_slice()
    else {
        return None;
    };
    let plain = |word: &&str| {
        let word = word.trim_matches(['\'', '"']);
        let placeholder = word.starts_with('$') || word.bytes().all(|b| b.is_ascii_uppercase());
        if placeholder { "x".to_owned() } else { word.to_owned() }
    };
    Some(arguments.iter().map(plain).collect())
}

/// Every command that a page names, in its blocks for the shell and in its text.
fn commands(page: &Page) -> BTreeSet<Vec<String>> {
    let blocks = page.blocks_in("sh").map(|block| block.text.replace("\\\n", " "));
    let prose = page.prose.replace('\n', " ");
    let spans = code_spans(&prose).into_iter().map(str::to_owned);
    let lines: Vec<_> = blocks.chain(spans).collect();
    lines.iter().flat_map(|text| text.lines()).filter_map(command).collect()
}

/// The commands that the help of a command lists.
async fn listed(parent: &[String]) -> Vec<String> {
    let arguments: Vec<_> = parent.iter().map(String::as_str).chain(["--help"]).collect();
    let help = Program::run(&arguments, &[]).await.stdout;
    let list = help.iter().skip_while(|line| *line != "Commands:").skip(1);
    let list = list.take_while(|line| line.starts_with("  "));
    let names = list.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

#[tokio::test]
async fn every_command_in_a_page_is_one() {
    let mut checked = BTreeSet::new();
    for page in pages() {
        for command in commands(&page) {
            if command.is_empty() || !checked.insert(command.clone()) {
                continue;
            }
            // What is wrong before the help is asked for is refused.
            let arguments: Vec<_> = command.iter().map(String::as_str).chain(["--help"]).collect();
            let ended = Program::run(&arguments, &[]).await;
            let here = page.path.display();
            assert!(ended.status.success(), "{here}: token-broker {command:?}: {:?}", ended.stderr);
        }
    }
    assert!(checked.len() > 20, "{} commands", checked.len());
}

#[tokio::test]
async fn every_command_is_in_the_guide() {
    let guide = page("src/guide/operations.md");
    let rows = guide.table("command");
    let known: Vec<_> = rows.iter().filter_map(|row| command(code_spans(row[0])[0])).collect();
    for command in listed(&[]).await {
        let mut below: Vec<_> = listed(std::slice::from_ref(&command)).await;
        if below.is_empty() {
            assert!(known.iter().any(|known| known.first() == Some(&command)), "{command}");
        }
        below.retain(|name| {
            !known.iter().any(|known| known.starts_with(&[command.clone(), name.clone()]))
        });
        assert_eq!(below, Vec::<String>::new(), "of {command}");
    }
}
