//! Pages with labels, and which pages have the same label in two of these. Runs of pages with one label
//! are kept as one. What a label means is the business of others.

use pagetide_pages::{PageRange, PageSet};

/// Some pages, each with a label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels<T> {
    runs: Vec<(PageRange, T)>,
}

impl<T> Default for Labels<T> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<T: Copy + Eq> Labels<T> {
    /// Adds pages that lie after all others.
    pub fn push(&mut self, pages: PageRange, label: T) {
        match self.runs.last_mut() {
            Some((last, same)) if *same == label && last.end() == pages.start() => {
                *last = PageRange::new(last.start(), pages.end());
            }
            last => {
                debug_assert!(last.is_none_or(|(last, _)| last.end() <= pages.start()));
                self.runs.push((pages, label));
            }
        }
    }

    /// The runs, ascending.
    pub fn runs(&self) -> &[(PageRange, T)] {
        &self.runs
    }

    /// All pages that have a label.
    pub fn pages(&self) -> PageSet {
        self.runs.iter().map(|(pages, _)| *pages).collect()
    }

    /// The pages that have the same label in both.
    pub fn alike(&self, other: &Self) -> PageSet {
        let (mut ours, mut theirs) = (self.runs.iter().peekable(), other.runs.iter().peekable());
        let mut alike = PageSet::new();
        while let (Some((a, label_a)), Some((b, label_b))) = (ours.peek(), theirs.peek()) {
            if label_a == label_b
                && let Some(common) = a.intersection(*b)
            {
                alike.insert(common);
            }
            if a.end() <= b.end() {
                ours.next();
            } else {
                theirs.next();
            }
        }
        alike
    }

    /// The pages that have a label in one and not the same in the other.
    pub fn differing(&self, other: &Self) -> PageSet {
        let either = self.pages().union(&other.pages());
        either.subtract(&self.alike(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagetide_pages::PageIndex;

    fn labels(text: &str) -> Labels<char> {
        let mut labels = Labels::default();
        for (page, label) in text.chars().enumerate().filter(|(_, label)| *label != '.') {
            labels.push(PageRange::single(PageIndex(page as u64)), label);
        }
        labels
    }

    fn differing(before: &str, now: &str) -> Vec<u64> {
        let pages = labels(before).differing(&labels(now));
        pages.pages().map(|page| page.0).collect()
    }

    #[test]
    fn runs_with_one_label_are_one() {
        assert_eq!(labels("aabb.b").runs().len(), 3);
    }

    #[test]
    fn pages_differ_that_have_another_label_or_none() {
        assert_eq!(differing("", ""), []);
        assert_eq!(differing("aabb", "aabb"), []);
        assert_eq!(differing("aabb", "abbb"), [1]);
        assert_eq!(differing("aa..", "..aa"), [0, 1, 2, 3]);
        assert_eq!(differing("aaaa", "a.ba"), [1, 2]);
        assert_eq!(differing("", "a"), [0]);
        assert_eq!(differing("abcab", "abc"), [3, 4]);
    }

    #[test]
    fn the_runs_say_what_page_by_page_comparison_says() {
        let texts = [
            "", "a", "ab.ba", "aabbb", "..abab", "bbbbbb", "a.a.a.", ".aaa.b",
        ];
        for (before, now) in texts.iter().flat_map(|a| texts.map(|b| (*a, b))) {
            let label = |text: &str, page| text.chars().nth(page).filter(|label| *label != '.');
            let naive = (0..6).filter(|&page| label(before, page) != label(now, page));
            let naive: Vec<u64> = naive.map(|page| page as u64).collect();
            assert_eq!(differing(before, now), naive, "{before:?} {now:?}");
        }
    }
}
