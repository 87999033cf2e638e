//! Which tests may be skipped in a guest: `skips.txt`.

use anyhow::{Result, bail};

/// All that may be skipped.
#[derive(Debug)]
pub struct Skips(Vec<Skip>);

#[derive(Debug)]
struct Skip {
    kernel: String,
    test: String,
    reason: String,
}

impl Skips {
    /// Reads the file.
    pub fn parse(text: &str) -> Result<Self> {
        let mut skips = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [] => {}
                [first, ..] if first.starts_with('#') => {}
                [kernel, test, reason @ ..] if !reason.is_empty() => skips.push(Skip {
                    kernel: (*kernel).to_owned(),
                    test: (*test).to_owned(),
                    reason: reason.join(" "),
                }),
                _ => bail!("cannot be understood: {line}"),
            }
        }
        Ok(Self(skips))
    }

    /// True if this test may be skipped there for this reason.
    pub fn allow(&self, kernel: &str, test: &str, reason: &str) -> bool {
        self.0.iter().any(|skip| {
            let named = match skip.test.strip_suffix('*') {
                Some(beginning) => test.starts_with(beginning),
                None => test == skip.test,
            };
            named && (skip.kernel == "*" || skip.kernel == kernel) && reason.contains(&skip.reason)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_test_and_reason_must_all_fit() {
        let skips = Skips::parse("# why\n6.1 t29_* no ring\n* one no luck today\n").unwrap();
        assert!(skips.allow("6.1", "t29_a", "there is no ring"));
        assert!(!skips.allow("6.12", "t29_a", "there is no ring"));
        assert!(!skips.allow("6.1", "t30_a", "there is no ring"));
        assert!(!skips.allow("6.1", "t29_a", "no memory"));
        assert!(skips.allow("6.12", "one", "no luck today"));
        assert!(!skips.allow("6.12", "one_more", "no luck today"));
        assert!(Skips::parse("6.1 test\n").is_err());
    }
}
