//! Durations of a profile, such as `"90s"` or `"24h"`.

use std::time::Duration;

use serde::Deserialize as _;

pub(super) fn required<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(input)?;
    parse(&text).ok_or_else(|| {
        let expected = "a whole number with s, m, h or d, such as \"90s\" or \"24h\"";
        serde::de::Error::custom(format!("`{text}` is not a duration: write {expected}"))
    })
}

pub(super) fn optional<'de, D: serde::Deserializer<'de>>(
    input: D,
) -> Result<Option<Duration>, D::Error> {
    required(input).map(Some)
}

/// A whole number above zero with `s`, `m`, `h` or `d`, up to ten years.
fn parse(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    let number: u64 = number.bytes().all(|b| b.is_ascii_digit()).then(|| number.parse().ok())??;
    let seconds = number.checked_mul(unit)?;
    (1..=10 * 365 * 86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, seconds) in [("1s", 1), ("2m", 120), ("24h", 86_400), ("90d", 7_776_000)] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "0s", "-1s", "+1s", "1", "1.5h", "1w", "1 h", "9999999d", "1é"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
