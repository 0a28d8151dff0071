// SPDX-License-Identifier: Apache-2.0
//! Reads the golden vectors of `tests/golden`.

use std::collections::HashMap;
use std::path::Path;

/// The lines of a file as words, comments left out.
pub fn lines(name: &str) -> Vec<Vec<String>> {
    // Of this crate, or of one in tests/.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.ancestors().map(|root| root.join("tests/golden").join(name)).find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("{name} is not in tests/golden"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split(' ').map(str::to_owned).collect()).collect()
}

/// The cases of a file: key to words, repeated keys appended.
pub fn cases(name: &str) -> Vec<HashMap<String, Vec<String>>> {
    let mut cases = vec![HashMap::<String, Vec<String>>::new()];
    for line in lines(name) {
        match line[0].as_str() {
            "end" => cases.push(HashMap::new()),
            key => cases
                .last_mut()
                .expect("one case is open")
                .entry(key.to_owned())
                .or_default()
                .extend(line[1..].iter().cloned()),
        }
    }
    assert!(cases.pop().expect("one case is open").is_empty(), "{name} does not end with `end`");
    assert!(cases.len() > 10, "{name} has only {} cases", cases.len());
    cases
}

pub fn bits(word: &str) -> u32 {
    u32::from_str_radix(word, 16).expect("hexadecimal bits")
}

pub fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(word: &str) -> T {
    word.parse().expect("a number")
}
