// SPDX-License-Identifier: Apache-2.0
//! Text out of files, made fit for a terminal and for one line.

use crate::error::Error;
use serde::{Serialize, Serializer};
use std::fmt::Display;

/// Characters of one name or value that a message shows.
const SHOWN: usize = 320;

/// Of those, the ones at its end.
const SHOWN_OF_END: usize = 80;

/// Names that a list shows before it says "and N more".
const NAMES_SHOWN: usize = 3;

/// `text` with everything written out that a terminal obeys, hides or reorders; its middle is left out if it is long.
///
/// Tensors and files are called what their author likes, so a name may hold escape sequences or be megabytes long.
pub fn printable(text: impl Display) -> String {
    let text = text.to_string();
    let count = text.chars().count();
    let shown = |part: &mut dyn Iterator<Item = char>| part.map(escaped).collect::<String>();
    if count <= SHOWN {
        return shown(&mut text.chars());
    }
    let start = shown(&mut text.chars().take(SHOWN - SHOWN_OF_END));
    let end = shown(&mut text.chars().skip(count - SHOWN_OF_END));
    format!("{start}...({} characters left out)...{end}", count - SHOWN)
}

/// A name as it stands in JSON: whoever prints what a program decodes of it has it [`printable`].
pub fn as_printable<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&printable(text))
}

/// The same of a value that may not be there.
pub fn as_printable_if_any<S: Serializer>(text: &Option<String>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(printable).serialize(serializer)
}

fn escaped(char: char) -> String {
    // Zero-width and direction marks are no control characters, but do the same harm.
    let invisible = matches!(char, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    if char.is_control() || invisible { char.escape_default().to_string() } else { char.to_string() }
}

/// The refusal of what a file holds, each part fit to be printed: `<name> is <value>; <rule>. <remedy>`
pub fn fault(name: impl Display, value: impl Display, rule: impl Display, remedy: impl Display) -> Error {
    Error::checkpoint(printable(name), printable(value), printable(rule), printable(remedy))
}

/// The first few names.
pub fn shorten(names: &[impl AsRef<str>]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).map(|name| printable(name.as_ref())).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text += &format!(" and {} more", names.len() - NAMES_SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out_and_length_is_bounded() {
        assert_eq!(printable("layers.0\u{1b}[2J\n.w1\u{202e}é"), "layers.0\\u{1b}[2J\\n.w1\\u{202e}é");
        let long = printable("a".repeat(1 << 20) + "z");
        assert!(long.len() < 400 && long.ends_with('z') && long.contains("1048257 characters left out"), "{long}");
    }

    #[test]
    fn a_list_names_three() {
        assert_eq!(shorten(&["a"]), "a");
        assert_eq!(shorten(&["a", "b", "c", "d", "e"]), "a, b, c and 2 more");
    }
}
