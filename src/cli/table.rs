//! Answers as people and programs read them.

use serde_json::Value;

use super::{CliError, say};

pub(super) fn say_json(value: &Value) -> Result<(), CliError> {
    say(&serde_json::to_string_pretty(value).map_err(CliError::internal)?)
}

/// A text of an answer for a cell of a table.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or("-")
}

/// Prints rows under headings, as wide as they need to be.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> Result<(), CliError> {
    let rows: Vec<_> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end())?;
    }
    Ok(())
}
