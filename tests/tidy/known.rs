//! `known.txt`: what is not as it should be yet. A line each: the kind, the name, and where it has one, its size. What is not
//! listed fails the test; so does what is listed and has become better, until its line is changed.

use crate::files::{text_of, top};
use std::collections::BTreeMap;

/// What is known of one kind.
pub struct Known {
    kind: &'static str,
    sizes: BTreeMap<String, usize>,
}

impl Known {
    /// The lines of this kind.
    pub fn read(kind: &'static str) -> Self {
        let text = text_of(&top().join("tests/tidy/known.txt"));
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        let sizes = words
            .filter(|words| words.first() == Some(&kind))
            .map(|words| {
                let size = words.get(2).map_or(1, |size| size.parse().expect("a size"));
                (words[1].to_owned(), size)
            });
        Self {
            kind,
            sizes: sizes.collect(),
        }
    }

    /// Panics with what is to be mended, or what is to be changed in the list.
    pub fn is_exactly(&self, found: impl Iterator<Item = (String, usize)>) {
        let found: BTreeMap<String, usize> = found.collect();
        let kind = self.kind;
        let mut wrong = Vec::new();
        for (name, size) in &found {
            match self.sizes.get(name) {
                None => wrong.push(format!("mend it: {kind} {name} {size}")),
                Some(known) if size > known => {
                    wrong.push(format!("it has grown from {known}: {kind} {name} {size}"));
                }
                Some(known) if size < known => {
                    wrong.push(format!("well done, write: {kind} {name} {size}"));
                }
                Some(_) => {}
            }
        }
        for name in self.sizes.keys().filter(|name| !found.contains_key(*name)) {
            wrong.push(format!("well done, take its line out: {kind} {name}"));
        }
        assert!(
            wrong.is_empty(),
            "tests/tidy/known.txt:\n{}",
            wrong.join("\n")
        );
    }
}
